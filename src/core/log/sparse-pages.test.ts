import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ABSENT, ZERO } from "./index-map.ts";
import { FIRST_SPARSE, SparsePages } from "./sparse-pages.ts";

const index = fc.integer({ min: 0, max: 255 });
const change = fc.record({
	index,
	value: fc.oneof(fc.constantFrom(ABSENT, ZERO), fc.integer({ min: 2, max: 2 ** 32 - 1 })),
});

test("pages equal plain maps while they have room, and larger ones take over what they list", () => {
	fc.assert(
		fc.property(fc.array(change, { maxLength: 120 }), fc.constantFrom(ABSENT, ZERO), index, (changes, others, from) => {
			const pages = new SparsePages();
			const neighbour = pages.allocate(1, others, 1);
			pages.set(neighbour, 7, 77);
			let page = pages.allocate(1, others, 3);
			const model = new Map<number, number>();
			for (const { index: block, value } of changes) {
				const room = pages.roomFor(page, block, 1);
				assert.equal(room, model.has(block) ? model.size : model.size + 1);
				if (room > pages.capacity(page)) {
					const larger = pages.allocate(room, others, 5);
					if (larger === 0) break;
					pages.copy(page, larger);
					pages.free(page);
					page = larger;
				}
				assert.equal(pages.set(page, block, value), model.get(block) ?? others);
				if (value === others) model.delete(block);
				else model.set(block, value);
			}
			assert.equal(pages.count(page), model.size);
			assert.equal(pages.others(page), others);
			const full = new Uint32Array(300).fill(others);
			pages.spread(page, full, 20);
			for (let block = 0; block < 256; block++) {
				assert.equal(pages.get(page, block), model.get(block) ?? others);
				assert.equal(full[20 + block], model.get(block) ?? others);
			}
			const listed = [...model.keys()].sort((a, b) => a - b);
			const next = model.has(from) ? from + 1 : (listed.find((block) => block > from) ?? 256);
			assert.equal(pages.next(page, from), next);
			assert.equal(pages.get(neighbour, 7), 77, "a neighbour's memory is its own");
			assert.equal(pages.pagesInUse, 2);
		}),
		{ numRuns: 300 },
	);
});

test("freed pages are used again, and have the epoch that they are given", () => {
	const pages = new SparsePages();
	const held = Array.from({ length: 5000 }, (_, i) => pages.allocate(1 + (i % 50), ABSENT, i));
	assert.ok(held.every((page, i) => page >= FIRST_SPARSE && pages.birth(page) === i));
	assert.equal(new Set(held).size, 5000);
	for (const page of held) pages.free(page);
	assert.equal(pages.pagesInUse, 0);
	assert.ok(held.includes(pages.allocate(3, ZERO, 9)));
	assert.equal(pages.allocate(51, ZERO, 9), 0, "no page is as large");
});
