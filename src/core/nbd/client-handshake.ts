// Handshake of a client: from a server's first byte to an export that can be read.
//
//   greeting ─▶ STRUCTURED_REPLY ─▶ SET_META_CONTEXT base:allocation ─▶ GO           fixed newstyle
//            └▶ EXPORT_NAME                                                          older servers
//
// Every step but the last may be refused; then the client does with less. Lengths that the server sends are bounded
// before anything is kept of them. Source: NBD protocol document, "Handshake phase".

import { concatBytes } from "../../foundations/bytes.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { viewOf } from "../../foundations/struct.ts";
import type { Parser } from "./client-feed.ts";
import {
	BASE_ALLOCATION,
	clientFlag,
	EXPORT_NAME_PADDING_BYTES,
	ExportNameReply,
	Greeting,
	handshakeFlag,
	InfoBlockSize,
	InfoExport,
	info,
	NBD_MAGIC,
	OPTION_MAGIC,
	OPTION_REPLY_MAGIC,
	OptionHeader,
	OptionReplyHeader,
	option,
	optionReply,
	PAYLOAD_BYTES_MAX,
} from "./protocol.ts";

/** What was agreed on. Sizes in bytes. */
export interface Negotiated {
	readonly size: number;
	readonly structuredReplies: boolean;
	/** Id of `base:allocation`, or null where the server doesn't tell what is allocated. */
	readonly allocationContext: number | null;
	/** Offsets and lengths of requests are multiples of this. */
	readonly blockSizeMin: number;
	/** Longest read. */
	readonly payloadMax: number;
}

/** Replies to one option, and bytes in one of them: more is an attack. */
const REPLIES_MAX = 256;
const REPLY_BYTES_MAX = 64 * 1024;

/** Negotiates an export. `what` names the server in messages. Throws NBD_PROTOCOL, FILE_NOT_FOUND, IMAGE_UNSUPPORTED. */
export function* negotiate(exportName: string, what: string, send: (bytes: Uint8Array) => void): Parser<Negotiated> {
	const greeting = Greeting.at(viewOf(yield* take(Greeting.size)));
	if (greeting.magic !== NBD_MAGIC) throw broken(what, "it doesn't speak NBD");
	if (greeting.optionMagic !== OPTION_MAGIC)
		throw new VmsweepError("IMAGE_UNSUPPORTED", `${what}: its NBD protocol is the old one, without options.`);
	const fixed = (greeting.flags & handshakeFlag.FIXED_NEWSTYLE) !== 0;
	const noZeroes = (greeting.flags & handshakeFlag.NO_ZEROES) !== 0;
	const flags = new Uint8Array(4);
	viewOf(flags).setUint32(0, (fixed ? clientFlag.FIXED_NEWSTYLE : 0) | (noZeroes ? clientFlag.NO_ZEROES : 0));
	send(flags);

	const name = new TextEncoder().encode(exportName);
	let structuredReplies = false;
	let allocationContext: number | null = null;
	if (fixed) {
		const structured = yield* ask(option.STRUCTURED_REPLY, new Uint8Array(0), what, send);
		structuredReplies = structured.error === null;
		if (structuredReplies) allocationContext = yield* askForAllocation(name, what, send);
		const wanted = concatBytes([u32(name.length), name, u16(1), u16(info.BLOCK_SIZE)]);
		const go = yield* ask(option.GO, wanted, what, send);
		if (go.error === null) return { ...exportOf(go.infos, what), structuredReplies, allocationContext };
		if (go.error.type !== optionReply.ERR_UNSUP) throw refused(exportName, go.error, what);
	}
	send(optionBytes(option.EXPORT_NAME, name));
	const reply = ExportNameReply.at(viewOf(yield* take(ExportNameReply.size)));
	if (!noZeroes) yield* take(EXPORT_NAME_PADDING_BYTES);
	const { size } = reply;
	return { size: checkSize(size, what), structuredReplies, allocationContext, ...defaultBlocks };
}

const defaultBlocks = { blockSizeMin: 1, payloadMax: PAYLOAD_BYTES_MAX } as const;

interface OptionAnswer {
	/** Payloads of the replies before the last one. */
	readonly infos: readonly { readonly type: number; readonly data: Uint8Array }[];
	/** Null: acknowledged. */
	readonly error: { readonly type: number; readonly text: string } | null;
}

function* ask(code: number, data: Uint8Array, what: string, send: (bytes: Uint8Array) => void): Parser<OptionAnswer> {
	send(optionBytes(code, data));
	const infos: { type: number; data: Uint8Array }[] = [];
	for (;;) {
		const header = OptionReplyHeader.at(viewOf(yield* take(OptionReplyHeader.size)));
		if (header.magic !== OPTION_REPLY_MAGIC || header.option !== code)
			throw broken(what, "it answered what was not asked");
		if (header.length > REPLY_BYTES_MAX || infos.length === REPLIES_MAX)
			throw broken(what, "its answer to an option is too long");
		const payload = yield* take(header.length);
		if (header.type === optionReply.ACK) return { infos, error: null };
		if (header.type >= 0x8000_0000) {
			const error = { type: header.type, text: new TextDecoder().decode(payload) };
			if (error.type === optionReply.ERR_TLS_REQD)
				throw new VmsweepError("IMAGE_UNSUPPORTED", `${what}: it requires TLS, which is not spoken.`);
			return { infos, error };
		}
		infos.push({ type: header.type, data: payload });
	}
}

function* askForAllocation(name: Uint8Array, what: string, send: (bytes: Uint8Array) => void): Parser<number | null> {
	const context = new TextEncoder().encode(BASE_ALLOCATION);
	const query = concatBytes([u32(name.length), name, u32(1), u32(context.length), context]);
	const { infos, error } = yield* ask(option.SET_META_CONTEXT, query, what, send);
	if (error !== null) return null;
	for (const { type, data } of infos) {
		if (type !== optionReply.META_CONTEXT || data.length < 4) throw broken(what, "it named no metadata context");
		if (new TextDecoder().decode(data.subarray(4)) === BASE_ALLOCATION) return viewOf(data).getUint32(0);
	}
	return null;
}

function exportOf(
	infos: OptionAnswer["infos"],
	what: string,
): Omit<Negotiated, "structuredReplies" | "allocationContext"> {
	let size: number | undefined;
	let blocks: { blockSizeMin: number; payloadMax: number } = defaultBlocks;
	for (const { type, data } of infos) {
		if (type !== optionReply.INFO || data.length < 2) throw broken(what, "it answered what was not asked");
		const view = viewOf(data);
		switch (view.getUint16(0)) {
			case info.EXPORT:
				if (data.length !== InfoExport.size) throw broken(what, "its description of the export is too short");
				size = checkSize(InfoExport.read.size(view, 0), what);
				break;
			case info.BLOCK_SIZE:
				if (data.length !== InfoBlockSize.size) throw broken(what, "its description of block sizes is too short");
				blocks = blockSizes(InfoBlockSize.at(view), what);
				break;
			default: // names and descriptions are for people
		}
	}
	if (size === undefined) throw broken(what, "it didn't say how large the export is");
	return { size, ...blocks };
}

/** "Size constraints": a power of two up to 64 KiB; reads of at least 1 MiB may be made where that is allowed. */
function blockSizes(
	{ minimum, maximumPayload }: ReturnType<typeof InfoBlockSize.at>,
	what: string,
): { blockSizeMin: number; payloadMax: number } {
	if (minimum === 0 || (minimum & (minimum - 1)) !== 0 || minimum > 65_536 || maximumPayload < minimum)
		throw broken(what, `its block sizes make no sense (${minimum} to ${maximumPayload} bytes)`);
	return { blockSizeMin: minimum, payloadMax: Math.min(maximumPayload, PAYLOAD_BYTES_MAX) };
}

function checkSize(size: number, what: string): number {
	if (!Number.isSafeInteger(size)) throw broken(what, "its export is larger than any disk");
	return size;
}

function refused(exportName: string, { type, text }: { type: number; text: string }, what: string): VmsweepError {
	const said = text === "" ? "" : ` (${JSON.stringify(text.slice(0, 200))})`;
	if (type === optionReply.ERR_UNKNOWN)
		return new VmsweepError(
			"FILE_NOT_FOUND",
			`${what} has no export ${JSON.stringify(exportName)}${said}. Check the name; nbdinfo --list shows all.`,
		);
	return new VmsweepError(
		"IO",
		`${what} refused the export ${JSON.stringify(exportName)}: error 0x${type.toString(16)}${said}.`,
	);
}

const broken = (what: string, why: string): VmsweepError =>
	new VmsweepError("NBD_PROTOCOL", `${what}: ${why}. Check the address and the server.`);

function* take(length: number): Parser<Uint8Array> {
	const bytes = new Uint8Array(length);
	yield bytes;
	return bytes;
}

function optionBytes(code: number, data: Uint8Array): Uint8Array {
	const bytes = new Uint8Array(OptionHeader.size + data.length);
	OptionHeader.put(viewOf(bytes), 0, { magic: OPTION_MAGIC, option: code, length: data.length });
	bytes.set(data, OptionHeader.size);
	return bytes;
}

const u16 = (value: number): Uint8Array => Uint8Array.of(value >>> 8, value & 0xff);
const u32 = (value: number): Uint8Array =>
	Uint8Array.of(value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff);
