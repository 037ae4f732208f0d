// ext2, ext3 and ext4: what such a volume uses and what is free in it, from its own metadata alone.
//
// A volume is believed in exactly two conditions: unmounted cleanly, or with an internal journal that can be
// applied. Everything else (errors recorded, no journal and still mounted, a journal elsewhere, fast commits
// pending, features not known here) is kept whole, with one sentence that says why.

import type { FileSystemMap } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import type { Allocation } from "./free-space.ts";
import { neverUsedBlocks } from "./never-used.ts";
import { identify, readSuperblock } from "./open.ts";
import { type Journal, type Recovered, readAllocation, recover } from "./recover.ts";

export { Ext4LiveVolume } from "./live.ts";

/**
 * Maps a volume, or returns null where it has no ext superblock. A volume that cannot be believed comes back with
 * `kept` set. Throws only what the source throws (IO, READ_BUDGET).
 */
export async function readExt(volume: ByteSource): Promise<FileSystemMap | null> {
	const raw = await readSuperblock(volume);
	if (raw === null) return null;
	const identity = identify(raw);
	const state = identity.clean ? "clean" : "dirty";
	try {
		const recovered = await recover(volume, raw);
		// e2fsck 1.47 gives up on stale fast commits and repairs from what stands outside the journal. Whoever may run it
		// next on this volume must find all that it could fall back on.
		if (recovered.journal?.replay?.fastCommits === "stale")
			return keptWhole(
				identity,
				state,
				volume,
				"its journal holds fast commits; mount and unmount it in the guest, then try again",
			);
		return describe(await readAllocation(recovered), recovered);
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole(identity, state, volume, why);
	}
}

function describe(allocation: Allocation, { state, journal }: Recovered): FileSystemMap {
	const { identity, blockSize, blocksCount } = allocation.geometry;
	const size = blocksCount * blockSize;
	const free = allocation.freeBytes();
	return {
		type: identity.type,
		uuid: identity.uuid,
		label: identity.label,
		state,
		blockSize: byteCount(blockSize),
		size: byteCount(size),
		usedBytes: byteCount(size - free),
		freeBytes: byteCount(free),
		kept: null,
		warnings: allocation.warnings,
		...(state === "clean" ? { neverUsed: neverUsedOf(allocation, journal) } : {}),
		*freeRuns(from, to) {
			for (const { start, length } of allocation.freeRuns(from, to))
				yield { start: byteOffset(start), length: byteCount(length) };
		},
	};
}

function neverUsedOf(
	{ geometry, groups }: Allocation,
	journal: Journal | null,
): NonNullable<FileSystemMap["neverUsed"]> {
	const { ranges, count } = neverUsedBlocks(geometry, groups, journal);
	const { blockSize } = geometry;
	return {
		bytes: byteCount(count * blockSize),
		*runs(from, to) {
			for (const { start, end } of ranges.within(Math.floor(from / blockSize), Math.ceil(to / blockSize))) {
				const first = Math.max(from, start * blockSize);
				const length = Math.min(to, end * blockSize) - first;
				if (length > 0) yield { start: byteOffset(first), length: byteCount(length) };
			}
		},
	};
}
