import assert from "node:assert/strict";
import { test } from "node:test";
import { shared } from "./client-setup.ts";

test("shared work is done once for all who ask meanwhile, and again for who asks later", async () => {
	const runs: PromiseWithResolvers<number>[] = [];
	const ask = shared(() => {
		runs.push(Promise.withResolvers<number>());
		return runs.at(-1)!.promise;
	});
	const askers = [ask(), ask(), ask()];
	assert.equal(runs.length, 1);
	runs[0]!.resolve(7);
	assert.deepEqual(await Promise.all(askers), [7, 7, 7]);
	const failing = [ask(), ask()];
	assert.equal(runs.length, 2);
	runs[1]!.reject(new Error("no"));
	for (const each of failing) await assert.rejects(each, /no/);
	void ask();
	assert.equal(runs.length, 3, "a failure isn't remembered");
});
