import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32 } from "node:zlib";
import { isVmsweepError, VmsweepError } from "../../foundations/errors.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import type { OpenOptions } from "./first-image.ts";
import { FirstImage, formatFirstImage } from "./first-image.ts";
import type { GatherList, HostFile } from "./host-file.ts";
import { ABSENT, ZERO } from "./index-map.ts";

const BLOCK = 4096;
const SEGMENT = 64 * 1024;
/** Slots of a 64 KiB segment: 16 blocks less header and summary. */
const SLOTS = 14;

/** A file in memory; `room` bytes at most, counted by the highest byte ever written. */
class MemoryFile implements HostFile {
	bytes = new Uint8Array(0);
	room = Number.POSITIVE_INFINITY;
	failing: "IO" | undefined;
	/** A host that finds out only when it flushes that it has no space: thin volumes, NFS, quotas. */
	syncsFull = false;
	bytesRead = 0;
	size = () => this.bytes.length;
	write(from: Uint8Array, at: number): void {
		this.allocate(at, from.length);
		this.bytes.set(from, at);
	}
	writeGather(list: GatherList, at: number): void {
		let offset = at;
		for (let i = 0; i < list.count; i++) {
			this.write(list.pinned[i]!.bytes.subarray(list.offsets[i]!, list.offsets[i]! + list.lengths[i]!), offset);
			offset += list.lengths[i]!;
		}
	}
	read(at: number, into: Uint8Array): void {
		this.bytesRead += into.length;
		into.fill(0);
		into.set(this.bytes.subarray(at, at + into.length));
	}
	datasync(): void {
		if (this.failing) throw new Error("simulated");
		if (this.syncsFull) throw new VmsweepError("NO_SPACE", "the host is full");
	}
	punch(at: number, length: number): void {
		this.bytes.fill(0, at, at + length);
	}
	allocate(at: number, length: number): void {
		if (this.failing) throw new Error("simulated");
		if (at + length > this.room) throw new VmsweepError("NO_SPACE", "the host is full");
		if (at + length > this.bytes.length) this.truncate(at + length);
	}
	truncate(size: number): void {
		const bytes = new Uint8Array(size);
		bytes.set(this.bytes.subarray(0, size));
		this.bytes = bytes;
	}
}

const uuid = Uint8Array.from({ length: 16 }, (_, i) => i + 1);
const pinned = (length: number) => ({ bytes: new Uint8Array(length), address: 0 });
const filled = (value: number, blocks = 1) => ({ bytes: new Uint8Array(blocks * BLOCK).fill(value), address: 0 });

function create(limitSegments = 0, blocks = 1000): MemoryFile {
	const file = new MemoryFile();
	const limitBytes = limitSegments === 0 ? 0 : 65_536 + limitSegments * SEGMENT;
	formatFirstImage(file, { uuid, diskBytes: byteCount(blocks * BLOCK), segmentBytes: SEGMENT, limitBytes });
	return file;
}

const open = (file: HostFile, options: Partial<OpenOptions> = {}) =>
	FirstImage.open(file, { checksum: (bytes) => crc32(bytes), allocatePinned: pinned, ...options });

function write(log: FirstImage, block: number, value: number, count = 1): number {
	log.stageData(block, count, filled(value, count), 0);
	return log.commit();
}

function flush(log: FirstImage, file: HostFile): void {
	const position = log.beginFlush();
	file.datasync();
	log.completeFlush(position);
}

/** First byte of a block in the first image; undefined where it isn't there. */
function read(log: FirstImage, file: HostFile, block: number): number | undefined {
	const value = log.get(block);
	if (value === ABSENT) return undefined;
	if (value === ZERO) return 0;
	const into = new Uint8Array(BLOCK);
	file.read(log.offsetOfSlot(value), into);
	return into[0];
}

const code = (expected: string, pattern: RegExp) => (error: unknown) =>
	isVmsweepError(error) && error.code === expected && pattern.test(error.message);

test("a batch is applied in order, and its last write of a block wins", () => {
	const file = create();
	const log = open(file);
	log.stageData(5, 2, filled(1, 2), 0);
	log.stageData(6, 1, filled(2), 0);
	log.stageZero(5, 1, "zero");
	log.stageData(7, 3, filled(3, 4), BLOCK);
	assert.equal(log.commit(), 4);
	assert.deepEqual(
		[4, 5, 6, 7, 8, 9, 10].map((block) => read(log, file, block)),
		[undefined, 0, 2, 3, 3, 3, undefined],
	);
	assert.equal(log.position - log.tailPosition, 6);
	const again = open(file);
	assert.deepEqual(
		[4, 5, 6, 7].map((block) => read(again, file, block)),
		[undefined, 0, 2, 3],
	);
});

test("runs longer than a segment are split, and resolve merges what is contiguous", () => {
	const file = create();
	const log = open(file);
	assert.equal(write(log, 100, 9, 40), 1);
	const runs: number[][] = [];
	log.resolve(99, 42, (value, block, count) => void runs.push([value > ZERO ? 2 : value, block, count]));
	assert.deepEqual(runs, [
		[0, 99, 1],
		[2, 100, SLOTS],
		[2, 100 + SLOTS, SLOTS],
		[2, 100 + 2 * SLOTS, 40 - 2 * SLOTS],
		[0, 140, 1],
	]);
	assert.deepEqual(
		log.segments().map(({ state, usedSlots, liveSlots }) => [state, usedSlots, liveSlots]),
		[
			["sealed", SLOTS, SLOTS],
			["sealed", SLOTS, SLOTS],
			["active", 12, 12],
		],
	);
});

test("LOG_FULL leaves room to clean, and after cleaning and flushing the log takes writes again", () => {
	const file = create(6);
	const log = open(file);
	let next = 0;
	while (write(log, next, 7) === 1) next++;
	assert.equal(log.commitError?.code, "LOG_FULL");
	assert.equal(next, 4 * SLOTS);
	flush(log, file);
	const view = log.takeView();
	const oldest = log.segments()[0]!.sequence;
	const runs = log.liveRuns(oldest).runs;
	assert.deepEqual([...runs.subarray(0, 2)], [0, SLOTS]);
	assert.equal(log.moved(runs.subarray(0, 3), view), SLOTS);
	assert.equal(log.get(3), ABSENT);
	assert.deepEqual([...log.dropped(Float64Array.of(SLOTS, SLOTS), view)], [SLOTS, SLOTS]);
	assert.equal(log.get(SLOTS), ZERO);
	view.release();
	assert.ok(log.needsFlush);
	assert.equal(write(log, 999, 8), 0, "not free before the flushes");
	flush(log, file);
	flush(log, file);
	assert.ok(!log.segments().some(({ sequence }) => sequence === oldest));
	assert.equal(write(log, 999, 8), 1);
	assert.ok(file.size() <= 65_536 + 6 * SEGMENT);
});

test("a log many times its size flows through a few segments", () => {
	const file = create(8, 20);
	const log = open(file);
	for (let round = 0; round < 2000; round++) {
		assert.equal(write(log, round % 20, (round % 255) + 1), 1, String(log.commitError));
		if (round % 5 === 0) flush(log, file);
		if (log.segments().length > 3) {
			const view = log.takeView();
			flush(log, file);
			log.moved(log.liveRuns(log.segments()[0]!.sequence).runs, view);
			view.release();
			flush(log, file);
		}
	}
	assert.ok(file.size() <= 65_536 + 8 * SEGMENT, `${file.size()}`);
});

test("NO_SPACE loses nothing that was acknowledged and passes once there is room", () => {
	const file = create();
	const log = open(file);
	file.room = 65_536 + SEGMENT;
	for (let block = 0; block < SLOTS - 2; block++) assert.equal(write(log, block, 1), 1);
	log.stageData(50, 1, filled(2), 0);
	log.stageData(60, 4, filled(3, 4), 0);
	log.stageData(70, 1, filled(4), 0);
	assert.equal(log.commit(), 1, "the first of three items is in");
	assert.equal(log.commitError?.code, "NO_SPACE");
	assert.deepEqual(
		[50, 70].map((block) => read(log, file, block)),
		[2, undefined],
	);
	assert.ok(!log.poisoned);
	file.room = Number.POSITIVE_INFINITY;
	assert.equal(write(log, 60, 5, 4), 1);
	const again = open(file);
	assert.deepEqual(
		[0, 50, 60, 63, 70].map((block) => read(again, file, block)),
		[1, 2, 5, 5, undefined],
	);
});

test("after a failed flush every write and flush is refused; reading works, and so does opening again", () => {
	const file = create();
	const log = open(file);
	write(log, 1, 1);
	log.beginFlush();
	log.failFlush();
	assert.ok(log.poisoned);
	assert.equal(write(log, 2, 2), 0);
	assert.equal(log.commitError?.code, "LOG_POISONED");
	assert.throws(() => log.beginFlush(), code("LOG_POISONED", /serve it again/));
	assert.equal(read(log, file, 1), 1);
	assert.equal(read(open(file), file, 1), 1);
});

test("a view keeps its instant and its segments until it is released", () => {
	const file = create(0, 40);
	const log = open(file);
	for (let block = 0; block < 2 * SLOTS; block++) write(log, block, 1);
	const view = log.takeView();
	assert.ok(!view.durable);
	for (let block = 0; block < 2 * SLOTS; block++) write(log, block, 2);
	flush(log, file);
	flush(log, file);
	assert.ok(view.durable);
	assert.equal(log.segments().length, 4);
	const slot = view.get(3);
	const into = new Uint8Array(BLOCK);
	file.read(log.offsetOfSlot(slot), into);
	assert.equal(into[0], 1);
	assert.equal(log.moved(Float64Array.of(3, 1, log.get(3)), view), 0, "written after the view");
	assert.equal(log.dropped(Float64Array.of(0, 2 * SLOTS), view).length, 0, "changed since the view");
	view.release();
	flush(log, file);
	flush(log, file);
	assert.equal(log.segments().length, 2);
	assert.throws(() => view.get(0), code("BUG", /released/));
});

test("zeroed runs hold their segment until they are punched", () => {
	const file = create(0, 1000);
	const log = open(file);
	log.stageZero(0, 500, "zero");
	log.commit();
	const sequence = log.seal();
	assert.equal(log.zeroRuns(sequence).length, 0, "not durable yet");
	write(log, 10, 1);
	flush(log, file);
	assert.deepEqual([...log.zeroRuns(sequence)], [0, 10, 11, 489]);
	flush(log, file);
	assert.equal(log.tailPosition, sequence * SLOTS);
	assert.equal(log.punched(log.zeroRuns(sequence)), 499);
	assert.equal(log.get(11), ABSENT);
	flush(log, file);
	flush(log, file);
	assert.ok(log.tailPosition > sequence * SLOTS);
});

test("free segments are lent for punching, returned, reused, and cut off the file's end", () => {
	const file = create(0, 40);
	const log = open(file, { warmSegments: 1 });
	for (let i = 0; i < 6 * SLOTS; i++) write(log, i % SLOTS, i % 250);
	flush(log, file);
	flush(log, file);
	const punchFree = (warmBytes?: number): number => {
		const lent = log.borrowCold(10, warmBytes);
		for (const { offset, length } of lent) file.punch(offset, length);
		log.returnCold(lent);
		return lent.length;
	};
	assert.equal(punchFree(3 * log.segmentBytes), 2, "some are about to be needed");
	assert.equal(punchFree(), 2);
	assert.equal(punchFree(), 0);
	assert.equal(log.trimFile(), 0, "the active segment is the last one in the file");
	for (let i = 0; i < 2 * SLOTS; i++) write(log, i % SLOTS, 5);
	flush(log, file);
	flush(log, file);
	assert.equal(log.trimFile(), 0, "what has host space isn't cut off");
	assert.ok(punchFree() > 0);
	assert.ok(log.trimFile() > 0);
	for (let i = 0; i < SLOTS; i++) assert.equal(write(log, i, i + 1), 1);
	const again = open(file);
	for (let i = 0; i < SLOTS; i++) assert.equal(read(again, file, i), i + 1);
});

test("a restart after close reads summaries only, and positions and sequences grow on", () => {
	const file = create(0, 1000);
	const log = open(file);
	for (let block = 0; block < 500; block++) write(log, block, 1);
	const { position } = log;
	log.close();
	file.bytesRead = 0;
	const again = open(file);
	const summaries = Math.ceil(500 / SLOTS) * 2 * BLOCK;
	assert.ok(file.bytesRead < summaries + 10 * BLOCK, `${file.bytesRead} bytes read`);
	assert.ok(again.position >= position);
	assert.equal(again.durablePosition, again.position);
});

test("damage to what was durable is refused with one line, damage after it ends the log", () => {
	const file = create(0, 100);
	const log = open(file);
	for (let block = 0; block < 20; block++) write(log, block, 1);
	flush(log, file);
	write(log, 30, 2);
	const unflushed = log.offsetOfSlot(log.get(30));
	const good = file.bytes.slice();
	file.bytes[unflushed + 9]! ^= 1;
	assert.equal(open(file).get(30), ABSENT);
	file.bytes = good.slice();
	// Entry 3 of the first segment.
	file.bytes[65_536 + BLOCK + 3 * 32 + 8]! ^= 1;
	assert.throws(() => open(file), code("LOG_DAMAGED", /entry 3 .* is damaged, but 20 entries were durable/));
	file.bytes = good.slice();
	file.bytes[65_536 + SEGMENT + 0x28]! ^= 1;
	assert.notEqual(open(file).get(30), ABSENT, "the header's copy serves");
	file.bytes = good.slice();
	file.bytes.fill(0, 65_536, 65_536 + BLOCK);
	assert.throws(() => open(file), code("LOG_DAMAGED", /entry 0 .* first segment/));
});

test("other files, versions, features and disks are refused by name", () => {
	const file = create();
	assert.throws(() => open(file, { expectedUuid: new Uint8Array(16) }), code("DISK_IMAGES_MIXED", /another disk/));
	assert.throws(() => open(file, { limitBytes: SEGMENT }), code("USAGE", /too small/));
	assert.throws(() => formatFirstImage(file, { uuid, diskBytes: byteCount(BLOCK) }), code("FILE_EXISTS", /not empty/));
	assert.throws(() => open(new MemoryFile()), code("LOG_DAMAGED", /is no first image/));
	const good = file.bytes.slice();
	for (const copy of [0, BLOCK]) file.bytes[copy + 8] = 9;
	assert.throws(() => open(file), code("DISK_WRONG_VERSION", /version 9/));
	file.bytes = good.slice();
	for (const copy of [0, BLOCK]) file.bytes[copy + 0x30]! ^= 1;
	assert.throws(() => open(file), code("LOG_DAMAGED", /both superblocks/));
	file.bytes = good.slice();
	file.bytes.fill(0, byteOffset(BLOCK), 2 * BLOCK);
	assert.equal(open(file).get(0), ABSENT, "one whole superblock is enough");
	const log = open(file);
	assert.throws(() => log.stageZero(999, 2, "zero"), code("OUT_OF_RANGE", /outside/));
});

test("every block's checksum is known, after a commit and after a restart, and tells what was written", () => {
	const file = create(0, 3000);
	const log = open(file);
	const written = new Uint8Array(600 * BLOCK);
	for (let block = 0; block < 600; block++) written.fill(block % 251, block * BLOCK, (block + 1) * BLOCK);
	log.stageData(7, 600, { bytes: written, address: 0 }, 0);
	log.stageData(2000, 1, filled(9), 0);
	log.stageData(2001, 3, filled(8, 3), 0);
	assert.equal(log.commit(), 3);
	for (const image of [log, open(file), open(file)])
		for (const block of [7, 8, 12, 13, 14, 19, 20, 262, 263, 500, 606, 2000, 2001, 2003]) {
			const slot = image.get(block);
			const into = new Uint8Array(BLOCK);
			file.read(image.offsetOfSlot(slot), into);
			assert.equal(image.sumOfSlot(slot), crc32(into), `block ${block}`);
			assert.ok(image.matches(slot, 1, into));
			into[77]! ^= 4;
			assert.ok(!image.matches(slot, 1, into));
		}
});

test("records of checksums belong to their run: damaged ones end the log where it may end, else it is refused", () => {
	const file = create(0, 100);
	const log = open(file);
	write(log, 0, 1, 10);
	const flushedUpTo = file.bytes.slice();
	flush(log, file);
	write(log, 50, 2, 3);
	// A run of 10 blocks takes records 0 to 2, that of 3 blocks 3 and 4.
	const record = (i: number) => 65_536 + BLOCK + i * 32;
	const good = file.bytes.slice();
	file.bytes[record(4) + 5]! ^= 1;
	assert.deepEqual(
		[0, 50].map((block) => read(open(file), file, block)),
		[1, undefined],
	);
	file.bytes = good.slice();
	file.bytes[log.offsetOfSlot(log.get(52))]! ^= 1;
	assert.equal(read(open(file), file, 50), undefined, "its last block was not written whole");
	file.bytes = good.slice();
	file.bytes[record(2) + 8]! ^= 1;
	assert.throws(() => open(file), code("LOG_DAMAGED", /entry 0 .* 3 entries were durable/));
	file.bytes = flushedUpTo.slice();
	// Of another life: whole, but not this segment's.
	file.bytes.copyWithin(record(2), record(1), record(2));
	assert.equal(read(open(file), file, 0), undefined);
});

test("the cleaner is told where a summary rotted, and scrubbing tells which blocks did", () => {
	const file = create(0, 100);
	const log = open(file);
	write(log, 0, 1, 10);
	write(log, 20, 2);
	write(log, 4, 3);
	flush(log, file);
	const { sequence } = log.segments()[0]!;
	assert.deepEqual(log.scrub(sequence), { next: -1, bytes: 12 * BLOCK, rotten: [], rottenSlots: [], rottenRecords: 0 });
	const slots = [3, 20].map((block) => log.get(block));
	for (const slot of slots) file.bytes[log.offsetOfSlot(slot) + 100]! ^= 2;
	// What block 4 held before doesn't matter any more.
	file.bytes[log.offsetOfSlot(slots[0]! + 1)]! ^= 2;
	const first = log.scrub(sequence, 0, 1);
	assert.deepEqual(first.rotten, [3]);
	assert.deepEqual(first.rottenSlots, [slots[0]]);
	assert.deepEqual(log.scrub(sequence, first.next).rotten, [20]);
	assert.equal(log.liveRuns(sequence).runs.length, 12);
	file.bytes[65_536 + BLOCK + 2 * 32 + 9]! ^= 1;
	assert.equal(log.scrub(sequence).rottenRecords, 1);
	assert.throws(() => log.liveRuns(sequence), code("LOG_DAMAGED", /entry 0 of segment 1 .* is damaged/));
	assert.equal(log.scrub(999).next, -1);
});

test("views are taken again after a restart, with zeroed blocks as they were", () => {
	const file = create(0, 100);
	const log = open(file);
	const empty = log.takeView();
	write(log, 1, 1, 3);
	log.stageZero(2, 1, "zero");
	log.stageZero(50, 5, "zero");
	log.commit();
	log.seal();
	const view = log.takeView();
	write(log, 1, 2, 3);
	write(log, 50, 3, 5);
	flush(log, file);
	flush(log, file);
	assert.equal(log.segments().length, 2, "the view holds its segment");
	const later = log.takeView();
	const entries = [empty.entry, view.entry, later.entry];
	const wanted = { viewsAtEntries: [...entries, 1, 10_000] };
	const again = open(file, wanted);
	const valuesOf = (of: typeof view) =>
		[0, 1, 2, 3, 50, 54].map((block) => {
			const value = of.get(block);
			return value === ABSENT ? "absent" : value === ZERO ? 0 : file.bytes[again.offsetOfSlot(value)];
		});
	assert.deepEqual([...again.recoveredViews.keys()], entries, "no other instant, nor one within a run's records");
	assert.deepEqual(valuesOf(again.recoveredViews.get(empty.entry)!), Array(6).fill("absent"));
	assert.deepEqual(valuesOf(again.recoveredViews.get(view.entry)!), ["absent", 1, 0, 1, 0, 0]);
	assert.deepEqual(valuesOf(again.recoveredViews.get(later.entry)!), ["absent", 2, 2, 2, 3, 3]);
	flush(again, file);
	flush(again, file);
	assert.equal(open(file, wanted).recoveredViews.size, 3, "they hold their segments");
	for (const recovered of again.recoveredViews.values()) recovered.release();
	flush(again, file);
	flush(again, file);
	assert.equal(open(file, wanted).recoveredViews.has(empty.entry), false);
});

test("dropped blocks can come back while they are held, wherever they were", () => {
	const file = create(0, 100);
	const log = open(file);
	write(log, 0, 1, 4);
	log.seal();
	log.stageZero(30, 4, "zero");
	write(log, 40, 4);
	flush(log, file);
	log.seal();
	const held = log.position;
	log.holdFrom(held);
	const view = log.takeView();
	// Block 70 is in the second image only; 30 was zeroed, so there is nothing to come back.
	const pairs = log.dropped(Float64Array.of(0, 4, 30, 1, 70, 2), view);
	assert.deepEqual([...pairs], [0, 4, 70, 2]);
	view.release();
	write(log, 2, 5);
	flush(log, file);
	flush(log, file);
	const undoable = (of: FirstImage) => {
		const runs = of.undoable();
		return Array.from({ length: runs.length / 5 }, (_, i) => {
			const [block, count, slot] = runs.subarray(i * 5);
			return [block, count, slot === ABSENT ? undefined : file.bytes[of.offsetOfSlot(slot!)]];
		});
	};
	const expected = [
		[0, 2, 1],
		[3, 1, 1],
		[70, 2, undefined],
	];
	assert.deepEqual(undoable(log), expected);
	const last = log.segments().at(-1)!.sequence;
	assert.deepEqual([...log.zeroRuns(last)], [], "nothing of it may be punched");
	assert.deepEqual([...log.zeroRuns(log.segments()[1]!.sequence)], [30, 4]);
	const again = open(file);
	again.holdFrom(held);
	flush(again, file);
	flush(again, file);
	assert.deepEqual(undoable(again), expected);
	again.holdFrom(undefined);
	assert.deepEqual([...again.zeroRuns(last)], [0, 2, 3, 1, 70, 2]);
	flush(again, file);
	flush(again, file);
	assert.deepEqual(undoable(again), [], "the segment that block 0 was in is free, and block 70 may be punched");
	again.holdFrom(held);
	assert.deepEqual(undoable(again), [[70, 2, undefined]], "block 0 stays lost");
});

test("a disk grows and shrinks, and what lay beyond its end doesn't come back", () => {
	const file = create(0, 100);
	let log = open(file);
	write(log, 90, 1, 10);
	const view = log.takeView();
	log.resize(200 * BLOCK);
	assert.equal(log.diskBlocks, 200);
	write(log, 150, 2, 3);
	assert.equal(view.get(150), ABSENT);
	assert.throws(() => log.stageZero(200, 1, "zero"), code("OUT_OF_RANGE", /disk's 200/));
	log.resize(95 * BLOCK);
	assert.equal(read(log, file, 94), 1);
	assert.throws(() => log.stageZero(95, 1, "zero"), code("OUT_OF_RANGE", /disk's 95/));
	assert.notEqual(view.get(99), ABSENT, "a view keeps what it shows");
	assert.equal(log.dropped(Float64Array.of(93, 4), view).length, 0, "not durable yet");
	flush(log, file);
	assert.deepEqual([...log.dropped(Float64Array.of(94, 4), view)], [94, 1]);
	log = open(file);
	assert.equal(log.diskBytes, 95 * BLOCK);
	assert.equal(read(log, file, 93), 1);
	assert.deepEqual([...log.liveRuns(log.segments()[0]!.sequence).runs].slice(0, 2), [90, 4]);
	log.resize(180 * BLOCK);
	for (const image of [log, open(file)])
		for (const block of [95, 99, 150, 179]) assert.ok(!read(image, file, block), `block ${block}`);
	assert.throws(() => log.resize(1000), code("USAGE", /multiple of 512/));
});

test("a size that could not be noted: a larger one may be tried again, a smaller one ends all writing", () => {
	const file = create(0, 100);
	const log = open(file);
	const write = file.write.bind(file);
	const failing = (failures: number): void => {
		file.write = (from, at) => {
			if (at < 2 * BLOCK && failures-- > 0) throw new VmsweepError("NO_SPACE", "the host is full");
			write(from, at);
		};
	};
	failing(1);
	assert.throws(() => log.resize(150 * BLOCK), code("NO_SPACE", /full/));
	assert.equal(log.diskBlocks, 100);
	log.resize(150 * BLOCK);
	assert.equal(open(file).diskBlocks, 150);
	const shrinking = open(file);
	failing(1);
	assert.throws(() => shrinking.resize(50 * BLOCK), code("NO_SPACE", /full/));
	assert.ok(shrinking.poisoned);
	file.write = write;
	assert.equal(open(file).diskBlocks, 150);
});

test("a flush that finds the host full ends all writing, whoever began it: the next one would say that all is well", () => {
	const growing = create(0, 100);
	const grown = open(growing);
	write(grown, 1, 1);
	growing.syncsFull = true;
	assert.throws(() => grown.resize(150 * BLOCK), code("IO", /full/));
	growing.syncsFull = false;
	assert.throws(() => grown.beginFlush(), code("LOG_POISONED", /full/));

	const file = create(0, 100);
	file.room = 65_536;
	const log = open(file);
	assert.equal(write(log, 1, 1), 0);
	assert.equal(log.commitError?.code, "NO_SPACE", "the epoch couldn't begin yet");
	file.room = Number.POSITIVE_INFINITY;
	file.syncsFull = true;
	assert.equal(write(log, 1, 1), 0);
	assert.equal(log.commitError?.code, "IO");
	file.syncsFull = false;
	assert.ok(log.poisoned);
	const again = open(file);
	assert.equal(write(again, 1, 1), 1);
	file.syncsFull = true;
	assert.throws(() => again.close(), code("IO", /full/));
	assert.ok(again.poisoned);
});

test("no position after a restart is below one that was durable before it", () => {
	const file = create(0, 100);
	const log = open(file);
	for (let block = 0; block < SLOTS; block++) write(log, block, 1);
	flush(log, file);
	assert.equal(open(file).position, log.durablePosition);
});

test("a crowd of zeroed runs leaves room for data runs of any length", () => {
	const file = create(0, 1000);
	const log = open(file);
	// All but 3 of the 128 records of a summary.
	for (let i = 0; i < 125; i++) log.stageZero(i, 1, "zero");
	log.stageData(500, 10, filled(7, 10), 0);
	assert.equal(log.commit(), 126);
	for (const image of [log, open(file)])
		assert.deepEqual(
			[0, 500, 509].map((block) => read(image, file, block)),
			[0, 7, 7],
		);
});
