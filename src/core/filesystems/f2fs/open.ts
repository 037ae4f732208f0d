// Opening an F2FS volume: its two superblocks, features, geometry.
//
//   | superblock | superblock | … | checkpoint packs | SIT | NAT | SSA | main area … |
//     block 0      block 1          2 segments         twice each        what can be free
//
// Kernels mount by the first superblock that is right, and so does this. Both right and different in what matters here
// is a sign of a resize or of a stale copy: then the volume is kept.

import { crc32From } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import type { ByteCount } from "../../../foundations/units.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { uuidText } from "../names.ts";
import {
	BLOCKS_PER_SEGMENT,
	F2FS_BLOCK,
	F2FS_MAGIC,
	GEOMETRY_BYTES,
	SIT_ENTRIES_PER_BLOCK,
	SUPERBLOCK_PLACES,
	SuperBlock,
} from "./layout.ts";

/** Features that change nothing about where free space is, with mkfs.f2fs's names. */
const readFeatures: Readonly<Record<number, string>> = {
	1: "encrypt",
	8: "extra_attr",
	16: "project_quota",
	32: "inode_checksum",
	64: "flexible_inline_xattr",
	128: "quota",
	256: "inode_crtime",
	512: "lost_found",
	1024: "verity",
	2048: "sb_checksum",
	4096: "casefold",
	8192: "compression",
	16384: "ro",
};
const SUPERBLOCK_CHECKSUM = 0x800;
const refusedFeatures: Readonly<Record<number, string>> = {
	2: "it is zoned, which is not supported",
	4: "it has the feature atomic_write, which is not supported",
	32768: "it aliases devices, which is not supported",
	65536: "it has the feature packed_ssa, which is not supported",
};

/** Who a volume says it is; known even of volumes that are refused. */
export interface Identity {
	readonly uuid: string;
	readonly label: string | null;
}

/** What the superblock fixes. Places are block numbers. */
export interface Geometry {
	readonly identity: Identity;
	readonly blockCount: number;
	readonly checkpointAt: number;
	/** Blocks of a checkpoint pack behind its first one that continue its bitmaps. */
	readonly checkpointPayload: number;
	readonly sitAt: number;
	/** Blocks of each of the SIT's two copies. */
	readonly sitBlocks: number;
	readonly natBlocks: number;
	readonly mainAt: number;
	readonly mainSegments: number;
	readonly warnings: readonly string[];
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

/** Both superblocks as they lie there, or null where neither has the magic number. */
export async function readSuperblocks(volume: ByteSource): Promise<readonly Uint8Array[] | null> {
	if (volume.size < 2 * F2FS_BLOCK) return null;
	const start = await readBytes(volume, byteOffset(0), 2 * F2FS_BLOCK);
	const copies = SUPERBLOCK_PLACES.map((at) => start.subarray(at, at + SuperBlock.size));
	return copies.some(hasMagic) ? copies : null;
}

/** Reads the name tags of the first superblock with the magic number, without believing anything else of it. */
export function identify(copies: readonly Uint8Array[]): Identity {
	const record = SuperBlock.at(viewOf(copies.find(hasMagic)!));
	return { uuid: uuidText(record.uuid), label: utf16Text(record.volumeName) };
}

/** Takes the superblock that a kernel would. Throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED. */
export function openVolume(copies: readonly Uint8Array[], volumeSize: ByteCount): Geometry {
	const outcomes = copies.map((raw) => {
		try {
			return { raw, geometry: parseSuperblock(raw, volumeSize) };
		} catch (error) {
			if (error instanceof VmsweepError && error.code === "VOLUME_DAMAGED") return { raw, error };
			throw error;
		}
	});
	const good = outcomes.filter((outcome) => outcome.geometry !== undefined);
	const [first, second] = good;
	if (first === undefined) throw outcomes[0]!.error!;
	if (second === undefined) {
		const warning = `one of its two superblocks is damaged: ${outcomes.find(({ error }) => error !== undefined)!.error!.message}`;
		return { ...first.geometry, warnings: [warning] };
	}
	const [mine, other] = [identityBytes(first.raw), identityBytes(second.raw)];
	if (!mine.every((byte, at) => byte === other[at])) throw damaged("its two superblocks differ; run fsck.f2fs");
	return first.geometry;
}

function parseSuperblock(raw: Uint8Array, volumeSize: ByteCount): Geometry {
	const record = SuperBlock.at(viewOf(raw));
	if (!hasMagic(raw)) throw damaged("it has no magic number");
	if (record.majorVersion !== 1) throw unsupported(`it has format version ${record.majorVersion}`);
	checkFeatures(record.features);
	if ((record.features & SUPERBLOCK_CHECKSUM) !== 0) {
		if (record.checksumOffset !== SuperBlock.offset.checksum)
			throw damaged(`its checksum is at ${record.checksumOffset}`);
		if (record.checksum !== crc32From(F2FS_MAGIC, raw.subarray(0, record.checksumOffset)))
			throw damaged("its superblock's checksum is wrong; run fsck.f2fs");
	}
	if (record.devices[0] !== 0) throw unsupported("it spans several devices, which is not supported");
	if (record.logBlockSize !== 12) throw unsupported(`its blocks have 2^${record.logBlockSize} bytes, not 4096`);
	if (record.logSectorSize + record.logSectorsPerBlock !== 12 || record.logBlocksPerSegment !== 9)
		throw damaged(`it has segments of 2^${record.logBlocksPerSegment} blocks`);

	const areas = [
		{ name: "checkpoint", at: record.checkpointAt, segments: record.checkpointSegments, next: record.sitAt },
		{ name: "SIT", at: record.sitAt, segments: record.sitSegments, next: record.natAt },
		{ name: "NAT", at: record.natAt, segments: record.natSegments, next: record.ssaAt },
		{ name: "SSA", at: record.ssaAt, segments: record.ssaSegments, next: record.mainAt },
	];
	if (record.firstSegmentAt !== record.checkpointAt || record.checkpointAt < 2)
		throw damaged(`its checkpoint area begins at block ${record.checkpointAt}`);
	for (const { name, at, segments, next } of areas)
		if (at + segments * BLOCKS_PER_SEGMENT !== next)
			throw damaged(`its ${name} area of ${segments} segments at block ${at} does not end where the next one begins`);
	const end = record.mainAt + record.mainSegments * BLOCKS_PER_SEGMENT;
	if (record.mainSegments === 0 || end > record.blockCount || record.blockCount * F2FS_BLOCK > volumeSize)
		throw damaged(`it says that it has ${record.blockCount} blocks, more than its partition holds`);
	if (end > record.firstSegmentAt + record.segmentCount * BLOCKS_PER_SEGMENT)
		throw damaged(`it has ${record.mainSegments} of ${record.segmentCount} segments in its main area`);
	if (record.checkpointSegments !== 2) throw damaged(`it has ${record.checkpointSegments} checkpoint segments`);
	// Both tables lie there twice.
	if (record.sitSegments % 2 !== 0 || record.natSegments % 2 !== 0 || record.natSegments === 0)
		throw damaged(`it has ${record.sitSegments} SIT and ${record.natSegments} NAT segments`);
	const sitBlocks = (record.sitSegments / 2) * BLOCKS_PER_SEGMENT;
	if (sitBlocks * SIT_ENTRIES_PER_BLOCK < record.mainSegments)
		throw damaged(`its SIT of ${sitBlocks} blocks has no room for ${record.mainSegments} segments`);
	if (record.checkpointPayload >= BLOCKS_PER_SEGMENT - 8)
		throw damaged(`its checkpoints have ${record.checkpointPayload} further blocks`);
	return {
		identity: identify([raw]),
		blockCount: record.blockCount,
		checkpointAt: record.checkpointAt,
		checkpointPayload: record.checkpointPayload,
		sitAt: record.sitAt,
		sitBlocks,
		natBlocks: (record.natSegments / 2) * BLOCKS_PER_SEGMENT,
		mainAt: record.mainAt,
		mainSegments: record.mainSegments,
		warnings: [],
	};
}

function checkFeatures(features: number): void {
	for (let bit = 0; bit < 32; bit++) {
		const flag = 2 ** bit;
		if (Math.floor(features / flag) % 2 === 0 || readFeatures[flag] !== undefined) continue;
		throw unsupported(
			refusedFeatures[flag] ?? `it has the unknown feature 0x${flag.toString(16)}; a newer vmsweep may read it`,
		);
	}
}

/** What two superblocks of one volume must agree about. */
function identityBytes(raw: Uint8Array): Uint8Array {
	const { features, checkpointPayload, devices } = SuperBlock.offset;
	return Uint8Array.of(
		...raw.subarray(0, GEOMETRY_BYTES),
		...raw.subarray(checkpointPayload, checkpointPayload + 4),
		...raw.subarray(features, features + 4),
		...raw.subarray(devices, devices + 544),
	);
}

const hasMagic = (raw: Uint8Array): boolean => SuperBlock.read.magic(viewOf(raw), 0) === F2FS_MAGIC;

function utf16Text(raw: Uint8Array): string | null {
	const text = new TextDecoder("utf-16le").decode(raw);
	const end = text.indexOf("\0");
	return end === 0 ? null : end < 0 ? text : text.slice(0, end);
}
