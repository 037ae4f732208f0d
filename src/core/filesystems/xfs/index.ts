// XFS: what such a volume uses and what is free in it, from its own metadata alone.
//
// A volume is believed in two conditions: unmounted cleanly, or version 5 with an internal log that can be replayed in
// memory. Everything else (a dirty log without checksums, a log elsewhere, repairs pending, features not known here)
// is kept whole, with one sentence that says why. The realtime device is another disk and no business of this one.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { FileSystemMap, FileSystemReader, VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { byteCount } from "../../../foundations/units.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import { Allocation, allGroups } from "./groups.ts";
import { findLogEnds, type LogEnds } from "./log-ends.ts";
import { isBehindHead, LogRing } from "./log-records.ts";
import { MetadataView, type Overlay } from "./metadata-view.ts";
import type { Geometry, LogPlace } from "./open.ts";
import { identify, parseSuperblock, readSuperblock } from "./open.ts";
import { replayLog } from "./recover.ts";

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
		if (geometry.log === null)
			throw new VmsweepError("VOLUME_UNSUPPORTED", "its log is on another device, which is not supported");
		const ring = new LogRing(volume, geometry.log);
		const ends = await findLogEnds(ring, {
			uuid: geometry.logUuid,
			isVersion2: geometry.isLogVersion2,
			hasChecksums: geometry.version === 5,
		});
		state = ends.clean && !ends.mountedSince ? "clean" : "dirty";
		const view = new MetadataView(volume, await recover(volume, geometry, ring, ends));
		await checkSuperblockAgain(view, geometry, volume);
		const allocation = new Allocation(geometry);
		await allocation.read(view, allGroups(geometry), (lsn) => isBehindHead(lsn, ends.headLsn));
		if (ends.clean) checkTotal(geometry, allocation);
		return describe(geometry, allocation, state);
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole({ type: "xfs", ...identity }, state, volume, why);
	}
};

/** What the log changes, or nothing for a clean one. */
async function recover(volume: ByteSource, geometry: Geometry, ring: LogRing, ends: LogEnds): Promise<Overlay> {
	if (ends.clean) return new Map();
	if (geometry.version === 4)
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			"it is mounted, or was not unmounted cleanly, and format version 4 can't tell its true state; mount and unmount it in the guest",
		);
	if (geometry.unknownLogFeatures !== 0) throw unknownLogFeatures(geometry);
	return (await replayLog(volume, geometry, ring, ends)).overlay();
}

const unknownLogFeatures = (geometry: Geometry): VmsweepError =>
	new VmsweepError(
		"VOLUME_UNSUPPORTED",
		`its log has the unknown feature 0x${geometry.unknownLogFeatures.toString(16)}; mount and unmount it in the guest`,
	);

/** The log may hold a newer superblock; one of another geometry means that the volume was being resized. */
async function checkSuperblockAgain(view: MetadataView, geometry: Geometry, volume: ByteSource): Promise<void> {
	if (view.replayedCount === 0) return;
	const { bytes, replayed } = await view.read(0, geometry.sectorSize);
	const again = parseSuperblock(bytes, volume.size, replayed);
	if (again.unknownLogFeatures !== 0) throw unknownLogFeatures(again);
	const numbers = ({ version, blockSize, sectorSize, dataBlocks, agBlocks, agCount, log }: Geometry): string =>
		JSON.stringify([version, blockSize, sectorSize, dataBlocks, agBlocks, agCount, log satisfies LogPlace | null]);
	if (numbers(again) !== numbers(geometry))
		throw new VmsweepError("VOLUME_DAMAGED", "it was being resized; mount and unmount it in the guest, then try again");
}

/** Unmounting writes the superblock's counter; while mounted, what the superblock says may be old. */
function checkTotal({ freeDataBlocks }: Geometry, { badGroupCount, countedBlocks }: Allocation): void {
	if (badGroupCount === 0 && freeDataBlocks !== null && countedBlocks !== freeDataBlocks)
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			`its superblock says ${freeDataBlocks} free blocks, its groups ${countedBlocks}; run xfs_repair in the guest`,
		);
}

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
