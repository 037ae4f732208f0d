import assert from "node:assert/strict";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { IoUring } from "./io-uring.ts";
import * as sys from "./syscalls.ts";

const EBADF = 9;

function openRing(t: TestContext, entries: number): IoUring | undefined {
	const ring = IoUring.open(entries);
	if (ring === undefined) t.skip("this host forbids io_uring");
	return ring;
}

test("reads and flushes finish with their results, in rounds that wrap the rings many times", (t) => {
	const ring = openRing(t, 8);
	if (ring === undefined) return;
	const folder = mkdtempSync(join(tmpdir(), "vms-"));
	const content = Uint8Array.from({ length: 200_000 }, (_, i) => (i * 13) & 255);
	writeFileSync(join(folder, "file"), content);
	const fd = openSync(join(folder, "file"), "r+");
	try {
		const memory = sys.pin(8 * 1000);
		for (let round = 0; round < 50; round++) {
			memory.bytes.fill(0);
			for (let i = 0; i < 7; i++) {
				assert.ok(ring.hasRoom);
				ring.read(i, fd, memory.address + i * 1000, 1000, (round * 7 + i) * 500);
			}
			ring.datasync(7, fd);
			assert.equal(ring.hasRoom, false);
			assert.equal(ring.submit(8), 8);
			const results = new Map<number, number>();
			assert.equal(
				ring.harvest((id, result) => results.set(id, result)),
				8,
			);
			for (let i = 0; i < 7; i++) {
				assert.equal(results.get(i), 1000);
				const at = (round * 7 + i) * 500;
				assert.deepEqual(memory.bytes.subarray(i * 1000, (i + 1) * 1000), content.subarray(at, at + 1000));
			}
			assert.equal(results.get(7), 0);
		}
		ring.read(3, fd, memory.address, 1000, 199_500);
		ring.read(4, -1, memory.address, 1000, 0);
		ring.submit(2);
		const ends = new Map<number, number>();
		ring.harvest((id, result) => ends.set(id, result));
		assert.deepEqual(
			[ends.get(3), ends.get(4)],
			[500, -EBADF],
			"a short read at the end of the file; a wrong descriptor",
		);
	} finally {
		ring.close();
		closeSync(fd);
		rmSync(folder, { recursive: true });
	}
});

test("a registered eventfd rings", (t) => {
	const ring = openRing(t, 8);
	if (ring === undefined) return;
	const bell = sys.eventfd(0, sys.EFD_NONBLOCK | sys.EFD_CLOEXEC);
	const count = sys.pin(8);
	try {
		assert.equal(ring.ring(bell), 0);
		assert.equal(sys.read(bell, count.address, 8), -sys.EAGAIN);
		ring.read(1, -1, 0, 0, 0);
		ring.submit(1);
		assert.equal(sys.read(bell, count.address, 8), 8);
	} finally {
		ring.close();
		sys.close(bell);
	}
});
