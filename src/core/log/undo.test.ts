import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ABSENT, ZERO } from "./index-map.ts";
import { mergedPairs, UNDO_STRIDE, UndoReplay } from "./undo.ts";

const BLOCKS = 60;
/** Was in the log once, which has freed it. */
const LOST = ZERO;

interface Entry {
	readonly kind: "data" | "zero" | "drop";
	readonly block: number;
	readonly count: number;
	readonly slot: number;
	readonly inSecond: boolean;
	readonly entry: number;
	readonly position: number;
}

interface Block {
	value: number;
	/** The drop that took `value` away. */
	by: Entry | undefined;
}

/** Block by block: what a reader of the log would do without thinking about speed. */
function replayed(entries: readonly Entry[]): Block[] {
	const blocks = Array.from({ length: BLOCKS }, (): Block => ({ value: ABSENT, by: undefined }));
	for (const entry of entries)
		for (let i = 0; i < entry.count; i++) {
			const block = blocks[entry.block + i]!;
			if (entry.kind === "drop") {
				if (entry.inSecond) Object.assign(block, { value: ABSENT, by: entry });
				else if (!block.by) Object.assign(block, { value: block.value || LOST, by: entry });
			} else Object.assign(block, { value: entry.kind === "data" ? entry.slot + i : ZERO, by: undefined });
		}
	return blocks;
}

const step = fc.record({
	kind: fc.constantFrom("data" as const, "zero" as const, "drop" as const, "drop" as const),
	block: fc.integer({ min: 0, max: BLOCKS - 1 }),
	count: fc.integer({ min: 1, max: 20 }),
	inSecond: fc.boolean(),
});

test("what drops took away is what a block-by-block replay finds, whatever the candidates were cut from", () => {
	fc.assert(
		fc.property(fc.array(step, { maxLength: 30 }), fc.integer({ min: 0, max: 210 }), (steps, secondFrom) => {
			const entries = steps.map(
				(entry, i): Entry => ({
					...entry,
					count: Math.min(entry.count, BLOCKS - entry.block),
					slot: 100 * (i + 1),
					entry: i,
					position: 7 * i,
				}),
			);
			const drops = entries.filter(({ kind }) => kind === "drop").flatMap(({ block, count }) => [block, count]);
			const replay = new UndoReplay(mergedPairs(drops));
			for (const { kind, block, count, slot, inSecond, entry, position } of entries)
				if (kind === "data") replay.data(block, count, slot);
				else if (kind === "zero") replay.zero(block, count);
				else replay.drop(block, count, inSecond, entry, position);
			const found = new Map<number, number[]>();
			const runs = replay.result(secondFrom);
			for (let i = 0; i < runs.length; i += UNDO_STRIDE)
				for (let j = 0; j < runs[i + 1]!; j++) {
					const held = runs[i + 2]!;
					assert.ok(!found.has(runs[i]! + j), "no block twice");
					found.set(runs[i]! + j, [held === ABSENT ? ABSENT : held + j, runs[i + 3]!, runs[i + 4]!]);
				}
			replayed(entries).forEach(({ value, by }, block) => {
				const isThere = value === ABSENT ? (by?.position ?? 0) >= secondFrom : value !== ZERO;
				const expected = by && isThere ? [value, by.entry, by.position] : undefined;
				assert.deepEqual(found.get(block), expected, `block ${block}`);
			});
		}),
		{ numRuns: 500 },
	);
});

test("pairs are sorted and merged where they touch or overlap", () => {
	assert.deepEqual(mergedPairs([10, 5, 0, 3, 12, 8, 3, 1, 30, 1]), [0, 4, 10, 10, 30, 1]);
	assert.deepEqual(mergedPairs([]), []);
});

test("a long run comes back whole, in parts of a size that can be read at once", () => {
	const replay = new UndoReplay([5, 3000]);
	replay.data(0, 4000, 100);
	replay.drop(0, 4000, false, 1, 7);
	const runs = replay.result(0);
	let block = 5;
	for (let i = 0; i < runs.length; i += UNDO_STRIDE) {
		assert.ok(runs[i + 1]! <= 1024);
		assert.deepEqual([...runs.subarray(i, i + UNDO_STRIDE)], [block, runs[i + 1], 100 + block, 1, 7]);
		block += runs[i + 1]!;
	}
	assert.equal(block, 3005);
});
