// Opening a btrfs volume: superblock, its copies, features, geometry.
//
//   0        64 KiB       1 MiB                64 MiB                 256 GiB
//   | boot   | superblock | chunks, free …     | copy 1 | …           | copy 2 | …
//
// The first superblock is the one that kernels mount, so its view of the volume is the one to believe; the copies are
// written with it at every commit. A copy that is older was cut off by a crash and matters to nobody. A copy that is
// newer, or of another file system, is a sign that someone may yet go on from there: then the volume is kept.
//
// Checked in this order: magic, checksum, features and flags, ranges against the volume's size.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, formatBytes, isPowerOfTwo, roundDown } from "../../../foundations/units.ts";
import { cString, uuidText } from "../names.ts";
import { type BlockCheck, blockCheck } from "./checksums.ts";
import { CompatRo, checkFeatures, hasFlag, Incompat } from "./features.ts";
import { BTRFS_MAGIC, SUPERBLOCK_PLACES, SuperBlock } from "./layout.ts";

/** Trees are no deeper, `BTRFS_MAX_LEVEL`. */
export const MAX_LEVEL = 8;

/** Who a volume says it is; known even of volumes that are refused. */
export interface Identity {
	readonly uuid: string;
	readonly label: string | null;
	/** Sector size, the unit of allocation. */
	readonly blockSize: number;
	readonly logEmpty: boolean;
}

/** Where a tree begins. Positions are logical: chunks map them to the device. */
export interface TreeRoot {
	readonly tree: number;
	readonly logical: number;
	readonly generation: number;
	readonly level: number;
}

/** Everything about a volume that its superblock fixes. */
export interface Geometry {
	readonly identity: Identity;
	/** The fsid that tree blocks carry. */
	readonly metadataFsid: Uint8Array;
	readonly sectorSize: number;
	readonly nodeSize: number;
	readonly generation: number;
	readonly rootTree: TreeRoot;
	readonly chunkTree: TreeRoot;
	readonly deviceId: number;
	/** Bytes of the device that the file system uses, as stored. */
	readonly deviceBytes: number;
	/** The same in whole sectors: the end of all that can be free. */
	readonly end: number;
	/** Bytes of all extents, over all block groups, as logical bytes. */
	readonly bytesUsed: number;
	readonly systemChunkArray: Uint8Array;
	readonly has: { readonly freeSpaceTree: boolean; readonly blockGroupTree: boolean };
	readonly checksumFits: BlockCheck;
	readonly warnings: readonly string[];
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** The first superblock, or null where the volume is too small or has none. */
export async function readSuperblock(volume: ByteSource): Promise<Uint8Array | null> {
	const at = SUPERBLOCK_PLACES[0]!;
	if (volume.size < at + SuperBlock.size) return null;
	const raw = await readBytes(volume, byteOffset(at), SuperBlock.size);
	return hasMagic(raw) ? raw : null;
}

/** Reads the name tags of a superblock, without believing anything else of it. */
export function identify(raw: Uint8Array): Identity {
	const record = SuperBlock.at(viewOf(raw));
	return {
		uuid: uuidText(record.fsid),
		label: cString(record.label),
		blockSize: record.sectorSize,
		logEmpty: record.logRoot === 0,
	};
}

/**
 * Checks the first superblock and its copies against the rules of the format and the volume's size. `withLog`: what only
 * the log trees refer to need not be known.
 * Throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED.
 */
export async function openVolume(volume: ByteSource, raw: Uint8Array, withLog = false): Promise<Geometry> {
	const record = SuperBlock.at(viewOf(raw));
	const checksumFits = blockCheck(record.checksumType);
	if (!checksumFits(raw)) throw damaged("its superblock's checksum is wrong; run btrfs rescue super-recover");
	if (record.bytenr !== SUPERBLOCK_PLACES[0]) throw damaged(`its superblock belongs at byte ${record.bytenr}`);
	checkFeatures({
		flags: record.flags,
		incompat: record.incompatFlags,
		compatRo: record.compatRoFlags,
		compat: record.compatFlags,
	});
	if (record.numDevices !== 1) throw unsupported(`it spans ${record.numDevices} devices; only one is supported`);
	// Extents and blocks that only the log trees refer to are in no allocation tree until the next mount.
	if (record.logRoot !== 0 && !withLog)
		throw unsupported("it holds a log of the last fsyncs before a crash; mount and unmount it, then try again");

	const { sectorSize, nodeSize } = record;
	if (!isPowerOfTwo(sectorSize) || sectorSize < 512 || sectorSize > 65536)
		throw damaged(`its sectors have ${sectorSize} bytes`);
	if (!isPowerOfTwo(nodeSize) || nodeSize < Math.max(4096, sectorSize) || nodeSize > 65536)
		throw damaged(`its tree blocks have ${nodeSize} bytes`);
	if (record.rootLevel >= MAX_LEVEL || record.chunkRootLevel >= MAX_LEVEL)
		throw damaged(`its trees are ${Math.max(record.rootLevel, record.chunkRootLevel)} levels deep`);
	if (record.deviceBytes > volume.size)
		throw damaged(`it says that its device has ${record.deviceBytes} bytes, more than its partition holds`);
	if (record.systemChunkArraySize > SuperBlock.size - 0x32b || record.systemChunkArraySize > 2048)
		throw damaged(`its system chunk array has ${record.systemChunkArraySize} bytes`);
	const freeSpaceTree = hasFlag(record.compatRoFlags, CompatRo.freeSpaceTree);
	return {
		identity: identify(raw),
		metadataFsid: (hasFlag(record.incompatFlags, Incompat.metadataUuid) ? record.metadataUuid : record.fsid).slice(),
		sectorSize,
		nodeSize,
		generation: record.generation,
		rootTree: { tree: 1, logical: record.root, generation: record.generation, level: record.rootLevel },
		chunkTree: {
			tree: 3,
			logical: record.chunkRoot,
			generation: record.chunkRootGeneration,
			level: record.chunkRootLevel,
		},
		deviceId: record.deviceId,
		deviceBytes: record.deviceBytes,
		end: roundDown(record.deviceBytes, sectorSize),
		bytesUsed: record.bytesUsed,
		systemChunkArray: record.systemChunkArray.slice(0, record.systemChunkArraySize),
		has: {
			freeSpaceTree: freeSpaceTree && hasFlag(record.compatRoFlags, CompatRo.freeSpaceTreeValid),
			blockGroupTree: hasFlag(record.compatRoFlags, CompatRo.blockGroupTree),
		},
		checksumFits,
		warnings: await checkCopies(volume, record, checksumFits),
	};
}

/** Compares the other copies with the first one. Returns warnings; throws where a copy might be the one to go on from. */
async function checkCopies(
	volume: ByteSource,
	first: ReturnType<typeof SuperBlock.at>,
	checksumFits: BlockCheck,
): Promise<string[]> {
	const warnings: string[] = [];
	for (const at of SUPERBLOCK_PLACES.slice(1)) {
		if (at + SuperBlock.size > first.deviceBytes) continue;
		const raw = await readBytes(volume, byteOffset(at), SuperBlock.size);
		const name = `the copy of its superblock at ${formatBytes(at)}`;
		const copy = SuperBlock.at(viewOf(raw));
		const isWhole = hasMagic(raw) && copy.bytenr === at && checksumFits(raw);
		const isSame = copy.fsid.every((byte, index) => byte === first.fsid[index]);
		if (!isWhole) warnings.push(`${name} is damaged`);
		else if (!isSame || copy.generation > first.generation)
			throw damaged(`${name} is newer or of another file system; mount and unmount it, then try again`);
		else if (copy.generation < first.generation) warnings.push(`${name} is older than the first one`);
		else if (copy.root !== first.root || copy.chunkRoot !== first.chunkRoot)
			throw damaged(`${name} leads to other trees than the first one; run btrfs check`);
	}
	return warnings;
}

const hasMagic = (raw: Uint8Array): boolean =>
	SuperBlock.read.magic(viewOf(raw), 0).every((byte, at) => byte === BTRFS_MAGIC.charCodeAt(at));
