import assert from "node:assert/strict";
import { mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { crc32 } from "@node-rs/crc32";
import { BLOCK_SIZE, byteCount } from "../../foundations/units.ts";
import * as sys from "../os/syscalls.ts";
import type { Connection } from "./connection.ts";
import { DiskReader } from "./disk-reader.ts";
import type { JobQueue } from "./jobs.ts";
import type { SecondReader } from "./second-reader.ts";
import { secondReader } from "./second-readers.ts";
import { type SlowRead, SlowReads } from "./slow-reads.ts";

/** Jobs that read at once and are told of whenever the test likes: what a slow device does at any moment in between. */
class EarlyJobs implements JobQueue {
	busy = 0;
	hasSpare = true;
	readonly results: number[] = [];

	queue(_op: number, fd: number, address: number, length: number, at: number): number {
		return this.results.push(sys.preadAll(fd, address, length, at)) - 1;
	}
	submit(): void {}
	collect(): void {}
	close(): void {}
}

/** Two blocks of a raw second image, with checksums. */
function fixture() {
	const folder = mkdtempSync(join(tmpdir(), "vms-"));
	const path = join(folder, "second");
	const content = [new Uint8Array(BLOCK_SIZE).fill(1), new Uint8Array(BLOCK_SIZE).fill(2)];
	writeFileSync(path, Buffer.concat(content));
	const fd = openSync(path, "r+");
	const sums = content.map((block) => crc32(block));
	const rotten: number[] = [];
	const jobs = new EarlyJobs();
	const reads = new SlowReads(jobs, (block) => rotten.push(block));
	const size = byteCount(2 * BLOCK_SIZE);
	let generation = 0;
	const flat = secondReader({ kind: "flat", fd, size });
	const second: SecondReader = {
		get generation() {
			return generation;
		},
		plan: (from, to, push) => flat.plan(from, to, push),
		writeTables: () => {},
		resized: () => {},
	};
	let sumsAreReadable = true;
	const reader = new DiskReader(() => [], second, {
		get: (block) => {
			assert.ok(sumsAreReadable);
			return sums[block]!;
		},
		willNeed: () => {},
	});
	const to = { cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0 };
	const client = { reader, inFlight: 0 } as unknown as Connection;
	const write = (block: number, value: number): void => {
		writeSync(fd, new Uint8Array(BLOCK_SIZE).fill(value), 0, BLOCK_SIZE, block * BLOCK_SIZE);
	};
	return {
		write,
		rotten,
		jobs,
		breakSums(): void {
			sumsAreReadable = false;
		},
		/** Places of the second image are given to other content. */
		giveUpPlaces(): void {
			generation++;
		},
		/** Begins a read of both blocks, lets `meanwhile` happen, and finishes it. */
		read(meanwhile: () => void) {
			assert.equal(reads.start(client, to, 0, size), undefined, "under way");
			meanwhile();
			const read = reads.finish(jobs.results.length - 1, jobs.results.at(-1)!);
			assert.equal(client.inFlight, 0);
			return read!;
		},
		/** Reads both blocks without any job. */
		readHere(): SlowRead {
			jobs.hasSpare = false;
			const read = reads.start(client, to, 0, size);
			assert.equal(client.inFlight, 0);
			return read!;
		},
		/** A block of new content is copied to the second image: its checksum is, too. */
		move(block: number, value: number): void {
			write(block, value);
			sums[block] = crc32(new Uint8Array(BLOCK_SIZE).fill(value));
		},
		[Symbol.dispose](): void {
			sys.close(fd);
			rmSync(folder, { recursive: true });
		},
	};
}

test("a block that is overwritten and moved to the same place while it's read isn't taken for a rotten one", () => {
	using f = fixture();
	const read = f.read(() => f.move(1, 7));
	assert.deepEqual([read.result, read.buffer.bytes[0], read.buffer.bytes[BLOCK_SIZE]], [0, 1, 7]);
	assert.deepEqual(f.rotten, []);
});

test("a block that is rotten is told of once, and the read fails where it begins", () => {
	using f = fixture();
	f.write(1, 9);
	const read = f.read(() => {});
	assert.deepEqual([read.result, read.failedAt], [-sys.EIO, BLOCK_SIZE]);
	assert.deepEqual(f.rotten, [1]);
});

test("a read that starts over and finds no free job is compared with its checksums, too", () => {
	using f = fixture();
	f.write(1, 9);
	const read = f.read(() => {
		f.giveUpPlaces();
		f.jobs.hasSpare = false;
	});
	assert.deepEqual([read.result, read.failedAt], [-sys.EIO, BLOCK_SIZE]);
	assert.deepEqual(f.rotten, [1]);
});

test("a read that finds no free job is finished at once, and compared with its checksums", () => {
	using f = fixture();
	const right = f.readHere();
	assert.deepEqual([right.result, right.buffer.bytes[0], right.buffer.bytes[BLOCK_SIZE]], [0, 1, 2]);
	f.write(1, 9);
	const rotten = f.readHere();
	assert.deepEqual([rotten.result, rotten.failedAt], [-sys.EIO, BLOCK_SIZE]);
	assert.deepEqual(f.rotten, [1]);
	f.breakSums();
	const unknown = f.readHere();
	assert.deepEqual([unknown.result, unknown.failedAt], [-sys.EIO, -1]);
	assert.deepEqual(f.rotten, [1]);
});
