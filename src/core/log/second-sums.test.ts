import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { crc32c } from "../../foundations/crc.ts";
import type { HostFile } from "./host-file.ts";
import { formatSecondSums, SecondSums } from "./second-sums.ts";

/** A file in memory that grows. */
class MemoryFile implements Pick<HostFile, "size" | "read" | "write" | "truncate"> {
	bytes = new Uint8Array(0);
	size = (): number => this.bytes.length;
	read(at: number, into: Uint8Array): void {
		into.fill(0);
		into.set(this.bytes.subarray(at, at + into.length));
	}
	write(from: Uint8Array, at: number): void {
		if (at + from.length > this.bytes.length) this.truncate(at + from.length);
		this.bytes.set(from, at);
	}
	truncate(size: number): void {
		const bytes = new Uint8Array(size);
		bytes.set(this.bytes.subarray(0, size));
		this.bytes = bytes;
	}
}

const uuid = new Uint8Array(16).fill(3);
const open = (file: MemoryFile, who = uuid): SecondSums => new SecondSums(file as unknown as HostFile, who, "sums");

test("a new file knows nothing", () => {
	const sums = open(new MemoryFile());
	assert.equal(sums.get(0), 0);
	assert.equal(sums.get(2 ** 31), 0);
	assert.equal(sums.damagedSectors, 0);
});

test("behaves as a map that is saved by write", () => {
	// Blocks that share sectors, pages and places of the cache.
	const block = fc.oneof(
		fc.nat(400),
		fc.nat(3).map((turn) => turn * 4096 * 8 * 127 + 5),
	);
	const change = fc.tuple(block, fc.integer({ min: 1, max: 300 }), fc.nat(3));
	fc.assert(
		fc.property(fc.array(change, { maxLength: 30 }), (changes) => {
			const file = new MemoryFile();
			const model = new Map<number, number>();
			let sums = open(file);
			for (const [at, count, what] of changes) {
				if (what === 0) {
					sums.forget(at, count);
					for (let i = 0; i < count; i++) model.delete(at + i);
				} else
					for (let i = 0; i < count; i++) {
						sums.set(at + i, at + i + what);
						model.set(at + i, at + i + what);
					}
				sums.write();
				if (what === 2) sums = open(file);
			}
			for (const [at, count] of changes)
				for (let i = -1; i <= count; i++) if (at + i >= 0) assert.equal(sums.get(at + i), model.get(at + i) ?? 0);
		}),
	);
});

test("a damaged sector knows nothing, and its neighbours are as they were", () => {
	const file = new MemoryFile();
	const sums = open(file);
	for (let block = 0; block < 300; block++) sums.set(block, block + 1);
	sums.write();
	file.bytes[4096 + 512 + 8]! ^= 1;
	const after = open(file);
	assert.equal(after.get(126), 127);
	assert.equal(after.get(127), 0);
	assert.equal(after.get(253), 0);
	assert.equal(after.get(254), 255);
	assert.equal(after.damagedSectors, 1);
});

test("checksums of another disk, or behind a damaged header, are not believed", () => {
	const file = new MemoryFile();
	const sums = open(file);
	sums.set(7, 8);
	sums.write();
	assert.equal(open(file).get(7), 8);
	assert.equal(open(file, new Uint8Array(16)).get(7), 0);
});

test("formatting forgets all", () => {
	const file = new MemoryFile();
	const sums = open(file);
	sums.set(7, 8);
	sums.write();
	formatSecondSums(file as unknown as HostFile, uuid);
	assert.equal(open(file).get(7), 0);
	assert.equal(file.size(), 4096);
});

test("another version is refused, and nothing is overwritten", () => {
	const file = new MemoryFile();
	open(file);
	file.bytes[8] = 9;
	new DataView(file.bytes.buffer).setUint32(508, ~crc32c(~0, file.bytes.subarray(0, 508)) >>> 0, true);
	const before = file.bytes.slice();
	assert.throws(() => open(file), { code: "DISK_WRONG_VERSION" });
	assert.deepEqual(file.bytes, before);
});

test("forgetting a whole disk reads only what the file has", () => {
	const file = new MemoryFile();
	const sums = open(file);
	sums.set(5, 6);
	sums.set(500_000, 7);
	sums.write();
	sums.set(600_000, 8);
	let reads = 0;
	const read = file.read.bind(file);
	file.read = (at, into) => {
		reads++;
		read(at, into);
	};
	sums.forget(0, 2 ** 28);
	assert.ok(reads <= 600_000 / (127 * 8) + 2, `${reads} reads`);
	sums.write();
	const after = open(file);
	for (const block of [5, 500_000, 600_000]) assert.equal(after.get(block), 0);
	sums.set(2 ** 27, 9);
	sums.forget(2 ** 27, 1);
	sums.write();
	assert.equal(open(file).get(2 ** 27), 0, "what was known only in memory is forgotten as well");
});
