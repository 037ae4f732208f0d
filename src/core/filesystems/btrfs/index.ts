// btrfs on one device: what such a volume uses and what is free in it, from its own metadata alone.
//
//   superblock ─▶ chunk tree ─▶ root tree ─▶ device tree: agrees with the chunks?
//                                        └─▶ free-space tree or extent tree ─▶ free runs per chunk ─▶ free runs on the device
//
// Free is what lies in no chunk, and what lies in no extent inside a chunk. Never free are the first MiB, the places of
// the superblock's copies, and every block that was read on the way.
//
// State: btrfs has no mark for "unmounted cleanly". It never overwrites what the last commit refers to, so an image at
// rest always shows that commit, whole. What a crash leaves behind is the log tree of the fsyncs since, and a volume
// that has one is kept. Without one, and with the VM off, nothing refers to anything that the last commit calls free:
// the volume is as good as cleanly unmounted, and is called that. Of a VM that still lives (running, or saved with its
// memory) nobody can tell: it may have written data that its next commit will refer to.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { FileSystemMap } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import type { BlockGroups } from "./block-groups.ts";
import type { ChunkMap } from "./chunks.ts";
import { freeOnDevice } from "./device-space.ts";
import { readBlockGroups } from "./free-space.ts";
import { TreeId } from "./layout.ts";
import { type Geometry, identify, openVolume, readSuperblock } from "./open.ts";
import { checkDevice, readChunks, readRoots, rootOf } from "./roots.ts";
import { TreeReader } from "./tree.ts";

/**
 * Maps a volume, or returns null where it has no btrfs superblock. A volume that cannot be believed comes back with
 * `kept` set. Throws only what the source throws (IO, READ_BUDGET).
 */
export const readBtrfs = (volume: ByteSource): Promise<FileSystemMap | null> => read(volume, false);

/**
 * The same of a volume that may be mounted: what its newest commit uses, without what files that were synced since, and the
 * log trees for them, have taken of the free space. Of use only to who knows what was written when.
 */
export const readCommittedBtrfs = (volume: ByteSource): Promise<FileSystemMap | null> => read(volume, true);

async function read(volume: ByteSource, withLog: boolean): Promise<FileSystemMap | null> {
	const raw = await readSuperblock(volume);
	if (raw === null) return null;
	try {
		return await readSpace(volume, await openVolume(volume, raw, withLog));
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		const identity = identify(raw);
		return keptWhole({ type: "btrfs", ...identity }, identity.logEmpty ? "clean" : "dirty", volume, why);
	}
}

async function readSpace(volume: ByteSource, geometry: Geometry): Promise<FileSystemMap> {
	const readers: TreeReader[] = [];
	const readerOf = (chunks: ChunkMap): TreeReader => {
		const reader = new TreeReader(volume, geometry, chunks);
		readers.push(reader);
		return reader;
	};
	const chunks = await readChunks(geometry, readerOf);
	const reader = readerOf(chunks);
	const roots = await readRoots(reader, geometry);
	await checkDevice(reader, geometry, chunks, rootOf(roots, TreeId.device, "device"));
	const groups = await readBlockGroups(reader, geometry, chunks, roots);
	for (const { visited } of readers) checkVisited(visited, geometry, chunks, groups);
	return describe(geometry, chunks, groups);
}

/** Blocks of the very trees that were read are in use; a tree that calls one free is wrong about others, too. */
function checkVisited(visited: readonly number[], geometry: Geometry, chunks: ChunkMap, groups: BlockGroups): void {
	for (const logical of visited)
		if (groups.overlaps(chunks.find(logical, geometry.nodeSize), logical, logical + geometry.nodeSize))
			throw new VmsweepError("VOLUME_DAMAGED", `its tree block at ${logical} is called free; run btrfs check`);
}

function describe(geometry: Geometry, chunks: ChunkMap, groups: BlockGroups): FileSystemMap {
	const { identity, end, sectorSize, warnings } = geometry;
	let free = 0;
	for (const { length } of freeOnDevice(chunks, groups, end, 0, end)) free += length;
	return {
		type: "btrfs",
		uuid: identity.uuid,
		label: identity.label,
		state: "clean",
		blockSize: byteCount(sectorSize),
		size: byteCount(end),
		usedBytes: byteCount(end - free),
		freeBytes: byteCount(free),
		kept: null,
		warnings: [...warnings, ...groups.warnings],
		*freeRuns(from, to) {
			for (const { start, length } of freeOnDevice(chunks, groups, end, from, to))
				yield { start: byteOffset(start), length: byteCount(length) };
		},
	};
}
