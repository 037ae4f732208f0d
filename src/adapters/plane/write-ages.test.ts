import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { FirstImage, RunVisitor } from "../../core/log/first-image.ts";
import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import { liveness, since } from "../../core/nbd/meta-contexts.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import { changedRuns, livenessRuns } from "./allocation.ts";
import { LIVE } from "./connection.ts";
import { WriteAges } from "./write-ages.ts";

/** Enough for three regions of the second image. */
const BLOCKS = 600;
const OPENED = 100;
const SLOT = 1000;

/** A log of which only the index matters: a slot is its position and SLOT. */
class Index {
	readonly diskBlocks = BLOCKS;
	position = OPENED;
	readonly values = Array.from<number>({ length: BLOCKS }).fill(ABSENT);

	resolve(block: number, count: number, visit: RunVisitor): void {
		for (let at = block; at < block + count; ) {
			const first = this.values[at]!;
			let end = at + 1;
			while (end < block + count && this.values[end] === (first > ZERO ? first + end - at : first)) end++;
			visit(first, at, end - at);
			at = end;
		}
	}
	positionOfSlot(slot: number): number {
		return slot - SLOT;
	}
}

type Step =
	| { readonly kind: "write" | "zero" | "move" | "punch"; readonly block: number; readonly count: number }
	| { readonly kind: "mark" };

const step: fc.Arbitrary<Step> = fc.oneof(
	fc.record({
		kind: fc.constantFrom("write" as const, "zero" as const, "move" as const, "punch" as const),
		block: fc.nat(BLOCKS - 1),
		count: fc.integer({ min: 1, max: 200 }),
	}),
	fc.constant({ kind: "mark" as const }),
);

test("whatever happens: what is called unchanged since a position was not changed since; dead, not either", () => {
	fc.assert(
		fc.property(fc.array(step, { minLength: 1, maxLength: 40 }), (steps) => {
			const index = new Index();
			const ages = new WriteAges(index as unknown as FirstImage);
			/** For each remembered position, the blocks that were changed after it. */
			const marks: { readonly position: number; readonly changed: Set<number> }[] = [];
			const change = (block: number): void => {
				for (const { changed } of marks) changed.add(block);
			};
			for (const one of steps) {
				if (one.kind === "mark") {
					marks.push({ position: index.position, changed: new Set() });
					continue;
				}
				const end = Math.min(BLOCKS, one.block + one.count);
				const run: [number, number] = [one.block, end - one.block];
				if (one.kind === "write")
					for (let block = one.block; block < end; block++) {
						index.values[block] = SLOT + index.position++;
						change(block);
					}
				else if (one.kind === "zero")
					for (let block = one.block; block < end; block++) {
						index.values[block] = ZERO;
						change(block);
					}
				else if (one.kind === "move") {
					const triples: number[] = [];
					index.resolve(...run, (value, block, count) => {
						if (value > ZERO) triples.push(block, count, value);
					});
					ages.moving(Float64Array.from(triples));
					for (let block = one.block; block < end; block++)
						if (index.values[block]! > ZERO) index.values[block] = ABSENT;
				} else {
					const pairs: number[] = [];
					index.resolve(...run, (value, block, count) => {
						if (value === ZERO) pairs.push(block, count);
					});
					ages.clearing(Float64Array.from(pairs));
					for (let block = one.block; block < end; block++)
						if (index.values[block] === ZERO) index.values[block] = ABSENT;
				}
			}
			for (const { position, changed } of marks) {
				let at = 0;
				for (const { start, end, status } of changedRuns(ages, index.position, position, 0, BLOCKS * BLOCK_SIZE)) {
					assert.equal(start, at);
					at = end;
					if (status === since.CHANGED) continue;
					for (let block = start / BLOCK_SIZE; block < end / BLOCK_SIZE; block++)
						assert(!changed.has(block), `${block}`);
				}
				assert.equal(at, BLOCKS * BLOCK_SIZE);
				const runs = Float64Array.from([10, 200, position, 210, 5, LIVE, 300, 290, position]);
				let from = 0;
				for (const { start, end, status } of livenessRuns(ages, { runs }, 0, BLOCKS * BLOCK_SIZE)) {
					assert.equal(start, from);
					from = end;
					for (let block = start / BLOCK_SIZE; block < end / BLOCK_SIZE; block++) {
						assert.equal(status === liveness.LIVE, block >= 210 && block < 215);
						if (status !== liveness.DEAD) continue;
						assert((block >= 10 && block < 210) || (block >= 300 && block < 590), `${block} is in no run`);
						assert(!changed.has(block), `${block} was changed`);
					}
				}
				assert.equal(from, BLOCKS * BLOCK_SIZE);
			}
		}),
		{ numRuns: 300 },
	);
});

test("what is known exactly is told exactly", () => {
	const index = new Index();
	const ages = new WriteAges(index as unknown as FirstImage);
	for (let block = 0; block < 8; block++) index.values[block] = SLOT + index.position++;
	const statuses = (position: number): number[] =>
		[...changedRuns(ages, index.position, position, 0, 9 * BLOCK_SIZE)].flatMap(({ start, end, status }) =>
			Array<number>((end - start) / BLOCK_SIZE).fill(status),
		);
	assert.deepEqual(statuses(OPENED + 3), [0, 0, 0, 1, 1, 1, 1, 1, 0]);
	assert.deepEqual(statuses(OPENED - 1), Array(9).fill(1), "before the disk was opened nothing is known");
	ages.moving(Float64Array.from([0, 4, SLOT + OPENED]));
	index.values.fill(ABSENT, 0, 4);
	assert.deepEqual(statuses(OPENED + 4), [0, 0, 0, 0, 1, 1, 1, 1, 0]);
	assert.deepEqual(statuses(OPENED + 3), [1, 1, 1, 1, 1, 1, 1, 1, 1], "moved blocks count as their region's newest");
});

test("a position from before the log was opened tells nothing, not even of blocks that are older", () => {
	const index = new Index();
	const ages = new WriteAges(index as unknown as FirstImage);
	// At OPENED - 10 a client took the position and copied what block 0 held then; a power cut took that write back.
	index.values[0] = SLOT + OPENED - 50;
	const status = (position: number): number[] =>
		[...changedRuns(ages, index.position, position, 0, BLOCK_SIZE)].map((run) => run.status);
	assert.deepEqual(status(OPENED - 10), [since.CHANGED]);
	assert.deepEqual(status(OPENED), [since.CHANGED], "the end of what the cut left may have been the end before it");
	index.position++;
	assert.deepEqual(status(OPENED + 1), [since.UNCHANGED]);
});
