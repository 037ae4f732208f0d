// Opening an XFS volume: superblock, features, geometry.
//
//   | superblock | AGF | AGI | AGFL | trees, inodes, data … | superblock copy | AGF | … |          each group alike
//   |◀──────────── allocation group 0, agBlocks ──────────▶|◀── allocation group 1 ──   … ── last one (short) ──▶|
//
// Checked in this order: magic, version, checksum, features (anything unknown refuses), ranges against the volume's
// size. What passes is a geometry in which every derived number is in range.

import { crc32cWithout } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import type { ByteCount } from "../../../foundations/units.ts";
import { byteCount, byteOffset, isPowerOfTwo } from "../../../foundations/units.ts";
import { cString, uuidText } from "../names.ts";
import { checkFeatures, Incompat } from "./features.ts";
import { BASIC_BLOCK, SUPERBLOCK_MAGIC, SuperBlock } from "./layout.ts";

/** Limits that kernels check, too ("Superblocks"; `xfs_validate_sb_common`). */
const MIN_AG_BYTES = 2 ** 24;
const MAX_AG_BYTES = 2 ** 40;
/** More than any real volume has; one that was grown from 16 MiB to 16 TiB has as many. */
const MAX_AG_COUNT = 2 ** 20;
const MIN_AG_BLOCKS = 64;
const MAX_SECTOR_BYTES = 32768;
const MAX_LOG_BYTES = 2 ** 31;

/** Who a volume says it is; known even of volumes that are refused. */
export interface Identity {
	readonly uuid: string;
	readonly label: string | null;
	readonly blockSize: ByteCount;
}

/** Everything about a volume that its superblock fixes. */
export interface Geometry {
	readonly identity: Identity;
	/** 5 has checksums, 4 has none. */
	readonly version: 4 | 5;
	readonly blockSize: number;
	readonly sectorSize: number;
	readonly dataBlocks: number;
	readonly agBlocks: number;
	readonly agCount: number;
	/** `sb_fdblocks`; null where kernels count in another way (version 4 without lazy counters). */
	readonly freeDataBlocks: number | null;
	/** The identifier in metadata blocks; the user may have changed the visible one since. */
	readonly metadataUuid: Uint8Array;
	/** The identifier in log records. */
	readonly logUuid: Uint8Array;
	readonly unknownLogFeatures: number;
	/** Log records have the form that log version 2 gave them. */
	readonly isLogVersion2: boolean;
	/** The internal log, null where it is on another device. */
	readonly log: LogPlace | null;
}

/** Where the log lies. */
export interface LogPlace {
	/** Byte position in the volume. */
	readonly start: number;
	readonly basicBlocks: number;
	readonly group: number;
	/** Blocks within the group. */
	readonly firstBlock: number;
	readonly blockCount: number;
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);

/** The volume's first sector, or null where it is no XFS superblock. */
export async function readSuperblock(volume: ByteSource): Promise<Uint8Array | null> {
	if (volume.size < BASIC_BLOCK) return null;
	const start = await readBytes(volume, byteOffset(0), BASIC_BLOCK);
	if (SuperBlock.read.magic(viewOf(start), 0) !== SUPERBLOCK_MAGIC) return null;
	const { sectorSize } = SuperBlock.at(viewOf(start));
	// The checksum covers a whole sector. A wrong size is refused later, with the other numbers.
	if (sectorSize <= BASIC_BLOCK || sectorSize > MAX_SECTOR_BYTES || sectorSize > volume.size) return start;
	return await readBytes(volume, byteOffset(0), sectorSize);
}

/** Reads the name tags of a superblock, without believing anything else of it. */
export function identify(raw: Uint8Array): Identity {
	const { uuid, label, blockSize } = SuperBlock.at(viewOf(raw));
	return { uuid: uuidText(uuid), label: cString(label), blockSize: byteCount(blockSize) };
}

/**
 * Checks a superblock against the rules of the format and the volume's size. `replayed`: it comes out of the log, so its
 * stored checksum is an old one. Throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED.
 */
export function parseSuperblock(raw: Uint8Array, volumeSize: ByteCount, replayed = false): Geometry {
	const record = SuperBlock.at(viewOf(raw));
	if (record.magic !== SUPERBLOCK_MAGIC) throw damaged("its superblock has lost its magic number");
	const number = record.version & 0xf;
	if (number !== 4 && number !== 5)
		throw new VmsweepError("VOLUME_UNSUPPORTED", `it has format version ${number}; 4 and 5 are supported`);
	const { sectorSize, blockSize } = record;
	if (!isPowerOfTwo(sectorSize) || sectorSize < BASIC_BLOCK || sectorSize > MAX_SECTOR_BYTES)
		throw damaged(`its sectors have ${sectorSize} bytes`);
	if (number === 5 && !replayed) {
		if (raw.length < sectorSize || crc32cOf(raw.subarray(0, sectorSize)) !== record.checksum)
			throw damaged("its superblock's checksum is wrong; run xfs_repair in the guest");
	}
	checkFeatures({
		version: record.version,
		features2: record.features2,
		roCompat: record.featuresRoCompat,
		incompat: record.featuresIncompat,
	});
	if (record.inProgress !== 0) throw damaged("mkfs.xfs has not finished making it");

	if (!isPowerOfTwo(blockSize) || blockSize < 512 || blockSize > 65536 || blockSize < sectorSize)
		throw damaged(`its blocks have ${blockSize} bytes`);
	if (2 ** record.blockLog !== blockSize || 2 ** record.sectorLog !== sectorSize)
		throw damaged("its superblock contradicts itself about the size of blocks or sectors");
	const { agBlocks, agCount, dataBlocks } = record;
	if (dataBlocks * blockSize > volumeSize)
		throw damaged(`it says that it has ${dataBlocks} blocks of ${blockSize} bytes, more than its partition holds`);
	if (
		agBlocks < MIN_AG_BLOCKS ||
		agBlocks * blockSize < MIN_AG_BYTES ||
		agBlocks * blockSize > MAX_AG_BYTES ||
		record.agBlockLog !== Math.ceil(Math.log2(agBlocks))
	)
		throw damaged(`its allocation groups have ${agBlocks} blocks of ${blockSize} bytes`);
	if (agCount > MAX_AG_COUNT)
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			`it has ${agCount} allocation groups; at most ${MAX_AG_COUNT} are read`,
		);
	if (agCount < 1 || dataBlocks > agCount * agBlocks || dataBlocks < (agCount - 1) * agBlocks + MIN_AG_BLOCKS)
		throw damaged(`it has ${dataBlocks} blocks in ${agCount} allocation groups of ${agBlocks}`);

	const hasMetaUuid = number === 5 && (record.featuresIncompat & Incompat.metaUuid) !== 0;
	return {
		identity: identify(raw),
		version: number,
		blockSize,
		sectorSize,
		dataBlocks,
		agBlocks,
		agCount,
		freeDataBlocks: number === 5 || (record.features2 & FEATURE_LAZY_COUNT) !== 0 ? record.freeDataBlocks : null,
		metadataUuid: (hasMetaUuid ? record.metaUuid : record.uuid).slice(),
		logUuid: record.uuid.slice(),
		unknownLogFeatures: number === 5 ? (record.featuresLogIncompat & ~LOG_ATTRIBUTES) >>> 0 : 0,
		isLogVersion2: number === 5 || (record.version & VERSION_LOG_2) !== 0,
		log: locateLog(record),
	};
}

/** Logged intents to set attributes: of no interest here, since intents are not followed. */
const LOG_ATTRIBUTES = 0x1;
const VERSION_LOG_2 = 0x400;
const FEATURE_LAZY_COUNT = 0x2;

/** Checksum of a metadata block whose little-endian checksum field lies at `at` (the superblock's by default). */
export const crc32cOf = (raw: Uint8Array, at: number = SuperBlock.offset.checksum): number =>
	~crc32cWithout(0xffffffff, raw, at) >>> 0;

/** `sb_logstart` holds the group's number above the block's number within the group. */
function locateLog(record: ReturnType<typeof SuperBlock.at>): LogPlace | null {
	const { logStart, logBlocks, agBlocks, agBlockLog, agCount, blockSize } = record;
	if (logStart === 0) return null;
	const group = Math.floor(logStart / 2 ** agBlockLog);
	const firstBlock = logStart % 2 ** agBlockLog;
	const groupBlocks = Math.min(agBlocks, record.dataBlocks - group * agBlocks);
	if (
		group >= agCount ||
		firstBlock < headerBlocks(record) ||
		logBlocks === 0 ||
		firstBlock + logBlocks > groupBlocks ||
		logBlocks * blockSize > MAX_LOG_BYTES
	)
		throw damaged(`its log has ${logBlocks} blocks from block ${firstBlock} of group ${group} on`);
	const start = (group * agBlocks + firstBlock) * blockSize;
	return { start, basicBlocks: (logBlocks * blockSize) / BASIC_BLOCK, group, firstBlock, blockCount: logBlocks };
}

/** The log of a volume that has it inside. Throws VOLUME_UNSUPPORTED for another device's. */
export function internalLog({ log }: Geometry): LogPlace {
	if (log === null)
		throw new VmsweepError("VOLUME_UNSUPPORTED", "its log is on another device, which is not supported");
	return log;
}

/** True where two superblocks describe one file system in one layout: all that no guest changes in passing. */
export const isSameVolume = (a: Geometry, b: Geometry): boolean => layoutKey(a) === layoutKey(b);

function layoutKey(geometry: Geometry): string {
	const { identity, version, blockSize, sectorSize, dataBlocks, agBlocks, agCount, metadataUuid, log } = geometry;
	const { unknownLogFeatures } = geometry;
	const layout = [version, blockSize, sectorSize, dataBlocks, agBlocks, agCount, log, unknownLogFeatures];
	return JSON.stringify([identity.uuid, [...metadataUuid], ...layout]);
}

/** Blocks at the start of each group that hold its four header sectors. */
export const headerBlocks = ({ sectorSize, blockSize }: { sectorSize: number; blockSize: number }): number =>
	Math.ceil((4 * sectorSize) / blockSize);

/** Blocks of a group; the last one may be short. */
export const groupLength = ({ agBlocks, dataBlocks }: Geometry, group: number): number =>
	Math.min(agBlocks, dataBlocks - group * agBlocks);
