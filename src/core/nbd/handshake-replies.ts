// Replies of the handshake, collected in the order in which they must be sent.
//
//   | header: magic, option, type, length | data |   … one or more per option, the last of them ACK or an error
//
// Error replies carry a message for people: clients such as nbdinfo print it.

import { concatBytes } from "../../foundations/bytes.ts";
import { viewOf } from "../../foundations/struct.ts";
import {
	EXPORT_NAME_PADDING_BYTES,
	ExportNameReply,
	InfoBlockSize,
	InfoExport,
	info,
	OPTION_REPLY_MAGIC,
	OptionReplyHeader,
	optionReply,
	STRING_BYTES_MAX,
} from "./protocol.ts";

/** Collects the bytes that answer one step of a handshake. */
export class HandshakeReplies {
	readonly #parts: Uint8Array[] = [];

	/** All replies so far as one run of bytes. */
	bytes(): Uint8Array {
		return concatBytes(this.#parts);
	}

	ack(option: number): void {
		this.#reply(option, optionReply.ACK);
	}

	/** `type` is one of the `optionReply.ERR_…`; `message` is for the client's user. */
	error(option: number, type: number, message: string): void {
		this.#reply(option, type, encodeString(message));
	}

	/** One row of `NBD_OPT_LIST`: a name, and behind it the description for people. */
	server(option: number, name: string, description: string): void {
		const nameBytes = encodeString(name);
		const length = new Uint8Array(4);
		viewOf(length).setUint32(0, nameBytes.length);
		this.#reply(option, optionReply.SERVER, length, nameBytes, encodeString(description));
	}

	infoExport(option: number, size: number, transmissionFlags: number): void {
		const data = new Uint8Array(InfoExport.size);
		InfoExport.put(viewOf(data), 0, { type: info.EXPORT, size, transmissionFlags });
		this.#reply(option, optionReply.INFO, data);
	}

	infoText(option: number, type: typeof info.NAME | typeof info.DESCRIPTION, text: string): void {
		const typeBytes = new Uint8Array(2);
		viewOf(typeBytes).setUint16(0, type);
		this.#reply(option, optionReply.INFO, typeBytes, encodeString(text));
	}

	/** All sizes in bytes. */
	infoBlockSize(option: number, sizes: { minimum: number; preferred: number; maximumPayload: number }): void {
		const data = new Uint8Array(InfoBlockSize.size);
		InfoBlockSize.put(viewOf(data), 0, { type: info.BLOCK_SIZE, ...sizes });
		this.#reply(option, optionReply.INFO, data);
	}

	metaContext(option: number, id: number, name: string): void {
		const idBytes = new Uint8Array(4);
		viewOf(idBytes).setUint32(0, id);
		this.#reply(option, optionReply.META_CONTEXT, idBytes, encodeString(name));
	}

	/** The answer to `NBD_OPT_EXPORT_NAME`, which alone has no reply header. */
	exportName(size: number, transmissionFlags: number, padding: boolean): void {
		const data = new Uint8Array(ExportNameReply.size + (padding ? EXPORT_NAME_PADDING_BYTES : 0));
		ExportNameReply.put(viewOf(data), 0, { size, transmissionFlags });
		this.#parts.push(data);
	}

	#reply(option: number, type: number, ...data: readonly Uint8Array[]): void {
		const header = new Uint8Array(OptionReplyHeader.size);
		const length = data.reduce((sum, part) => sum + part.length, 0);
		OptionReplyHeader.put(viewOf(header), 0, { magic: OPTION_REPLY_MAGIC, option, type, length });
		this.#parts.push(header, ...data);
	}
}

/** UTF-8 of a text, cut at a character's end to what a protocol string may hold. */
function encodeString(text: string): Uint8Array {
	const encoded = new Uint8Array(STRING_BYTES_MAX);
	const { written } = new TextEncoder().encodeInto(text, encoded);
	return encoded.slice(0, written);
}
