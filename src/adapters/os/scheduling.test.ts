import assert from "node:assert/strict";
import { getPriority } from "node:os";
import { test } from "node:test";
import { Worker } from "node:worker_threads";

test("a thread may ask for short slices, and keeps its nice value", async () => {
	// In a thread of its own, whose nice value nobody else has.
	const script = `
		import { getPriority, setPriority } from "node:os";
		import { parentPort } from "node:worker_threads";
		import { askForSlices } from "${import.meta.resolve("./scheduling.ts")}";
		setPriority(3);
		parentPort.postMessage([askForSlices(100_000), getPriority()]);
	`;
	const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`));
	assert.deepEqual(await new Promise((resolve) => worker.once("message", resolve)), [0, 3]);
	assert.equal(getPriority(), 0);
});
