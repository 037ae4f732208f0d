// Verify point: the disk at one instant, and what of it the cleaner might drop.
//
//   judge the volumes ─► a view, taken after that ─► free by the verdict, and in this view last written before the evidence
//
// What is droppable is found as the dropper finds it: free runs of the newest verdicts (`provenRuns`), and last writes in a fresh view
// (`planDrops`). Also what takes no space is listed: a block that was dropped long ago is as unneeded as one that is
// dropped next, and if somebody needs it, that is what is to be found. Blocks marked as zeros in the log aren't: nobody knows when they were.

import type { Liveness } from "../../adapters/plane/connection.ts";
import { LIVE } from "../../adapters/plane/connection.ts";
import { LOCATED_AT_ONCE, unpackLocated } from "../../adapters/plane/located.ts";
import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import { type PlacedRun, planDrops } from "../../core/cleaner/plan.ts";
import { appendRun, type BlockRun, blocksIn, piecesOf } from "../../core/cleaner/runs.ts";
import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import type { Area } from "../../core/volumes/areas.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { Judged } from "../clean/cleaner.ts";
import { provenRuns } from "../clean/proven.ts";
import type { ServedVolume } from "../clean/volumes.ts";

/** Runs of one volume, free ones and those between them: what comes behind them isn't verified. */
const RUNS_MAX = 1 << 20;

/** A volume at that instant. Positions and sizes in bytes. */
export interface VerifyVolume {
	readonly id: string;
	readonly type: string;
	/** Where its bytes lie on the disk, in the disk's order. */
	readonly areas: readonly Area[];
	/** Why nothing of it may be dropped; null where something may. */
	readonly kept: string | null;
	readonly droppableBytes: number;
	/** True where its free blocks lie in so many pieces that only the first of them are listed. */
	readonly isPartial: boolean;
	/** Disk blocks that may be dropped, sorted: [block, count]…. */
	readonly runs: readonly number[];
}

export interface VerifyPoint {
	/** Log position of the instant. */
	readonly position: number;
	readonly volumes: readonly VerifyVolume[];
}

/** What of a view may be dropped, by verdicts that are older than it. */
export async function droppableAt(
	plane: PlanePort,
	view: ViewHandle,
	{ volumes, lastWritten }: Judged,
): Promise<VerifyPoint> {
	const found: VerifyVolume[] = [];
	for (const volume of volumes) {
		const runs: BlockRun[] = [];
		const proven = provenRuns([volume], RUNS_MAX);
		for (const { block, count, writtenBefore } of freeRuns(proven))
			for (const piece of piecesOf({ block, count }, LOCATED_AT_ONCE)) {
				const located = await plane.ask("locate", { view: view.id, block: piece.block, count: piece.count });
				const plan = planDrops(unpackLocated(located).map(placed), writtenBefore, lastWritten);
				for (const run of plan.settled.toSorted((a, b) => a.block - b.block)) appendRun(runs, run.block, run.count);
			}
		const { id, type, areas } = volume;
		found.push({
			id,
			type,
			areas,
			kept: reasonOf(volume, runs.length > 0),
			droppableBytes: blocksIn(runs) * BLOCK_SIZE,
			isPartial: proven.runs.length === RUNS_MAX * 3,
			runs: runs.flatMap((run) => [run.block, run.count]),
		});
	}
	return { position: view.position, volumes: found };
}

function* freeRuns({ runs }: Liveness): Generator<BlockRun & { readonly writtenBefore: number }> {
	for (let i = 0; i < runs.length; i += 3)
		if (runs[i + 2] !== LIVE) yield { block: runs[i]!, count: runs[i + 1]!, writtenBefore: runs[i + 2]! };
}

const placed = ({ block, count, value, position }: BlockRun & { value: number; position: number }): PlacedRun => ({
	block,
	count,
	place: value === ZERO ? "zero" : value === ABSENT ? "second" : "first",
	position,
});

function reasonOf({ reason, verdict }: ServedVolume, hasSome: boolean): string | null {
	if (hasSome) return null;
	if (reason !== undefined) return reason;
	return verdict === undefined
		? "it was not judged yet: the guest's next commits decide"
		: "it has no free blocks that have settled";
}
