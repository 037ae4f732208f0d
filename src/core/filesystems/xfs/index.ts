// XFS: what such a volume uses and what is free in it, from its own metadata alone.
//
// A volume is believed in two conditions: unmounted cleanly, or version 5 with an internal log that can be replayed in
// memory. Everything else (a dirty log without checksums, a log elsewhere, repairs pending, features not known here)
// is kept whole, with one sentence that says why. The realtime device is another disk and no business of this one.

import type { FileSystemMap, FileSystemReader, VolumeState } from "../../../foundations/guest-map.ts";
import { byteCount } from "../../../foundations/units.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import type { Allocation } from "./groups.ts";
import { findLogEnds, stateOf } from "./log-ends.ts";
import { LogRing } from "./log-records.ts";
import type { Geometry } from "./open.ts";
import { identify, internalLog, parseSuperblock, readSuperblock } from "./open.ts";
import { recover } from "./recover.ts";
import { readAllocation } from "./whole-volume.ts";

/**
 * Maps a volume, or returns null where it has no XFS superblock. A volume that cannot be believed comes back with
 * `kept` set. Throws only what the source throws (IO, READ_BUDGET).
 */
export const readXfs: FileSystemReader = async (volume) => {
	const raw = await readSuperblock(volume);
	if (raw === null) return null;
	const identity = identify(raw);
	let state: VolumeState = "unknown";
	try {
		const geometry = parseSuperblock(raw, volume.size);
		const ring = new LogRing(volume, internalLog(geometry));
		const ends = await findLogEnds(ring, geometry);
		state = stateOf(ends);
		const overlay = await recover(volume, geometry, ring, ends);
		return describe(geometry, await readAllocation(volume, geometry, ends, overlay), state);
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole({ type: "xfs", ...identity }, state, volume, why);
	}
};

/**
 * `freeBytes` is what the trees of free extents hold. `df` says more and less: it also counts the few blocks that each
 * group holds ready for its trees, and those that the trees themselves take, and leaves out what is reserved.
 */
function describe(geometry: Geometry, allocation: Allocation, state: VolumeState): FileSystemMap {
	const { identity, blockSize, dataBlocks } = geometry;
	return {
		type: "xfs",
		uuid: identity.uuid,
		label: identity.label,
		state,
		blockSize: byteCount(blockSize),
		size: byteCount(dataBlocks * blockSize),
		usedBytes: byteCount((dataBlocks - allocation.freeBlocks) * blockSize),
		freeBytes: byteCount(allocation.freeBlocks * blockSize),
		kept: null,
		warnings: allocation.warnings,
		freeRuns: (from, to) => allocation.freeRuns(from, to),
	};
}
