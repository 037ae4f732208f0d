// Undo: what blocks held before the cleaner dropped them, found by replaying the log.
//
//   entries in order ─▶ for each block that was dropped and reads as zeros because of it: what the drop took away
//
// A block comes back only if a drop is the last thing that happened to it. A drop's entry says whether its blocks were in
// the second image. If they were in the log, and the log no longer has what they were written with, or if the guest had
// zeroed them, then there is nothing to come back.
//
// Only the candidates, runs that may turn out like that, are replayed: a few pieces among millions of entries. Each
// candidate has its own small list of pieces, so that a change moves little; large ones are cut.

import { ABSENT, ZERO } from "./index-map.ts";

/** Numbers that each run of the result has: block, count, what it held (ABSENT or the first slot), entry, position. */
export const UNDO_STRIDE = 5;
/** Blocks of a candidate, and so of a run of the result, at most. */
const CANDIDATE_BLOCKS = 1024;

/** Blocks `[block, end)`: what they held (ZERO: nothing that can come back), and the drop that took it away, or -1. */
interface Piece {
	readonly block: number;
	readonly end: number;
	readonly value: number;
	readonly entry: number;
	readonly position: number;
}

/** Replays entries, oldest first, over candidates: disjoint pairs [block, count], sorted. */
export class UndoReplay {
	readonly #starts: number[] = [];
	readonly #ends: number[] = [];
	readonly #pieces: Piece[][] = [];

	constructor(candidates: readonly number[]) {
		for (let i = 0; i + 1 < candidates.length; i += 2) {
			const last = candidates[i]! + candidates[i + 1]!;
			for (let block = candidates[i]!; block < last; block += CANDIDATE_BLOCKS) {
				const end = Math.min(last, block + CANDIDATE_BLOCKS);
				this.#starts.push(block);
				this.#ends.push(end);
				this.#pieces.push([{ block, end, value: ABSENT, entry: -1, position: -1 }]);
			}
		}
	}

	/** A data run from `slot` on. */
	data(block: number, count: number, slot: number): void {
		this.#change(block, count, (piece) => ({ ...piece, value: slot + (piece.block - block), entry: -1, position: -1 }));
	}

	/** The guest zeroed the run. */
	zero(block: number, count: number): void {
		this.#change(block, count, (piece) => ({ ...piece, value: ZERO, entry: -1, position: -1 }));
	}

	/** A drop of blocks that were in the second image, or in the log. */
	drop(block: number, count: number, isInSecond: boolean, entry: number, position: number): void {
		this.#change(block, count, (piece) => {
			if (isInSecond) return { ...piece, value: ABSENT, entry, position };
			if (piece.entry >= 0) return piece;
			return { ...piece, value: piece.value === ABSENT ? ZERO : piece.value, entry, position };
		});
	}

	/** Quintuples in block order: see UNDO_STRIDE. What is in the second image only of drops from position `secondFrom` on. */
	result(secondFrom: number): Float64Array {
		const runs: number[] = [];
		for (const { block, end, value, entry, position } of this.#pieces.flat())
			if (entry >= 0 && value !== ZERO && (value !== ABSENT || position >= secondFrom))
				runs.push(block, end - block, value, entry, position);
		return Float64Array.from(runs);
	}

	#change(block: number, count: number, change: (piece: Piece) => Piece): void {
		const end = block + count;
		const first = firstEndingAfter(this.#ends.length, (i) => this.#ends[i]!, block);
		for (let i = first; i < this.#starts.length && this.#starts[i]! < end; i++)
			changeWithin(this.#pieces[i]!, block, end, change);
	}
}

/** Cuts the pieces that overlap `[block, end)` at its ends, and changes what lies within. */
function changeWithin(pieces: Piece[], block: number, end: number, change: (piece: Piece) => Piece): void {
	const first = firstEndingAfter(pieces.length, (i) => pieces[i]!.end, block);
	const changed: Piece[] = [];
	let behind = first;
	for (; behind < pieces.length && pieces[behind]!.block < end; behind++) {
		const piece = pieces[behind]!;
		const from = Math.max(piece.block, block);
		const to = Math.min(piece.end, end);
		if (piece.block < from) changed.push(partOf(piece, piece.block, from));
		changed.push(change(partOf(piece, from, to)));
		if (to < piece.end) changed.push(partOf(piece, to, piece.end));
	}
	pieces.splice(first, behind - first, ...changed);
}

const partOf = (piece: Piece, block: number, end: number): Piece => ({
	...piece,
	block,
	end,
	value: piece.value > ZERO ? piece.value + (block - piece.block) : piece.value,
});

/** Index of the first of `count` whose end, of ascending ones, is greater than `block`. */
export function firstEndingAfter(count: number, endOf: (index: number) => number, block: number): number {
	let low = 0;
	let high = count;
	while (low < high) {
		const middle = (low + high) >>> 1;
		if (endOf(middle) > block) high = middle;
		else low = middle + 1;
	}
	return low;
}

/** Sorts pairs [block, count] and merges those that touch or overlap. */
export function mergedPairs(pairs: readonly number[]): number[] {
	const order = Array.from({ length: pairs.length / 2 }, (_, i) => i * 2).sort((a, b) => pairs[a]! - pairs[b]!);
	const merged: number[] = [];
	for (const i of order) {
		const block = pairs[i]!;
		const end = block + pairs[i + 1]!;
		const last = merged.length - 2;
		if (last >= 0 && merged[last]! + merged[last + 1]! >= block)
			merged[last + 1] = Math.max(merged[last]! + merged[last + 1]!, end) - merged[last]!;
		else merged.push(block, end - block);
	}
	return merged;
}
