// VHD on disk: a footer; for a dynamic disk a copy of it in front, a header and a table of blocks. Big-endian.
//
//   fixed:    | data of the disk … | footer 512 |
//   dynamic:  | footer copy 512 | header 1024 | table | bitmap, block | bitmap, block | … | footer 512 |
//
// Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006); each table names its section.

import { bytes, struct, u8, u16be, u32be, u64be } from "../../../foundations/struct.ts";

/** `conectix`, the footer's cookie. */
export const FOOTER_COOKIE = "conectix";
/** `cxsparse`, the dynamic disk header's cookie. */
export const HEADER_COOKIE = "cxsparse";

export const diskType = { FIXED: 2, DYNAMIC: 3, DIFFERENCING: 4 } as const;

/** "Hard Disk Footer Format". Sizes and positions in bytes. */
export const Footer = struct("VHD footer", 512, {
	cookie: bytes(0, 8),
	features: u32be(8),
	version: u32be(12),
	/** Position of the dynamic disk header. */
	dataOffset: u64be(16),
	creator: bytes(28, 4),
	originalSize: u64be(40),
	currentSize: u64be(48),
	cylinders: u16be(56),
	heads: u8(58),
	sectorsPerTrack: u8(59),
	diskType: u32be(60),
	checksum: u32be(64),
	uuid: bytes(68, 16),
	savedState: u8(84),
});

/** "Dynamic Disk Header Format". */
export const DynamicHeader = struct("VHD dynamic disk header", 1024, {
	cookie: bytes(0, 8),
	tableOffset: u64be(16),
	version: u32be(24),
	tableEntries: u32be(28),
	blockSize: u32be(32),
	checksum: u32be(36),
});

/** "Block Allocation Table and Data Blocks": the entry of a block that isn't there. */
export const UNUSED_ENTRY = 0xffff_ffff;
/** Positions in the table count in these. */
export const SECTOR_BYTES = 512;

/** The checksum of a footer or header: complement of the sum of all bytes without its own field. */
export function checksumOf(record: Uint8Array, checksumAt: number): number {
	let sum = 0;
	for (let at = 0; at < record.length; at++) if (at < checksumAt || at >= checksumAt + 4) sum += record[at]!;
	return ~sum >>> 0;
}
