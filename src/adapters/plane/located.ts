// Where blocks are, as the data plane's answers tell it: numbers that travel in one array, and what they say.

import type { BlockRun } from "../../core/cleaner/runs.ts";

/** Blocks looked up in one call: 256 MiB of the disk. */
export const LOCATED_AT_ONCE = 65_536;

/**
 * Numbers per run in the answer of `locate`: first block, block count, index value (ABSENT, ZERO or the first slot),
 * and for slots the byte offset in the first image and the log position of the first slot, else -1.
 */
const LOCATED_STRIDE = 5;
/** Numbers per run in the answer of `locateInSnapshot`: block, count, descriptor or IN_…, byte in that file or -1. */
const SNAPSHOT_STRIDE = 4;

/** A run of a view's blocks: its index value, and for slots where the first one lies, else -1. */
export interface LocatedRun extends BlockRun {
	readonly value: number;
	/** Byte in the first image's file. */
	readonly at: number;
	readonly position: number;
}

/** A run of a snapshot's blocks: a byte of an open file, or one of IN_…. */
export interface SnapshotRun extends BlockRun {
	readonly fd: number;
	readonly at: number;
}

/** The runs in an answer of `locate` or `locateLogged`. */
export function unpackLocated(packed: Float64Array): LocatedRun[] {
	const runs: LocatedRun[] = [];
	for (let i = 0; i < packed.length; i += LOCATED_STRIDE)
		runs.push({
			block: packed[i]!,
			count: packed[i + 1]!,
			value: packed[i + 2]!,
			at: packed[i + 3]!,
			position: packed[i + 4]!,
		});
	return runs;
}

/** The runs in an answer of `locateInSnapshot`. */
export function unpackSnapshotRuns(packed: Float64Array): SnapshotRun[] {
	const runs: SnapshotRun[] = [];
	for (let i = 0; i < packed.length; i += SNAPSHOT_STRIDE)
		runs.push({ block: packed[i]!, count: packed[i + 1]!, fd: packed[i + 2]!, at: packed[i + 3]! });
	return runs;
}
