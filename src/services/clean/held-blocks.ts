// Held blocks: what of the second image takes space, in whole blocks of the disk.

import type { HeldParts } from "../../adapters/images/second-image.ts";
import type { BlockRun } from "../../core/cleaner/runs.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";

/** The blocks of a run of which `held` has something, in order; `size` is the second image's, in bytes. */
export async function* heldBlocks(held: HeldParts, size: number, { block, count }: BlockRun): AsyncGenerator<BlockRun> {
	let next = block;
	for await (const { start, end } of held.within(block * BLOCK_SIZE, Math.min((block + count) * BLOCK_SIZE, size))) {
		// Where the host's blocks are smaller, several parts may lie in one block.
		const first = Math.max(next, Math.floor(start / BLOCK_SIZE));
		next = Math.ceil(end / BLOCK_SIZE);
		if (next > first) yield { block: first, count: next - first };
	}
}
