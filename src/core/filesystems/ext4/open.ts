// Opening an ext2, ext3 or ext4 volume: superblock, features, geometry.
//
//   | boot 1 KiB | superblock | descriptors | … group 0 … | group 1 | … | group n (short) |
//
// Checked in this order: magic, revision and features (anything unknown refuses), checksum, ranges against the
// volume's size. What passes is a geometry in which every derived number is in range, so that later arithmetic
// needs no further checks.

import { crc32c } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import type { ByteCount } from "../../../foundations/units.ts";
import { byteCount, byteOffset, isPowerOfTwo } from "../../../foundations/units.ts";
import { cString, uuidText } from "../names.ts";
import { Compat, checkFeatures, Incompat, RoCompat } from "./features.ts";
import { EXT_MAGIC, STATE_ERROR, STATE_VALID, SUPERBLOCK_AT, SuperBlock } from "./layout.ts";

/** Linux cannot use more; it also bounds the memory of a map (one bit per cluster). */
const MAX_CLUSTERS = 2 ** 32;

/** Bounds memory: eight times what a volume of 16 TiB has in the usual layout. */
const MAX_DESCRIPTOR_BYTES = 64 << 20;

/** Who a volume says it is; known even of volumes that are refused. */
export interface Identity {
	readonly type: "ext2" | "ext3" | "ext4";
	readonly uuid: string;
	readonly label: string | null;
	readonly blockSize: ByteCount;
	/** Unmounted cleanly, as far as the superblock says. */
	readonly clean: boolean;
}

/** Everything about a volume that its superblock fixes. Block numbers count from the volume's start. */
export interface Geometry {
	readonly identity: Identity;
	readonly uuidBytes: Uint8Array;
	readonly blockSize: number;
	readonly blocksCount: number;
	readonly firstDataBlock: number;
	/** Blocks per cluster, 1 without bigalloc. */
	readonly clusterRatio: number;
	readonly blocksPerGroup: number;
	readonly clustersPerGroup: number;
	readonly groupCount: number;
	/** Allocation units from `firstDataBlock` on: the length of the volume's bitmap. */
	readonly clusterCount: number;
	readonly inodesPerGroup: number;
	readonly inodeCount: number;
	readonly inodeSize: number;
	readonly inodeTableBlocks: number;
	readonly descriptorSize: number;
	readonly descriptorsPerBlock: number;
	readonly descriptorBlocks: number;
	readonly reservedDescriptorBlocks: number;
	readonly firstMetaGroup: number;
	readonly backupGroups: readonly [number, number];
	readonly mmpBlock: number;
	readonly freeClusters: number;
	readonly has: {
		readonly journal: boolean;
		readonly recover: boolean;
		readonly metaBg: boolean;
		readonly flexBg: boolean;
		readonly is64Bit: boolean;
		readonly sparseSuper: boolean;
		readonly sparseSuper2: boolean;
		readonly bigalloc: boolean;
		readonly groupChecksum: boolean;
		readonly metadataChecksum: boolean;
		readonly fastCommit: boolean;
	};
	/** The words as stored, for telling whether two superblocks describe the same volume. */
	readonly features: { readonly compat: number; readonly incompat: number; readonly roCompat: number };
	readonly valid: boolean;
	readonly error: boolean;
	/** Start value of all metadata checksums. */
	readonly checksumSeed: number;
	readonly journalInode: number;
	readonly journalIsExternal: boolean;
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** The 1024 bytes of the primary superblock, or null where the volume is too small or has no ext magic. */
export async function readSuperblock(volume: ByteSource): Promise<Uint8Array | null> {
	if (volume.size < SUPERBLOCK_AT + SuperBlock.size) return null;
	const raw = await readBytes(volume, byteOffset(SUPERBLOCK_AT), SuperBlock.size);
	return SuperBlock.read.magic(viewOf(raw), 0) === EXT_MAGIC ? raw : null;
}

/** Reads the name tags of a superblock, without believing anything else of it. */
export function identify(raw: Uint8Array): Identity {
	const record = SuperBlock.at(viewOf(raw));
	const hasJournal = (record.featureCompat & Compat.hasJournal) !== 0;
	// As blkid does: what ext3 (ext2) could not have mounted makes it ext4; the journal tells ext3 from ext2.
	const beyondExt3 =
		(record.featureIncompat & ~(0x2 | 0x4 | 0x10)) !== 0 || (record.featureRoCompat & ~(0x1 | 0x2 | 0x4)) !== 0;
	return {
		type: beyondExt3 ? "ext4" : hasJournal ? "ext3" : "ext2",
		uuid: uuidText(record.uuid),
		label: cString(record.label),
		blockSize: byteCount(record.logBlockSize <= 6 ? 1024 << record.logBlockSize : 0),
		clean:
			(record.state & STATE_VALID) !== 0 &&
			(record.state & STATE_ERROR) === 0 &&
			(record.featureIncompat & Incompat.recover) === 0,
	};
}

/** Checks a superblock against the rules of the format and the volume's size. Throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED. */
export function parseSuperblock(raw: Uint8Array, volumeSize: ByteCount): Geometry {
	const record = SuperBlock.at(viewOf(raw));
	if (record.magic !== EXT_MAGIC) throw damaged("its superblock has lost its magic number");
	const features = { compat: record.featureCompat, incompat: record.featureIncompat, roCompat: record.featureRoCompat };
	if (record.revision > 1) throw unsupported(`it has format revision ${record.revision}`);
	if (record.revision === 0 && (features.compat | features.incompat | features.roCompat) !== 0)
		throw unsupported("it has feature bits in format revision 0, which kernels ignore");
	if (record.creatorOs === 1) throw unsupported("it was made by GNU Hurd");
	checkFeatures(features);
	const compat = (flag: number): boolean => (features.compat & flag) !== 0;
	const incompat = (flag: number): boolean => (features.incompat & flag) !== 0;
	const roCompat = (flag: number): boolean => (features.roCompat & flag) !== 0;

	const metadataChecksum = roCompat(RoCompat.metadataChecksum);
	if (metadataChecksum) {
		if (record.checksumType !== 1) throw unsupported(`it has checksums of type ${record.checksumType}`);
		const expected = crc32c(0xffffffff, raw.subarray(0, SuperBlock.offset.checksum));
		if (record.checksum !== expected) throw damaged("its superblock's checksum is wrong; run e2fsck in the guest");
	} else if (incompat(Incompat.checksumSeed)) throw damaged("it has metadata_csum_seed without metadata_csum");

	if (record.logBlockSize > 6) throw damaged(`its block size is 2^${record.logBlockSize} KiB`);
	const blockSize = 1024 << record.logBlockSize;
	const bigalloc = roCompat(RoCompat.bigalloc);
	const is64Bit = incompat(Incompat.is64Bit);
	const blocksCount = record.blocksCountLow + (is64Bit ? record.blocksCountHigh * 2 ** 32 : 0);
	if (blocksCount * blockSize > volumeSize)
		throw damaged(`it says that it has ${blocksCount} blocks of ${blockSize} bytes, more than its partition holds`);
	const firstDataBlock = record.firstDataBlock;
	if (firstDataBlock !== (blockSize === 1024 && !bigalloc ? 1 : 0) || blocksCount <= firstDataBlock)
		throw damaged(`its first data block is ${firstDataBlock}`);

	if (bigalloc && (record.logClusterSize < record.logBlockSize || record.logClusterSize > 20))
		throw damaged(`its cluster size is 2^${record.logClusterSize} KiB`);
	const clusterRatio = bigalloc ? 2 ** (record.logClusterSize - record.logBlockSize) : 1;
	const { blocksPerGroup, inodesPerGroup } = record;
	const clustersPerGroup = bigalloc ? record.clustersPerGroup : blocksPerGroup;
	if (
		clustersPerGroup === 0 ||
		clustersPerGroup % 8 !== 0 ||
		clustersPerGroup > blockSize * 8 ||
		blocksPerGroup !== clustersPerGroup * clusterRatio
	)
		throw damaged(`it has ${blocksPerGroup} blocks in ${clustersPerGroup} clusters per group`);
	const groupCount = Math.ceil((blocksCount - firstDataBlock) / blocksPerGroup);
	const clusterCount = Math.ceil((blocksCount - firstDataBlock) / clusterRatio);
	if (clusterCount > MAX_CLUSTERS)
		throw unsupported(`it has ${clusterCount} allocation units; at most ${MAX_CLUSTERS} are supported`);

	const inodeSize = record.revision === 0 ? 128 : record.inodeSize;
	if (!isPowerOfTwo(inodeSize) || inodeSize < 128 || inodeSize > blockSize)
		throw damaged(`its inodes have ${inodeSize} bytes`);
	if (inodesPerGroup === 0 || inodesPerGroup > blockSize * 8 || record.inodesCount !== inodesPerGroup * groupCount)
		throw damaged(`it has ${record.inodesCount} inodes, ${inodesPerGroup} per group`);
	const descriptorSize = is64Bit ? record.descriptorSize : 32;
	if (!isPowerOfTwo(descriptorSize) || descriptorSize < (is64Bit ? 64 : 32) || descriptorSize > blockSize)
		throw damaged(`its group descriptors have ${descriptorSize} bytes`);
	const descriptorsPerBlock = blockSize / descriptorSize;
	const descriptorBlocks = Math.ceil(groupCount / descriptorsPerBlock);
	if (groupCount * descriptorSize > MAX_DESCRIPTOR_BYTES)
		throw unsupported(`it has ${groupCount} groups of only ${blocksPerGroup} blocks`);
	const metaBg = incompat(Incompat.metaBg);
	const resizeInode = compat(Compat.resizeInode);
	if (metaBg && resizeInode) throw damaged("it has both meta_bg and resize_inode");
	if (metaBg && record.firstMetaGroup > descriptorBlocks)
		throw damaged(`its first meta group is ${record.firstMetaGroup}`);
	if (record.reservedDescriptorBlocks > blockSize / 4)
		throw damaged(`it reserves ${record.reservedDescriptorBlocks} descriptor blocks`);

	const mmpBlock = incompat(Incompat.mmp) ? record.mmpBlockLow + (is64Bit ? record.mmpBlockHigh * 2 ** 32 : 0) : 0;
	const identity = identify(raw);
	const hasJournal = compat(Compat.hasJournal);
	return {
		identity,
		uuidBytes: record.uuid.slice(),
		blockSize,
		blocksCount,
		firstDataBlock,
		clusterRatio,
		blocksPerGroup,
		clustersPerGroup,
		groupCount,
		clusterCount,
		inodesPerGroup,
		inodeCount: record.inodesCount,
		inodeSize,
		inodeTableBlocks: Math.ceil((inodesPerGroup * inodeSize) / blockSize),
		descriptorSize,
		descriptorsPerBlock,
		descriptorBlocks,
		reservedDescriptorBlocks: record.reservedDescriptorBlocks,
		firstMetaGroup: metaBg ? record.firstMetaGroup : Number.POSITIVE_INFINITY,
		backupGroups: [record.backupGroup0, record.backupGroup1],
		mmpBlock,
		freeClusters: (record.freeBlocksCountLow + (is64Bit ? record.freeBlocksCountHigh * 2 ** 32 : 0)) / clusterRatio,
		has: {
			journal: hasJournal,
			recover: incompat(Incompat.recover),
			metaBg,
			flexBg: incompat(Incompat.flexBg),
			is64Bit,
			sparseSuper: roCompat(RoCompat.sparseSuper),
			sparseSuper2: compat(Compat.sparseSuper2),
			bigalloc,
			groupChecksum: roCompat(RoCompat.groupChecksum),
			metadataChecksum,
			fastCommit: compat(Compat.fastCommit),
		},
		features,
		valid: (record.state & STATE_VALID) !== 0,
		error: (record.state & STATE_ERROR) !== 0,
		checksumSeed: !metadataChecksum
			? 0
			: incompat(Incompat.checksumSeed)
				? record.checksumSeed
				: crc32c(0xffffffff, record.uuid),
		journalInode: record.journalInode,
		journalIsExternal: hasJournal && (record.journalInode === 0 || record.journalDevice !== 0),
	};
}

/** First block of a group. */
export const groupStart = (geometry: Geometry, group: number): number =>
	geometry.firstDataBlock + group * geometry.blocksPerGroup;

/** First block behind a group; the last group may be short. */
export const groupEnd = (geometry: Geometry, group: number): number =>
	Math.min(groupStart(geometry, group + 1), geometry.blocksCount);

/** Allocation units in a group. */
export const clustersInGroup = (geometry: Geometry, group: number): number =>
	Math.ceil((groupEnd(geometry, group) - groupStart(geometry, group)) / geometry.clusterRatio);
