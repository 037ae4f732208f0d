// What the cleaner asks of the log and does to the index: compare-and-swap against a view, so that a guest write that
// came in between always wins. A slot number alone would not be enough to compare: a place may have been freed and used
// again. A view holds every segment that it shows, and only slots older than the view are touched on its account.

import { VmsweepError } from "../../foundations/errors.ts";
import { DROPPED_IN_LOG, DROPPED_IN_SECOND, KIND_DATA, KIND_DROP } from "./format.ts";
import { ABSENT, ZERO } from "./index-map.ts";
import type { Segment } from "./segments.ts";
import type { LogState } from "./state.ts";
import type { SummaryPart } from "./summary-reader.ts";
import { firstEndingAfter, mergedPairs, UndoReplay } from "./undo.ts";
import type { View } from "./view.ts";

/** Throws OUT_OF_RANGE unless the run is a part of the disk. */
export function checkRun(state: LogState, block: number, count: number): void {
	const { blocks } = state.index;
	if (!(block >= 0 && count > 0 && block + count <= blocks))
		throw new VmsweepError("OUT_OF_RANGE", `blocks ${block} to ${block + count} lie outside the disk's ${blocks}`);
}

/** How much of a run that the cleaner decided on is a part of the disk, which may have shrunk since. Throws OUT_OF_RANGE. */
export function blocksWithin(state: LogState, block: number, count: number): number {
	if (block + count > state.index.blocks && block + count <= state.largestBlocks && block >= 0 && count > 0)
		return Math.max(0, state.index.blocks - block);
	checkRun(state, block, count);
	return count;
}

/** What a part of a segment holds. */
export interface LivePart {
	/** Triples [block, count, firstSlot] that the index points at, in slot order. */
	readonly runs: Float64Array;
	/** The entry with which the next part begins, or -1. */
	readonly next: number;
}

/** What of a part of a segment the index points at. Throws IO, LOG_DAMAGED. */
export function liveRunsOf(state: LogState, sequence: number, part: SummaryPart): LivePart {
	const { table, index } = state;
	const segment = segmentOf(state, sequence);
	if (!segment || table.liveSlots(segment) === 0) return { runs: new Float64Array(0), next: -1 };
	const runs: number[] = [];
	const base = table.firstSlotOf(segment.place);
	const next = state.summaries.forSome(segment, part, (summary, entry) => {
		if (summary.kind(entry) !== KIND_DATA) return;
		const firstBlock = summary.block(entry);
		const firstSlot = base + summary.slot(entry);
		const count = Math.min(summary.count(entry), index.blocks - firstBlock);
		// Block by block: a run of the index may go on into this one from a place before it.
		for (let i = 0; i < count; i++) {
			const block = firstBlock + i;
			const slot = firstSlot + i;
			if (index.get(block) !== slot) continue;
			const last = runs.length - 3;
			const length = last < 0 ? 0 : runs[last + 1]!;
			if (length > 0 && runs[last]! + length === block && runs[last + 2]! + length === slot) runs[last + 1]!++;
			else runs.push(block, 1, slot);
		}
	});
	return { runs: Float64Array.from(runs), next };
}

/**
 * Pairs [block, count] of a segment's durable zero and drop runs that still read as ZERO, in log order. Without what
 * drops in the quarantine made ZERO: the second image must keep it. And without what a run that a cut could still undo
 * made ZERO again: what the block held in between may be in the second image.
 */
export function zeroRunsOf(state: LogState, sequence: number): Float64Array {
	const segment = segmentOf(state, sequence);
	const pairs: number[] = [];
	if (!segment) return new Float64Array(0);
	const { zeros } = segment;
	for (let run = 0; run < zeros.count; run++) {
		if (segment.firstEntry + zeros.entry(run) >= state.durableEntries) break;
		pushZeros(state, zeros.block(run), zeros.blocks(run), pairs);
	}
	if (pairs.length === 0) return new Float64Array(0);
	return Float64Array.from(withoutHeld(state, without(pairs, undurableZeros(state))));
}

/** Pairs [block, count] of all zero and drop runs that a power cut could still undo. */
function undurableZeros({ table, durableEntries }: LogState): number[] {
	const pairs: number[] = [];
	for (let i = table.chain.length - 1; i >= 0; i--) {
		const { firstEntry, entryCount, zeros } = table.chain[i]!;
		if (firstEntry + entryCount <= durableEntries) break;
		for (let run = zeros.count - 1; run >= 0 && firstEntry + zeros.entry(run) >= durableEntries; run--)
			pairs.push(zeros.block(run), zeros.blocks(run));
	}
	return pairs;
}

/** Adds what of a run reads as ZERO. */
function pushZeros({ index }: LogState, first: number, blocks: number, pairs: number[]): void {
	const within = Math.min(blocks, index.blocks - first);
	if (within <= 0) return;
	index.resolve(first, within, (value, block, count) => {
		if (value === ZERO) pairs.push(block, count);
	});
}

/** Pairs without the blocks of any drop run that the quarantine holds, whichever came last: these wait for its end. */
function withoutHeld(state: LogState, pairs: number[]): number[] {
	if (pairs.length === 0 || state.table.holdFrom === Number.POSITIVE_INFINITY) return pairs;
	return without(pairs, heldDrops(state));
}

/** Pairs without the blocks of others. */
function without(pairs: number[], others: number[]): number[] {
	if (pairs.length === 0 || others.length === 0) return pairs;
	const held = mergedPairs(others);
	const heldEnd = (pair: number): number => held[pair * 2]! + held[pair * 2 + 1]!;
	const kept: number[] = [];
	for (let i = 0; i + 1 < pairs.length; i += 2) {
		let block = pairs[i]!;
		const end = block + pairs[i + 1]!;
		for (let k = firstEndingAfter(held.length / 2, heldEnd, block) * 2; k < held.length && held[k]! < end; k += 2) {
			if (held[k]! > block) kept.push(block, held[k]! - block);
			block = Math.max(block, held[k]! + held[k + 1]!);
		}
		if (block < end) kept.push(block, end - block);
	}
	return kept;
}

/** Pairs [block, count] of all drop runs in segments that the quarantine holds, in log order. */
function heldDrops({ table }: LogState): number[] {
	const pairs: number[] = [];
	for (const segment of table.chain) {
		if (!segment.zeros.hasDrop || !table.isHeld(segment)) continue;
		for (let run = 0; run < segment.zeros.count; run++)
			if (segment.zeros.isDrop(run)) pairs.push(segment.zeros.block(run), segment.zeros.blocks(run));
	}
	return pairs;
}

/** Quintuples of what drops that are still in the log took away; see UndoReplay. Throws IO, LOG_DAMAGED. */
export function undoableOf(state: LogState): Float64Array {
	const { table } = state;
	const candidates: number[] = [];
	for (const { zeros } of table.chain)
		for (let run = 0; zeros.hasDrop && run < zeros.count; run++)
			if (zeros.isDrop(run)) pushZeros(state, zeros.block(run), zeros.blocks(run), candidates);
	if (candidates.length === 0) return new Float64Array(0);
	const replay = new UndoReplay(mergedPairs(candidates));
	for (const segment of table.chain) {
		if (segment.droppedAt < 0 && !segment.zeros.hasDrop) {
			// Nothing that a drop took away was written here, and zeroed runs are in memory.
			for (let run = 0; run < segment.zeros.count; run++)
				replay.zero(segment.zeros.block(run), segment.zeros.blocks(run));
			continue;
		}
		state.summaries.forEach(segment, (summary, entry) => {
			const kind = summary.kind(entry);
			const slot = summary.slot(entry);
			const block = summary.block(entry);
			const count = summary.count(entry);
			if (kind === KIND_DATA) replay.data(block, count, table.firstSlotOf(segment.place) + slot);
			else if (kind === KIND_DROP) {
				const isInSecond = summary.dataCrc(entry) === DROPPED_IN_SECOND;
				replay.drop(block, count, isInSecond, segment.firstEntry + entry, table.firstPositionOf(segment) + slot);
			} else replay.zero(block, count);
		});
	}
	// Earlier ones may have been punched since.
	return replay.result(table.holdFrom);
}

/** Of triples [block, count, firstSlot], makes ABSENT what is still there. Returns the number of blocks changed. */
export function clearMoved(state: LogState, runs: Float64Array, view: View): number {
	const { table, index } = state;
	const limit = Math.min(view.position, state.durablePosition);
	let changed = 0;
	for (let i = 0; i + 2 < runs.length; i += 3) {
		const block = runs[i]!;
		const firstSlot = runs[i + 2]!;
		const within = blocksWithin(state, block, runs[i + 1]!);
		const segment = firstSlot > ZERO ? table.segmentOfSlot(firstSlot) : undefined;
		if (!segment || firstSlot < table.firstSlotOf(segment.place)) continue;
		const slotInSegment = firstSlot - table.firstSlotOf(segment.place);
		const withinSegment = segment.usedSlots - slotInSegment;
		const withinLimit = limit - (table.firstPositionOf(segment) + slotInSegment);
		const count = Math.min(within, withinSegment, withinLimit);
		if (count > 0) changed += index.clearWhere(block, count, firstSlot);
	}
	return changed;
}

/**
 * Of pairs [block, count], what is as the view shows it, and neither ZERO nor still in danger from a power cut: triples
 * [block, count, DROPPED_IN_…], as what a drop takes from the second image can come back, for an undo, from nowhere else.
 */
export function unchangedSince(state: LogState, runs: Float64Array, view: View): number[] {
	const { table, index, durablePosition } = state;
	const found: number[] = [];
	for (let i = 0; i + 1 < runs.length; i += 2) {
		view.runs(runs[i]!, blocksWithin(state, runs[i]!, runs[i + 1]!), (before, from, length) => {
			if (before === ZERO) return;
			index.resolve(from, length, (now, block, count) => {
				if (now !== (before > ZERO ? before + (block - from) : before)) return;
				if (now > ZERO && table.positionOfSlot(now + count - 1) >= durablePosition) return;
				const where = now === ABSENT ? DROPPED_IN_SECOND : DROPPED_IN_LOG;
				const last = found.length - 3;
				if (last >= 0 && found[last]! + found[last + 1]! === block && found[last + 2] === where)
					found[last + 1]! += count;
				else found.push(block, count, where);
			});
		});
	}
	return found;
}

const segmentOf = (state: LogState, sequence: number): Segment | undefined =>
	state.table.chain.find((segment) => segment.sequence === sequence);
