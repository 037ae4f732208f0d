// VMDK on disk: the hosted sparse extent. Little-endian; positions and lengths count 512-byte sectors.
//
//   | header | descriptor | redundant directory, tables | directory, tables | grain | grain | …
//
//   streamOptimized:  | header | descriptor | marker, packed grain | … | marker, table | … | directory | footer | end |
//
// A grain is the unit of allocation. The directory names tables, a table names grains.
//
// Source: VMware, "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse
// Extents".

import { struct, u8, u16le, u32le, u64le } from "../../../foundations/struct.ts";

export const SECTOR_BYTES = 512;

/** `KDMV` in the file. */
export const MAGIC = 0x564d_444b;

/** SparseExtentHeader. */
export const Header = struct("VMDK sparse extent header", 512, {
	magic: u32le(0),
	version: u32le(4),
	flags: u32le(8),
	capacity: u64le(12),
	grainSize: u64le(20),
	descriptorOffset: u64le(28),
	descriptorSize: u64le(36),
	entriesPerTable: u32le(44),
	redundantDirectory: u64le(48),
	directory: u64le(56),
	overhead: u64le(64),
	uncleanShutdown: u8(72),
	/** `\n`, ` `, `\r`, `\n`: spoilt by a transfer as text. */
	lineEnds: u32le(73),
	compression: u16le(77),
});
export const LINE_ENDS = 0x0a0d_200a;
export const VERSION_MAX = 3;
/** The directory of a streamOptimized extent is named by the footer only. */
export const DIRECTORY_IN_FOOTER = 0xffff_ffff;

export const headerFlag = {
	VALID_LINE_ENDS: 1 << 0,
	REDUNDANT_TABLES: 1 << 1,
	/** A table's entry {@link ZERO_GRAIN} means zeros. */
	ZERO_GRAINS: 1 << 2,
	COMPRESSED: 1 << 16,
	MARKERS: 1 << 17,
} as const;

export const compression = { NONE: 0, DEFLATE: 1 } as const;

export const ENTRY_BYTES = 4;
export const NO_GRAIN = 0;
export const ZERO_GRAIN = 1;

/** In front of each compressed grain: the first sector of the disk that it holds, and its bytes, which follow. */
export const GrainMarker = struct("VMDK grain marker", 12, { sector: u64le(0), length: u32le(8) });

/** Sector before the footer, which is followed by one more (the end). */
export const Marker = struct("VMDK marker", 512, { sectors: u64le(0), length: u32le(8), type: u32le(12) });
export const markerType = { END: 0, TABLE: 1, DIRECTORY: 2, FOOTER: 3 } as const;
