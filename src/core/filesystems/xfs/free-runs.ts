// Free runs of a whole volume: pairs of block numbers, sorted, in one list for all allocation groups.
//
//   first      0        1            2                     runs of group g: first[g] … first[g + 1] - 1
//   runs     [start,length][…]  [start,length]  […]…       blocks within the group, 8 bytes per run
//
// A bitmap of 8 TiB would take 256 MiB, and most volumes have few runs; so runs are listed, and where there are more of
// them than a bounded list holds, the group that would overflow it is kept whole.

import { VmsweepError } from "../../../foundations/errors.ts";

/** 80 MiB; a volume that needs more has more than ten million pieces of free space. */
const MAX_RUNS = 10 << 20;
const RUNS_PER_CHUNK = 1 << 14;

/** A run of blocks; what `start` counts from is said where it is used. */
export interface BlockRun {
	readonly start: number;
	readonly length: number;
}

export class FreeRuns {
	readonly #chunks: Uint32Array[] = [];
	/** Index of each finished group's first run. */
	readonly #first: number[] = [0];
	readonly #maxRuns: number;
	#count = 0;

	constructor(maxRuns: number = MAX_RUNS) {
		this.#maxRuns = maxRuns;
	}

	/** Groups finished so far; the open group has this number. */
	get groupCount(): number {
		return this.#first.length - 1;
	}

	/** Adds a run behind all others of the open group; joins it with the last one where they touch. Throws VOLUME_DAMAGED. */
	add(start: number, length: number): void {
		if (this.#count > this.#first.at(-1)!) {
			const last = this.#count - 1;
			const lastEnd = this.#start(last) + this.#length(last);
			if (start < lastEnd) throw new VmsweepError("VOLUME_DAMAGED", `free blocks ${start} come before ${lastEnd}`);
			if (start === lastEnd) {
				this.#set(last, this.#start(last), this.#length(last) + length);
				return;
			}
		}
		if (this.#count >= this.#maxRuns)
			throw new VmsweepError("VOLUME_DAMAGED", `the volume has more than ${this.#maxRuns} pieces of free space`);
		if (this.#count === this.#chunks.length * RUNS_PER_CHUNK) this.#chunks.push(new Uint32Array(2 * RUNS_PER_CHUNK));
		this.#set(this.#count++, start, length);
	}

	/** Ends the open group. */
	closeGroup(): void {
		this.#first.push(this.#count);
	}

	/** Ends the open group with no free run in it: it is kept whole. */
	dropGroup(): void {
		this.#count = this.#first.at(-1)!;
		this.closeGroup();
	}

	/** The runs of a group, the open one included, in order. */
	*runsOf(group: number, from = 0): Generator<BlockRun> {
		const end = group < this.groupCount ? this.#first[group + 1]! : this.#count;
		for (let index = this.#search(group, end, from); index < end; index++)
			yield { start: this.#start(index), length: this.#length(index) };
	}

	/** True where one of the group's runs has a block of `[from, to)`. */
	overlaps(group: number, from: number, to: number): boolean {
		const end = group < this.groupCount ? this.#first[group + 1]! : this.#count;
		const index = this.#search(group, end, from);
		return index < end && this.#start(index) < to;
	}

	/** Index of the group's first run that ends behind `from`. */
	#search(group: number, end: number, from: number): number {
		let low = this.#first[group]!;
		let high = end;
		while (low < high) {
			const middle = (low + high) >>> 1;
			if (this.#start(middle) + this.#length(middle) <= from) low = middle + 1;
			else high = middle;
		}
		return low;
	}

	#start(index: number): number {
		return this.#chunks[Math.floor(index / RUNS_PER_CHUNK)]![2 * (index % RUNS_PER_CHUNK)]!;
	}
	#length(index: number): number {
		return this.#chunks[Math.floor(index / RUNS_PER_CHUNK)]![2 * (index % RUNS_PER_CHUNK) + 1]!;
	}
	#set(index: number, start: number, length: number): void {
		const chunk = this.#chunks[Math.floor(index / RUNS_PER_CHUNK)]!;
		chunk[2 * (index % RUNS_PER_CHUNK)] = start;
		chunk[2 * (index % RUNS_PER_CHUNK) + 1] = length;
	}
}
