import assert from "node:assert/strict";
import { mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { crc32 } from "node:zlib";
import { FirstImage, formatFirstImage } from "../../core/log/first-image.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { OsHostFile } from "../os/host-file.ts";
import * as sys from "../os/syscalls.ts";
import { ViewPoints } from "./view-points.ts";
import type { WatchPlan } from "./watch.ts";

const MiB = 2 ** 20;
const K = 4096;
const PATTERN = Uint8Array.of(1, 2, 3, 4);
const journal: WatchPlan = {
	volumes: [{ runs: [{ start: byteOffset(0), length: byteCount(4 * MiB) }] }],
	ranges: [
		{
			volume: 0,
			start: byteOffset(0),
			length: byteCount(64 * K),
			mark: { pattern: PATTERN, every: byteCount(K), origin: 0 },
		},
		{ volume: 0, start: byteOffset(MiB), length: byteCount(K) },
	],
	identity: [],
};

interface Fixture extends Disposable {
	readonly log: FirstImage;
	readonly points: ViewPoints;
	/** Appends one block and notes it, as the plane does. */
	write(block: number, first: number): void;
}

function fixture(): Fixture {
	const folder = mkdtempSync(join(tmpdir(), "vms-"));
	const fd = openSync(join(folder, "first.log"), "w+");
	const file = new OsHostFile(fd, "first.log");
	const uuid = new Uint8Array(16).fill(3);
	formatFirstImage(file, { uuid, diskBytes: byteCount(4 * MiB), segmentBytes: 64 * K });
	const log = FirstImage.open(file, { checksum: (bytes) => crc32(bytes), allocatePinned: sys.pin });
	const points = new ViewPoints(log);
	const memory = sys.pin(K);
	return {
		log,
		points,
		write(block, first) {
			memory.bytes.fill(first);
			if (first === PATTERN[0]) memory.bytes.set(PATTERN);
			log.stageData(block, 1, memory, 0);
			assert.equal(log.commit(), 1);
			const position = log.positionOfSlot(log.get(block));
			points.touchVolumes(block * K, K, log.position);
			points.note(block * K, K, memory.bytes, 0, position, log.position);
		},
		[Symbol.dispose]() {
			sys.close(fd);
			rmSync(folder, { recursive: true });
		},
	};
}

test("without a plan nothing is watched, and a collection says that it can't tell", () => {
	using f = fixture();
	assert(!f.points.isWatching);
	assert(!f.points.mayTouch(0, K));
	f.write(0, 1);
	assert.deepEqual(f.points.collect(), { notices: [], lost: true, identityTouched: false, lastWrite: [], views: [] });
});

test("the newest view point is a view of exactly that instant", () => {
	using f = fixture();
	f.points.setPlan(journal);
	assert(f.points.isWatching);
	f.write(256, 9);
	f.write(0, 1);
	const end = f.log.position;
	const before = f.log.get(256);
	f.write(256, 8);
	f.write(1, 7);
	const { views, notices, lost, lastWrite } = f.points.collect();
	assert(!lost);
	assert.deepEqual(
		notices.map(({ at }) => at / K),
		[256, 0, 256, 1],
	);
	assert.deepEqual(lastWrite, [f.log.position]);
	const [handle] = views;
	assert.equal(handle!.position, end);
	const view = f.points.view(handle!.id);
	assert.equal(view.get(256), before, "later writes are not in it");
	assert.notEqual(f.log.get(256), before);
	assert.deepEqual(f.points.collect().views, [undefined], "handed over once");
	assert(!view.released, "it stays until it is released");
	f.points.release(handle!.id);
	assert(view.released);
	assert.throws(() => f.points.view(handle!.id), RangeError);
	f.points.release(handle!.id);
});

test("older view points that nobody collected give way, and hold nothing", () => {
	using f = fixture();
	f.points.setPlan(journal);
	for (let i = 0; i < 5; i++) f.write(i, 1);
	const [handle] = f.points.collect().views;
	assert.equal(handle!.position, f.log.position);
	f.write(9, 1);
	f.points.setPlan(journal);
	assert.deepEqual(f.points.collect().views, [undefined], "a new plan forgets them");
	f.points.release(handle!.id);
	// Nothing pins segments any more: all but the last can be freed once they are overwritten.
	for (let round = 0; round < 60; round++) f.write(0, 5);
	for (let block = 1; block < 10; block++) f.write(block, 5);
	for (let i = 0; i < 20; i++) f.write(20, 5);
	for (let i = 0; i < 3; i++) {
		const position = f.log.beginFlush();
		f.log.completeFlush(position);
	}
	assert(f.log.tailPosition > handle!.position);
});

test("a lost write is said once", () => {
	using f = fixture();
	f.points.setPlan(journal);
	f.points.lose();
	assert(f.points.collect().lost);
	assert(!f.points.collect().lost);
});

test("a view taken by hand lives until it is released", () => {
	using f = fixture();
	f.write(3, 1);
	const { id, position } = f.points.take();
	assert.equal(position, f.log.position);
	const slot = f.log.get(3);
	f.write(3, 2);
	assert.equal(f.points.view(id).get(3), slot);
	f.points.release(id);
});

test("a volume whose views may be anywhere gets one with each collection, if it was written", () => {
	using f = fixture();
	const [whole] = journal.volumes;
	f.points.setPlan({ ...journal, volumes: [{ ...whole!, viewWhenCollected: true }] });
	assert.deepEqual(f.points.collect().views, [undefined], "nothing was written");
	f.write(256, 9);
	f.write(700, 9);
	const [handle] = f.points.collect().views;
	assert.equal(handle!.position, f.log.position, "it holds all that was noticed, and nothing later");
	assert.deepEqual(f.points.collect().views, [undefined]);
	f.points.release(handle!.id);
});

test("notices of a range that is watched without bytes say only where and when", () => {
	using f = fixture();
	const [range] = journal.ranges;
	f.points.setPlan({ ...journal, ranges: [{ ...range!, withoutBytes: true }] });
	f.write(3, 9);
	const [notice] = f.points.collect().notices;
	assert.deepEqual([notice!.at, notice!.length, notice!.bytes], [3 * K, K, undefined]);
});

test("a view of a volume at rest is taken only where nothing came after what was collected", () => {
	using f = fixture();
	f.points.setPlan({ ...journal, identity: [{ start: byteOffset(2 * MiB), length: byteCount(K) }] });
	f.write(256, 9);
	const { lastWrite } = f.points.collect();
	const rest = f.points.takeAtRest(0, lastWrite[0]!);
	assert.equal(rest!.position, f.log.position);
	f.points.release(rest!.id);
	f.write(700, 9);
	assert.equal(f.points.takeAtRest(0, lastWrite[0]!), undefined, "the volume was written");
	const later = f.points.collect().lastWrite[0]!;
	f.write(512, 9);
	assert.equal(f.points.takeAtRest(0, f.points.collect().lastWrite[0]!)?.position, f.log.position);
	assert.equal(f.points.takeAtRest(0, later), undefined);
	f.write(512, 8);
	assert.equal(f.points.takeAtRest(0, f.log.position), undefined, "how the disk is divided may have changed");
});
