// Handshake: the server's side of NBD's fixed newstyle negotiation, as a state machine over bytes.
//
//   bytes in ──► receive() ──► bytes to send, and perhaps an outcome
//
//   greeting ─► client flags ─► option ─► option ─► … ─► GO or EXPORT_NAME ─► transmission
//                                │  ▲                     ABORT, or a broken client ─► aborted
//                                └──┘ unknown or wrong options are answered with an error and change nothing
//
// Invariants
//  - the answers depend only on the bytes received, never on how the network cut them into pieces
//  - memory is bounded: an option longer than OPTION_BYTES_MAX is never held, its bytes are skipped as they come
//  - work is bounded: after OPTIONS_MAX options the connection is given up
//  - after GO or EXPORT_NAME nothing more is read: later bytes are the first requests and are handed on as `leftover`
//  - block status contexts count only for the export that they were chosen for (SET_META_CONTEXT, "Metadata querying")
//
// Pure on purpose: the same code answers on a socket, in the tests byte by byte, and to a fuzzer.
// Section names refer to the NBD protocol document (see protocol.ts).

import { viewOf } from "../../foundations/struct.ts";
import type { ByteCount } from "../../foundations/units.ts";
import { parseExportName, parseExportQuery, parseMetaContextQuery } from "./handshake-options.ts";
import { HandshakeReplies } from "./handshake-replies.ts";
import {
	BASE_ALLOCATION,
	clientFlag,
	Greeting,
	handshakeFlag,
	info,
	NBD_MAGIC,
	OPTION_MAGIC,
	OptionHeader,
	optionReply,
	option as options,
	transmissionFlag,
} from "./protocol.ts";

/** What a server offers under one name. */
export interface ExportDescription {
	readonly name: string;
	/** One line for people; may be empty. */
	readonly description: string;
	readonly size: ByteCount;
	readonly readOnly: boolean;
	/** Bits of `transmissionFlag`. HAS_FLAGS and READ_ONLY are set, SEND_DF is cleared where not allowed, by the handshake. */
	readonly transmissionFlags: number;
	/** In bytes. The protocol's defaults are 1, 4096 and 32 MiB. */
	readonly blockSize: { readonly minimum: number; readonly preferred: number; readonly maximumPayload: number };
}

/** A metadata context that the client selected; `id` goes into block status replies. */
export interface MetaContext {
	readonly id: number;
	readonly name: string;
}

/** How a handshake ended. */
export type HandshakeOutcome =
	| {
			readonly kind: "transmission";
			/** Canonical name of the export, never empty unless an export is really called "". */
			readonly exportName: string;
			readonly structuredReplies: boolean;
			readonly metaContexts: readonly MetaContext[];
			/** Bytes that the client sent after its last option: the start of its first requests. */
			readonly leftover: Uint8Array;
	  }
	| { readonly kind: "aborted" /** For the log, one line. */; readonly reason: string };

/** One step's result: send `reply` (may be empty) first, then act on `outcome` where there is one. */
export interface HandshakeStep {
	readonly reply: Uint8Array;
	readonly outcome?: HandshakeOutcome;
}

/** Longest option data that is looked at; longer options are skipped and answered with ERR_TOO_BIG. In bytes. */
export const OPTION_BYTES_MAX = 64 * 1024;
/** Longest option that is still skipped, in bytes; a client that announces more is dropped. */
export const OPTION_BYTES_SKIPPED_MAX = 16 * 1024 * 1024;
/** Options after which a client is dropped. */
export const OPTIONS_MAX = 1024;

/** Transmission flags of a disk that vmsweep serves, complete but for READ_ONLY, which the handshake adds. */
export const diskTransmissionFlags: number =
	transmissionFlag.HAS_FLAGS |
	transmissionFlag.SEND_FLUSH |
	transmissionFlag.SEND_FUA |
	transmissionFlag.SEND_TRIM |
	transmissionFlag.SEND_WRITE_ZEROES |
	transmissionFlag.SEND_DF |
	transmissionFlag.CAN_MULTI_CONN |
	transmissionFlag.SEND_CACHE |
	transmissionFlag.SEND_FAST_ZERO;

/** The id under which `base:allocation` is selected. */
const BASE_ALLOCATION_ID = 1;
const CLIENT_FLAGS_BYTES = 4;

/** What the bytes that come next are. */
type Expected =
	| { readonly kind: "client flags" | "option header" }
	| { readonly kind: "option data"; readonly option: number }
	| { readonly kind: "too long option"; readonly option: number; remaining: number }
	| { readonly kind: "nothing" };

/** The server's side of one connection's handshake. */
export class Handshake {
	readonly #exports: readonly ExportDescription[];
	#expected: Expected = { kind: "client flags" };
	/** The fixed-size piece that is being collected, and how much of it is there. */
	#piece = new Uint8Array(CLIENT_FLAGS_BYTES);
	#pieceLength = 0;
	#optionCount = 0;
	#noZeroes = false;
	#structuredReplies = false;
	/** Export that the last SET_META_CONTEXT chose contexts for. */
	#metaContexts: { readonly exportName: string; readonly contexts: readonly MetaContext[] } | undefined;

	/** `exports` in the order in which LIST shows them; the first is the default export. Names are unique. */
	constructor(exports: readonly ExportDescription[]) {
		this.#exports = exports;
	}

	/** What the server sends first, before anything is received. */
	greeting(): Uint8Array {
		const greeting = new Uint8Array(Greeting.size);
		const flags = handshakeFlag.FIXED_NEWSTYLE | handshakeFlag.NO_ZEROES;
		Greeting.put(viewOf(greeting), 0, { magic: NBD_MAGIC, optionMagic: OPTION_MAGIC, flags });
		return greeting;
	}

	/** Takes bytes from the client, in pieces of any size. Must not be called after an outcome. */
	receive(bytes: Uint8Array): HandshakeStep {
		const replies = new HandshakeReplies();
		let at = 0;
		for (;;) {
			if (this.#expected.kind === "too long option") {
				const skipped = Math.min(this.#expected.remaining, bytes.length - at);
				at += skipped;
				this.#expected.remaining -= skipped;
				if (this.#expected.remaining > 0) return { reply: replies.bytes() };
				this.#refuseTooLong(this.#expected.option, replies);
				continue;
			}
			const taken = Math.min(this.#piece.length - this.#pieceLength, bytes.length - at);
			this.#piece.set(bytes.subarray(at, at + taken), this.#pieceLength);
			this.#pieceLength += taken;
			at += taken;
			if (this.#pieceLength < this.#piece.length) return { reply: replies.bytes() };
			const outcome = this.#handlePiece(this.#piece, replies);
			if (outcome === undefined) continue;
			this.#expect({ kind: "nothing" }, 0);
			if (outcome.kind === "aborted") return { reply: replies.bytes(), outcome };
			return { reply: replies.bytes(), outcome: { ...outcome, leftover: bytes.slice(at) } };
		}
	}

	#expect(expected: Expected, length: number): void {
		this.#expected = expected;
		this.#piece = new Uint8Array(length);
		this.#pieceLength = 0;
	}

	#handlePiece(piece: Uint8Array, replies: HandshakeReplies): HandshakeOutcome | undefined {
		switch (this.#expected.kind) {
			case "client flags":
				return this.#handleClientFlags(viewOf(piece).getUint32(0));
			case "option header":
				return this.#handleOptionHeader(piece);
			case "option data": {
				const { option } = this.#expected;
				this.#expect({ kind: "option header" }, OptionHeader.size);
				return this.#handleOption(option, piece, replies);
			}
			case "too long option":
			case "nothing":
				return aborted("bytes were fed to a handshake that had ended");
			default:
				return this.#expected satisfies never;
		}
	}

	/** "Client flags": an unknown flag must end the connection. Clients without FIXED_NEWSTYLE are served alike. */
	#handleClientFlags(flags: number): HandshakeOutcome | undefined {
		const unknown = flags & ~(clientFlag.FIXED_NEWSTYLE | clientFlag.NO_ZEROES);
		if (unknown !== 0) return aborted(`the client set unknown flags 0x${(unknown >>> 0).toString(16)}`);
		this.#noZeroes = (flags & clientFlag.NO_ZEROES) !== 0;
		this.#expect({ kind: "option header" }, OptionHeader.size);
		return undefined;
	}

	#handleOptionHeader(piece: Uint8Array): HandshakeOutcome | undefined {
		const { magic, option, length } = OptionHeader.at(viewOf(piece));
		if (magic !== OPTION_MAGIC) return aborted(`the client sent an option with magic 0x${magic.toString(16)}`);
		if (++this.#optionCount > OPTIONS_MAX) return aborted(`the client sent more than ${OPTIONS_MAX} options`);
		if (length > OPTION_BYTES_SKIPPED_MAX) return aborted(`the client announced an option of ${length} bytes`);
		if (length <= OPTION_BYTES_MAX) this.#expect({ kind: "option data", option }, length);
		else if (option === options.EXPORT_NAME) return aborted(`the client sent an export name of ${length} bytes`);
		else this.#expect({ kind: "too long option", option, remaining: length }, 0);
		return undefined;
	}

	#refuseTooLong(option: number, replies: HandshakeReplies): void {
		if (option === options.SET_META_CONTEXT) this.#metaContexts = undefined;
		if (isKnownOption(option)) replies.error(option, optionReply.ERR_TOO_BIG, "the option is too long");
		else replies.error(option, optionReply.ERR_UNSUP, "unknown option");
		this.#expect({ kind: "option header" }, OptionHeader.size);
	}

	#handleOption(option: number, data: Uint8Array, replies: HandshakeReplies): HandshakeOutcome | undefined {
		switch (option) {
			case options.EXPORT_NAME:
				return this.#handleExportName(data, replies);
			case options.ABORT:
				replies.ack(option);
				return aborted("the client ended the connection before choosing an export");
			case options.LIST:
				if (refuseData(option, data, replies)) return undefined;
				for (const { name, description } of this.#exports) replies.server(option, name, description);
				replies.ack(option);
				return undefined;
			case options.STARTTLS:
				if (refuseData(option, data, replies)) return undefined;
				replies.error(option, optionReply.ERR_POLICY, "this server does not offer TLS");
				return undefined;
			case options.INFO:
			case options.GO:
				return this.#handleInfoOrGo(option, data, replies);
			case options.STRUCTURED_REPLY:
				if (refuseData(option, data, replies)) return undefined;
				this.#structuredReplies = true;
				replies.ack(option);
				return undefined;
			case options.LIST_META_CONTEXT:
			case options.SET_META_CONTEXT:
				this.#handleMetaContext(option, data, replies);
				return undefined;
			default:
				replies.error(option, optionReply.ERR_UNSUP, "unknown option");
				return undefined;
		}
	}

	/** The old way into transmission. It has no error reply, so a wrong name must end the connection. */
	#handleExportName(data: Uint8Array, replies: HandshakeReplies): HandshakeOutcome {
		const query = parseExportName(data);
		if (typeof query === "string") return aborted("the client sent an export name that is no text");
		const chosen = this.#find(query.exportName);
		if (chosen === undefined) return aborted(`the client asked for the unknown export "${query.exportName}"`);
		replies.exportName(chosen.size, this.#flagsOf(chosen), !this.#noZeroes);
		return this.#transmission(chosen);
	}

	#handleInfoOrGo(option: number, data: Uint8Array, replies: HandshakeReplies): HandshakeOutcome | undefined {
		const query = parseExportQuery(data);
		if (typeof query === "string") {
			replies.error(option, optionReply[`ERR_${query}`], "the option's data is malformed");
			return undefined;
		}
		const chosen = this.#find(query.exportName);
		if (chosen === undefined) {
			replies.error(option, optionReply.ERR_UNKNOWN, `no export "${query.exportName}" here`);
			return undefined;
		}
		replies.infoExport(option, chosen.size, this.#flagsOf(chosen));
		if (query.wanted.has(info.NAME)) replies.infoText(option, info.NAME, chosen.name);
		if (query.wanted.has(info.DESCRIPTION)) replies.infoText(option, info.DESCRIPTION, chosen.description);
		if (query.wanted.has(info.BLOCK_SIZE)) replies.infoBlockSize(option, chosen.blockSize);
		replies.ack(option);
		return option === options.GO ? this.#transmission(chosen) : undefined;
	}

	/** SET replaces what was set before, also where it fails. `base:` alone lists all contexts and sets none. */
	#handleMetaContext(option: number, data: Uint8Array, replies: HandshakeReplies): void {
		const isSet = option === options.SET_META_CONTEXT;
		if (isSet) this.#metaContexts = undefined;
		if (!this.#structuredReplies) {
			replies.error(option, optionReply.ERR_INVALID, "structured replies must be negotiated first");
			return;
		}
		const query = parseMetaContextQuery(data);
		if (typeof query === "string") {
			replies.error(option, optionReply[`ERR_${query}`], "the option's data is malformed");
			return;
		}
		const chosen = this.#find(query.exportName);
		if (chosen === undefined) {
			replies.error(option, optionReply.ERR_UNKNOWN, `no export "${query.exportName}" here`);
			return;
		}
		const wildcard = !isSet && (query.queries.length === 0 || query.queries.includes("base:"));
		if (wildcard || query.queries.includes(BASE_ALLOCATION)) {
			// "The metadata context ID in these replies is reserved and SHOULD be set to zero" where they only list.
			replies.metaContext(option, isSet ? BASE_ALLOCATION_ID : 0, BASE_ALLOCATION);
			if (isSet) {
				const contexts = [{ id: BASE_ALLOCATION_ID, name: BASE_ALLOCATION }];
				this.#metaContexts = { exportName: chosen.name, contexts };
			}
		}
		replies.ack(option);
	}

	#transmission(chosen: ExportDescription): HandshakeOutcome {
		const selected = this.#metaContexts;
		return {
			kind: "transmission",
			exportName: chosen.name,
			structuredReplies: this.#structuredReplies,
			metaContexts: selected?.exportName === chosen.name ? selected.contexts : [],
			leftover: new Uint8Array(0),
		};
	}

	/** The empty name means the first export, unless one is really called so. */
	#find(name: string): ExportDescription | undefined {
		return this.#exports.find((one) => one.name === name) ?? (name === "" ? this.#exports[0] : undefined);
	}

	#flagsOf({ transmissionFlags, readOnly }: ExportDescription): number {
		let flags = transmissionFlags | transmissionFlag.HAS_FLAGS;
		if (readOnly) flags = (flags | transmissionFlag.READ_ONLY) & ~WRITING_FLAGS;
		return this.#structuredReplies ? flags : flags & ~transmissionFlag.SEND_DF;
	}
}

const WRITING_FLAGS = transmissionFlag.SEND_TRIM | transmissionFlag.SEND_WRITE_ZEROES | transmissionFlag.SEND_FAST_ZERO;

const aborted = (reason: string): HandshakeOutcome => ({ kind: "aborted", reason });

const isKnownOption = (option: number): boolean => Object.values<number>(options).includes(option);

/** Answers an option that must come without data but has some. */
function refuseData(option: number, data: Uint8Array, replies: HandshakeReplies): boolean {
	if (data.length === 0) return false;
	replies.error(option, optionReply.ERR_INVALID, "this option takes no data");
	return true;
}
