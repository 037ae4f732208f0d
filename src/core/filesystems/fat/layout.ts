// Records of FAT12, FAT16 and FAT32, little-endian. Offsets and names are those of Microsoft's "FAT32 File System
// Specification" (fatgen103). Only fields that are used here are named.

import { bytes, struct, u8, u16le, u32le } from "../../../foundations/struct.ts";

/** The part of the boot sector that all three share (section "Boot Sector and BPB"). */
export const BootSector = struct("BPB", 512, {
	bytesPerSector: u16le(0xb),
	sectorsPerCluster: u8(0xd),
	reservedSectors: u16le(0xe),
	fatCount: u8(0x10),
	rootEntryCount: u16le(0x11),
	sectorCount16: u16le(0x13),
	media: u8(0x15),
	sectorsPerFat16: u16le(0x16),
	sectorCount32: u32le(0x20),
	endMarker: u16le(0x1fe),
});

/** What follows in FAT12 and FAT16. */
export const Tail16 = struct("BPB, FAT12 and FAT16", 62, {
	/** Of no use to DOS; Windows and Linux keep the state here, too. */
	state: u8(0x25),
	signature: u8(0x26),
	serial: u32le(0x27),
	label: bytes(0x2b, 11),
});

/** What follows in FAT32. */
export const Tail32 = struct("BPB, FAT32", 90, {
	sectorsPerFat: u32le(0x24),
	/** Bit 7: only the FAT whose number is in bits 0 to 3 is kept up to date. */
	flags: u16le(0x28),
	version: u16le(0x2a),
	rootCluster: u32le(0x2c),
	state: u8(0x41),
	signature: u8(0x42),
	serial: u32le(0x43),
	label: bytes(0x47, 11),
});
export const ONE_FAT_ACTIVE = 0x80;
/** Mounted; surface to be tested. */
export const STATE_BITS = 0x3;
/** Serial number and label follow; 0x28: the serial number only. */
export const SIGNATURE_LABEL = 0x29;
export const SIGNATURE_SERIAL = 0x28;

/** Entry of a directory. */
export const DirectoryEntry = struct("DIR", 32, { name: bytes(0x0, 11), attributes: u8(0xb) });
/** Attributes of the entry whose name is the volume's label; parts of long names have others as well. */
export const ATTRIBUTE_LABEL = 0x8;
export const ATTRIBUTES_LABEL_MASK = 0x18 | 0x7;
