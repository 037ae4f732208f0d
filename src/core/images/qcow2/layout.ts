// Records of qcow2 images ("The QEMU QCow2 image format", docs/interop/qcow2 of QEMU). All big-endian.
//
//   header ──▶ L1 table ──▶ L2 tables ──▶ clusters         guest byte → host byte
//     ├──────▶ refcount table ──▶ refcount blocks          host cluster → how many refer to it
//     └──────▶ snapshots ──▶ an L1 table each
//
// Everything lies in clusters of 2^9 to 2^21 bytes; every table begins on a cluster.

import { struct, u8, u16be, u32be, u64be } from "../../../foundations/struct.ts";

/** "QFI\xfb" */
export const QCOW2_MAGIC = 0x514649fb;

/** Section "Header", version 2; all of it is in version 3, too. */
export const HeaderV2 = struct("qcow2 header", 72, {
	magic: u32be(0),
	version: u32be(4),
	backingFileOffset: u64be(8),
	backingFileSize: u32be(16),
	clusterBits: u32be(20),
	size: u64be(24),
	cryptMethod: u32be(32),
	l1Size: u32be(36),
	l1TableOffset: u64be(40),
	refcountTableOffset: u64be(48),
	refcountTableClusters: u32be(56),
	snapshotCount: u32be(60),
	snapshotsOffset: u64be(64),
});

/** What version 3 adds. The feature words are read as two halves each: bit 0 is the lowest of the low half. */
export const HeaderV3 = struct("qcow2 header, version 3", 105, {
	incompatibleHigh: u32be(72),
	incompatibleLow: u32be(76),
	compatibleHigh: u32be(80),
	compatibleLow: u32be(84),
	autoclearHigh: u32be(88),
	autoclearLow: u32be(92),
	refcountOrder: u32be(96),
	headerLength: u32be(100),
	compressionType: u8(104),
});
/** Length of a version 3 header that has no compression type. */
export const HEADER_V3_LENGTH_MIN = 104;
/** Length of one that has all fields named here, with padding. */
export const HEADER_V3_LENGTH_KNOWN = 112;

/** Incompatible features, as bits of the low half. */
export const Incompatible = { DIRTY: 1, CORRUPT: 2, DATA_FILE: 4, COMPRESSION: 8, EXTENDED_L2: 16 } as const;
/** Autoclear features, as bits of the low half. */
export const Autoclear = { BITMAPS: 1, RAW_DATA_FILE: 2 } as const;

/** Section "Header extensions": type and length, then the data, padded to 8 bytes. */
export const ExtensionHeader = struct("header extension", 8, { type: u32be(0), length: u32be(4) });
export const Extension = {
	END: 0,
	BACKING_FORMAT: 0xe2792aca,
	FEATURE_NAMES: 0x6803f857,
	BITMAPS: 0x23852875,
	ENCRYPTION: 0x0537be77,
	DATA_FILE: 0x44415441,
} as const;

/** Section "Feature name table": one entry; the name fills the other 46 bytes. */
export const FeatureName = struct("feature name", 48, { kind: u8(0), bit: u8(1) });
export const FEATURE_KIND_INCOMPATIBLE = 0;

/** Section "Bitmaps extension". */
export const BitmapsExtension = struct("bitmaps extension", 24, {
	count: u32be(0),
	directorySize: u64be(8),
	directoryOffset: u64be(16),
});

/** Section "Snapshots": fixed part; extra data, id and name follow, padded to 8 bytes. */
export const SnapshotEntry = struct("snapshot table entry", 40, {
	l1TableOffset: u64be(0),
	l1Size: u32be(8),
	idLength: u16be(12),
	nameLength: u16be(14),
	seconds: u32be(16),
	nanoseconds: u32be(20),
	vmStateSize: u32be(32),
	extraLength: u32be(36),
});

/** Entries of L1 tables, refcount tables and plain L2 tables are 8 bytes. */
export const ENTRY_BYTES = 8;
/** An entry of an extended L2 table: the plain entry and the bitmaps of 32 subclusters. */
export const EXTENDED_ENTRY_BYTES = 16;
export const SUBCLUSTERS = 32;

/** In the high half of L1 and L2 entries: the reference count of what it points to is exactly one. */
export const COPIED = 0x8000_0000;
/** In the high half of an L2 entry. */
export const COMPRESSED = 0x4000_0000;
/** In the low half of an L2 entry: reads as zeros (version 3, plain tables only). */
export const ZERO = 1;

/** Bits 9 to 55 of an entry, from its halves: a host offset. */
export const entryOffset = (high: number, low: number): number =>
	(high & 0x00ff_ffff) * 0x1_0000_0000 + ((low & 0xffff_fe00) >>> 0);

/** Bits of an L1 entry, and of a plain uncompressed L2 entry, that must be zero. */
export const L1_RESERVED_HIGH = 0x7f00_0000;
export const L1_RESERVED_LOW = 0x0000_01ff;
export const L2_RESERVED_HIGH = 0x3f00_0000;
export const L2_RESERVED_LOW = 0x0000_01fe;

// Bounds on tables. They are what QEMU accepts, so every image that it opens is read; and they bound memory.
export const L1_BYTES_MAX = 32 << 20;
export const REFCOUNT_TABLE_BYTES_MAX = 8 << 20;
export const SNAPSHOTS_MAX = 65_536;
export const SNAPSHOT_TABLE_BYTES_MAX = 64 << 20;
export const SNAPSHOT_EXTRA_BYTES_MAX = 1024;
export const BACKING_NAME_BYTES_MAX = 1023;
