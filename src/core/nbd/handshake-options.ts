// Data of handshake options: from a client's bytes to checked values, or to the name of the error they deserve.
//
// Every length in them comes from the client, so each is checked against the bytes that are really there, and an
// option must be used up exactly: bytes left over are as wrong as missing ones ("Option types").

import { viewOf } from "../../foundations/struct.ts";
import { STRING_BYTES_MAX } from "./protocol.ts";

/** Why an option's data was refused; the reply type is `ERR_` and this. */
export type OptionFault = "INVALID" | "TOO_BIG";

/** Data of `NBD_OPT_INFO` and `NBD_OPT_GO`. */
export interface ExportQuery {
	readonly exportName: string;
	/** Information types that the client asked for, each once. */
	readonly wanted: ReadonlySet<number>;
}

/** Data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`. */
export interface MetaContextQuery {
	readonly exportName: string;
	readonly queries: readonly string[];
}

/** Parses the data of `NBD_OPT_INFO` or `NBD_OPT_GO`: name length, name, request count, requests of 16 bits. */
export function parseExportQuery(data: Uint8Array): ExportQuery | OptionFault {
	const reader = new OptionReader(data);
	const exportName = reader.string();
	const count = reader.u16();
	const wanted = new Set<number>();
	for (let index = 0; index < count && reader.fault === undefined; index++) wanted.add(reader.u16());
	return reader.end() ?? { exportName, wanted };
}

/** Parses the data of the two metadata context options: name length, name, query count, queries with their lengths. */
export function parseMetaContextQuery(data: Uint8Array): MetaContextQuery | OptionFault {
	const reader = new OptionReader(data);
	const exportName = reader.string();
	const count = reader.u32();
	const queries: string[] = [];
	for (let index = 0; index < count && reader.fault === undefined; index++) queries.push(reader.string());
	return reader.end() ?? { exportName, queries };
}

/** A whole option as one string: the data of `NBD_OPT_EXPORT_NAME`. */
export function parseExportName(data: Uint8Array): { readonly exportName: string } | OptionFault {
	if (data.length > STRING_BYTES_MAX) return "TOO_BIG";
	const exportName = decodeString(data);
	return exportName === undefined ? "INVALID" : { exportName };
}

/** Reads fields in order. The first fault sticks: from then on every field reads as empty, so loops end. */
class OptionReader {
	fault: OptionFault | undefined;
	#at = 0;
	readonly #data: Uint8Array;
	readonly #view: DataView;

	constructor(data: Uint8Array) {
		this.#data = data;
		this.#view = viewOf(data);
	}

	u16(): number {
		return this.#has(2) ? this.#view.getUint16(this.#take(2)) : 0;
	}

	u32(): number {
		return this.#has(4) ? this.#view.getUint32(this.#take(4)) : 0;
	}

	/** A 32-bit length and that many bytes of UTF-8. */
	string(): string {
		const length = this.u32();
		if (!this.#has(length)) return "";
		const from = this.#take(length);
		if (length > STRING_BYTES_MAX) return this.#fail("TOO_BIG");
		return decodeString(this.#data.subarray(from, from + length)) ?? this.#fail("INVALID");
	}

	/** The fault, where there was one or where bytes are left over. */
	end(): OptionFault | undefined {
		if (this.fault === undefined && this.#at !== this.#data.length) this.fault = "INVALID";
		return this.fault;
	}

	#has(length: number): boolean {
		if (this.fault === undefined && length > this.#data.length - this.#at) this.fault = "INVALID";
		return this.fault === undefined;
	}

	#take(length: number): number {
		const from = this.#at;
		this.#at += length;
		return from;
	}

	#fail(fault: OptionFault): string {
		this.fault = fault;
		return "";
	}
}

/** The text of a protocol string; nothing where it is no UTF-8 or holds a NUL. */
function decodeString(bytes: Uint8Array): string | undefined {
	try {
		const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
		return text.includes("\0") ? undefined : text;
	} catch {
		return undefined;
	}
}
