// Handshake: the server's side of NBD's fixed newstyle negotiation, as a state machine over bytes.
//
//   bytes in ──► receive() ──► bytes to send, and perhaps an outcome
//
//   greeting ─► client flags ─► option ─► option ─► … ─► GO or EXPORT_NAME ─► transmission
//                                │  ▲                     STARTTLS ─► tls, and the handshake goes on inside TLS
//                                │  │                     ABORT, or a broken client ─► aborted
//                                └──┘ unknown or wrong options are answered with an error and change nothing
//
// Invariants
//  - the answers depend only on the bytes received, never on how the network cut them into pieces
//  - memory is bounded: an option longer than OPTION_BYTES_MAX is never held, its bytes are skipped as they come
//  - work is bounded: after OPTIONS_MAX options the connection is given up
//  - after GO or EXPORT_NAME nothing more is read: later bytes are the first requests and are handed on as `leftover`
//  - nothing that was said before TLS counts inside it, and no byte that came unencrypted is taken for an encrypted one
//  - block status contexts count only for the export that they were chosen for (SET_META_CONTEXT, "Metadata querying")
//
// Pure on purpose: the same code answers on a socket, in the tests byte by byte, and to a fuzzer.
// Section names refer to the NBD protocol document (see protocol.ts).

import { viewOf } from "../../foundations/struct.ts";
import type { ByteCount } from "../../foundations/units.ts";
import { parseExportName, parseExportQuery, parseMetaContextQuery } from "./handshake-options.ts";
import { HandshakeReplies } from "./handshake-replies.ts";
import { CONTEXTS_MAX, type ContextKind, contextOf, listContexts, selectContexts } from "./meta-contexts.ts";
import {
	clientFlag,
	Greeting,
	type HeaderForm,
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
	/** Metadata contexts that clients may select; `base:allocation` alone where not given. */
	readonly contexts?: readonly ContextKind["kind"][];
	/** Why nobody may attach it now, one line for the client's user; it is listed all the same. */
	readonly refusal?: string;
}

/** A metadata context that the client selected; `id` goes into block status replies. */
export interface MetaContext {
	readonly id: number;
	readonly name: string;
	readonly context: ContextKind;
}

/** May, or must, a client's session be encrypted? */
export type TlsPolicy = "none" | "optional" | "required";

/** How a handshake ended. */
export type HandshakeOutcome =
	| {
			readonly kind: "transmission";
			/** Canonical name of the export, never empty unless an export is really called "". */
			readonly exportName: string;
			readonly headers: HeaderForm;
			readonly metaContexts: readonly MetaContext[];
			/** Bytes that the client sent after its last option: the start of its first requests. */
			readonly leftover: Uint8Array;
	  }
	| {
			/** Send the reply, then go on inside TLS with `continueInTls`. */
			readonly kind: "tls";
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
	transmissionFlag.SEND_FAST_ZERO |
	transmissionFlag.BLOCK_STATUS_PAYLOAD;

const DEFAULT_CONTEXTS: readonly ContextKind["kind"][] = ["allocation"];
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
	readonly #tls: TlsPolicy;
	#insideTls = false;
	#fixedNewstyle = false;
	#expected: Expected = { kind: "client flags" };
	/** The fixed-size piece that is being collected, and how much of it is there. */
	#piece = new Uint8Array(CLIENT_FLAGS_BYTES);
	#pieceLength = 0;
	#optionCount = 0;
	#noZeroes = false;
	#headers: HeaderForm = "simple";
	/** Export that the last SET_META_CONTEXT chose contexts for. */
	#metaContexts: { readonly exportName: string; readonly contexts: readonly MetaContext[] } | undefined;

	/** `exports` in the order in which LIST shows them; the first is the default export. Names are unique. */
	constructor(exports: readonly ExportDescription[], tls: TlsPolicy = "none") {
		this.#exports = exports;
		this.#tls = tls;
	}

	/** What the server sends first, before anything is received. */
	greeting(): Uint8Array {
		const greeting = new Uint8Array(Greeting.size);
		const flags = handshakeFlag.FIXED_NEWSTYLE | handshakeFlag.NO_ZEROES;
		Greeting.put(viewOf(greeting), 0, { magic: NBD_MAGIC, optionMagic: OPTION_MAGIC, flags });
		return greeting;
	}

	/** After the outcome `tls`: what `receive` gets from now on was decrypted. */
	continueInTls(): void {
		this.#insideTls = true;
		this.#headers = "simple";
		this.#metaContexts = undefined;
		this.#expect({ kind: "option header" }, OptionHeader.size);
	}

	/** Takes bytes from the client, in pieces of any size. Must not be called after an outcome but `tls`. */
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
			if (outcome.kind === "tls") {
				// Whoever sends them before the answer wants them taken for what the encrypted client said.
				if (at < bytes.length)
					return { reply: new Uint8Array(0), outcome: aborted("bytes followed its wish for TLS unencrypted") };
				return { reply: replies.bytes(), outcome };
			}
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
		this.#fixedNewstyle = (flags & clientFlag.FIXED_NEWSTYLE) !== 0;
		// Without fixed newstyle it can't be told that TLS is required, nor start it ("Server-side requirements").
		if (!this.#fixedNewstyle && this.#tls === "required") return aborted("the client is too old for TLS");
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
		if (this.#tlsIsDue) replies.error(option, optionReply.ERR_TLS_REQD, TLS_REQUIRED);
		else if (isKnownOption(option)) replies.error(option, optionReply.ERR_TOO_BIG, "the option is too long");
		else replies.error(option, optionReply.ERR_UNSUP, "unknown option");
		this.#expect({ kind: "option header" }, OptionHeader.size);
	}

	/** FORCEDTLS: nothing but STARTTLS and ABORT is done before it. */
	get #tlsIsDue(): boolean {
		return this.#tls === "required" && !this.#insideTls;
	}

	#handleOption(option: number, data: Uint8Array, replies: HandshakeReplies): HandshakeOutcome | undefined {
		if (this.#tlsIsDue && option !== options.STARTTLS && option !== options.ABORT) {
			if (option === options.EXPORT_NAME) return aborted("the client chose an export without TLS, which is required");
			replies.error(option, optionReply.ERR_TLS_REQD, TLS_REQUIRED);
			return undefined;
		}
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
				return this.#handleStartTls(data, replies);
			case options.INFO:
			case options.GO:
				return this.#handleInfoOrGo(option, data, replies);
			case options.STRUCTURED_REPLY:
				if (refuseData(option, data, replies)) return undefined;
				if (this.#headers === "extended") {
					replies.error(option, optionReply.ERR_EXT_HEADER_REQD, "extended headers are negotiated already");
					return undefined;
				}
				if (this.#headers === "structured") return refuseAgain(option, replies);
				this.#headers = "structured";
				replies.ack(option);
				return undefined;
			case options.EXTENDED_HEADERS:
				if (refuseData(option, data, replies)) return undefined;
				if (this.#headers === "extended") return refuseAgain(option, replies);
				this.#headers = "extended";
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

	#handleStartTls(data: Uint8Array, replies: HandshakeReplies): HandshakeOutcome | undefined {
		const option = options.STARTTLS;
		if (refuseData(option, data, replies)) return undefined;
		if (this.#insideTls) replies.error(option, optionReply.ERR_INVALID, "the session is encrypted already");
		else if (this.#tls === "none") replies.error(option, optionReply.ERR_POLICY, "this server does not offer TLS");
		else if (!this.#fixedNewstyle) replies.error(option, optionReply.ERR_INVALID, "TLS needs fixed newstyle");
		else {
			replies.ack(option);
			return { kind: "tls" };
		}
		return undefined;
	}

	/** The old way into transmission. It has no error reply, so a wrong name must end the connection. */
	#handleExportName(data: Uint8Array, replies: HandshakeReplies): HandshakeOutcome {
		if (this.#headers === "extended") return aborted("the client mixed extended headers with EXPORT_NAME");
		const query = parseExportName(data);
		if (typeof query === "string") return aborted("the client sent an export name that is no text");
		const chosen = this.#find(query.exportName);
		if (chosen === undefined) return aborted(`the client asked for the unknown export "${query.exportName}"`);
		if (chosen.refusal !== undefined) return aborted(chosen.refusal);
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
		if (option === options.GO && chosen.refusal !== undefined) {
			replies.error(option, optionReply.ERR_POLICY, chosen.refusal);
			return undefined;
		}
		replies.infoExport(option, chosen.size, this.#flagsOf(chosen));
		if (query.wanted.has(info.NAME)) replies.infoText(option, info.NAME, chosen.name);
		if (query.wanted.has(info.DESCRIPTION)) replies.infoText(option, info.DESCRIPTION, chosen.description);
		if (query.wanted.has(info.BLOCK_SIZE)) replies.infoBlockSize(option, chosen.blockSize);
		replies.ack(option);
		return option === options.GO ? this.#transmission(chosen) : undefined;
	}

	/** SET replaces what was set before, also where it fails. A namespace alone lists its contexts and sets none. */
	#handleMetaContext(option: number, data: Uint8Array, replies: HandshakeReplies): void {
		const isSet = option === options.SET_META_CONTEXT;
		if (isSet) this.#metaContexts = undefined;
		if (this.#headers === "simple") {
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
		const offered = chosen.contexts ?? DEFAULT_CONTEXTS;
		if (!isSet) {
			// "The metadata context ID in these replies is reserved and SHOULD be set to zero" where they only list.
			for (const name of listContexts(query.queries, offered)) replies.metaContext(option, 0, name);
			replies.ack(option);
			return;
		}
		const names = selectContexts(query.queries, offered);
		if (names.length > CONTEXTS_MAX) {
			replies.error(option, optionReply.ERR_TOO_BIG, `${CONTEXTS_MAX} metadata contexts can be selected at once`);
			return;
		}
		const contexts = names.map((name, index) => ({ id: index + 1, name, context: contextOf(name)! }));
		for (const { id, name } of contexts) replies.metaContext(option, id, name);
		this.#metaContexts = { exportName: chosen.name, contexts };
		replies.ack(option);
	}

	#contextsFor(chosen: ExportDescription): readonly MetaContext[] {
		const selected = this.#metaContexts;
		return selected?.exportName === chosen.name ? selected.contexts : [];
	}

	#transmission(chosen: ExportDescription): HandshakeOutcome {
		return {
			kind: "transmission",
			exportName: chosen.name,
			headers: this.#headers,
			metaContexts: this.#contextsFor(chosen),
			leftover: new Uint8Array(0),
		};
	}

	/** The empty name means the first export, unless one is really called so. */
	#find(name: string): ExportDescription | undefined {
		return this.#exports.find((one) => one.name === name) ?? (name === "" ? this.#exports[0] : undefined);
	}

	#flagsOf(chosen: ExportDescription): number {
		let flags = chosen.transmissionFlags | transmissionFlag.HAS_FLAGS;
		if (chosen.readOnly) flags = (flags | transmissionFlag.READ_ONLY) & ~WRITING_FLAGS;
		if (this.#headers === "simple") flags &= ~transmissionFlag.SEND_DF;
		if (this.#headers !== "extended" || this.#contextsFor(chosen).length === 0)
			flags &= ~transmissionFlag.BLOCK_STATUS_PAYLOAD;
		return flags;
	}
}

const TLS_REQUIRED = "this server requires TLS";
const WRITING_FLAGS = transmissionFlag.SEND_TRIM | transmissionFlag.SEND_WRITE_ZEROES | transmissionFlag.SEND_FAST_ZERO;

const aborted = (reason: string): HandshakeOutcome => ({ kind: "aborted", reason });

const isKnownOption = (option: number): boolean => Object.values<number>(options).includes(option);

/** Answers an option that must come without data but has some. */
function refuseData(option: number, data: Uint8Array, replies: HandshakeReplies): boolean {
	if (data.length === 0) return false;
	replies.error(option, optionReply.ERR_INVALID, "this option takes no data");
	return true;
}

/** The document leaves it open; QEMU and nbdkit refuse it, and libnbd's tests want that. */
function refuseAgain(option: number, replies: HandshakeReplies): undefined {
	replies.error(option, optionReply.ERR_INVALID, "this is negotiated already");
}
