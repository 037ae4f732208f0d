// VDI on disk: one header, one table of blocks, blocks. Little-endian.
//
//   | text 64 | signature | header 1.1 … | table of blocks | data block | data block | …
//
// Source: the format as VirtualBox defines it in src/VBox/Storage/VDICore.h ("VDIPREHEADER", "VDIHEADER1PLUS").

import { bytes, struct, u32le, u64le } from "../../../foundations/struct.ts";

/** At {@link Header}'s `signature`. */
export const SIGNATURE = 0xbeda_107f;
/** Major and minor version, 16 bits each. */
export const VERSION_1_1 = 0x0001_0001;

export const imageType = { DYNAMIC: 1, STATIC: 2, UNDO: 3, DIFFERENCING: 4 } as const;

/** Entries of the table of blocks that are no block's number. */
export const entry = { UNALLOCATED: 0xffff_ffff, DISCARDED: 0xffff_fffe } as const;

/** VDIPREHEADER and VDIHEADER1PLUS, from the file's start. Sizes in bytes. */
export const Header = struct("VDI header 1.1", 0x1c8, {
	signature: u32le(0x40),
	version: u32le(0x44),
	headerSize: u32le(0x48),
	type: u32le(0x4c),
	flags: u32le(0x50),
	/** Positions in the file. */
	tableOffset: u32le(0x154),
	dataOffset: u32le(0x158),
	sectorSize: u32le(0x168),
	diskSize: u64le(0x170),
	blockSize: u32le(0x178),
	/** Bytes of the format's own before each block; never used. */
	blockExtra: u32le(0x17c),
	blockCount: u32le(0x180),
	blocksAllocated: u32le(0x184),
	/** Image that this one builds upon, and the state of it; zeros for an image that stands alone. */
	linkUuid: bytes(0x1a8, 16),
	parentUuid: bytes(0x1b8, 16),
});
