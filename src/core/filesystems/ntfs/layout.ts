// Records of NTFS, little-endian. Microsoft publishes no document of the format; offsets are those of the Linux-NTFS
// project's documentation (http://ntfs.com and "NTFS Documentation", Russon and Fledel) and of Linux's fs/ntfs headers,
// under the names used there. Only fields that are used here are named.

import { bytes, struct, u8, u16le, u32le, u64le } from "../../../foundations/struct.ts";

/** Boot sector, `NTFS_BOOT_SECTOR`: a BIOS parameter block whose FAT fields must be zero, and NTFS's own part. */
export const BootSector = struct("NTFS_BOOT_SECTOR", 512, {
	oemId: bytes(0x3, 8),
	bytesPerSector: u16le(0xb),
	sectorsPerCluster: u8(0xd),
	reservedSectors: u16le(0xe),
	fatCount: u8(0x10),
	rootEntryCount: u16le(0x11),
	sectorCount16: u16le(0x13),
	sectorsPerFat: u16le(0x16),
	sectorCount32: u32le(0x20),
	/** Without the backup boot sector, which lies behind the last of them. */
	sectorCount: u64le(0x28),
	mftCluster: u64le(0x30),
	mftMirrorCluster: u64le(0x38),
	/** Clusters where positive; 2^-n bytes where negative, as a signed byte. */
	mftRecordSize: u8(0x40),
	indexBlockSize: u8(0x44),
	serial: bytes(0x48, 8),
	endMarker: u16le(0x1fe),
});

/** The stride of update sequence numbers, whatever the sector size. */
export const FIXUP_STRIDE = 512;

/** MFT record, `MFT_RECORD`; its first 8 bytes are the header of every record that has fixups. */
export const FileRecord = struct("MFT_RECORD", 0x30, {
	magic: u32le(0x0),
	fixupOffset: u16le(0x4),
	fixupCount: u16le(0x6),
	sequence: u16le(0x10),
	firstAttribute: u16le(0x14),
	flags: u16le(0x16),
	bytesInUse: u32le(0x18),
	bytesAllocated: u32le(0x1c),
	/** The record that this one extends, or zero. */
	baseRecordLow: u32le(0x20),
	baseRecordHigh: u16le(0x24),
	baseSequence: u16le(0x26),
});
export const MAGIC_FILE = 0x454c4946;
export const MAGIC_INDEX = 0x58444e49;
export const MAGIC_RESTART = 0x52545352;
/** A restart page that chkdsk wrote. */
export const MAGIC_CHECKED = 0x444b4843;

/** Flag of a file record. */
export const RECORD_IN_USE = 0x1;

/** Attribute, `ATTR_RECORD`: common part, then the resident or the non-resident form. */
export const Attribute = struct("ATTR_RECORD", 0x10, {
	type: u32le(0x0),
	length: u32le(0x4),
	nonResident: u8(0x8),
	nameLength: u8(0x9),
	nameOffset: u16le(0xa),
	flags: u16le(0xc),
});
export const ResidentAttribute = struct("ATTR_RECORD, resident", 0x18, {
	valueLength: u32le(0x10),
	valueOffset: u16le(0x14),
});
export const NonResidentAttribute = struct("ATTR_RECORD, non-resident", 0x40, {
	lowestCluster: u64le(0x10),
	highestCluster: u64le(0x18),
	runsOffset: u16le(0x20),
	allocatedSize: u64le(0x28),
	dataSize: u64le(0x30),
	initializedSize: u64le(0x38),
});

/** Flags of an attribute: compressed (any method), encrypted, sparse. */
export const ATTRIBUTE_NOT_PLAIN = 0xc0ff;

/** Attribute types. */
export const AttributeType = {
	list: 0x20,
	volumeName: 0x60,
	volumeInformation: 0x70,
	data: 0x80,
	indexRoot: 0x90,
	indexAllocation: 0xa0,
	bitmap: 0xb0,
	end: 0xffffffff,
} as const;

/** Entry of an attribute list, `ATTR_LIST_ENTRY`. */
export const ListEntry = struct("ATTR_LIST_ENTRY", 0x1a, {
	type: u32le(0x0),
	length: u16le(0x4),
	nameLength: u8(0x6),
	nameOffset: u8(0x7),
	lowestCluster: u64le(0x8),
	recordLow: u32le(0x10),
	recordHigh: u16le(0x14),
	sequence: u16le(0x16),
});

/** Files that every volume has, by the number of their record. */
export const SystemFile = { mft: 0, mftMirror: 1, logFile: 2, volume: 3, root: 5, bitmap: 6, boot: 7 } as const;

/** Value of $VOLUME_INFORMATION. */
export const VolumeInformation = struct("VOLUME_INFORMATION", 0xc, {
	majorVersion: u8(0x8),
	minorVersion: u8(0x9),
	flags: u16le(0xa),
});
export const VOLUME_DIRTY = 0x1;
/** Log to be resized, upgrade at next mount, chkdsk under way, chkdsk has just repaired. */
export const VOLUME_IN_REPAIR = 0x2 | 0x4 | 0x4000 | 0x8000;

/** Value of $INDEX_ROOT, and the header in front of entries that it shares with index blocks. */
export const IndexRoot = struct("INDEX_ROOT", 0x10, { indexedType: u32le(0x0), blockSize: u32le(0x8) });
export const IndexHeader = struct("INDEX_HEADER", 0x10, { firstEntry: u32le(0x0), length: u32le(0x4) });
/** Where the header stands in an index block. */
export const INDEX_BLOCK_HEADER_AT = 0x18;

/** Entry of a directory's index, `INDEX_ENTRY`, with the start of the file name that is its key. */
export const DirectoryEntry = struct("INDEX_ENTRY", 0x10, {
	recordLow: u32le(0x0),
	recordHigh: u16le(0x4),
	sequence: u16le(0x6),
	length: u16le(0x8),
	keyLength: u16le(0xa),
	flags: u16le(0xc),
});
export const ENTRY_LAST = 0x2;
/** In an entry: where the name's length in UTF-16 units and the name itself stand. */
export const ENTRY_NAME_LENGTH_AT = 0x10 + 0x40;
export const ENTRY_NAME_AT = 0x10 + 0x42;

/** Restart page of $LogFile, `RESTART_PAGE_HEADER`. */
export const RestartPage = struct("RESTART_PAGE_HEADER", 0x1e, {
	magic: u32le(0x0),
	fixupOffset: u16le(0x4),
	fixupCount: u16le(0x6),
	checkedLsn: u64le(0x8),
	systemPageSize: u32le(0x10),
	logPageSize: u32le(0x14),
	restartArea: u16le(0x18),
	minorVersion: u16le(0x1a),
	majorVersion: u16le(0x1c),
});
/** `RESTART_AREA` in it. */
export const RestartArea = struct("RESTART_AREA", 0x28, {
	currentLsn: u64le(0x0),
	clientCount: u16le(0x8),
	clientsInUse: u16le(0xc),
	flags: u16le(0xe),
	length: u16le(0x14),
	clientsOffset: u16le(0x16),
	fileSize: u64le(0x18),
});
export const NO_CLIENT = 0xffff;
export const RESTART_CLEAN = 0x2;

/** Header of volume shadow copies, in $Boot (libvshadow, "Volume Shadow Snapshot (VSS) format"). */
export const SHADOW_HEADER_AT = 0x1e00;
export const ShadowHeader = struct("VSS volume header", 0x60, {
	/** First part of the identifier 3808876b-c176-4e48-b7ae-04046e6cc752, which all records of the format start with. */
	identifierStart: u32le(0x0),
	recordType: u32le(0x14),
	catalog: u64le(0x30),
	volumeId: bytes(0x40, 16),
	storageVolumeId: bytes(0x50, 16),
});
export const SHADOW_IDENTIFIER_START = 0x3808876b;
export const SHADOW_CATALOG_BLOCK = 16384;
/** The catalog's blocks: this header, then entries of the same size, each starting with its kind (64 bits). */
export const ShadowCatalog = struct("VSS catalog block", 0x80, {
	identifierStart: u32le(0x0),
	recordType: u32le(0x14),
	next: u64le(0x28),
});
/** Kinds of catalog entries that say nothing: none, and no longer used. */
export const SHADOW_ENTRY_UNUSED = 1;
