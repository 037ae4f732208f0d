// Records of btrfs (btrfs documentation, "On-disk Format"; Linux's uapi header btrfs_tree.h). All little-endian, packed,
// none aligned. Offsets are written in hexadecimal from each record's own start; only fields used here are named.

import { bytes, struct, u8, u16le, u32le, u64le } from "../../../foundations/struct.ts";

/** Where the superblock and its copies lie on every device, as far as the device reaches (`btrfs_sb_offset`). */
export const SUPERBLOCK_PLACES: readonly number[] = [64 * 2 ** 10, 64 * 2 ** 20, 256 * 2 ** 30];
/** What the allocator leaves alone around each copy: one stripe, `BTRFS_STRIPE_LEN`. */
export const SUPERBLOCK_RESERVE = 64 * 2 ** 10;
/** What the allocator leaves alone at a device's start, `BTRFS_DEVICE_RANGE_RESERVED`: boot loaders live there. */
export const DEVICE_RESERVE = 2 ** 20;
export const BTRFS_MAGIC = "_BHRfS_M";
/** Every block's checksum field; the checksum itself covers all bytes behind it. */
export const CHECKSUM_FIELD = 32;

/** Superblock, `btrfs_super_block`, with the device's own `btrfs_dev_item` inside from 0xc9 on. */
export const SuperBlock = struct("btrfs_super_block", 4096, {
	checksum: bytes(0x0, CHECKSUM_FIELD),
	fsid: bytes(0x20, 16),
	bytenr: u64le(0x30),
	flags: u64le(0x38),
	magic: bytes(0x40, 8),
	generation: u64le(0x48),
	root: u64le(0x50),
	chunkRoot: u64le(0x58),
	logRoot: u64le(0x60),
	totalBytes: u64le(0x70),
	bytesUsed: u64le(0x78),
	numDevices: u64le(0x88),
	sectorSize: u32le(0x90),
	nodeSize: u32le(0x94),
	systemChunkArraySize: u32le(0xa0),
	chunkRootGeneration: u64le(0xa4),
	compatFlags: u64le(0xac),
	compatRoFlags: u64le(0xb4),
	incompatFlags: u64le(0xbc),
	checksumType: u16le(0xc4),
	rootLevel: u8(0xc6),
	chunkRootLevel: u8(0xc7),
	deviceId: u64le(0xc9),
	deviceBytes: u64le(0xd1),
	label: bytes(0x12b, 256),
	metadataUuid: bytes(0x23b, 16),
	systemChunkArray: bytes(0x32b, 2048),
});
/** `BTRFS_HEADER_FLAG_WRITTEN`: set in every ordinary superblock. */
export const SUPER_FLAG_WRITTEN = 0x1;

/** First bytes of every tree block, `btrfs_header`. */
export const NodeHeader = struct("btrfs_header", 101, {
	checksum: bytes(0x0, CHECKSUM_FIELD),
	fsid: bytes(0x20, 16),
	bytenr: u64le(0x30),
	generation: u64le(0x50),
	owner: u64le(0x58),
	itemCount: u32le(0x60),
	level: u8(0x64),
});

/** Key, `btrfs_disk_key`: objectid, type, offset; sorted as (unsigned) numbers in this order. */
export const Key = struct("btrfs_disk_key", 17, { objectid: u64le(0x0), type: u8(0x8), offset: u64le(0x9) });

/** Entry of an inner node, `btrfs_key_ptr`; the key comes first. */
export const KeyPointer = struct("btrfs_key_ptr", 33, { logical: u64le(0x11), generation: u64le(0x19) });

/** Entry of a leaf, `btrfs_item`; the key comes first. `offset` counts from the end of the header. */
export const LeafItem = struct("btrfs_item", 25, { offset: u32le(0x11), size: u32le(0x15) });

/** Item types. */
export const ItemType = {
	rootItem: 132,
	extentItem: 168,
	metadataItem: 169,
	blockGroup: 192,
	freeSpaceInfo: 198,
	freeSpaceExtent: 199,
	freeSpaceBitmap: 200,
	deviceExtent: 204,
	deviceItem: 216,
	chunk: 228,
	temporary: 248,
	deviceReplace: 250,
} as const;

/** Trees, by the objectid of their root items and the owner in their blocks. */
export const TreeId = {
	root: 1,
	extent: 2,
	chunk: 3,
	device: 4,
	freeSpace: 10,
	blockGroup: 11,
} as const;

/** `BTRFS_BALANCE_OBJECTID`: a balance that is running, paused, or was cut off. */
export const BALANCE_OBJECTID = -4n;
/** `BTRFS_TREE_RELOC_OBJECTID`: trees of a relocation under way. */
export const RELOCATION_OBJECTID = -8n;
/** `BTRFS_DEV_ITEMS_OBJECTID` */
export const DEVICE_ITEMS_OBJECTID = 1;
/** `BTRFS_FIRST_CHUNK_TREE_OBJECTID`: the objectid of every chunk's key. */
export const CHUNK_OBJECTID = 256;

/** Root item, `btrfs_root_item`, up to `level`: the part that all versions of the format have. */
export const RootItem = struct("btrfs_root_item", 239, {
	generation: u64le(0xa0),
	bytenr: u64le(0xb0),
	level: u8(0xee),
});

/** Device item, `btrfs_dev_item`. */
export const DeviceItem = struct("btrfs_dev_item", 98, { deviceId: u64le(0x0), totalBytes: u64le(0x8) });

/** Chunk item, `btrfs_chunk`, without its stripes. */
export const ChunkItem = struct("btrfs_chunk", 48, {
	length: u64le(0x0),
	type: u64le(0x18),
	stripeCount: u16le(0x2c),
});
/** `btrfs_stripe` */
export const StripeItem = struct("btrfs_stripe", 32, { deviceId: u64le(0x0), offset: u64le(0x8) });

/** Bits of a chunk's type: what it holds, and its profile. */
export const ChunkType = { data: 0x1, system: 0x2, metadata: 0x4, raid0: 0x8, dup: 0x20 } as const;

/** Device extent, `btrfs_dev_extent`: the way back from a device's bytes to their chunk. */
export const DeviceExtent = struct("btrfs_dev_extent", 48, { chunkOffset: u64le(0x10), length: u64le(0x18) });

/** `btrfs_dev_replace_item` */
export const DeviceReplace = struct("btrfs_dev_replace_item", 72, { state: u64le(0x20) });
/** `replace_state` of a replacement that is over, or never was. */
export const REPLACE_AT_REST: readonly number[] = [0, 2, 3];

/** Block group item, `btrfs_block_group_item`. Its key has the group's start and length. */
export const BlockGroupItem = struct("btrfs_block_group_item", 24, { used: u64le(0x0), flags: u64le(0x10) });

/** Free-space info, `btrfs_free_space_info`. Its key has the group's start and length. */
export const FreeSpaceInfo = struct("btrfs_free_space_info", 8, { extentCount: u32le(0x0), flags: u32le(0x4) });
/** `BTRFS_FREE_SPACE_USING_BITMAPS` */
export const FREE_SPACE_USING_BITMAPS = 0x1;
