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
import type { BlockRun } from "../../core/cleaner/runs.ts";
import type { LiveState } from "../../core/filesystems/live.ts";
import type { Area } from "../../core/volumes/areas.ts";
import { runsOnDisk } from "../../core/volumes/pieces.ts";
import { type LogPosition, logPosition } from "../../foundations/units.ts";
import type { ServedVolume } from "./volumes.ts";

/** Runs of one answer; what comes behind them is unknown. 24 bytes each. */
const RUNS_MAX = 1 << 20;

/** What is proven by the volumes' latest verdicts. */
export function provenRuns(volumes: readonly ServedVolume[], runsMax = RUNS_MAX): Liveness {
	const runs: number[] = [];
	const areas = volumes.flatMap((volume) => volume.areas.map((area) => ({ volume, area })));
	for (const { volume, area } of areas.sort((a, b) => a.area.diskStart - b.area.diskStart))
		for (const { block, count, writtenBefore } of provenIn(volume, area)) {
			if (runs.length === runsMax * 3) return { runs: Float64Array.from(runs) };
			runs.push(block, count, writtenBefore);
		}
	return { runs: Float64Array.from(runs) };
}

/**
 * Free blocks last written before this position may be dropped. After a clean unmount every free block of the view is settled,
 * but none that was written since: whoever mounted the volume again may own it by now.
 */
export const settledBefore = ({ settled, position }: LiveState & { readonly kind: "ready" }): LogPosition =>
	logPosition(Math.min(settled, position));

/** What is proven of the whole blocks in an area of a volume, in order, found as it is walked. */
function* provenIn({ live, verdict }: ServedVolume, area: Area): Generator<BlockRun & { writtenBefore: number }> {
	if (live === undefined || verdict?.kind !== "ready") return;
	const within = { start: area.diskStart, length: area.length };
	const whole = wholeBlocks(within);
	if (whole === undefined) return;
	const writtenBefore = settledBefore(verdict);
	let next = whole.block;
	for (const range of runsOnDisk([area], [within], (from, to) => live.freeRuns(from, to))) {
		const free = wholeBlocks(range);
		if (free === undefined) continue;
		if (free.block > next) yield { block: next, count: free.block - next, writtenBefore: LIVE };
		yield { ...free, writtenBefore };
		next = free.block + free.count;
	}
	const end = whole.block + whole.count;
	if (next < end) yield { block: next, count: end - next, writtenBefore: LIVE };
}
