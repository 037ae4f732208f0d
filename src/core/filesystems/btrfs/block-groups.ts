// Block groups: what is free in each chunk, and what its block group item says about it.
//
//   chunk    |  extent  |  free  | extent |     free      |
//   runs                 ────────          ───────────────     in sectors from the chunk's start, ascending, merged
//
// Invariants
//  - a chunk is in use as a whole until `finish` has found that its runs and its block group's `used` add up to its length
//  - what is wrong with one chunk keeps that chunk and says so; the others don't suffer

import { VmsweepError } from "../../../foundations/errors.ts";
import type { Chunk, ChunkMap } from "./chunks.ts";

/** Bounds memory at 64 MiB. Chunks whose runs no longer fit are kept. */
const MAX_RUNS = 1 << 23;
const MAX_WARNINGS = 20;

interface Group {
	readonly chunk: Chunk;
	/** Logical bytes in extents, as its block group item says; NaN until that was met. */
	used: number;
	/** Its runs are those with indexes from `firstRun` to `endRun`. */
	firstRun: number;
	endRun: number;
	freeSectors: number;
	wrong: string | null;
}

export class BlockGroups {
	readonly #groups: readonly Group[];
	readonly #sectorSize: number;
	/** Start and end of each run, in sectors of its chunk. */
	#runs = new Uint32Array(1024);
	#runCount = 0;
	/** The chunk whose runs come now. */
	#current = -1;

	constructor(chunks: ChunkMap, sectorSize: number) {
		this.#sectorSize = sectorSize;
		this.#groups = chunks.chunks.map((chunk) => ({
			chunk,
			used: Number.NaN,
			firstRun: 0,
			endRun: 0,
			freeSectors: 0,
			wrong: null,
		}));
	}

	/** Takes a block group item. Throws VOLUME_DAMAGED where there is no such chunk. */
	describe(index: number, item: { start: number; length: number; used: number; flags: number }): void {
		const group = this.#groups[index];
		if (group === undefined || group.chunk.start !== item.start || group.chunk.length !== item.length)
			throw new VmsweepError(
				"VOLUME_DAMAGED",
				`its block group at ${item.start} has no chunk of its size; run btrfs check`,
			);
		if (group.chunk.type !== item.flags) this.keep(index, "its chunk is of another type");
		group.used = item.used;
	}

	/** The runs that follow are those of chunk `index`; each chunk has its turn once at most. */
	begin(index: number): void {
		const group = this.#groups[index]!;
		this.#current = index;
		group.firstRun = this.#runCount;
		group.endRun = this.#runCount;
	}

	/**
	 * Adds the free bytes `[from, to)`, logical, to the current chunk. Keeps the chunk where they are not behind those
	 * before, not in the chunk, or no whole sectors.
	 */
	addFree(from: number, to: number): void {
		const group = this.#groups[this.#current]!;
		if (group.wrong !== null) return;
		const { start, length } = group.chunk;
		const [first, end] = [(from - start) / this.#sectorSize, (to - start) / this.#sectorSize];
		const lastEnd = group.endRun > group.firstRun ? this.#runs[2 * group.endRun - 1]! : 0;
		if (!Number.isInteger(first) || !Number.isInteger(end) || first < lastEnd || end <= first || to > start + length) {
			this.keep(this.#current, `its free space at ${from} overlaps what lies before or is no whole sectors`);
			return;
		}
		group.freeSectors += end - first;
		if (first === lastEnd && group.endRun > group.firstRun) {
			this.#runs[2 * group.endRun - 1] = end;
			return;
		}
		if (this.#runCount === MAX_RUNS) {
			this.keep(this.#current, "the volume is too fragmented");
			return;
		}
		if (2 * this.#runCount === this.#runs.length) {
			const grown = new Uint32Array(2 * this.#runs.length);
			grown.set(this.#runs);
			this.#runs = grown;
		}
		this.#runs[2 * this.#runCount] = first;
		this.#runs[2 * this.#runCount + 1] = end;
		group.endRun = ++this.#runCount;
	}

	/** Runs of the current chunk so far. */
	get currentRunCount(): number {
		const group = this.#groups[this.#current]!;
		return group.endRun - group.firstRun;
	}

	/** Keeps all of a chunk, with the first reason given. */
	keep(index: number, why: string): void {
		const group = this.#groups[index]!;
		group.wrong ??= why;
		this.#runCount = Math.min(this.#runCount, this.#current === index ? group.firstRun : this.#runCount);
		group.endRun = group.firstRun;
		group.freeSectors = 0;
	}

	/** Checks every chunk's sum; then `runsOf` may be believed. */
	finish(): void {
		this.#current = -1;
		for (const [index, { used, freeSectors, chunk, wrong }] of this.#groups.entries()) {
			if (wrong !== null) continue;
			const free = freeSectors * this.#sectorSize;
			if (Number.isNaN(used)) this.keep(index, "it has no block group item");
			else if (used + free !== chunk.length)
				this.keep(index, `its item says ${used} bytes in use, its extents leave ${free} of ${chunk.length} free`);
		}
	}

	/** Bytes in use in all block groups, as their items say; NaN where one is missing. */
	get usedBytes(): number {
		return this.#groups.reduce((sum, { used }) => sum + used, 0);
	}

	/** What is wrong with which block groups; at most a screenful. */
	get warnings(): readonly string[] {
		const all = this.#groups.flatMap(({ chunk, wrong }) =>
			wrong === null ? [] : [`block group ${chunk.start} is kept whole: ${wrong}`],
		);
		return all.length <= MAX_WARNINGS
			? all
			: [...all.slice(0, MAX_WARNINGS), `${all.length - MAX_WARNINGS} more block groups are kept whole`];
	}

	/** True where a free run of chunk `index` overlaps the logical bytes `[from, to)`. */
	overlaps(index: number, from: number, to: number): boolean {
		const { chunk } = this.#groups[index]!;
		const [run] = this.runsOf(index, from - chunk.start);
		return run !== undefined && run.start < to - chunk.start;
	}

	/** Free runs of chunk `index` that end behind byte `from`, in bytes from the chunk's start. */
	*runsOf(index: number, from: number): Generator<{ start: number; end: number }> {
		const { firstRun, endRun } = this.#groups[index]!;
		let low = firstRun;
		let high = endRun;
		while (low < high) {
			const middle = (low + high) >>> 1;
			if (this.#runs[2 * middle + 1]! * this.#sectorSize <= from) low = middle + 1;
			else high = middle;
		}
		for (let run = low; run < endRun; run++)
			yield { start: this.#runs[2 * run]! * this.#sectorSize, end: this.#runs[2 * run + 1]! * this.#sectorSize };
	}
}
