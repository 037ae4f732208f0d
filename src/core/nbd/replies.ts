// Transmission replies, written straight into an output buffer: nothing is allocated per reply.
//
//   simple:      | header 16 | data of a read |
//   structured:  | header 20 | chunk payload  |   one or more chunks answer one request; the last has DONE set
//   extended:    | header 32 | chunk payload  |   the same with 64-bit lengths, for whoever negotiated it
//
// A request's cookie is opaque, and an extended reply repeats the request's offset whatever it was: both are carried
// as their two 32-bit halves, since a BigInt would be an allocation.
// Source: NBD protocol document, "Simple reply message", "Structured reply chunk message", "Extended reply chunk message".

import {
	chunk,
	ErrorChunk,
	EXTENDED_REPLY_MAGIC,
	ExtendedReply,
	errno,
	type HeaderForm,
	OffsetData,
	OffsetHole,
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";

/** What a reply repeats of its request. */
export interface ReplyTo {
	readonly cookieHigh: number;
	readonly cookieLow: number;
	readonly offsetHigh: number;
	readonly offsetLow: number;
}

/** What each error number means here, for the client's user; ASCII, so that each character is a byte. */
const ERROR_MESSAGES: Readonly<Record<number, string>> = {
	[errno.EPERM]: "the export is read-only",
	[errno.EIO]: "the host's storage failed; its log tells more",
	[errno.ENOMEM]: "the server is short of memory",
	[errno.EINVAL]: "wrong flags, an unknown command, or a range outside the disk",
	[errno.ENOSPC]: "no space: the range ends outside the disk, or the first image is full",
	[errno.EOVERFLOW]: "the request is too large",
	[errno.ENOTSUP]: "not faster than writing zeros",
	[errno.ESHUTDOWN]: "the server is being shut down",
};
const messages = new Map(
	Object.entries(ERROR_MESSAGES).map(([error, text]) => [Number(error), new TextEncoder().encode(text)]),
);
const NO_MESSAGE = new Uint8Array(0);
const MESSAGE_BYTES_MAX = Math.max(...[...messages.values()].map(({ length }) => length));
const OFFSET_BYTES = 8;

/** Bytes of a reply that carries no data, in any form, at most. */
export const BARE_REPLY_BYTES = ExtendedReply.size + ErrorChunk.size + MESSAGE_BYTES_MAX + OFFSET_BYTES;
/** Bytes before the data of a read reply, in any form, at most. */
export const READ_HEADER_BYTES = ExtendedReply.size + OffsetData.size;
/** Bytes of a hole in a read reply, in any form, at most. */
export const HOLE_BYTES = ExtendedReply.size + OffsetHole.size;

/** Writes replies of one connection's negotiated form. Each `put…` returns the bytes written at `at`. */
export class ReplyWriter {
	readonly form: HeaderForm;
	/** Bytes of a reply's header. */
	readonly headerBytes: number;
	/** Bytes of the header before a read's data. */
	readonly readHeaderBytes: number;

	constructor(form: HeaderForm) {
		this.form = form;
		this.headerBytes = { simple: SimpleReply.size, structured: StructuredReply.size, extended: ExtendedReply.size }[
			form
		];
		this.readHeaderBytes = this.headerBytes + (form === "simple" ? 0 : OffsetData.size);
	}

	/** Success without data. */
	putDone(view: DataView, at: number, to: ReplyTo): number {
		if (this.form === "simple") return putSimple(view, at, to, 0);
		return this.putChunk(view, at, to, chunk.NONE, 0, true);
	}

	/** Failure; `error` is one of the protocol's error numbers, `failedAt` the export's byte that failed, or -1. */
	putError(view: DataView, at: number, to: ReplyTo, error: number, failedAt = -1): number {
		if (this.form === "simple") return putSimple(view, at, to, error);
		const message = messages.get(error) ?? NO_MESSAGE;
		const hasOffset = failedAt >= 0;
		const length = ErrorChunk.size + message.length + (hasOffset ? OFFSET_BYTES : 0);
		let end = at + this.putChunk(view, at, to, hasOffset ? chunk.ERROR_OFFSET : chunk.ERROR, length, true);
		ErrorChunk.write.error(view, end, error);
		ErrorChunk.write.messageLength(view, end, message.length);
		end += ErrorChunk.size;
		for (let i = 0; i < message.length; i++) view.setUint8(end + i, message[i]!);
		if (hasOffset) OffsetData.write.offset(view, end + message.length, failedAt);
		return this.headerBytes + length;
	}

	/** The header of read data at `offset`; the caller puts `length` bytes right behind it. More chunks follow unless `last`. */
	putReadHeader(view: DataView, at: number, to: ReplyTo, offset: number, length: number, last = true): number {
		if (this.form === "simple") return putSimple(view, at, to, 0);
		const header = this.putChunk(view, at, to, chunk.OFFSET_DATA, OffsetData.size + length, last);
		OffsetData.write.offset(view, at + header, offset);
		return header + OffsetData.size;
	}

	/** A part of a read that is all zeros. Not for simple replies. */
	putHole(view: DataView, at: number, to: ReplyTo, offset: number, length: number, last: boolean): number {
		const header = this.putChunk(view, at, to, chunk.OFFSET_HOLE, OffsetHole.size, last);
		OffsetHole.write.offset(view, at + header, offset);
		OffsetHole.write.length(view, at + header, length);
		return header + OffsetHole.size;
	}

	/** A chunk's header; the caller puts `length` bytes of payload right behind it. Not for simple replies. */
	putChunk(view: DataView, at: number, to: ReplyTo, type: number, length: number, last: boolean): number {
		// Flags, type and cookie have the same places in both forms.
		StructuredReply.write.magic(view, at, this.form === "extended" ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC);
		StructuredReply.write.flags(view, at, last ? replyFlag.DONE : 0);
		StructuredReply.write.type(view, at, type);
		putHalves(view, at + StructuredReply.offset.cookie, to.cookieHigh, to.cookieLow);
		if (this.form === "extended") {
			putHalves(view, at + ExtendedReply.offset.offset, to.offsetHigh, to.offsetLow);
			ExtendedReply.write.length(view, at, length);
		} else StructuredReply.write.length(view, at, length);
		return this.headerBytes;
	}
}

function putSimple(view: DataView, at: number, to: ReplyTo, error: number): number {
	SimpleReply.write.magic(view, at, SIMPLE_REPLY_MAGIC);
	SimpleReply.write.error(view, at, error);
	putHalves(view, at + SimpleReply.offset.cookie, to.cookieHigh, to.cookieLow);
	return SimpleReply.size;
}

function putHalves(view: DataView, at: number, high: number, low: number): void {
	view.setUint32(at, high);
	view.setUint32(at + 4, low);
}
