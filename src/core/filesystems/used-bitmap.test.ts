import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { countZeroBits, UsedBitmap } from "./used-bitmap.ts";

test("everything is in use at first", () => {
	const bitmap = new UsedBitmap(100);
	assert.equal(bitmap.countFree(), 0);
	assert.deepEqual([...bitmap.freeRuns()], []);
	assert.equal(bitmap.isUsed(-1), true);
	assert.equal(bitmap.isUsed(100), true);
});

test("equals a plain array of booleans, whatever is marked", () => {
	const step = fc.record({
		kind: fc.constantFrom("free", "used", "copied"),
		from: fc.nat(300),
		count: fc.nat(300),
		bits: fc.oneof(fc.constant(new Uint8Array(40)), fc.uint8Array({ minLength: 40, maxLength: 40 })),
	});
	fc.assert(
		fc.property(
			fc.integer({ min: 1, max: 300 }),
			fc.array(step, { maxLength: 20 }),
			fc.nat(320),
			fc.nat(320),
			fc.constantFrom(32, 64, 32768),
			(length, steps, a, b, pageUnits) => {
				const bitmap = new UsedBitmap(length, pageUnits);
				const model = Array.from({ length: length }, () => true);
				for (const { kind, from, count, bits } of steps) {
					const start = Math.min(from - (from % 8), length - (length % 8));
					const n = Math.min(count, length - start);
					if (kind === "free") {
						bitmap.markFree(start, n);
						model.fill(false, start, start + n);
					} else if (kind === "copied") {
						bitmap.copyFrom(start, n, bits);
						for (let i = 0; i < n; i++) model[start + i] = (bits[i >> 3]! & (1 << (i & 7))) !== 0;
					} else {
						bitmap.markUsed(from, from + count);
						model.fill(true, from, from + count);
					}
				}
				const [from, to] = [Math.min(a, b), Math.max(a, b)];
				assert.equal(bitmap.countFree(from, to), model.slice(from, to).filter((used) => !used).length);
				const walked = Array.from({ length: length }, () => true);
				let last = -1;
				for (const run of bitmap.freeRuns(from, to)) {
					assert.ok(run.start > last && run.end > run.start, "runs are maximal and in order");
					last = run.end;
					walked.fill(false, run.start, run.end);
				}
				assert.deepEqual(walked.slice(from, to), model.slice(from, to));
			},
		),
	);
});

test("counts zero bits of an on-disk bitmap", () => {
	fc.assert(
		fc.property(fc.uint8Array({ minLength: 40, maxLength: 40 }), fc.nat(320), (bits, count) => {
			let zeros = 0;
			for (let bit = 0; bit < count; bit++) if ((bits[bit >> 3]! & (1 << (bit & 7))) === 0) zeros++;
			assert.equal(countZeroBits(bits, count), zeros);
		}),
	);
});
