// Scrub: reads a segment's live blocks again and compares them with the checksums that they were written with. In
// pieces, so that the data plane's thread is never stopped for long.
//
// Checksums in memory come from records that were whole when the log was opened or written, so a record that rotted
// since is told, but takes no block's checksum away. Runs of format version 1 have one checksum for all of their blocks:
// these are read as one, and if it is wrong, each live block of the run is told.

import { BLOCK_SIZE, byteOffset } from "../../foundations/units.ts";
import type { Summary } from "./format.ts";
import { KIND_DATA } from "./format.ts";
import type { Segment } from "./segments.ts";
import type { LogState } from "./state.ts";

/** What one piece of a segment's check found. */
export interface ScrubbedPart {
	/** The record to go on from, or -1 at the segment's end. */
	readonly next: number;
	/** Data read and compared. */
	readonly bytes: number;
	/** Live blocks whose data isn't what was written, and where they are. */
	readonly rotten: readonly number[];
	readonly rottenSlots: readonly number[];
	/** Records of the summary, before `next`, that aren't as they were written. */
	readonly rottenRecords: number;
}

/** Checks a segment from record `from` on, until about `budgetBytes` of data were read. Throws IO. */
export function scrubSegment(
	state: LogState,
	checksum: (bytes: Uint8Array) => number,
	segment: Segment,
	from: number,
	budgetBytes: number,
): ScrubbedPart {
	const summary = state.summaries.read(segment);
	const rotten: number[] = [];
	const rottenSlots: number[] = [];
	const tell = (block: number, slot: number): void => {
		rotten.push(block);
		rottenSlots.push(slot);
	};
	let rottenRecords = 0;
	let bytes = 0;
	let entry = from;
	while (entry < segment.entryCount && bytes < budgetBytes) {
		if (!summary.intact(entry)) {
			// A further record is found by itself only where the entry that it belongs to is lost.
			if (!summary.intactSums(entry)) rottenRecords++;
			entry++;
			continue;
		}
		const end = Math.min(entry + summary.records(entry), segment.entryCount);
		for (let record = entry + 1; record < end; record++) if (!summary.intactSums(record)) rottenRecords++;
		if (summary.kind(entry) === KIND_DATA && summary.slot(entry) + summary.count(entry) <= segment.usedSlots)
			bytes += scrubRun(state, checksum, segment, summary, entry, tell);
		entry = end;
	}
	return { next: entry < segment.entryCount ? entry : -1, bytes, rotten, rottenSlots, rottenRecords };
}

/** Checks the live blocks of a data run. Returns the bytes read. */
function scrubRun(
	state: LogState,
	checksum: (bytes: Uint8Array) => number,
	segment: Segment,
	summary: Summary,
	entry: number,
	tell: (block: number, slot: number) => void,
): number {
	const { table, index, file } = state;
	const first = table.firstSlotOf(segment.place) + summary.slot(entry);
	const firstBlock = summary.block(entry);
	const count = summary.count(entry);
	const isLive = (i: number): boolean => firstBlock + i < index.blocks && index.get(firstBlock + i) === first + i;
	let from = 0;
	let to = count;
	while (from < to && !isLive(from)) from++;
	while (to > from && !isLive(to - 1)) to--;
	if (from === to) return 0;
	const asOne = summary.version === 1 && count > 1;
	if (asOne) [from, to] = [0, count];
	const data = new Uint8Array((to - from) * BLOCK_SIZE);
	file.read(byteOffset((first + from) * BLOCK_SIZE), data);
	const oneIsWrong = asOne && checksum(data) >>> 0 !== summary.dataCrc(entry);
	for (let i = from; i < to; i++) {
		if (!isLive(i)) continue;
		const block = data.subarray((i - from) * BLOCK_SIZE, (i - from + 1) * BLOCK_SIZE);
		const isWrong = asOne ? oneIsWrong : checksum(block) >>> 0 !== table.sumOfSlot(first + i);
		if (isWrong) tell(firstBlock + i, first + i);
	}
	return data.length;
}
