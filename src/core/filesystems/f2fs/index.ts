// F2FS on one device: what such a volume uses and what is free in it, from its own metadata alone.
//
//   superblock ─▶ newer checkpoint: unmounted? ─▶ SIT, with the checkpoint's journal ─▶ bit per block of the main area
//                 nothing synced since?
//
// Free is what no valid bit stands for in the main area of a volume that was unmounted cleanly. Everything in front of
// the main area is metadata and kept, used or not; so is what lies behind it.

import type { FileSystemMap, FileSystemReader, VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import type { UsedBitmap } from "../used-bitmap.ts";
import { checkState, isUnmounted, readCheckpoint, wasSyncedSince } from "./checkpoint.ts";
import { readSegments } from "./free-space.ts";
import { F2FS_BLOCK } from "./layout.ts";
import { type Geometry, identify, openVolume, readSuperblocks } from "./open.ts";

/**
 * Maps a volume, or returns null where it has no F2FS superblock. A volume that cannot be believed comes back with
 * `kept` set. Throws only what the source throws (IO, READ_BUDGET).
 */
export const readF2fs: FileSystemReader = (volume) => readSpace(volume, true);

/** The same of a volume that is known to be frozen: its newest checkpoint is the whole truth, whether it says "unmounted" or not. */
export const readFrozenF2fs: FileSystemReader = (volume) => readSpace(volume, false);

async function readSpace(volume: ByteSource, mustBeUnmounted: boolean): Promise<FileSystemMap | null> {
	const superblocks = await readSuperblocks(volume);
	if (superblocks === null) return null;
	let state: VolumeState = "unknown";
	try {
		const geometry = openVolume(superblocks, volume.size);
		const pack = await readCheckpoint(volume, geometry);
		const syncedSince = await wasSyncedSince(volume, geometry, pack);
		state = isUnmounted(pack) && !syncedSince ? "clean" : "dirty";
		checkState(pack, syncedSince, mustBeUnmounted);
		return describe(geometry, await readSegments(volume, geometry, pack));
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole({ type: "f2fs", ...identify(superblocks), blockSize: F2FS_BLOCK }, state, volume, why);
	}
}

function describe(geometry: Geometry, used: UsedBitmap): FileSystemMap {
	const size = geometry.blockCount * F2FS_BLOCK;
	const free = used.countFree() * F2FS_BLOCK;
	const base = geometry.mainAt * F2FS_BLOCK;
	return {
		type: "f2fs",
		...geometry.identity,
		state: "clean",
		blockSize: byteCount(F2FS_BLOCK),
		size: byteCount(size),
		usedBytes: byteCount(size - free),
		freeBytes: byteCount(free),
		kept: null,
		warnings: geometry.warnings,
		*freeRuns(from, to) {
			const first = Math.max(0, Math.floor((from - base) / F2FS_BLOCK));
			const end = Math.max(0, Math.ceil((to - base) / F2FS_BLOCK));
			for (const run of used.freeRuns(first, end)) {
				const start = Math.max(from, base + run.start * F2FS_BLOCK);
				const stop = Math.min(to, base + run.end * F2FS_BLOCK);
				if (stop > start) yield { start: byteOffset(start), length: byteCount(stop - start) };
			}
		},
	};
}
