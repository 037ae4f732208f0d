// Cyclic redundancy checks that disk formats use, over plain byte arrays. Core has no `node:zlib`, and
// zlib has no CRC-32C; these run at about a gigabyte per second, since a map of a large disk checks
// every bitmap block of it.
//
//   crc32c   Castagnoli, reflected   ext4, jbd2, btrfs, XFS     raw: seed in, register out, no final complement
//   crc32    ISO 3309, reflected     GPT                        as zlib's crc32()
//   crc32From  the same              LVM, F2FS                        raw
//   crc32be  ISO 3309, unreflected   jbd2 version 1 checksums   raw
//   crc16    ANSI, reflected         ext4 group descriptors without metadata_csum   raw

/** Eight tables of 256 words: table k gives the effect of a byte that lies k bytes before the end ("slicing by 8"). */
function reflectedTables(polynomial: number): Int32Array {
	const tables = new Int32Array(8 * 256);
	for (let byte = 0; byte < 256; byte++) {
		let register = byte;
		for (let bit = 0; bit < 8; bit++) register = register & 1 ? (register >>> 1) ^ polynomial : register >>> 1;
		tables[byte] = register;
	}
	for (let k = 1; k < 8; k++)
		for (let byte = 0; byte < 256; byte++) {
			const before = tables[(k - 1) * 256 + byte]!;
			tables[k * 256 + byte] = (before >>> 8) ^ tables[before & 0xff]!;
		}
	return tables;
}

function unreflectedTable(polynomial: number): Int32Array {
	const table = new Int32Array(256);
	for (let byte = 0; byte < 256; byte++) {
		let register = byte << 24;
		for (let bit = 0; bit < 8; bit++) register = register < 0 ? (register << 1) ^ polynomial : register << 1;
		table[byte] = register;
	}
	return table;
}

const castagnoli = reflectedTables(0x82f63b78);
const iso = reflectedTables(0xedb88320);
const isoUnreflected = unreflectedTable(0x04c11db7);
const ansi16 = reflectedTables(0xa001);

function slicingBy8(tables: Int32Array, seed: number, data: Uint8Array): number {
	let crc = seed | 0;
	let at = 0;
	const length = data.length;
	if (length >= 8) {
		const view = new DataView(data.buffer, data.byteOffset, length);
		for (const last = length - 8; at <= last; at += 8) {
			const low = view.getInt32(at, true) ^ crc;
			const high = view.getInt32(at + 4, true);
			crc =
				tables[0x700 | (low & 0xff)]! ^
				tables[0x600 | ((low >>> 8) & 0xff)]! ^
				tables[0x500 | ((low >>> 16) & 0xff)]! ^
				tables[0x400 | (low >>> 24)]! ^
				tables[0x300 | (high & 0xff)]! ^
				tables[0x200 | ((high >>> 8) & 0xff)]! ^
				tables[0x100 | ((high >>> 16) & 0xff)]! ^
				tables[high >>> 24]!;
		}
	}
	for (; at < length; at++) crc = (crc >>> 8) ^ tables[(crc ^ data[at]!) & 0xff]!;
	return crc >>> 0;
}

/** CRC-32C of `data` continued from `seed`, without the final complement, as Linux's `crc32c_le` (ext4 starts with ~0). */
export const crc32c = (seed: number, data: Uint8Array): number => slicingBy8(castagnoli, seed, data);

/** CRC-32 with the complements at both ends, as zlib's `crc32()`: what GPT headers carry. */
export const crc32 = (data: Uint8Array): number => ~slicingBy8(iso, 0xffffffff, data) >>> 0;

/** CRC-32 (reflected) continued from `seed` without complements: LVM's and F2FS's checksums, with seeds of their own. */
export const crc32From = (seed: number, data: Uint8Array): number => slicingBy8(iso, seed, data);

/** CRC-32, most significant bit first, continued from `seed` without complement, as Linux's `crc32_be`. */
export function crc32be(seed: number, data: Uint8Array): number {
	let crc = seed | 0;
	for (let at = 0; at < data.length; at++) crc = (crc << 8) ^ isoUnreflected[(crc >>> 24) ^ data[at]!]!;
	return crc >>> 0;
}

/** CRC-16 (ANSI) continued from `seed`, as Linux's `crc16` (ext4 starts with ~0 for `uninit_bg` descriptors). */
export function crc16(seed: number, data: Uint8Array): number {
	let crc = seed & 0xffff;
	for (let at = 0; at < data.length; at++) crc = (crc >>> 8) ^ ansi16[(crc ^ data[at]!) & 0xff]!;
	return crc & 0xffff;
}

/** CRC-32C of a record in which the little-endian or big-endian 32-bit checksum field at `at` counts as zero. */
export function crc32cWithout(seed: number, data: Uint8Array, at: number): number {
	const before = crc32c(seed, data.subarray(0, at));
	return crc32c(crc32c(before, new Uint8Array(4)), data.subarray(at + 4));
}

/**
 * CRC-32C continued from the register `seed` over `count` little-endian 32-bit words of `words` from index `first`:
 * as `crc32c` over their bytes on a little-endian host, without making a view per record.
 */
export function crc32cWords(seed: number, words: Uint32Array, first: number, count: number): number {
	let crc = seed | 0;
	for (let at = first, end = first + count; at < end; at++) {
		const word = words[at]! ^ crc;
		crc =
			castagnoli[0x300 | (word & 0xff)]! ^
			castagnoli[0x200 | ((word >>> 8) & 0xff)]! ^
			castagnoli[0x100 | ((word >>> 16) & 0xff)]! ^
			castagnoli[word >>> 24]!;
	}
	return crc >>> 0;
}
