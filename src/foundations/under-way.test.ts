import assert from "node:assert/strict";
import { test } from "node:test";
import { UnderWay } from "./under-way.ts";

test("as many at once as allowed, and all done at the end", async () => {
	const underWay = new UnderWay(3);
	let [now, most, done] = [0, 0, 0];
	const work = async (): Promise<void> => {
		most = Math.max(most, ++now);
		await new Promise(setImmediate);
		now--;
		done++;
	};
	for (let i = 0; i < 20; i++) await underWay.add(work());
	await underWay.settled();
	assert.deepEqual([most, done], [3, 20]);
});

test("the first failure is told, to whoever adds or waits, when nothing is under way any more", async () => {
	const underWay = new UnderWay(2);
	let ended = false;
	await underWay.add(
		new Promise((resolve) =>
			setImmediate(() =>
				setImmediate(() => {
					ended = true;
					resolve();
				}),
			),
		),
	);
	await assert.rejects(underWay.add(Promise.reject(new Error("first"))), /first/);
	assert.equal(ended, true);
	await assert.rejects(underWay.settled(), /first/);
});
