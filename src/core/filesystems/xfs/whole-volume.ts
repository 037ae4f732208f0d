// Whole volume: what is free in one view of it, all groups.
//
//   superblock ─▶ log's ends ─▶ what the log changes (recover.ts) ─▶ superblock again ─▶ groups ─▶ their sum
//
// What the superblock says at home may be older than what the log has of it.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import type { ByteCount } from "../../../foundations/units.ts";
import { Allocation } from "./groups.ts";
import type { LogEnds } from "./log-ends.ts";
import { MetadataView, type Overlay } from "./metadata-view.ts";
import { type Geometry, isSameVolume, parseSuperblock } from "./open.ts";
import { checkLogFeatures } from "./recover.ts";

/**
 * Reads all groups of `volume`, of which the log changes what `overlay` says. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED
 * where superblock, log and groups contradict each other.
 */
export async function readAllocation(
	volume: ByteSource,
	geometry: Geometry,
	ends: LogEnds,
	overlay: Overlay,
): Promise<Allocation> {
	const view = new MetadataView(volume, overlay);
	if (view.replayedCount > 0) await checkSuperblockAgain(view, geometry, volume.size);
	const allocation = await Allocation.ofAll(view, geometry, ends.headLsn);
	if (ends.clean) checkTotal(geometry, allocation);
	return allocation;
}

/** The log may hold a newer superblock; one of another geometry means that the volume is being resized. */
async function checkSuperblockAgain(view: MetadataView, geometry: Geometry, volumeSize: ByteCount): Promise<void> {
	const again = await geometryIn(view, geometry, volumeSize);
	checkLogFeatures(again);
	if (!isSameVolume(again, geometry))
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			"it is being resized or changed; mount and unmount it in the guest, then try again",
		);
}

/** What the superblock of a view says, which may be in its log. */
export async function geometryIn(
	view: MetadataView,
	{ sectorSize }: Geometry,
	volumeSize: ByteCount,
): Promise<Geometry> {
	const { bytes, replayed } = await view.read(0, sectorSize);
	return parseSuperblock(bytes, volumeSize, replayed);
}

/** Unmounting writes the superblock's counter; while mounted, what the superblock says may be old. */
function checkTotal({ freeDataBlocks }: Geometry, { badGroupCount, countedBlocks }: Allocation): void {
	if (badGroupCount === 0 && freeDataBlocks !== null && countedBlocks !== freeDataBlocks)
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			`its superblock says ${freeDataBlocks} free blocks, its groups ${countedBlocks}; run xfs_repair in the guest`,
		);
}
