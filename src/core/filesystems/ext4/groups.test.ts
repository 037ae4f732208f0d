import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BlockRanges } from "./groups.ts";

test("block ranges: merged, and cut to any window, equal a plain array of booleans", () => {
	const range = fc.record({ start: fc.nat(200), length: fc.nat(20) });
	fc.assert(
		fc.property(fc.array(range, { maxLength: 30 }), fc.nat(230), fc.nat(230), (parts, a, b) => {
			const model = Array.from({ length: 240 }, () => false);
			for (const { start, length } of parts) model.fill(true, start, start + length);
			const ranges = new BlockRanges(parts.map(({ start, length }) => ({ start, end: start + length })));
			const [from, to] = [Math.min(a, b), Math.max(a, b)];
			const walked = Array.from({ length: 240 }, () => false);
			let last = -1;
			for (const { start, end } of ranges.within(from, to)) {
				assert.ok(start > last && end > start && start >= from && end <= to);
				last = end;
				walked.fill(true, start, end);
			}
			assert.deepEqual(walked.slice(from, to), model.slice(from, to));
		}),
	);
});
