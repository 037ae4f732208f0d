import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { IndexView } from "./index-map.ts";
import { ABSENT, IndexMap, ZERO } from "./index-map.ts";

const BLOCKS = 70_000;

/** Blocks near the boundaries of pages are where mistakes live. */
const block = fc.oneof(
	fc.integer({ min: 0, max: 300 }),
	fc.integer({ min: 0, max: 1100 }),
	fc.integer({ min: 65_300, max: 65_800 }),
	fc.integer({ min: 0, max: BLOCKS - 1 }),
);
const count = fc.oneof(fc.integer({ min: 1, max: 5 }), fc.constantFrom(255, 256, 257, 600, 65_536, BLOCKS));
const step = fc.oneof(
	fc.record({ kind: fc.constant("slots" as const), block, count: fc.integer({ min: 1, max: 600 }) }),
	// Few at a time: leaves begin sparse.
	fc.record({ kind: fc.constant("slots" as const), block, count: fc.integer({ min: 1, max: 3 }) }),
	fc.record({ kind: fc.constant("slots" as const), block, count: fc.integer({ min: 1, max: 12 }) }),
	fc.record({ kind: fc.constantFrom("zero" as const, "absent" as const, "punched" as const), block, count }),
	fc.record({ kind: fc.constant("moved" as const), block, count: fc.integer({ min: 1, max: 600 }) }),
	fc.record({ kind: fc.constantFrom("view" as const, "release" as const), block, count }),
);

test("the map and its views equal plain maps after any history", () => {
	fc.assert(
		fc.property(fc.array(step, { maxLength: 90 }), (steps) => {
			let model = new Map<number, number>();
			const views: { view: IndexView; model: Map<number, number> }[] = [];
			const live = new Set<number>();
			const map = new IndexMap(BLOCKS, {
				release: (slot) => assert.ok(live.delete(slot), `slot ${slot} released twice`),
			});
			let nextSlot = 2;
			for (const { kind, block: first, count: wanted } of steps) {
				const end = Math.min(BLOCKS, first + wanted);
				if (kind === "slots") {
					for (let slot = nextSlot; slot < nextSlot + end - first; slot++) live.add(slot);
					map.setSlots(first, end - first, nextSlot);
					for (let at = first; at < end; at++) model.set(at, nextSlot++);
				} else if (kind === "zero" || kind === "absent") {
					map.fill(first, end - first, kind === "zero" ? ZERO : ABSENT);
					for (let at = first; at < end; at++) model.set(at, kind === "zero" ? ZERO : ABSENT);
				} else if (kind === "punched" || kind === "moved") {
					const expected = kind === "punched" ? ZERO : Math.max(2, model.get(first) ?? 0);
					let changed = 0;
					for (let at = first; at < end; at++) {
						const value = expected + (expected > ZERO ? at - first : 0);
						if (model.get(at) !== value) continue;
						model.set(at, ABSENT);
						changed++;
					}
					assert.equal(map.clearWhere(first, end - first, expected), changed);
				} else if (kind === "view") views.push({ view: map.takeView(), model: new Map(model) });
				else {
					const [held] = views.splice(first % Math.max(1, views.length), 1);
					if (held) map.release(held.view);
				}
			}
			for (const held of views) equal(held.view, held.model);
			equal({ get: (at) => map.get(at), runs: (at, n, visit) => map.resolve(at, n, visit) }, model);
			assert.deepEqual(live, new Set([...model.values()].filter((value) => value > ZERO)));
			// Nothing is kept once all is absent and no view lives.
			for (const held of views) map.release(held.view);
			map.fill(0, BLOCKS, ABSENT);
			model = new Map();
			assert.equal(live.size, 0);
			assert.equal(map.pagesInUse <= 2 + 2, true, `${map.pagesInUse} pages in use`);
		}),
		{ numRuns: 200 },
	);
});

function equal(map: Pick<IndexView, "get" | "runs">, model: Map<number, number>): void {
	let at = 0;
	let lastEnd = -1;
	map.runs(0, BLOCKS, (value, first, length) => {
		assert.equal(first, at, "runs leave no gap");
		for (let i = 0; i < length; i++) {
			const expected = model.get(at) ?? ABSENT;
			if (expected !== (value > ZERO ? value + i : value)) assert.fail(`block ${at} is ${value}, expected ${expected}`);
			at++;
		}
		// Merged as far as can be.
		assert.ok(value <= ZERO || value !== lastEnd);
		lastEnd = value > ZERO ? value + length : -1;
	});
	assert.equal(at, BLOCKS);
	for (let block = 0; block < BLOCKS; block += 97) assert.equal(map.get(block), model.get(block) ?? ABSENT);
}

test("blocks past 2^31 are told apart, and a whole huge disk is zeroed at once", () => {
	const blocks = 2 ** 32 - 1;
	const map = new IndexMap(blocks, { release: () => {} });
	map.setSlots(blocks - 3, 3, 4_000_000_000);
	assert.equal(map.get(blocks - 1), 4_000_000_002);
	assert.equal(map.get(blocks - 1 - 2 ** 31), ABSENT);
	map.fill(0, blocks, ZERO);
	assert.equal(map.get(2 ** 31 + 5), ZERO);
	assert.ok(map.pagesInUse < 600);
	assert.equal(map.clearWhere(0, blocks, ZERO), blocks);
	assert.equal(map.get(blocks - 1), ABSENT);
});
