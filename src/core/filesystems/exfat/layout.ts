// Records of exFAT, little-endian. Offsets and names are those of Microsoft's "exFAT file system specification"
// (section numbers below). Only fields that are used here are named.

import { bytes, struct, u8, u16le, u32le, u64le } from "../../../foundations/struct.ts";

/** Main boot sector, 3.1. */
export const BootSector = struct("Main Boot Sector", 512, {
	fileSystemName: bytes(0x3, 8),
	mustBeZero: bytes(0xb, 53),
	/** Lengths and offsets are in sectors. */
	volumeLength: u64le(0x48),
	fatOffset: u32le(0x50),
	fatLength: u32le(0x54),
	clusterHeapOffset: u32le(0x58),
	clusterCount: u32le(0x5c),
	rootCluster: u32le(0x60),
	serial: u32le(0x64),
	revision: u16le(0x68),
	volumeFlags: u16le(0x6a),
	bytesPerSectorShift: u8(0x6c),
	sectorsPerClusterShift: u8(0x6d),
	fatCount: u8(0x6e),
	endMarker: u16le(0x1fe),
});
/** VolumeFlags, 3.1.13. */
export const ACTIVE_FAT = 0x1;
export const VOLUME_DIRTY = 0x2;
export const MEDIA_FAILURE = 0x4;
/** Bytes of the boot sector that may change without a new checksum (3.4): VolumeFlags and PercentInUse. */
export const NOT_CHECKSUMMED: readonly number[] = [0x6a, 0x6b, 0x70];
/** Sectors of a boot region that the checksum covers, and the one that holds it, over and over. */
export const CHECKSUMMED_SECTORS = 11;

/** Directory entry, 6.2, as far as the three kinds below share it. */
export const DirectoryEntry = struct("DirectoryEntry", 32, {
	type: u8(0x0),
	firstCluster: u32le(0x14),
	dataLength: u64le(0x18),
});
export const EntryType = { end: 0x00, bitmap: 0x81, upcaseTable: 0x82, label: 0x83 } as const;
/** BitmapFlags, 7.1.2: which of two bitmaps. */
export const BITMAP_FLAGS_AT = 1;
/** Volume label, 7.3: length in UTF-16 units, then the text. */
export const LABEL_LENGTH_AT = 1;
export const LABEL_AT = 2;
export const MAX_LABEL_LENGTH = 11;
