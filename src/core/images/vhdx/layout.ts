// VHDX on disk: identification, two headers and two region tables in the first MiB; regions and the log behind. All
// little-endian.
//
//   0        64 KiB    128 KiB   192 KiB    256 KiB           1 MiB
//   | ident. | header 1 | header 2 | regions 1 | regions 2 | … | log, metadata region, table of blocks, blocks …
//
// Source: [MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format"; each record names its section. The headers' and region
// tables' checksums are CRC-32C over the whole record with the field itself as zeros.

import { bytes, struct, u16le, u32le, u64le } from "../../../foundations/struct.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

/** Start of the file ("File Type Identifier"). */
export const IDENTIFIER = "vhdxfile";

/** "Headers". Both places; the one that is whole and has the greater sequence number counts. */
export const HEADER_PLACES: readonly number[] = [64 * KIB, 128 * KIB];
export const HEADER_SIGNATURE = 0x6461_6568; // "head"
export const Header = struct("VHDX header", 4 * KIB, {
	signature: u32le(0),
	checksum: u32le(4),
	sequence: u64le(8),
	logGuid: bytes(48, 16),
	logVersion: u16le(64),
	version: u16le(66),
	logLength: u32le(68),
	logOffset: u64le(72),
});

/** "Region Tables". Both places; they hold the same. */
export const REGION_TABLE_PLACES: readonly number[] = [192 * KIB, 256 * KIB];
export const REGION_SIGNATURE = 0x6967_6572; // "regi"
export const RegionTable = struct("VHDX region table", 64 * KIB, {
	signature: u32le(0),
	checksum: u32le(4),
	entryCount: u32le(8),
});
/** Entries follow the first 16 bytes. Positions in the file, in bytes. */
export const REGION_ENTRIES_AT = 16;
export const RegionEntry = struct("VHDX region table entry", 32, {
	guid: bytes(0, 16),
	fileOffset: u64le(16),
	length: u32le(24),
	flags: u32le(28),
});
/** Bit of {@link RegionEntry}'s flags: who doesn't know the region must not open the file. */
export const REGION_REQUIRED = 1;
/** Most entries of a region table and of a metadata table. */
export const ENTRIES_MAX = 2047;
/** Regions, log and blocks start at multiples of this. */
export const ALIGNMENT = MIB;

/** "Metadata Table", at the metadata region's start. */
export const METADATA_SIGNATURE = "metadata";
export const MetadataTable = struct("VHDX metadata table", 64 * KIB, {
	signature: bytes(0, 8),
	entryCount: u16le(10),
});
export const METADATA_ENTRIES_AT = 32;
/** `offset` counts from the metadata region's start. */
export const MetadataEntry = struct("VHDX metadata table entry", 32, {
	itemId: bytes(0, 16),
	offset: u32le(16),
	length: u32le(20),
	flags: u32le(24),
});
export const METADATA_REQUIRED = 1 << 2;

/** "File Parameters" flags. */
export const HAS_PARENT = 1 << 1;

/** Known regions and metadata items, by their GUIDs as people write them. */
export const guid = {
	blockAllocationTable: "2DC27766-F623-4200-9D64-115E9BFD4A08",
	metadataRegion: "8B7CA206-4790-4B9A-B8FE-575F050F886E",
	fileParameters: "CAA16737-FA36-4D43-B3B6-33F0AA44E76B",
	virtualDiskSize: "2FA54224-CD1B-4876-B211-5DBED83BF4B8",
	virtualDiskId: "BECA12AB-B2E6-4523-93EF-C309E000C746",
	logicalSectorSize: "8141BF1D-A96F-4709-BA47-F233A8FAAB5F",
	physicalSectorSize: "CDA348C7-445D-4471-9CC9-E9885251C556",
	parentLocator: "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C",
} as const;

/** A GUID as people write it: the first three parts are little-endian in the file. */
export function guidText(bytes: Uint8Array): string {
	const hex = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].map((at) =>
		bytes[at]!.toString(16).padStart(2, "0"),
	);
	const part = (from: number, to: number): string => hex.slice(from, to).join("").toUpperCase();
	return [part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16)].join("-");
}

/** "BAT Entry": the lowest three bits are the state, bits 20 to 63 the position in MiB. */
export const BAT_ENTRY_BYTES = 8;
export const STATE_MASK = 7;
/** "Payload BAT Entry States". QEMU wrote 5 for unmapped blocks once, as a draft of the format had it. */
export const blockState = {
	NOT_PRESENT: 0,
	UNDEFINED: 1,
	ZERO: 2,
	UNMAPPED: 3,
	UNMAPPED_DRAFT: 5,
	FULLY_PRESENT: 6,
	PARTIALLY_PRESENT: 7,
} as const;

// ---- "Log" --------------------------------------------------------------------------------------------------------

/** Entries, descriptors' sectors and data sectors are multiples of this. */
export const LOG_SECTOR = 4 * KIB;
export const LOG_ENTRY_SIGNATURE = 0x6567_6f6c; // "loge"
/** "Entry Header". The checksum covers the whole entry. `tail` counts from the log's start. */
export const LogEntry = struct("VHDX log entry header", 64, {
	signature: u32le(0),
	checksum: u32le(4),
	entryLength: u32le(8),
	tail: u32le(12),
	sequence: u64le(16),
	descriptorCount: u32le(24),
	logGuid: bytes(32, 16),
	flushedFileOffset: u64le(48),
	lastFileOffset: u64le(56),
});
export const ZERO_SIGNATURE = 0x6f72_657a; // "zero"
export const DATA_SIGNATURE = 0x6373_6564; // "desc"
/** "Zero Descriptor" and "Data Descriptor"; the data one has `trailing` and `leading` bytes where that has a length. */
export const LogDescriptor = struct("VHDX log descriptor", 32, {
	signature: u32le(0),
	trailing: bytes(4, 4),
	leading: bytes(8, 8),
	fileOffset: u64le(16),
	sequence: u64le(24),
});
/** Length in a zero descriptor, in bytes. */
export const ZeroLength = struct("VHDX log zero descriptor", 32, { zeroLength: u64le(8) });
export const DATA_SECTOR_SIGNATURE = 0x6174_6164; // "data"
/** "Data Sector": all of a 4 KiB sector but its first 8 and last 4 bytes, which the descriptor has. */
export const LogData = struct("VHDX log data sector", LOG_SECTOR, {
	signature: u32le(0),
	sequenceHigh: u32le(4),
	data: bytes(8, 4084),
	sequenceLow: u32le(4092),
});
