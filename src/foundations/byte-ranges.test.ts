import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { joinRanges } from "./byte-ranges.ts";
import { byteCount, byteOffset } from "./units.ts";

test("joined ranges cover the same bytes, in order, with gaps in between", () => {
	const range = fc.record({ start: fc.nat(60), length: fc.integer({ min: 1, max: 9 }) });
	fc.assert(
		fc.property(fc.array(range), (list) => {
			const covered = new Set(list.flatMap(({ start, length }) => Array.from({ length }, (_, i) => start + i)));
			const joined = joinRanges(
				list.map(({ start, length }) => ({ start: byteOffset(start), length: byteCount(length) })),
			);
			const bytes = joined.flatMap(({ start, length }) => Array.from({ length }, (_, i) => start + i));
			assert.deepEqual(
				bytes,
				[...covered].sort((a, b) => a - b),
			);
			for (const [index, { start }] of joined.entries()) {
				const before = joined[index - 1];
				assert.ok(before === undefined || before.start + before.length < start);
			}
		}),
	);
});
