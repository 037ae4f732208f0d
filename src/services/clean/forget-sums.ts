// Forget sums: the checksums of blocks of the second image that are about to be zeros, or cut off. Left behind, they would
// make what comes there look rotten.

import type { PlanePort } from "../../adapters/plane/messages.ts";
import { type BlockRun, batchesOf, blockRun, packRuns } from "../../core/cleaner/runs.ts";

/** What is forgotten in one call to the data plane: bounds how long the guest waits. 256 MiB of the disk at most. */
const AT_ONCE = { blocks: 65_536, runs: 128 };

/** Durable once resolved. Throws IO, NO_SPACE. */
export async function forgetSums(plane: PlanePort, runs: Iterable<BlockRun>): Promise<void> {
	for (const some of batchesOf(runs, AT_ONCE, blockRun)) await plane.ask("forgetSums", packRuns(some));
	await plane.ask("flushSums");
}
