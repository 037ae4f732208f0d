// Droppable: which free runs of a guest map may be given up, by whoever sweeps, explains or converts an image.
//
//   map ─► volumes shut down cleanly, or all proven ones with --vm-off ─► their free runs, neighbours joined
//
// Only this file decides it, so that what `explain` foretells, `sweep` does and `convert` leaves out is the same.

import { allVolumes, type Extent, type GuestMap, type VolumeMap } from "../foundations/guest-map.ts";
import { roundDown, roundUp } from "../foundations/units.ts";

/** What the operator says beyond what the image shows. */
export interface DropPolicy {
	/** The VM is off for good, with no saved state and not hibernated: dirty volumes' free blocks are proven, too. */
	readonly vmOff: boolean;
	/** Keep metadata that was never used: somebody may want to find zeros there. Default: false. */
	readonly keepNeverUsed?: boolean;
}

/** A run of the disk's bytes that nothing in the guest needs; `end` is exclusive. */
export interface DroppableRun {
	readonly start: number;
	readonly end: number;
	readonly volume: string;
}

/** Why a volume's free space stays, in one sentence with what to do; null where it may go. */
export function whyKept({ kept, state }: VolumeMap, { vmOff }: DropPolicy): string | null {
	if (kept !== null) return kept;
	if (state === "clean" || vmOff) return null;
	if (state === "dirty")
		return "it was not shut down cleanly; start the VM and shut it down cleanly, or add --vm-off if the VM is off for good";
	return "nothing tells whether it was shut down cleanly; add --vm-off if the VM is off for good";
}

/** The runs that may go, in order. Computed while they are walked; may be walked any number of times. */
export function* droppableRuns(map: GuestMap, policy: DropPolicy): Generator<DroppableRun> {
	const may = new Set<string>();
	for (const volume of allVolumes(map.volumes)) if (whyKept(volume, policy) === null) may.add(volume.id);
	if (may.size === 0) return;
	let run: DroppableRun | undefined;
	for (const extent of map.extents) {
		const { start, length, volume } = extent;
		if (!isNeedless(extent, policy) || volume === null || !may.has(volume)) continue;
		if (run?.end === start && run.volume === volume) {
			run = { ...run, end: start + length };
			continue;
		}
		if (run !== undefined) yield run;
		run = { start, end: start + length, volume };
	}
	if (run !== undefined) yield run;
}

/** Longest run that is handled in one call, in bytes: bounds how long an interruption waits. */
const UNITS_BYTES_MAX = 1024 * 1024 * 1024;

/**
 * The whole units of `unit` bytes in the droppable runs, as runs of at most 1 GiB. A unit in which two volumes meet (the
 * end of a logical volume and the free extents behind it) counts as the latter's.
 */
export function* wholeUnits(map: GuestMap, policy: DropPolicy, unit: number): Generator<DroppableRun> {
	let joined = { from: 0, to: 0 };
	for (const run of droppableRuns(map, policy)) {
		// What is left of the runs before may make up a unit with the beginning of this one.
		joined = { from: run.start === joined.to ? joined.from : run.start, to: run.end };
		// The last unit of a disk may be short.
		const end = run.end === map.size ? run.end : roundDown(run.end, unit);
		for (let start = roundUp(joined.from, unit); start < end; start += UNITS_BYTES_MAX)
			yield { start, end: Math.min(end, start + UNITS_BYTES_MAX), volume: run.volume };
		joined.from = Math.max(joined.from, end);
	}
}

/** Free, or metadata that never held anything. */
const isNeedless = ({ state, neverUsed }: Extent, { keepNeverUsed }: DropPolicy): boolean =>
	state === "free" || (neverUsed === true && keepNeverUsed !== true);
