// Runs of disk blocks: the small algebra that the cleaner is written in. Lists are sorted by block, runs don't overlap.

/** A run of disk blocks. */
export interface BlockRun {
	readonly block: number;
	readonly count: number;
}

/** Adds a run at the end of a sorted list, joining it with its neighbour. */
export function appendRun(runs: BlockRun[], block: number, count: number): void {
	const last = runs.at(-1);
	if (last !== undefined && last.block + last.count === block)
		runs[runs.length - 1] = { block: last.block, count: last.count + count };
	else runs.push({ block, count });
}

/** The parts of `run` that lie in none of `holes` (sorted, without overlap). */
export function subtract(run: BlockRun, holes: readonly BlockRun[]): BlockRun[] {
	const left: BlockRun[] = [];
	let at = run.block;
	const end = run.block + run.count;
	for (let index = firstEndingBehind(holes, at); index < holes.length; index++) {
		const hole = holes[index]!;
		if (hole.block >= end) break;
		if (hole.block > at) left.push({ block: at, count: hole.block - at });
		at = Math.max(at, hole.block + hole.count);
	}
	if (at < end) left.push({ block: at, count: end - at });
	return left;
}

/** The parts of `run` that lie in some of `others` (sorted, without overlap). */
export const intersect = (run: BlockRun, others: readonly BlockRun[]): BlockRun[] =>
	subtract(run, subtract(run, others));

/** Index of the first run of a sorted list that reaches past `block`. */
function firstEndingBehind(runs: readonly BlockRun[], block: number): number {
	let low = 0;
	let high = runs.length;
	while (low < high) {
		const middle = (low + high) >>> 1;
		const { block: start, count } = runs[middle]!;
		if (start + count <= block) low = middle + 1;
		else high = middle;
	}
	return low;
}

/** Sorts runs and joins those that touch or overlap. */
export function joinRuns(runs: readonly BlockRun[]): BlockRun[] {
	const result: BlockRun[] = [];
	for (const { block, count } of runs.toSorted((a, b) => a.block - b.block)) {
		const last = result.at(-1);
		const covered = last === undefined ? block : Math.max(block, last.block + last.count);
		if (covered < block + count) appendRun(result, covered, block + count - covered);
	}
	return result;
}

/** A sorted list of runs of bounded length. What finds no room in it is noted as one run from the first of it to the last. */
export class BoundedRuns {
	readonly list: BlockRun[] = [];
	readonly #max: number;
	#rest: BlockRun | undefined;

	constructor(max: number) {
		this.#max = max;
	}

	/** Where the runs that found no room lie, others among them; undefined for none. */
	get rest(): BlockRun | undefined {
		return this.#rest;
	}

	/** Adds a run that lies behind all others. */
	append(block: number, count: number): void {
		const first = this.#rest?.block ?? block;
		if (this.list.length < this.#max) appendRun(this.list, block, count);
		else this.#rest = { block: first, count: block + count - first };
	}
}

/** A run in pieces of `max` blocks at most. */
export function* piecesOf({ block, count }: BlockRun, max: number): Generator<BlockRun> {
	for (let from = 0; from < count; from += max) yield { block: block + from, count: Math.min(max, count - from) };
}

/** How large a batch of runs may be. */
export interface BatchLimits {
	readonly blocks: number;
	/** Default: as many as there are. */
	readonly runs?: number;
}

/** Runs in batches, in their order, each as large as the limits allow. `partOf` gives a part of a run. */
export function* batchesOf<Run extends BlockRun>(
	runs: Iterable<Run>,
	{ blocks, runs: runsMax = Number.POSITIVE_INFINITY }: BatchLimits,
	partOf: (run: Run, block: number, count: number) => Run,
): Generator<Run[]> {
	let batch: Run[] = [];
	let room = blocks;
	for (const run of runs)
		for (let from = 0; from < run.count; ) {
			const count = Math.min(run.count - from, room);
			batch.push(partOf(run, run.block + from, count));
			from += count;
			room -= count;
			if (room > 0 && batch.length < runsMax) continue;
			yield batch;
			batch = [];
			room = blocks;
		}
	if (batch.length > 0) yield batch;
}

/** A part of a plain run, for `batchesOf`. */
export const blockRun = (_: BlockRun, block: number, count: number): BlockRun => ({ block, count });

/** Blocks in all runs together. */
export const blocksIn = (runs: readonly BlockRun[]): number => runs.reduce((blocks, { count }) => blocks + count, 0);

/** Runs as the data plane takes them: [block, count]…. */
export const packRuns = (runs: readonly BlockRun[]): Float64Array =>
	Float64Array.from(runs.flatMap(({ block, count }) => [block, count]));

/** [block, count]… as runs. */
export function unpackRuns(packed: Float64Array): BlockRun[] {
	const runs: BlockRun[] = [];
	for (let i = 0; i < packed.length; i += 2) runs.push({ block: packed[i]!, count: packed[i + 1]! });
	return runs;
}
