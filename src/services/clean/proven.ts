// Proven: what the cleaner's latest verdicts say about every block of the disk, for clients that ask for
// `vmsweep:liveness`.
//
//   judged volumes ─► free whole blocks        ─► dead, where the data plane finds them written before the evidence
//                 └─► all other whole blocks   ─► live
//
// Only what the dropper would be allowed to drop is called dead, so this follows docs/live-safety.md: the verdict knows
// E1 and E5 to E7, the position is E2's, and the data plane compares it with the blocks' last writes at the moment that
// the client asks, which is E3. What lies in no judged volume is unknown.

import type { Liveness } from "../../adapters/plane/connection.ts";
import { LIVE } from "../../adapters/plane/connection.ts";
import { wholeBlocks } from "../../core/cleaner/plan.ts";
import { type BlockRun, joinRuns, subtract } from "../../core/cleaner/runs.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import type { ServedVolume } from "./volumes.ts";

/** Runs of one answer; what comes behind them is unknown. 24 bytes each. */
const RUNS_MAX = 1 << 20;

/** What is proven by the volumes' latest verdicts. */
export function provenRuns(volumes: readonly ServedVolume[]): Liveness {
	const triples: [block: number, count: number, writtenBefore: number][] = [];
	for (const volume of volumes) {
		const { live, verdict } = volume;
		if (live === undefined || verdict?.kind !== "ready") continue;
		const whole = wholeBlocks({ start: byteOffset(0), length: byteCount(volume.length) }, volume.start);
		if (whole === undefined) continue;
		const free = freeBlocks(volume);
		// After a clean unmount every free block of the view is settled, but none that was written since.
		const writtenBefore = Math.min(verdict.settled, verdict.position);
		for (const { block, count } of free) triples.push([block, count, writtenBefore]);
		for (const { block, count } of subtract(whole, free)) triples.push([block, count, LIVE]);
	}
	triples.sort(([a], [b]) => a - b);
	return { runs: Float64Array.from(triples.slice(0, RUNS_MAX).flat()) };
}

/** The whole blocks that are free in a volume as last judged. */
function freeBlocks(volume: ServedVolume): BlockRun[] {
	const runs: BlockRun[] = [];
	for (const range of volume.live!.freeRuns(byteOffset(0), byteOffset(volume.length))) {
		const run = wholeBlocks(range, volume.start);
		if (run !== undefined) runs.push(run);
	}
	return joinRuns(runs);
}
