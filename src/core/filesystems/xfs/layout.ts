// Records of XFS ("XFS Algorithms & Data Structures", 3rd edition), big-endian but for checksums and for what log items
// hold, which is in the byte order of the CPU that wrote them. Only fields that are used here are named.

import { bits64be, bytes, struct, u8, u16be, u16le, u32be, u32le, u64be, u64le } from "../../../foundations/struct.ts";

/** Unit of disk addresses and of the log, whatever the sector size: a "basic block". */
export const BASIC_BLOCK = 512;
/** "No block" among 32-bit block numbers within an allocation group. */
export const NULL_AG_BLOCK = 0xffffffff;

export const SUPERBLOCK_MAGIC = 0x58465342;
/** Superblock, `xfs_dsb`, the first sector of the volume ("Superblocks"). */
export const SuperBlock = struct("xfs_dsb", 264, {
	magic: u32be(0),
	blockSize: u32be(4),
	dataBlocks: u64be(8),
	uuid: bytes(32, 16),
	logStart: u64be(48),
	agBlocks: u32be(84),
	agCount: u32be(88),
	logBlocks: u32be(96),
	version: u16be(100),
	sectorSize: u16be(102),
	label: bytes(108, 12),
	blockLog: u8(120),
	sectorLog: u8(121),
	agBlockLog: u8(124),
	inProgress: u8(126),
	freeDataBlocks: u64be(144),
	features2: u32be(200),
	featuresRoCompat: u32be(212),
	featuresIncompat: u32be(216),
	featuresLogIncompat: u32be(220),
	checksum: u32le(224),
	lsn: bits64be(240),
	metaUuid: bytes(248, 16),
});

export const AGF_MAGIC = 0x58414746;
/** Free space of an allocation group, `xfs_agf` ("AG Free Space Block"); version 4 ends before `uuid`. */
export const Agf = struct("xfs_agf", 224, {
	magic: u32be(0),
	version: u32be(4),
	sequence: u32be(8),
	length: u32be(12),
	byBlockRoot: u32be(16),
	byBlockLevels: u32be(28),
	heldBlocks: u32be(48),
	freeBlocks: u32be(52),
	longest: u32be(56),
	treeBlocks: u32be(60),
	uuid: bytes(64, 16),
	lsn: bits64be(208),
	checksum: u32le(216),
});

/** Head of a block of a by-group B+tree, `xfs_btree_block` in its short form; version 4 ends after `right`. */
export const BtreeBlock = struct("xfs_btree_sblock", 56, {
	magic: u32be(0),
	level: u16be(4),
	recordCount: u16be(6),
	left: u32be(8),
	right: u32be(12),
	basicBlock: u64be(16),
	lsn: bits64be(24),
	uuid: bytes(32, 16),
	owner: u32be(48),
	checksum: u32le(52),
});
export const BTREE_HEADER_V4 = 16;
/** `ABTB`: free space by block number, version 4. */
export const BY_BLOCK_MAGIC_V4 = 0x41425442;
/** `AB3B`: the same, version 5. */
export const BY_BLOCK_MAGIC_V5 = 0x41423342;

/** Leaf entry of the free space trees, `xfs_alloc_rec`; keys of inner nodes look the same. */
export const FreeRecord = struct("xfs_alloc_rec", 8, { start: u32be(0), length: u32be(4) });

/** First word of a log record; no other sector of the log can start with it. */
export const LOG_RECORD_MAGIC = 0xfeedbabe;
/** Head of a log record, `xlog_rec_header` ("Log Records"). */
export const LogRecordHeader = struct("xlog_rec_header", 512, {
	magic: u32be(0),
	cycle: u32be(4),
	version: u32be(8),
	length: u32be(12),
	lsn: bits64be(16),
	tailLsn: bits64be(24),
	checksum: u32le(32),
	previousSector: u32be(36),
	operationCount: u32be(40),
	cycleData: bytes(44, 256),
	format: u32be(300),
	uuid: bytes(304, 16),
	bufferSize: u32be(320),
});
/** How much of the record's first sector its checksum covers; 32-bit x86 kernels leave out 4 bytes of padding. */
export const LOG_HEADER_SUMMED = [328, 324] as const;
/** Following sectors of the head of a long record, `xlog_rec_ext_header`: the cycle, then the replaced words. */
export const LOG_EXTENSION_SUMMED = 260;
export const LOG_EXTENSION_WORDS_AT = 4;
/** Log data whose replaced words fit in one sector of the record's head. */
export const LOG_BYTES_PER_HEADER = 32 << 10;
/** The only byte order of log items that is read: the one of little-endian Linux. */
export const LOG_FORMAT_LINUX_LITTLE_ENDIAN = 1;
/** Kernels write records of at most this many data bytes. */
export const LOG_RECORD_MAX_BYTES = 256 << 10;
/** At most this many records are being written at any time. */
export const LOG_RECORDS_IN_FLIGHT = 8;

/** Head of an operation in a log record, `xlog_op_header`. */
export const LogOperation = struct("xlog_op_header", 12, {
	transaction: u32be(0),
	length: u32be(4),
	client: u8(8),
	flags: u8(9),
});
/** `oh_clientid` */
export const LOG_CLIENTS: readonly number[] = [0x69, 0x02, 0xaa];
/** `oh_flags` */
export const OP_START = 0x01;
export const OP_COMMIT = 0x02;
export const OP_CONTINUE = 0x04;
export const OP_WAS_CONTINUED = 0x08;
export const OP_END = 0x10;
export const OP_UNMOUNT = 0x20;

/** First region of a transaction, `xfs_trans_header`. */
export const TRANSACTION_MAGIC = 0x5452414e;
export const TRANSACTION_HEADER_BYTES = 16;

/** First words of every log item. */
export const LogItem = struct("log item", 4, { type: u16le(0), regionCount: u16le(2) });
/** A part of a metadata buffer, `xfs_buf_log_format`; the bitmap of its 128-byte chunks follows. */
export const BufferItem = struct("xfs_buf_log_format", 20, {
	type: u16le(0),
	regionCount: u16le(2),
	flags: u16le(4),
	basicBlocks: u16le(6),
	address: u64le(8),
	mapWords: u32le(16),
});
export const BUFFER_ITEM = 0x123c;
/** All item types that kernels write, or wrote, and that change nothing of what is read here. */
export const isOtherItem = (type: number): boolean => type >= 0x1236 && type <= 0x124f && type !== 0x1238;
export const BUFFER_CHUNK = 128;
export const BUFFER_CANCEL = 0x2;
/** What a buffer holds: the upper five bits of the flags. */
export const bufferKind = (flags: number): number => flags >>> 11;
export const KIND_BTREE = 4;
export const KIND_AGF = 5;
export const KIND_SUPERBLOCK = 18;
/** No item has more regions: a buffer of 64 KiB in which every other chunk changed. */
export const MAX_ITEM_REGIONS = 257;
