// Transmission replies, written straight into an output buffer: nothing is allocated per reply.
//
//   simple:      | header 16 | data of a read |
//   structured:  | header 20 | chunk payload  |   one chunk answers one request here, with DONE set
//
// A request's cookie is opaque: it is carried as its two 32-bit halves, since a BigInt would be an allocation.
// Source: NBD protocol document, "Simple reply message" and "Structured reply chunk message".

import {
	chunk,
	ErrorChunk,
	OffsetData,
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";

/** Bytes of a reply that carries no data, in either form, at most. */
export const BARE_REPLY_BYTES = StructuredReply.size + ErrorChunk.size;
/** Bytes before the data of a read reply, in either form, at most. */
export const READ_HEADER_BYTES = StructuredReply.size + OffsetData.size;

/** Writes replies of one connection's negotiated form. Each `put…` returns the bytes written at `at`. */
export class ReplyWriter {
	readonly #structured: boolean;
	constructor(structured: boolean) {
		this.#structured = structured;
	}

	/** Bytes of the header before a read's data. */
	get readHeaderBytes(): number {
		return this.#structured ? READ_HEADER_BYTES : SimpleReply.size;
	}

	/** Success without data. */
	putDone(view: DataView, at: number, cookieHigh: number, cookieLow: number): number {
		if (!this.#structured) return this.#putSimple(view, at, cookieHigh, cookieLow, 0);
		return putChunk(view, at, chunk.NONE, cookieHigh, cookieLow, 0);
	}

	/** Failure; `error` is one of the protocol's error numbers. */
	putError(view: DataView, at: number, cookieHigh: number, cookieLow: number, error: number): number {
		if (!this.#structured) return this.#putSimple(view, at, cookieHigh, cookieLow, error);
		putChunk(view, at, chunk.ERROR, cookieHigh, cookieLow, ErrorChunk.size);
		ErrorChunk.write.error(view, at + StructuredReply.size, error);
		ErrorChunk.write.messageLength(view, at + StructuredReply.size, 0);
		return StructuredReply.size + ErrorChunk.size;
	}

	/** The header of a successful read; the caller puts `length` bytes of data right behind it. */
	putReadHeader(
		view: DataView,
		at: number,
		cookieHigh: number,
		cookieLow: number,
		offset: number,
		length: number,
	): number {
		if (!this.#structured) return this.#putSimple(view, at, cookieHigh, cookieLow, 0);
		putChunk(view, at, chunk.OFFSET_DATA, cookieHigh, cookieLow, OffsetData.size + length);
		OffsetData.write.offset(view, at + StructuredReply.size, offset);
		return READ_HEADER_BYTES;
	}

	#putSimple(view: DataView, at: number, cookieHigh: number, cookieLow: number, error: number): number {
		SimpleReply.write.magic(view, at, SIMPLE_REPLY_MAGIC);
		SimpleReply.write.error(view, at, error);
		putCookie(view, at + SimpleReply.offset.cookie, cookieHigh, cookieLow);
		return SimpleReply.size;
	}
}

function putChunk(
	view: DataView,
	at: number,
	type: number,
	cookieHigh: number,
	cookieLow: number,
	length: number,
): number {
	StructuredReply.write.magic(view, at, STRUCTURED_REPLY_MAGIC);
	StructuredReply.write.flags(view, at, replyFlag.DONE);
	StructuredReply.write.type(view, at, type);
	putCookie(view, at + StructuredReply.offset.cookie, cookieHigh, cookieLow);
	StructuredReply.write.length(view, at, length);
	return StructuredReply.size;
}

function putCookie(view: DataView, at: number, high: number, low: number): void {
	view.setUint32(at, high);
	view.setUint32(at + 4, low);
}
