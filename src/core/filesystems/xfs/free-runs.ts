// Free runs of a whole volume: pairs of block numbers, sorted, one list per allocation group.
//
//   group 0   [start,length][…]          blocks within the group, 8 bytes per run
//   group 1   [start,length]
//   open      [start,length][…] ▸        the group that is being read; then it takes its place, as long as it has to be
//
// A bitmap of 8 TiB would take 256 MiB, and most volumes have few runs; so runs are listed, and where there are more of
// them than a bounded list holds, the group that would overflow it is kept whole. A group can be read again at any
// time: its new runs replace those it had.

import { VmsweepError } from "../../../foundations/errors.ts";

/** 80 MiB; a volume that needs more has more than ten million pieces of free space. */
const MAX_RUNS = 10 << 20;
const RUNS_AT_FIRST = 1 << 10;
const NO_RUNS = new Uint32Array(0);

/** A run of blocks; what `start` counts from is said where it is used. */
export interface BlockRun {
	readonly start: number;
	readonly length: number;
}

export class FreeRuns {
	readonly #groups: Uint32Array[] = [];
	readonly #maxRuns: number;
	/** Runs of all groups but the open one. */
	#closedCount = 0;
	#open = new Uint32Array(2 * RUNS_AT_FIRST);
	#openCount = 0;
	#openGroup = -1;

	constructor(maxRuns: number = MAX_RUNS) {
		this.#maxRuns = maxRuns;
	}

	/** Begins with a group afresh: what it had is gone. */
	openGroup(group: number): void {
		this.#closedCount -= this.#runs(group).length / 2;
		this.#groups[group] = NO_RUNS;
		this.#openGroup = group;
		this.#openCount = 0;
	}

	/** Adds a run behind all others of the open group; joins it with the last one where they touch. Throws VOLUME_DAMAGED. */
	add(start: number, length: number): void {
		const last = 2 * (this.#openCount - 1);
		if (last >= 0) {
			const lastEnd = this.#open[last]! + this.#open[last + 1]!;
			if (start < lastEnd) throw new VmsweepError("VOLUME_DAMAGED", `free blocks ${start} come before ${lastEnd}`);
			if (start === lastEnd) {
				this.#open[last + 1]! += length;
				return;
			}
		}
		if (this.#closedCount + this.#openCount >= this.#maxRuns)
			throw new VmsweepError("VOLUME_DAMAGED", `the volume has more than ${this.#maxRuns} pieces of free space`);
		const at = 2 * this.#openCount++;
		if (at === this.#open.length) {
			const larger = new Uint32Array(2 * at);
			larger.set(this.#open);
			this.#open = larger;
		}
		this.#open[at] = start;
		this.#open[at + 1] = length;
	}

	/** Ends the open group. */
	closeGroup(): void {
		this.#groups[this.#openGroup] = this.#openCount === 0 ? NO_RUNS : this.#open.slice(0, 2 * this.#openCount);
		this.#closedCount += this.#openCount;
		this.#openGroup = -1;
	}

	/** Ends the open group with no free run in it: it is kept whole. */
	dropGroup(): void {
		this.#openCount = 0;
		this.closeGroup();
	}

	/** The runs of a group, the open one included, in order, from the one that holds or follows block `from`. */
	*runsOf(group: number, from = 0): Generator<BlockRun> {
		const runs = this.#runs(group);
		for (let at = search(runs, from); at < runs.length; at += 2) yield { start: runs[at]!, length: runs[at + 1]! };
	}

	/** True where one of the group's runs has a block of `[from, to)`. */
	overlaps(group: number, from: number, to: number): boolean {
		const runs = this.#runs(group);
		const at = search(runs, from);
		return at < runs.length && runs[at]! < to;
	}

	#runs(group: number): Uint32Array {
		if (group === this.#openGroup) return this.#open.subarray(0, 2 * this.#openCount);
		return this.#groups[group] ?? NO_RUNS;
	}
}

/** Index of the first run that ends behind `from`. */
function search(runs: Uint32Array, from: number): number {
	let low = 0;
	let high = runs.length / 2;
	while (low < high) {
		const middle = (low + high) >>> 1;
		if (runs[2 * middle]! + runs[2 * middle + 1]! <= from) low = middle + 1;
		else high = middle;
	}
	return 2 * low;
}
