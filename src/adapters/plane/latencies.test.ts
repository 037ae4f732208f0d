import assert from "node:assert/strict";
import { test } from "node:test";
import { Latencies, percentileOf } from "./latencies.ts";

test("percentiles of what was counted are right to a bucket, that is by less than a factor of the square root of two", () => {
	const latencies = new Latencies();
	const values = Array.from({ length: 1000 }, (_, i) => 0.005 * 1.01 ** i);
	for (const value of values) latencies.add(3, value);
	const counts = latencies.counts();
	assert.equal(
		counts.reduce((sum, count) => sum + count, 0),
		3000,
	);
	for (const share of [0.1, 0.5, 0.9, 0.99]) {
		const found = percentileOf(counts, share);
		const real = Math.min(values[Math.floor(share * 1000)]!, 185);
		assert.ok(found <= real * 1.42 && found >= real / 1.42, `${share}: ${found}, not ${real}`);
	}
});

test("nothing counted has no percentile; the shortest and the longest have a bucket", () => {
	const latencies = new Latencies();
	assert.equal(percentileOf(latencies.counts(), 0.99), 0);
	latencies.add(1, 0);
	assert.ok(percentileOf(latencies.counts(), 0.99) <= 0.004);
	latencies.add(1000, 1e9);
	assert.ok(percentileOf(latencies.counts(), 0.5) > 100);
});
