import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { byteCount, byteOffset, logPosition } from "../../foundations/units.ts";
import { type WatchPlan, type WatchRange, WatchSet } from "./watch.ts";

const MiB = 2 ** 20;
const DISK = byteCount(64 * MiB);
const range = (start: number, length: number, volume = 0): WatchRange => ({
	volume,
	start: byteOffset(start),
	length: byteCount(length),
});
const plan = (parts: Partial<WatchPlan>): WatchPlan => ({
	volumes: [{ runs: [{ start: byteOffset(0), length: DISK }] }],
	ranges: [],
	identity: [],
	...parts,
});
const at = logPosition;

describe("notices", () => {
	test("are the watched parts of a write, with their bytes and positions", () => {
		const watches = new WatchSet(plan({ ranges: [range(1000, 500), range(2000, 100), range(5000, 10)] }), DISK);
		const source = Uint8Array.from({ length: 4000 }, (_, i) => i % 251);
		watches.note(1200, 3000, source, 7, at(10), at(12));
		const { notices, lost } = watches.collect();
		assert(!lost);
		assert.deepEqual(
			notices.map((notice) => ({ ...notice, bytes: [...notice.bytes!] })),
			[
				{ volume: 0, at: 1200, length: 300, bytes: [...source.subarray(7, 307)], position: 10, end: 12 },
				{ volume: 0, at: 2000, length: 100, bytes: [...source.subarray(807, 907)], position: 10, end: 12 },
			],
		);
		assert.deepEqual(watches.collect().notices, [], "collected once");
	});

	test("keep the bytes as they were, whatever becomes of the source; zeros have none", () => {
		const watches = new WatchSet(plan({ ranges: [range(0, 4096)] }), DISK);
		const source = new Uint8Array(4096).fill(7);
		watches.note(0, 4096, source, 0, at(1), at(2));
		source.fill(8);
		watches.note(100, 100, undefined, 0, at(2), at(2));
		const [first, second] = watches.collect().notices;
		assert(first!.bytes!.every((byte) => byte === 7));
		assert.deepEqual([second!.at, second!.length, second!.bytes], [100, 100, undefined]);
	});

	test("that are too many are lost, which is said until collected, and no more after", () => {
		const watches = new WatchSet(plan({ ranges: [range(0, 32 * MiB)] }), DISK);
		const source = new Uint8Array(32 * MiB);
		for (let i = 0; i < 2; i++) watches.note(0, source.length, source, 0, at(i), at(i + 1));
		assert(!watches.collect().lost, "64 MiB fit");
		for (let i = 0; i < 3; i++) watches.note(0, source.length, source, 0, at(i), at(i + 1));
		const collected = watches.collect();
		assert(collected.lost);
		assert.equal(collected.notices.length, 2);
		watches.note(0, 10, source, 0, at(1), at(2));
		assert.deepEqual([watches.collect().lost, watches.collect().notices.length], [false, 0]);
	});

	test("a write to what identifies the disk is remembered until collected", () => {
		const watches = new WatchSet(plan({ identity: [range(0, 34 * 512), range(DISK - 512, 512)] }), DISK);
		watches.note(34 * 512, 4096, new Uint8Array(4096), 0, at(1), at(2));
		assert(!watches.collect().identityTouched);
		watches.note(DISK - 4096, 4096, undefined, 0, at(1), at(2));
		assert(watches.collect().identityTouched);
		assert(!watches.collect().identityTouched);
	});

	test("equal what a look at every range finds", () => {
		const ranges = fc
			.array(fc.tuple(fc.nat(300_000), fc.integer({ min: 1, max: 90_000 })), { maxLength: 12 })
			.map((gaps) => {
				let end = 0;
				return gaps.map(([gap, length]) => {
					const start = end + gap;
					end = start + length;
					return range(start, length);
				});
			});
		const write = fc.tuple(fc.nat(4 * MiB), fc.integer({ min: 1, max: 3 * MiB }));
		fc.assert(
			fc.property(ranges, fc.array(write, { maxLength: 8 }), (watched, writes) => {
				const watches = new WatchSet(plan({ ranges: watched }), DISK);
				for (const [start, length] of writes) {
					const parts = watched
						.map((one) => [Math.max(start, one.start), Math.min(start + length, one.start + one.length)] as const)
						.filter(([from, to]) => from < to);
					if (parts.length > 0) assert(watches.mayTouch(start, length), "the quick look must not miss it");
					watches.note(start, length, undefined, 0, at(0), at(0));
					assert.deepEqual(
						watches.collect().notices.map((notice) => [notice.at, notice.at + notice.length]),
						parts,
					);
				}
			}),
		);
	});
});

test("the quick look is false away from everything watched", () => {
	const watches = new WatchSet(plan({ ranges: [range(10 * MiB + 5, 10)], identity: [range(20 * MiB - 1, 2)] }), DISK);
	const touched = Array.from({ length: 64 }, (_, region) => watches.mayTouch(region * MiB, MiB));
	assert.deepEqual(
		touched.flatMap((may, region) => (may ? [region] : [])),
		[10, 19, 20],
	);
	assert(watches.mayTouch(0, 64 * MiB));
	assert(watches.mayTouch(10 * MiB - 1, 2));
	assert(!watches.mayTouch(9 * MiB, MiB));
});

test("the last write of each volume is the newest that overlaps it", () => {
	const volumes = [
		{ runs: [{ start: byteOffset(4096), length: byteCount(8192) }] },
		{ runs: [{ start: byteOffset(12288), length: byteCount(4096) }] },
	];
	const watches = new WatchSet(plan({ volumes }), DISK);
	assert.deepEqual(watches.lastWrite, [-1, -1]);
	watches.touchVolumes(0, 4096, 5);
	assert.deepEqual(watches.lastWrite, [-1, -1]);
	watches.touchVolumes(12287, 2, 6);
	assert.deepEqual(watches.lastWrite, [6, 6]);
	watches.touchVolumes(0, 4097, 7);
	assert.deepEqual(watches.lastWrite, [7, 6]);
	watches.touchVolumes(16384, 4096, 8);
	assert.deepEqual(watches.lastWrite, [7, 6]);
	assert.deepEqual(watches.writeCounts, [2, 1]);
	// Zeros and trims have the position of what was written before them, but count.
	watches.touchVolumes(12288, 4096, 6);
	assert.deepEqual(
		[watches.lastWrite, watches.writeCounts],
		[
			[7, 6],
			[2, 2],
		],
	);
});

test("the last write of a volume in pieces is the newest that overlaps one of them", () => {
	const pieces = fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 })), { maxLength: 6 });
	const writes = fc.array(fc.tuple(fc.nat(100), fc.integer({ min: 1, max: 30 })), { maxLength: 6 });
	fc.assert(
		fc.property(pieces, writes, (gaps, list) => {
			let end = 0;
			const runs = gaps.map(([gap, length]) => {
				const start = end + gap;
				end = start + length;
				return { start: byteOffset(start), length: byteCount(length) };
			});
			const watches = new WatchSet(plan({ volumes: [{ runs }] }), DISK);
			let expected = -1;
			for (const [index, [start, length]] of list.entries()) {
				watches.touchVolumes(start, length, index);
				const hit = runs.some((run) => start < run.start + run.length && run.start < start + length);
				if (hit) expected = index;
				assert.equal(watches.lastWrite[0], expected);
			}
		}),
	);
});

describe("view points", () => {
	const pattern = Uint8Array.of(0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2);
	const start = 1024 * 100;
	const marked = { ...range(start + 8192, 65536), mark: { pattern, every: byteCount(1024), origin: start } };
	const volumes = [{ runs: [{ start: byteOffset(start), length: byteCount(MiB) }] }];
	const watches = new WatchSet(plan({ volumes, ranges: [range(start, 4096), marked] }), DISK);
	/** A write of `length` bytes whose block at `recordAt` begins with the pattern. */
	const viewPointOf = (offset: number, length: number, recordAt: number): number => {
		const source = new Uint8Array(length + 3).fill(0xff);
		source.set(pattern.subarray(0, length - recordAt), 3 + recordAt);
		return watches.viewPointOf(start + offset, length, source, 3);
	};

	test("are writes whose last block begins with the pattern", () => {
		assert.equal(viewPointOf(8192, 1024, 0), 0);
		assert.equal(viewPointOf(8192 + 1024, 4096, 3072), 0);
		assert.equal(viewPointOf(8192 + 65536 - 1024, 1024, 0), 0, "the journal's last block");
	});

	test("are not writes that go on behind it, are cut, out of step, or elsewhere", () => {
		assert.equal(viewPointOf(8192, 2048, 0), -1, "another block follows");
		assert.equal(viewPointOf(8192 + 512, 1024, 0), -1, "out of step");
		assert.equal(viewPointOf(8192 + 512, 512, 0), -1, "half a block");
		assert.equal(viewPointOf(4096, 1024, 0), -1, "outside the range");
		assert.equal(viewPointOf(0, 1024, 0), -1, "in a range without mark");
		assert.equal(viewPointOf(8192 + 65536 - 1024, 2048, 1024), -1, "behind the journal's end");
	});

	test("of a volume in pieces are counted in each from where the volume would start there", () => {
		// Bytes 5 KiB to 9 KiB of a volume with blocks of 2 KiB lie at 100 KiB: a block begins there 1 KiB later.
		const piece = {
			...range(100 * 1024, 4096),
			mark: { pattern, every: byteCount(2048), origin: 100 * 1024 - 5 * 1024 },
		};
		const there = new WatchSet(plan({ ranges: [piece] }), DISK);
		const source = new Uint8Array(4096);
		source.set(pattern);
		assert.equal(there.viewPointOf(101 * 1024, 2048, source, 0), 0);
		assert.equal(there.viewPointOf(100 * 1024, 2048, source, 0), -1, "out of step");
		assert.equal(there.viewPointOf(103 * 1024, 2048, source, 0), -1, "behind the piece's end");
		assert.equal(there.viewPointOf(99 * 1024, 2048, source, 0), -1, "its first half lies in another piece");
		// A piece of the volume's end that lies at the disk's start: the volume would start before the disk.
		const early = { ...range(0, 8192), mark: { pattern, every: byteCount(4096), origin: -65536 } };
		assert.equal(new WatchSet(plan({ ranges: [early] }), DISK).viewPointOf(4096, 4096, source, 0), 0);
	});
});
