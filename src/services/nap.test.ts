import assert from "node:assert/strict";
import { test } from "node:test";
import { Nap } from "./nap.ts";

test("a nap ends when its time is over, or when somebody ends it", async () => {
	const nap = new Nap();
	nap.wake();
	assert.equal(await nap.sleep(1), true, "who wakes nobody wakes nobody later");
	for (const milliseconds of [1_000_000, Number.POSITIVE_INFINITY]) {
		const sleep = nap.sleep(milliseconds);
		nap.wake();
		assert.equal(await sleep, false);
	}
	assert.equal(await nap.sleep(0), true);
});
