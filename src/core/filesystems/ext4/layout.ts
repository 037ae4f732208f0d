// Records of ext2, ext3 and ext4 (Linux's Documentation/filesystems/ext4, little-endian) and of their journal, jbd2
// (big-endian). Offsets are written as that document writes them; only fields that are used here are named.

import { bytes, struct, u8, u16be, u16le, u32be, u32le } from "../../../foundations/struct.ts";

/** Where the superblock lies in the volume, whatever the block size. */
export const SUPERBLOCK_AT = 1024;
export const EXT_MAGIC = 0xef53;

/** Superblock, `ext4_super_block`. */
export const SuperBlock = struct("ext4_super_block", 1024, {
	inodesCount: u32le(0x0),
	blocksCountLow: u32le(0x4),
	freeBlocksCountLow: u32le(0xc),
	firstDataBlock: u32le(0x14),
	logBlockSize: u32le(0x18),
	logClusterSize: u32le(0x1c),
	blocksPerGroup: u32le(0x20),
	clustersPerGroup: u32le(0x24),
	inodesPerGroup: u32le(0x28),
	magic: u16le(0x38),
	state: u16le(0x3a),
	creatorOs: u32le(0x48),
	revision: u32le(0x4c),
	inodeSize: u16le(0x58),
	featureCompat: u32le(0x5c),
	featureIncompat: u32le(0x60),
	featureRoCompat: u32le(0x64),
	uuid: bytes(0x68, 16),
	label: bytes(0x78, 16),
	reservedDescriptorBlocks: u16le(0xce),
	journalUuid: bytes(0xd0, 16),
	journalInode: u32le(0xe0),
	journalDevice: u32le(0xe4),
	descriptorSize: u16le(0xfe),
	firstMetaGroup: u32le(0x104),
	blocksCountHigh: u32le(0x150),
	freeBlocksCountHigh: u32le(0x158),
	mmpBlockLow: u32le(0x168),
	mmpBlockHigh: u32le(0x16c),
	logGroupsPerFlex: u8(0x174),
	checksumType: u8(0x175),
	backupGroup0: u32le(0x24c),
	backupGroup1: u32le(0x250),
	checksumSeed: u32le(0x270),
	checksum: u32le(0x3fc),
});

/** `s_state` */
export const STATE_VALID = 0x1;
export const STATE_ERROR = 0x2;

/** Group descriptor, `ext4_group_desc`, in its 64-byte form; the 32-byte form ends after `checksum`. */
export const GroupDescriptor = struct("ext4_group_desc", 64, {
	blockBitmapLow: u32le(0x0),
	inodeBitmapLow: u32le(0x4),
	inodeTableLow: u32le(0x8),
	freeBlocksLow: u16le(0xc),
	freeInodesLow: u16le(0xe),
	flags: u16le(0x12),
	blockBitmapChecksumLow: u16le(0x18),
	unusedInodesLow: u16le(0x1c),
	checksum: u16le(0x1e),
	blockBitmapHigh: u32le(0x20),
	inodeBitmapHigh: u32le(0x24),
	inodeTableHigh: u32le(0x28),
	freeBlocksHigh: u16le(0x2c),
	freeInodesHigh: u16le(0x2e),
	unusedInodesHigh: u16le(0x32),
	blockBitmapChecksumHigh: u16le(0x38),
});
/** No inode of the group is in use, and none of its table was written. */
export const INODE_UNINIT = 0x1;
/** The descriptor's block bitmap was never written; its content follows from the layout. */
export const BLOCK_UNINIT = 0x2;

/** Inode, `ext4_inode`: what is needed to find the journal. */
export const Inode = struct("ext4_inode", 128, {
	mode: u16le(0x0),
	sizeLow: u32le(0x4),
	linksCount: u16le(0x1a),
	flags: u32le(0x20),
	block: bytes(0x28, 60),
	generation: u32le(0x64),
	sizeHigh: u32le(0x6c),
	checksumLow: u16le(0x7c),
});
export const INODE_CHECKSUM_LOW_AT = 0x7c;
/** `i_checksum_hi`, there where `i_extra_isize` at 0x80 reaches behind it. */
export const INODE_CHECKSUM_HIGH_AT = 0x82;
export const INODE_EXTENTS_FLAG = 0x80000;

/** Head of a node of an extent tree, `ext4_extent_header`. */
export const ExtentHeader = struct("ext4_extent_header", 12, {
	magic: u16le(0x0),
	entries: u16le(0x2),
	max: u16le(0x4),
	depth: u16le(0x6),
});
export const EXTENT_MAGIC = 0xf30a;
/** Leaf entry, `ext4_extent`. */
export const Extent = struct("ext4_extent", 12, {
	logicalBlock: u32le(0x0),
	length: u16le(0x4),
	startHigh: u16le(0x6),
	startLow: u32le(0x8),
});
/** Inner entry, `ext4_extent_idx`. */
export const ExtentIndex = struct("ext4_extent_idx", 12, {
	logicalBlock: u32le(0x0),
	leafLow: u32le(0x4),
	leafHigh: u16le(0x8),
});

export const JBD2_MAGIC = 0xc03b3998;
/** First bytes of every jbd2 control block, `journal_header_t`. Big-endian, as all of the journal. */
export const JournalHeader = struct("journal_header", 12, {
	magic: u32be(0x0),
	blockType: u32be(0x4),
	sequence: u32be(0x8),
});
export const BLOCK_DESCRIPTOR = 1;
export const BLOCK_COMMIT = 2;
export const BLOCK_SUPER_V1 = 3;
export const BLOCK_SUPER_V2 = 4;
export const BLOCK_REVOKE = 5;

/** Journal superblock, `journal_superblock_t`. */
export const JournalSuperBlock = struct("journal_superblock", 1024, {
	magic: u32be(0x0),
	blockType: u32be(0x4),
	blockSize: u32be(0xc),
	blockCount: u32be(0x10),
	first: u32be(0x14),
	sequence: u32be(0x18),
	start: u32be(0x1c),
	errorNumber: u32be(0x20),
	featureCompat: u32be(0x24),
	featureIncompat: u32be(0x28),
	featureRoCompat: u32be(0x2c),
	uuid: bytes(0x30, 16),
	userCount: u32be(0x40),
	checksumType: u8(0x50),
	fastCommitBlocks: u32be(0x54),
	checksum: u32be(0xfc),
});

/** Tag of one logged block, `journal_block_tag3_t` (checksum version 3). */
export const Tag3 = struct("journal_block_tag3", 16, {
	blockLow: u32be(0x0),
	flags: u32be(0x4),
	blockHigh: u32be(0x8),
	checksum: u32be(0xc),
});
/** Tag of one logged block, `journal_block_tag_t`; `blockHigh` is there only with 64-bit block numbers. */
export const Tag = struct("journal_block_tag", 12, {
	blockLow: u32be(0x0),
	checksum: u16be(0x4),
	flags: u16be(0x6),
	blockHigh: u32be(0x8),
});
export const TAG_ESCAPE = 0x1;
export const TAG_SAME_UUID = 0x2;
export const TAG_LAST = 0x8;

/** Commit block, `commit_header`. */
export const CommitBlock = struct("commit_header", 60, {
	magic: u32be(0x0),
	blockType: u32be(0x4),
	sequence: u32be(0x8),
	checksumType: u8(0xc),
	checksumSize: u8(0xd),
	checksum: u32be(0x10),
	seconds: bytes(0x30, 8),
});
/** Where a commit block carries its checksum. */
export const COMMIT_CHECKSUM_AT = 0x10;

/** Revoke block, `jbd2_journal_revoke_header_t`: `used` counts bytes from the block's start. */
export const RevokeBlock = struct("journal_revoke_header", 16, { used: u32be(0xc) });
