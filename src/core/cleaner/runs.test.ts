import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
	appendRun,
	type BlockRun,
	BoundedRuns,
	batchesOf,
	blockRun,
	blocksIn,
	joinRuns,
	packRuns,
	piecesOf,
	subtract,
	unpackRuns,
} from "./runs.ts";

const run = fc.record({ block: fc.nat(300), count: fc.integer({ min: 1, max: 60 }) }, { noNullPrototype: true });
const runs = fc.array(run, { maxLength: 12 });
const blocksOf = (list: readonly BlockRun[]): number[] =>
	list.flatMap(({ block, count }) => Array.from({ length: count }, (_, i) => block + i));
const ascending = (blocks: Iterable<number>): number[] => [...new Set(blocks)].sort((a, b) => a - b);

/** Sorted, without overlap, and no two that touch. */
function assertTidy(list: readonly BlockRun[]): void {
	for (const [i, { block, count }] of list.entries()) {
		assert(count > 0);
		if (i > 0) assert(list[i - 1]!.block + list[i - 1]!.count < block);
	}
}

test("joined runs hold the same blocks, once each", () => {
	fc.assert(
		fc.property(runs, (list) => {
			const joined = joinRuns(list);
			assertTidy(joined);
			assert.deepEqual(blocksOf(joined), ascending(blocksOf(list)));
			assert.equal(blocksIn(joined), ascending(blocksOf(list)).length);
		}),
	);
});

test("subtracting leaves exactly what lies in no hole", () => {
	fc.assert(
		fc.property(run, runs, (whole, list) => {
			const holes = joinRuns(list);
			const left = subtract(whole, holes);
			assertTidy(left);
			const inHoles = new Set(blocksOf(holes));
			assert.deepEqual(
				blocksOf(left),
				blocksOf([whole]).filter((block) => !inHoles.has(block)),
			);
		}),
	);
});

test("appended runs join their neighbour and leave the given list's objects alone", () => {
	const first: BlockRun = Object.freeze({ block: 3, count: 2 });
	const list = [first];
	appendRun(list, 5, 4);
	appendRun(list, 10, 1);
	assert.deepEqual(list, [
		{ block: 3, count: 6 },
		{ block: 10, count: 1 },
	]);
	assert.deepEqual(first, { block: 3, count: 2 });
});

test("packing and unpacking give the same runs", () => {
	fc.assert(fc.property(runs, (list) => assert.deepEqual(unpackRuns(packRuns(list)), list)));
});

test("a bounded list forgets nothing: what finds no room lies in its rest", () => {
	fc.assert(
		fc.property(runs, fc.integer({ min: 1, max: 6 }), (list, max) => {
			const bounded = new BoundedRuns(max);
			for (const { block, count } of joinRuns(list)) bounded.append(block, count);
			const { list: kept, rest } = bounded;
			assertTidy(kept);
			assert(kept.length <= max);
			const left = blocksOf(joinRuns(list)).slice(blocksIn(kept));
			assert.deepEqual([...blocksOf(kept), ...left], blocksOf(joinRuns(list)));
			assert.equal(rest?.block, left[0]);
			if (rest !== undefined) assert.equal(rest.block + rest.count - 1, left.at(-1));
		}),
	);
});

test("pieces are the run, none longer than wanted", () => {
	fc.assert(
		fc.property(run, fc.integer({ min: 1, max: 70 }), (whole, max) => {
			const pieces = [...piecesOf(whole, max)];
			assert(pieces.every(({ count }) => count > 0 && count <= max));
			assert.deepEqual(blocksOf(pieces), blocksOf([whole]));
		}),
	);
});

test("batches hold the same blocks in the same order, each as large as the limits allow", () => {
	fc.assert(
		fc.property(runs, fc.integer({ min: 1, max: 40 }), (list, max) => {
			const batches = [...batchesOf(list, { blocks: max, runs: 3 }, blockRun)];
			assert.deepEqual(blocksOf(batches.flat()), blocksOf(list));
			assert(batches.flat().every(({ count }) => count > 0));
			for (const [i, batch] of batches.entries()) {
				const blocks = blocksIn(batch);
				assert(blocks > 0 && blocks <= max && batch.length <= 3);
				assert(i === batches.length - 1 || blocks === max || batch.length === 3);
			}
		}),
	);
});
