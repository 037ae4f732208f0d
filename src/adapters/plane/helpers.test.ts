import assert from "node:assert/strict";
import { mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import * as sys from "../os/syscalls.ts";
import { HelperPool, helperMemory, stopHelpers } from "./helpers.ts";
import { JOB_DATASYNC, JOB_READ } from "./jobs.ts";

const EBADF = 9;

interface Fixture extends AsyncDisposable {
	readonly pool: HelperPool;
	readonly fd: number;
	readonly content: Uint8Array;
	/** Waits for the bell and collects, until `count` jobs are done; results by job. */
	finish(count: number): Map<number, number>;
}

function fixture(helperCount: number): Fixture {
	const folder = mkdtempSync(join(tmpdir(), "vms-"));
	const content = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7) & 255);
	writeFileSync(join(folder, "file"), content);
	const fd = openSync(join(folder, "file"), "r+");
	const memory = helperMemory();
	const bell = sys.eventfd(0, sys.EFD_NONBLOCK | sys.EFD_CLOEXEC);
	const pool = new HelperPool(memory);
	const workerData = { memory, bell };
	const workers = Array.from(
		{ length: helperCount },
		() => new Worker(new URL("./helper-worker.ts", import.meta.url), { workerData }),
	);
	const poll = sys.pin(8);
	const count = sys.pin(8);
	return {
		pool,
		fd,
		content,
		finish(wanted) {
			const results = new Map<number, number>();
			const view = new DataView(poll.bytes.buffer, poll.bytes.byteOffset, 8);
			while (results.size < wanted) {
				view.setInt32(0, bell, true);
				view.setUint32(4, sys.POLLIN, true);
				sys.poll(poll.address, 1, -1);
				sys.read(bell, count.address, 8);
				pool.collect((job, result) => results.set(job, result));
			}
			return results;
		},
		async [Symbol.asyncDispose]() {
			const ended = workers.map((worker) => new Promise((resolve) => worker.once("exit", resolve)));
			stopHelpers(memory);
			await Promise.all(ended);
			sys.close(bell);
			sys.close(fd);
			rmSync(folder, { recursive: true });
		},
	};
}

test("reads land in the caller's memory, whoever does them", async () => {
	await using f = fixture(3);
	for (let round = 0; round < 20; round++) {
		const buffers = Array.from({ length: 40 }, () => sys.pin(5000));
		const jobs = buffers.map(({ address }, i) => f.pool.queue(JOB_READ, f.fd, address, 5000, i * 7001));
		assert.equal(new Set(jobs).size, 40);
		const results = f.finish(40);
		for (const [i, { bytes }] of buffers.entries()) {
			assert.equal(results.get(jobs[i]!), 5000);
			assert.deepEqual(bytes, f.content.subarray(i * 7001, i * 7001 + 5000));
		}
		assert.equal(f.pool.busy, 0);
	}
});

test("a sync reports success, and failures arrive as negated errnos", async () => {
	await using f = fixture(1);
	const sync = f.pool.queue(JOB_DATASYNC, f.fd, 0, 0, 0);
	assert.equal(f.finish(1).get(sync), 0);
	const bad = f.pool.queue(JOB_DATASYNC, 1_000_000, 0, 0, 0);
	assert.equal(f.finish(1).get(bad), -EBADF);
	const buffer = sys.pin(4096);
	const past = f.pool.queue(JOB_READ, f.fd, buffer.address, 4096, f.content.length - 100);
	assert.equal(f.finish(1).get(past), -sys.EIO, "the end of the file is no data");
});

test("jobs beyond the slots are refused, and one slot is left for what can't wait", async () => {
	await using f = fixture(0);
	const jobs: number[] = [];
	while (f.pool.hasSpare) jobs.push(f.pool.queue(JOB_DATASYNC, f.fd, 0, 0, 0));
	assert(f.pool.queue(JOB_DATASYNC, f.fd, 0, 0, 0) >= 0);
	assert.equal(f.pool.queue(JOB_DATASYNC, f.fd, 0, 0, 0), -1);
	assert.equal(f.pool.busy, jobs.length + 1);
	f.pool.collect(() => assert.fail("nothing is done"));
});
