import assert from "node:assert/strict";
import { test } from "node:test";
import { LIVE } from "../../adapters/plane/connection.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import { provenRuns } from "./proven.ts";
import type { ServedVolume } from "./volumes.ts";

/** A judged volume in which `free` says what is free, as pairs [block, count]. */
const volume = (start: number, blocks: number, free: Iterable<readonly [number, number]>): ServedVolume =>
	({
		start: start * BLOCK_SIZE,
		length: blocks * BLOCK_SIZE,
		verdict: { kind: "ready", settled: 40, position: 50 },
		live: {
			*freeRuns() {
				for (const [block, count] of free) yield { start: block * BLOCK_SIZE, length: count * BLOCK_SIZE };
			},
		},
	}) as unknown as ServedVolume;

test("free runs are dead, all between them is live, and volumes come in the order of the disk", () => {
	const volumes = [
		volume(100, 10, []),
		volume(10, 20, [
			[0, 2],
			[5, 1],
			[15, 5],
		]),
	];
	assert.deepEqual(
		[...provenRuns(volumes).runs],
		[
			[10, 2, 40],
			[12, 3, LIVE],
			[15, 1, 40],
			[16, 9, LIVE],
			[25, 5, 40],
			[100, 10, LIVE],
		].flat(),
	);
});

test("an answer ends at its limit, however many runs a bitmap has", () => {
	let seen = 0;
	const alternating = {
		*[Symbol.iterator](): Generator<readonly [number, number]> {
			for (; ; seen += 2) yield [seen, 1];
		},
	};
	const { runs } = provenRuns([volume(0, 2 ** 28, alternating)], 1000);
	assert.equal(runs.length, 3000);
	assert.ok(seen <= 1002, `${seen} blocks were looked at`);
	assert.deepEqual([...runs].slice(-3), [999, 1, LIVE]);
});
