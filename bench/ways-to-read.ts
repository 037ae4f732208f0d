// Ways to read: how the data plane could fetch 4 KiB blocks that the page cache holds, side by side. Prints nanoseconds per
// block, medians of interleaved rounds. docs/decisions/0014 is based on it.
//
//   node bench/ways-to-read.ts

import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { IoUring } from "../src/adapters/os/io-uring.ts";
import * as sys from "../src/adapters/os/syscalls.ts";

const BLOCK = 4096;
const FILE_BYTES = 256 * 1024 * 1024;
const DEPTH = 32;
const BATCHES = 10_000;
const ROUNDS = 5;

const folder = mkdtempSync(join(tmpdir(), "vms-"));
const fd = openSync(join(folder, "file"), "w+");
const megabyte = new Uint8Array(1024 * 1024).fill(7);
for (let at = 0; at < FILE_BYTES; at += megabyte.length) writeSync(fd, megabyte, 0, megabyte.length, at);
const memory = sys.pin(DEPTH * BLOCK);
const iovec = sys.pin(16);
const iovecView = new DataView(iovec.bytes.buffer, iovec.bytes.byteOffset, 16);

let state = 1;
/** A block of the file: the same sequence for all ways. */
function nextBlock(): number {
	state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff;
	return (state % (FILE_BYTES / BLOCK)) * BLOCK;
}

function preads(): void {
	for (let batch = 0; batch < BATCHES; batch++)
		for (let i = 0; i < DEPTH; i++) {
			sys.put64(iovecView, 0, memory.address + i * BLOCK);
			sys.put64(iovecView, 8, BLOCK);
			if (sys.preadvNoWait(fd, iovec.address, 1, nextBlock()) !== BLOCK) throw new Error("a block is not cached");
		}
}

function byRing(ring: IoUring, isFixed: boolean): void {
	for (let batch = 0; batch < BATCHES; batch++) {
		for (let i = 0; i < DEPTH; i++) {
			if (isFixed) ring.readFixed(i, fd, memory.address + i * BLOCK, BLOCK, nextBlock());
			else ring.read(i, fd, memory.address + i * BLOCK, BLOCK, nextBlock());
		}
		ring.submit(DEPTH);
		ring.harvest(() => {});
	}
}

const ways: [name: string, run: () => void][] = [["preadv2 with RWF_NOWAIT, one by one", preads]];
const ring = IoUring.open(2 * DEPTH);
if (ring !== undefined) {
	ways.push(["io_uring, 32 in one call", () => byRing(ring, false)]);
	if (ring.registerBuffer(memory) === 0) ways.push(["io_uring, registered buffer", () => byRing(ring, true)]);
}

const found = new Map<string, number[]>();
for (let round = 0; round <= ROUNDS; round++)
	for (const [name, run] of ways) {
		state = 1;
		const start = performance.now();
		run();
		// The first round only warms up.
		if (round > 0)
			found.set(name, [...(found.get(name) ?? []), ((performance.now() - start) * 1e6) / (BATCHES * DEPTH)]);
	}
for (const [name, times] of found) {
	const median = times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)]!;
	process.stdout.write(`${median.toFixed(0).padStart(6)} ns  ${name}\n`);
}
closeSync(fd);
rmSync(folder, { recursive: true });
