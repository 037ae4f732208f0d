// Binary records: a record of an on-disk or wire format is declared once, as a table of fields with
// the offsets that the format's own document writes, and turned into readers and writers at load time.
//
//   const Tag = struct("jbd2 block tag", 8, { block: u32be(0x0), flags: u16be(0x6) });
//   Tag.read.block(view, base)     one field; for scans over millions of records
//   Tag.at(view, base)             all fields, as a plain object; for headers and reports
//   Tag.write.flags(view, base, 8)
//
// The declaration is checked at load: fields inside the record, ascending, without overlap.

/** One field of a record: where it lies and how it is read and written. */
export interface Field<T> {
	readonly offset: number;
	readonly size: number;
	readonly read: (view: DataView, at: number) => T;
	readonly write: (view: DataView, at: number, value: T) => void;
}

const field = <T>(offset: number, size: number, read: Field<T>["read"], write: Field<T>["write"]): Field<T> => ({
	offset,
	size,
	read,
	write,
});

export const u8 = (at: number): Field<number> =>
	field(
		at,
		1,
		(v, o) => v.getUint8(o),
		(v, o, x) => v.setUint8(o, x),
	);
export const u16le = (at: number): Field<number> =>
	field(
		at,
		2,
		(v, o) => v.getUint16(o, true),
		(v, o, x) => v.setUint16(o, x, true),
	);
export const u16be = (at: number): Field<number> =>
	field(
		at,
		2,
		(v, o) => v.getUint16(o),
		(v, o, x) => v.setUint16(o, x),
	);
export const u32le = (at: number): Field<number> =>
	field(
		at,
		4,
		(v, o) => v.getUint32(o, true),
		(v, o, x) => v.setUint32(o, x, true),
	);
export const u32be = (at: number): Field<number> =>
	field(
		at,
		4,
		(v, o) => v.getUint32(o),
		(v, o, x) => v.setUint32(o, x),
	);
/**
 * 64-bit size or offset as a number. Values past 2^53 lose their low bits but stay past 2^53, so the
 * range check against a disk's size that every reader makes still refuses them.
 */
export const u64le = (at: number): Field<number> =>
	field(
		at,
		8,
		(v, o) => v.getUint32(o + 4, true) * 0x1_0000_0000 + v.getUint32(o, true),
		(v, o, x) => {
			v.setUint32(o, x % 0x1_0000_0000, true);
			v.setUint32(o + 4, Math.floor(x / 0x1_0000_0000), true);
		},
	);
/** Big-endian twin of {@link u64le}. */
export const u64be = (at: number): Field<number> =>
	field(
		at,
		8,
		(v, o) => v.getUint32(o) * 0x1_0000_0000 + v.getUint32(o + 4),
		(v, o, x) => {
			v.setUint32(o, Math.floor(x / 0x1_0000_0000));
			v.setUint32(o + 4, x % 0x1_0000_0000);
		},
	);
/** True 64-bit patterns: cookies, handles, hashes. */
export const bits64be = (at: number): Field<bigint> =>
	field(
		at,
		8,
		(v, o) => v.getBigUint64(o),
		(v, o, x) => v.setBigUint64(o, x),
	);
/** A fixed run of bytes; reading gives a view on the record, not a copy. Writing fills the rest with zeros. */
export const bytes = (at: number, size: number): Field<Uint8Array> =>
	field(
		at,
		size,
		(v, o) => new Uint8Array(v.buffer, v.byteOffset + o, size),
		(v, o, x) => {
			const target = new Uint8Array(v.buffer, v.byteOffset + o, size);
			target.fill(0);
			target.set(x.subarray(0, size));
		},
	);

type Fields = Record<string, Field<number> | Field<bigint> | Field<Uint8Array>>;
type ValueOf<F> = F extends Field<infer T> ? T : never;

/** A record type: its size in bytes, and a reader and writer per field. `base` is the record's first byte in `view`. */
export interface Struct<F extends Fields> {
	readonly name: string;
	readonly size: number;
	readonly offset: { readonly [K in keyof F]: number };
	readonly read: { readonly [K in keyof F]: (view: DataView, base: number) => ValueOf<F[K]> };
	readonly write: { readonly [K in keyof F]: (view: DataView, base: number, value: ValueOf<F[K]>) => void };
	/** All fields as a plain object. */
	at(view: DataView, base?: number): { readonly [K in keyof F]: ValueOf<F[K]> };
	/** Writes the given fields; the others keep the bytes that are there. */
	put(view: DataView, base: number, values: { readonly [K in keyof F]?: ValueOf<F[K]> }): void;
}

/** Declares a record of `size` bytes. Throws at load where the table is wrong. */
export function struct<const F extends Fields>(name: string, size: number, fields: F): Struct<F> {
	let end = 0;
	const offset: Record<string, number> = {};
	const read: Record<string, unknown> = {};
	const write: Record<string, unknown> = {};
	for (const [key, f] of Object.entries(fields)) {
		if (f.offset < end) throw new RangeError(`${name}.${key} overlaps the field before it`);
		end = f.offset + f.size;
		if (end > size) throw new RangeError(`${name}.${key} ends past the record's ${size} bytes`);
		const { offset: at, read: readAt, write: writeAt } = f as Field<unknown>;
		offset[key] = at;
		read[key] = (view: DataView, base: number) => readAt(view, base + at);
		write[key] = (view: DataView, base: number, value: unknown) => writeAt(view, base + at, value);
	}
	const readers = read as Struct<F>["read"];
	const writers = write as Struct<F>["write"];
	return {
		name,
		size,
		offset: offset as Struct<F>["offset"],
		read: readers,
		write: writers,
		at(view, base = 0) {
			const record: Record<string, unknown> = {};
			for (const key of Object.keys(fields)) record[key] = readers[key]!(view, base);
			return record as { readonly [K in keyof F]: ValueOf<F[K]> };
		},
		put(view, base, values) {
			for (const [key, value] of Object.entries(values)) writers[key]!(view, base, value as never);
		},
	};
}

/** A DataView over exactly the bytes of `array`. */
export const viewOf = (array: Uint8Array): DataView => new DataView(array.buffer, array.byteOffset, array.byteLength);

/** The same memory the other way round. */
export const bytesOf = (view: DataView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
