import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../foundations/units.ts";
import { LastWritten } from "./last-written.ts";
import {
	type LiveRun,
	type PlacedRun,
	packLiveRuns,
	partOf,
	planCopies,
	planDrops,
	unpackLiveRuns,
	wholeBlocks,
} from "./plan.ts";
import { type BlockRun, blocksIn } from "./runs.ts";

/** Blocks of runs, one number each. */
const blocksOf = (runs: readonly BlockRun[]): number[] =>
	runs.flatMap(({ block, count }) => Array.from({ length: count }, (_, i) => block + i));

test("whole blocks lie inside the range, and every whole block inside it is found", () => {
	fc.assert(
		fc.property(fc.nat(50_000), fc.nat(60_000), (start, length) => {
			const run = wholeBlocks({ start: byteOffset(start), length: byteCount(length) });
			const expected = Array.from({ length: 40 }, (_, block) => block).filter(
				(block) => block * BLOCK_SIZE >= start && (block + 1) * BLOCK_SIZE <= start + length,
			);
			assert.deepEqual(run === undefined ? [] : blocksOf([run]), expected);
		}),
	);
});

describe("drops", () => {
	const placedRuns = fc
		.array(
			fc.record({
				gap: fc.nat(3),
				count: fc.integer({ min: 1, max: 400 }),
				place: fc.constantFrom("second", "zero", "first"),
				position: fc.nat(1000),
			}),
			{ maxLength: 12 },
		)
		.map((parts) => {
			let block = 0;
			return parts.map(({ gap, count, place, position }): PlacedRun => {
				const run = { block: block + gap, count, place: place as PlacedRun["place"], position };
				block += gap + count;
				return run;
			});
		});
	const moves = fc.array(fc.tuple(fc.nat(2000), fc.integer({ min: 1, max: 300 }), fc.nat(1500)), { maxLength: 6 });

	test("are settled exactly where the last write, as far as it is known, is older than the evidence", () => {
		fc.assert(
			fc.property(placedRuns, moves, fc.nat(1500), fc.nat(500), (placed, moved, settledBefore, opened) => {
				const lastWritten = new LastWritten(6000, opened);
				for (const [block, count, position] of moved) lastWritten.moved({ block, count }, position);
				const { settled, young } = planDrops(placed, settledBefore, lastWritten);

				/** Position below which the block was written last. */
				const writtenBefore = (run: PlacedRun, block: number): number => {
					if (run.place === "first") return run.position + (block - run.block) + 1;
					const bounds = moved.filter(
						([at, count]) => at < (Math.floor(block / 256) + 1) * 256 && at + count > Math.floor(block / 256) * 256,
					);
					return Math.max(opened, ...bounds.map(([, , position]) => position));
				};
				const expected = { settled: [] as number[], young: [] as number[] };
				for (const run of placed)
					if (run.place !== "zero")
						for (const block of blocksOf([run]))
							expected[writtenBefore(run, block) <= settledBefore ? "settled" : "young"].push(block);
				assert.deepEqual(blocksOf(settled), expected.settled);
				assert.deepEqual(blocksOf(young), expected.young);
			}),
		);
	});

	test("of blocks moved since are as young as the youngest of their neighbourhood", () => {
		const lastWritten = new LastWritten(1024, 10);
		const second: PlacedRun = { block: 0, count: 1024, place: "second", position: -1 };
		assert.equal(blocksIn(planDrops([second], 10, lastWritten).settled), 1024);
		lastWritten.moved({ block: 255, count: 2 }, 50);
		const { settled, young } = planDrops([second], 49, lastWritten);
		assert.deepEqual(young, [{ block: 0, count: 512 }]);
		assert.deepEqual(settled, [{ block: 512, count: 512 }]);
		lastWritten.moved({ block: 0, count: 1 }, 20);
		assert.equal(blocksIn(planDrops([second], 49, lastWritten).young), 512, "a bound never becomes older");
		assert.equal(
			blocksIn(planDrops([second], 9, lastWritten).settled),
			0,
			"what was there at the start is as old as that",
		);
	});
});

describe("copies", () => {
	const liveRuns = fc
		.array(fc.tuple(fc.integer({ min: 1, max: 6 }), fc.nat(2)), { maxLength: 20 })
		.chain((parts) =>
			fc
				.shuffledSubarray(
					parts.map((_, i) => i),
					{ minLength: parts.length },
				)
				.map((order) => ({ parts, order })),
		)
		.map(({ parts, order }): LiveRun[] => {
			// Slots in log order; blocks in another one.
			let slot = 16;
			const slots = parts.map(([count, gap]) => {
				const first = slot;
				slot += count + gap;
				return first;
			});
			let block = 0;
			const runs: LiveRun[] = [];
			for (const index of order) {
				const count = parts[index]![0];
				runs.push({ block, count, slot: slots[index]!, at: byteOffset(slots[index]! * BLOCK_SIZE) });
				block += count + (index % 2);
			}
			return runs.toSorted((a, b) => a.slot - b.slot);
		});

	test("take every block to its place once, in ascending order, joined where both sides allow", () => {
		fc.assert(
			fc.property(liveRuns, (runs) => {
				const expected = new Map<number, number>();
				for (const { block, count, slot } of runs) for (let i = 0; i < count; i++) expected.set(block + i, slot + i);
				const copies = planCopies(runs);
				const found = new Map<number, number>();
				for (const [i, { from, to, length }] of copies.entries()) {
					const before = copies[i - 1];
					if (before !== undefined) {
						assert(before.to + before.length <= to, "ascending");
						assert(before.to + before.length < to || before.from + before.length !== from, "neighbours are joined");
					}
					for (let at = 0; at < length; at += BLOCK_SIZE) found.set((to + at) / BLOCK_SIZE, (from + at) / BLOCK_SIZE);
				}
				assert.deepEqual(found, new Map([...expected].sort(([a], [b]) => a - b)));
			}),
		);
	});

	test("live runs come over the wire as they are, and parts of them keep their places", () => {
		fc.assert(
			fc.property(liveRuns, (runs) => {
				const packed = Float64Array.from(runs.flatMap(({ block, count, slot, at }) => [block, count, slot, at]));
				assert.deepEqual(unpackLiveRuns(packed), runs);
				assert.deepEqual(
					[...packLiveRuns(runs)],
					runs.flatMap(({ block, count, slot }) => [block, count, slot]),
				);
				for (const run of runs) {
					const part = partOf(run, run.block + run.count - 1, 1);
					assert.deepEqual(part, {
						block: run.block + run.count - 1,
						count: 1,
						slot: run.slot + run.count - 1,
						at: run.at + (run.count - 1) * BLOCK_SIZE,
					});
				}
			}),
		);
	});
});
