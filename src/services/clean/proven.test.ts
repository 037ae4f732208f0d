import assert from "node:assert/strict";
import { test } from "node:test";
import { LIVE } from "../../adapters/plane/connection.ts";
import { linearArea } from "../../core/volumes/areas.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../foundations/units.ts";
import { provenRuns } from "./proven.ts";
import type { ServedVolume } from "./volumes.ts";

/** A judged volume in which `free` says what is free, as pairs [block, count]. */
const volume = (start: number, blocks: number, free: Iterable<readonly [number, number]>): ServedVolume =>
	({
		areas: [linearArea(byteOffset(start * BLOCK_SIZE), byteCount(blocks * BLOCK_SIZE))],
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

test("a volume in pieces: each is proven where it lies, between those of others", () => {
	// Blocks 0 to 3 of the volume lie at 20, blocks 4 to 7 at 10; another volume lies at 14.
	const scattered = {
		...volume(0, 8, [
			[2, 3],
			[7, 1],
		]),
		areas: [
			linearArea(byteOffset(10 * BLOCK_SIZE), byteCount(4 * BLOCK_SIZE), 4 * BLOCK_SIZE),
			linearArea(byteOffset(20 * BLOCK_SIZE), byteCount(4 * BLOCK_SIZE)),
		],
	};
	assert.deepEqual(
		[...provenRuns([scattered, volume(14, 2, [[0, 2]])]).runs],
		[
			[10, 1, 40],
			[11, 2, LIVE],
			[13, 1, 40],
			[14, 2, 40],
			[20, 2, LIVE],
			[22, 2, 40],
		].flat(),
	);
});
