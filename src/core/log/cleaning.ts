// What the cleaner asks of the log and does to the index: compare-and-swap against a view, so that a guest write that
// came in between always wins. A slot number alone would not be enough to compare: a place may have been freed and used
// again. A view holds every segment that it shows, and only slots older than the view are touched on its account.

import { VmsweepError } from "../../foundations/errors.ts";
import { ZERO } from "./index-map.ts";
import type { Segment } from "./segments.ts";
import type { LogState } from "./state.ts";
import type { View } from "./view.ts";

/** Throws OUT_OF_RANGE unless the run is a part of the disk. */
export function checkRun(state: LogState, block: number, count: number): void {
	const { blocks } = state.index;
	if (!(block >= 0 && count > 0 && block + count <= blocks))
		throw new VmsweepError("OUT_OF_RANGE", `blocks ${block} to ${block + count} lie outside the disk's ${blocks}`);
}

/** Triples [block, count, firstSlot] of a segment that the index points at, in slot order. */
export function liveRunsOf(state: LogState, sequence: number): Float64Array {
	const { table, index } = state;
	const segment = segmentOf(state, sequence);
	if (!segment) return new Float64Array(0);
	const runs: number[] = [];
	const base = table.firstSlotOf(segment.place);
	for (let slot = base; slot < base + segment.usedSlots; slot++) {
		const block = table.blockOfSlot(segment, slot - base);
		if (index.get(block) !== slot) continue;
		const last = runs.length - 3;
		const length = last < 0 ? 0 : runs[last + 1]!;
		if (length > 0 && runs[last]! + length === block && runs[last + 2]! + length === slot) runs[last + 1]!++;
		else runs.push(block, 1, slot);
	}
	return Float64Array.from(runs);
}

/** Pairs [block, count] of a segment's durable zero and drop runs that still read as ZERO, in log order. */
export function zeroRunsOf(state: LogState, sequence: number): Float64Array {
	const segment = segmentOf(state, sequence);
	const runs: number[] = [];
	segment?.zeroBlocks.forEach((first, i) => {
		if (segment.firstEntry + segment.zeroEntries[i]! >= state.durableEntries) return;
		state.index.resolve(first, segment.zeroCounts[i]!, (value, block, count) => {
			if (value === ZERO) runs.push(block, count);
		});
	});
	return Float64Array.from(runs);
}

/** Of triples [block, count, firstSlot], makes ABSENT what is still there. Returns the number of blocks changed. */
export function clearMoved(state: LogState, runs: Float64Array, view: View): number {
	const { table, index } = state;
	const limit = Math.min(view.position, state.durablePosition);
	let changed = 0;
	for (let i = 0; i + 2 < runs.length; i += 3) {
		const block = runs[i]!;
		const firstSlot = runs[i + 2]!;
		checkRun(state, block, runs[i + 1]!);
		const segment = firstSlot > ZERO ? table.segmentOfSlot(firstSlot) : undefined;
		if (!segment || firstSlot < table.firstSlotOf(segment.place)) continue;
		const slotInSegment = firstSlot - table.firstSlotOf(segment.place);
		const withinSegment = segment.usedSlots - slotInSegment;
		const withinLimit = limit - (table.firstPositionOf(segment) + slotInSegment);
		const count = Math.min(runs[i + 1]!, withinSegment, withinLimit);
		if (count > 0) changed += index.clearWhere(block, count, firstSlot);
	}
	return changed;
}

/** Of pairs [block, count], what is as the view shows it, and neither ZERO nor still in danger from a power cut. */
export function unchangedSince(state: LogState, runs: Float64Array, view: View): number[] {
	const { table, index, durablePosition } = state;
	const pairs: number[] = [];
	for (let i = 0; i + 1 < runs.length; i += 2) {
		checkRun(state, runs[i]!, runs[i + 1]!);
		view.runs(runs[i]!, runs[i + 1]!, (before, from, length) => {
			if (before === ZERO) return;
			index.resolve(from, length, (now, block, count) => {
				if (now !== (before > ZERO ? before + (block - from) : before)) return;
				if (now > ZERO && table.positionOfSlot(now + count - 1) >= durablePosition) return;
				const last = pairs.length - 2;
				if (last >= 0 && pairs[last]! + pairs[last + 1]! === block) pairs[last + 1]! += count;
				else pairs.push(block, count);
			});
		});
	}
	return pairs;
}

const segmentOf = (state: LogState, sequence: number): Segment | undefined =>
	state.table.chain.find((segment) => segment.sequence === sequence);
