// Last written: up to which log position the blocks of the second image were written, at most.
//
// A block in the first image tells its last write by its slot. One that was moved has lost it, so a bound is kept
// per region of the disk: the newest position that any block moved there had. What the second image held before the
// disk was opened counts as written at that moment, since nothing is known about it (live-safety: "unknown as now").

import { BLOCK_SIZE, divCeil, divFloor } from "../../foundations/units.ts";
import type { BlockRun } from "./runs.ts";

/** 1 MiB: 8 MiB of memory for a disk of 1 TiB. */
const REGION_BLOCKS = (1024 * 1024) / BLOCK_SIZE;

export class LastWritten {
	#before: Float64Array;

	/** @param opened the log's position when the disk was opened */
	constructor(diskBlocks: number, opened: number) {
		this.#before = new Float64Array(divCeil(diskBlocks, REGION_BLOCKS)).fill(opened);
	}

	/** The disk has another size. What it gained was never written, and counts as the newest that is known. */
	resize(diskBlocks: number): void {
		const regions = divCeil(diskBlocks, REGION_BLOCKS);
		const newest = this.#before.reduce((a, b) => Math.max(a, b), 0);
		const before = new Float64Array(regions).fill(newest);
		before.set(this.#before.subarray(0, regions));
		this.#before = before;
	}

	/** Blocks were moved that had been written before `position`. */
	moved({ block, count }: BlockRun, position: number): void {
		const last = divFloor(block + count - 1, REGION_BLOCKS);
		for (let region = divFloor(block, REGION_BLOCKS); region <= last; region++)
			if (this.#before[region]! < position) this.#before[region] = position;
	}

	/** Splits a run where the bound changes: each part was written before its `position`. */
	*parts({ block, count }: BlockRun): Generator<BlockRun & { readonly position: number }> {
		for (let at = block; at < block + count; ) {
			const region = divFloor(at, REGION_BLOCKS);
			const end = Math.min(block + count, (region + 1) * REGION_BLOCKS);
			yield { block: at, count: end - at, position: this.#before[region]! };
			at = end;
		}
	}
}
