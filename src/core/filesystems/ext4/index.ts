// ext2, ext3 and ext4: what such a volume uses and what is free in it, from its own metadata alone.
//
// A volume is believed in exactly two conditions: unmounted cleanly, or with an internal journal that can be
// applied. Everything else (errors recorded, no journal and still mounted, a journal elsewhere, fast commits
// pending, features not known here) is kept whole, with one sentence that says why.

import { isVmsweepError } from "../../../foundations/errors.ts";
import type { FileSystemMap, VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { Allocation } from "./free-space.ts";
import type { Identity } from "./open.ts";
import { identify, readSuperblock } from "./open.ts";
import { readAllocation, recover } from "./recover.ts";

export { Ext4LiveVolume } from "./live.ts";

/**
 * Maps a volume, or returns null where it has no ext superblock. A volume that cannot be believed comes back with
 * `kept` set. Throws only what the source throws (IO, READ_BUDGET).
 */
export async function readExt(volume: ByteSource): Promise<FileSystemMap | null> {
	const raw = await readSuperblock(volume);
	if (raw === null) return null;
	const identity = identify(raw);
	try {
		const recovered = await recover(volume, raw);
		// e2fsck 1.47 gives up on stale fast commits and repairs from what stands outside the journal. Whoever may run it
		// next on this volume must find all that it could fall back on.
		if (recovered.journal?.replay?.fastCommits === "stale")
			return keptWhole(
				identity,
				volume,
				"its journal holds fast commits; mount and unmount it in the guest, then try again",
			);
		return describe(await readAllocation(recovered), recovered.state);
	} catch (error) {
		if (!isVmsweepError(error) || (error.code !== "VOLUME_DAMAGED" && error.code !== "VOLUME_UNSUPPORTED")) throw error;
		return keptWhole(identity, volume, error.message);
	}
}

function describe(allocation: Allocation, state: VolumeState): FileSystemMap {
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
		*freeRuns(from, to) {
			for (const { start, length } of allocation.freeRuns(from, to))
				yield { start: byteOffset(start), length: byteCount(length) };
		},
	};
}

function keptWhole(identity: Identity, volume: ByteSource, why: string): FileSystemMap {
	return {
		type: identity.type,
		uuid: identity.uuid,
		label: identity.label,
		state: identity.clean ? "clean" : "dirty",
		blockSize: identity.blockSize,
		size: volume.size,
		usedBytes: null,
		freeBytes: null,
		kept: why,
		warnings: [],
		freeRuns: () => [],
	};
}
