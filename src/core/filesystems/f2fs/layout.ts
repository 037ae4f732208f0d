// Records of F2FS (Linux's Documentation/filesystems/f2fs.rst, "Design"; include/linux/f2fs_fs.h). All little-endian and
// packed; bits of its bitmaps are counted from the highest of each byte. Only fields used here are named.

import { bytes, struct, u16le, u32le, u64le } from "../../../foundations/struct.ts";

/** The only block size that is read here. */
export const F2FS_BLOCK = 4096;
export const BLOCKS_PER_SEGMENT = 512;
export const F2FS_MAGIC = 0xf2f52010;
/** Where the two superblocks lie: 1024 bytes into blocks 0 and 1. */
export const SUPERBLOCK_PLACES: readonly number[] = [1024, F2FS_BLOCK + 1024];

/** Superblock, `f2fs_super_block`. Areas begin at block numbers and are whole segments long. */
export const SuperBlock = struct("f2fs_super_block", 3072, {
	magic: u32le(0x0),
	majorVersion: u16le(0x4),
	logSectorSize: u32le(0x8),
	logSectorsPerBlock: u32le(0xc),
	logBlockSize: u32le(0x10),
	logBlocksPerSegment: u32le(0x14),
	checksumOffset: u32le(0x20),
	blockCount: u64le(0x24),
	segmentCount: u32le(0x30),
	checkpointSegments: u32le(0x34),
	sitSegments: u32le(0x38),
	natSegments: u32le(0x3c),
	ssaSegments: u32le(0x40),
	mainSegments: u32le(0x44),
	firstSegmentAt: u32le(0x48),
	checkpointAt: u32le(0x4c),
	sitAt: u32le(0x50),
	natAt: u32le(0x54),
	ssaAt: u32le(0x58),
	mainAt: u32le(0x5c),
	uuid: bytes(0x6c, 16),
	volumeName: bytes(0x7c, 1024),
	checkpointPayload: u32le(0x680),
	features: u32le(0x884),
	/** Paths of further devices, 64 bytes each with its count of segments behind it. */
	devices: bytes(0x899, 544),
	checksum: u32le(0xbfc),
});
/** Bytes of the superblock from its start that say where everything lies, with the roots and the UUID. */
export const GEOMETRY_BYTES = 0x7c;

/** Checkpoint, `f2fs_checkpoint`: the first and the last block of each of the two packs. */
export const Checkpoint = struct("f2fs_checkpoint", F2FS_BLOCK, {
	version: u64le(0x0),
	validBlockCount: u64le(0x10),
	/** `cur_node_segno[1]` and `cur_node_blkoff[1]`: where `CURSEG_WARM_NODE`, the log of files' nodes, goes on. */
	warmNodeSegment: u32le(0x28),
	warmNodeBlock: u16le(0x46),
	flags: u32le(0x84),
	packBlockCount: u32le(0x88),
	packStartSummary: u32le(0x8c),
	validNodeCount: u32le(0x90),
	sitBitmapBytes: u32le(0x9c),
	natBitmapBytes: u32le(0xa0),
	checksumOffset: u32le(0xa4),
});
/** `sit_nat_version_bitmap`, to the end of the block. */
export const CHECKPOINT_BITMAP_AT = 0xc0;
/** Highest place of a checkpoint's checksum, `CP_CHKSUM_OFFSET`. */
export const CHECKPOINT_CHECKSUM_MAX = F2FS_BLOCK - 4;

/** The end of each node block, `node_footer`. */
export const NodeFooter = struct("node_footer", 24, {
	/** Low half of `cp_ver`: the version of the checkpoint after which the node was written. */
	checkpointVersionLow: u32le(0xc),
});

/** Checkpoint flags. */
export const CheckpointFlag = {
	unmounted: 0x1,
	compactSummary: 0x4,
	error: 0x8,
	needsCheck: 0x10,
	largeNatBitmap: 0x400,
	disabled: 0x1000,
	disabledQuick: 0x2000,
	resizing: 0x4000,
} as const;

/** Bytes in front of the journal in a summary block: 512 entries of 7 bytes. */
export const SUMMARY_ENTRIES_BYTES = 3584;
/** A journal in a summary block: what is left in front of a footer of 5 bytes. */
export const JOURNAL_BYTES = F2FS_BLOCK - 5 - SUMMARY_ENTRIES_BYTES;
/** Segment logs that a checkpoint keeps: three for data, three for nodes. `CURSEG_COLD_DATA` has the SIT's journal. */
export const LOG_COUNT = 6;
export const COLD_DATA_LOG = 2;
/** The first log that holds nodes. */
export const FIRST_NODE_LOG = 3;

/** Entry of the segment information table, `f2fs_sit_entry`. */
export const SitEntry = struct("f2fs_sit_entry", 74, {
	/** Valid blocks in the lower 10 bits, the log's number above. */
	validBlocks: u16le(0x0),
	validMap: bytes(0x2, BLOCKS_PER_SEGMENT / 8),
});
export const SIT_ENTRIES_PER_BLOCK = Math.floor(F2FS_BLOCK / SitEntry.size);

/** Journal of SIT entries, `f2fs_journal`: their count, then segment number and entry each, `sit_journal_entry`. */
export const SitJournalEntry = struct("sit_journal_entry", 4 + SitEntry.size, { segment: u32le(0x0) });
export const SIT_JOURNAL_HEAD = 2;
export const SIT_JOURNAL_MAX = Math.floor((JOURNAL_BYTES - SIT_JOURNAL_HEAD) / SitJournalEntry.size);

/** The bit `index` of a bitmap in F2FS's order. */
export const testBit = (bitmap: Uint8Array, index: number): boolean =>
	(bitmap[index >>> 3]! & (0x80 >>> (index & 7))) !== 0;
