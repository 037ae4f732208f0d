// Plan: the cleaner's arithmetic. Which blocks of a free range may be dropped now, which must wait, and in what
// order used blocks are copied. Pure: numbers in, numbers out; all facts come from the log and the guest map.
//
//   free bytes of a volume ─► whole disk blocks ─► by last write: settled | young     (live-safety E2, L8)
//   live blocks of a segment ─► minus free ones ─► sorted copies                      (moving needs no proof)

import type { ByteRange } from "../../foundations/guest-map.ts";
import { BLOCK_SIZE, type ByteCount, type ByteOffset } from "../../foundations/units.ts";
import type { LastWritten } from "./last-written.ts";
import { appendRun, type BlockRun } from "./runs.ts";

/** Where a run of a view is: in the second image, nowhere (zeros), or at consecutive log positions. */
export interface PlacedRun extends BlockRun {
	readonly place: "second" | "zero" | "first";
	/** Log position of the first block; meaningful for `first` only. */
	readonly position: number;
}

/** What is to happen to free blocks. */
export interface DropPlan {
	/** Last written before the evidence begins: may be dropped. */
	readonly settled: BlockRun[];
	/** Written since: more commits of the guest are needed. */
	readonly young: BlockRun[];
}

/** The whole 4 KiB disk blocks inside a byte range of the disk; undefined for none (L8). */
export function wholeBlocks({ start, length }: ByteRange): BlockRun | undefined {
	const block = Math.ceil(start / BLOCK_SIZE);
	const end = Math.floor((start + length) / BLOCK_SIZE);
	return end > block ? { block, count: end - block } : undefined;
}

/** The disk blocks that a byte range of the disk touches. */
export function touchedBlocks({ start, length }: ByteRange): BlockRun {
	const block = Math.floor(start / BLOCK_SIZE);
	return { block, count: Math.ceil((start + length) / BLOCK_SIZE) - block };
}

/**
 * Splits free blocks by their last write W(b): blocks with W(b) below `settledBefore` have the commits after them
 * that the rule wants. `lastWritten` bounds W(b) for blocks of the second image.
 */
export function planDrops(placed: Iterable<PlacedRun>, settledBefore: number, lastWritten: LastWritten): DropPlan {
	const plan: DropPlan = { settled: [], young: [] };
	for (const run of placed) {
		if (run.place === "zero") continue;
		if (run.place === "second") {
			for (const { block, count, position } of lastWritten.parts(run))
				appendRun(position <= settledBefore ? plan.settled : plan.young, block, count);
			continue;
		}
		const settledCount = Math.max(0, Math.min(run.count, settledBefore - run.position));
		if (settledCount > 0) appendRun(plan.settled, run.block, settledCount);
		if (settledCount < run.count) appendRun(plan.young, run.block + settledCount, run.count - settledCount);
	}
	return plan;
}

/** A live run of a segment: disk blocks, the slots that hold them, and where those lie in the first image's file. */
export interface LiveRun extends BlockRun {
	readonly slot: number;
	readonly at: ByteOffset;
}

/** One copy from the first image to the second, in bytes. */
export interface Copy {
	readonly from: ByteOffset;
	readonly to: ByteOffset;
	readonly length: ByteCount;
}

/** Copies for live runs, sorted by target, neighbours in both images joined. */
export function planCopies(runs: readonly LiveRun[]): Copy[] {
	const copies: Copy[] = [];
	for (const { block, count, at: from } of runs.toSorted((a, b) => a.block - b.block)) {
		const to = block * BLOCK_SIZE;
		const length = count * BLOCK_SIZE;
		const last = copies.at(-1);
		if (last !== undefined && last.to + last.length === to && last.from + last.length === from)
			copies[copies.length - 1] = { ...last, length: (last.length + length) as ByteCount };
		else copies.push({ from, to: to as ByteOffset, length: length as ByteCount });
	}
	return copies;
}

/** [block, count, slot, file offset]… as runs. */
export function unpackLiveRuns(packed: Float64Array): LiveRun[] {
	const runs: LiveRun[] = [];
	for (let i = 0; i < packed.length; i += 4)
		runs.push({ block: packed[i]!, count: packed[i + 1]!, slot: packed[i + 2]!, at: packed[i + 3] as ByteOffset });
	return runs;
}

/** Runs as the data plane takes them: [block, count, slot]…. */
export const packLiveRuns = (runs: readonly LiveRun[]): Float64Array =>
	Float64Array.from(runs.flatMap(({ block, count, slot }) => [block, count, slot]));

/** A part of a live run, by its place in it. */
export function partOf(run: LiveRun, block: number, count: number): LiveRun {
	const skip = block - run.block;
	return { block, count, slot: run.slot + skip, at: (run.at + skip * BLOCK_SIZE) as ByteOffset };
}
