import assert from "node:assert/strict";
import { test } from "node:test";
import { RateLimit } from "./rate-limit.ts";

test("whoever waits as told moves no more than the rate, however small it is and whatever came before", () => {
	for (const bytesPerSecond of [1000, 1_000_000, 1e9]) {
		let now = 0;
		const limit = new RateLimit(bytesPerSecond, () => now);
		// What wasn't used isn't saved up.
		now = 3_600_000;
		const start = now;
		let moved = 0;
		for (const bytes of [4096, 1 << 20, 0, 8 << 20, 4096]) {
			limit.spend(bytes);
			moved += bytes;
			now += limit.waitMs;
			assert.ok(moved <= ((now - start) / 1000) * bytesPerSecond + 1e-3, `${moved} bytes after ${now - start} ms`);
		}
		assert.equal(limit.waitMs, 0);
	}
});

test("who shares a limit waits for the others, and who waits too short a time waits again", () => {
	let now = 0;
	const limit = new RateLimit(1000, () => now);
	limit.spend(5000);
	limit.spend(1000);
	assert.equal(limit.waitMs, 6000);
	now += 1000;
	assert.equal(limit.waitMs, 5000);
	now += 9000;
	assert.equal(limit.waitMs, 0);
	assert.equal(limit.bytesIn(250), 250);
	assert.equal(new RateLimit(Number.POSITIVE_INFINITY, () => now).waitMs, 0);
});
