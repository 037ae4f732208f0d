// XFS's log delivered in other orders than it was written in (live-safety 9.6): recorded from a real kernel, then fed to
// the live rule with writes held back, put back, or changed. A record counts only when all before it are there.

import assert from "node:assert/strict";
import { before, describe, type TestContext, test } from "node:test";
import type { LiveState } from "../../src/core/filesystems/live.ts";
import { XfsLiveVolume } from "../../src/core/filesystems/xfs/live.ts";
import { findLogEnds } from "../../src/core/filesystems/xfs/log-ends.ts";
import { LogRing } from "../../src/core/filesystems/xfs/log-records.ts";
import { parseSuperblock, readSuperblock } from "../../src/core/filesystems/xfs/open.ts";
import { byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { xfs } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import type { RecordedWrite } from "../support/oracle-recording.ts";
import { memory } from "../support/oracle-rule.ts";
import { type RecordedRun, recordRun } from "../support/oracle-run.ts";
import { requireTool } from "../support/requirements.ts";

/** A disk in memory and a live volume on it, to which writes are delivered by hand. */
class Delivery {
	readonly disk: Uint8Array;
	readonly volume: XfsLiveVolume;
	/** Where the log is on the disk, in bytes. */
	readonly log: { readonly start: number; readonly end: number };
	#position: number;

	private constructor(disk: Uint8Array, volume: XfsLiveVolume, log: Delivery["log"], position: number) {
		this.disk = disk;
		this.volume = volume;
		this.log = log;
		this.#position = position;
	}

	/** Starts when `count` of the recorded writes were made. */
	static async after(writes: readonly RecordedWrite[], count: number, size: number): Promise<Delivery> {
		const disk = new Uint8Array(size);
		for (const write of writes.slice(0, count)) apply(disk, write);
		const geometry = parseSuperblock((await readSuperblock(memory(disk)))!, byteCount(size));
		const { start, basicBlocks } = geometry.log!;
		const volume = await XfsLiveVolume.open(memory(disk));
		const delivery = new Delivery(disk, volume, { start, end: start + basicBlocks * 512 }, writes[count - 1]!.end);
		await delivery.judge();
		return delivery;
	}

	isLog({ at }: RecordedWrite): boolean {
		return at >= this.log.start && at < this.log.end;
	}

	async deliver(...writes: readonly RecordedWrite[]): Promise<void> {
		for (const write of writes) {
			apply(this.disk, write);
			const [position, end] = [logPosition(this.#position), logPosition(++this.#position)];
			const { at, length, bytes, unchanged } = write;
			if (unchanged) continue;
			const read = async (): Promise<Uint8Array> => bytes ?? new Uint8Array(length);
			await this.volume.observe([{ at: byteOffset(at), length: byteCount(length), position, end, read }]);
		}
	}

	judge(): Promise<LiveState> {
		return this.volume.advance(memory(this.disk), logPosition(this.#position));
	}

	/** First byte on the disk where the next record goes. */
	async head(): Promise<number> {
		const geometry = parseSuperblock((await readSuperblock(memory(this.disk)))!, byteCount(this.disk.length));
		return this.log.start + (await findLogEnds(new LogRing(memory(this.disk), geometry.log!), geometry)).head * 512;
	}
}

function apply(disk: Uint8Array, { at, length, bytes }: RecordedWrite): void {
	if (bytes === undefined) disk.fill(0, at, at + length);
	else disk.set(bytes, at);
}

/** The write that brings the next record's first sector, from `from` on. */
function nextHead(writes: readonly RecordedWrite[], from: number, head: number): number {
	return writes.findIndex(
		({ at, length, unchanged }, i) => i >= from && !unchanged && at <= head && head < at + length,
	);
}

describe("XFS log records out of order", () => {
	let recorded: RecordedRun | null = null;
	let begin = 0;

	const start = (): Promise<Delivery> => {
		const { writes, size } = recorded!.recording;
		return Delivery.after(writes, begin, size);
	};

	before(async (t) => {
		const context = t as TestContext;
		if (!requireTool(context, ...LOOP_TOOLS, ...xfs.tools)) return;
		const load = ["--rounds", "1", "--seconds", "2"];
		recorded = await recordRun(context, "400M", {
			kind: xfs,
			mkfs: [],
			mountOptions: "logbsize=32k",
			load,
			unit: 512,
		});
		const { writes } = recorded!.recording;
		// From somewhere in the middle on, where the record at the head is yet to come.
		for (begin = Math.floor(writes.length / 2); begin < writes.length; begin += 200)
			if (nextHead(writes, begin, await (await start()).head()) > 0) return;
		assert.fail("the log never went on");
	});

	test("nothing behind a missing record counts; when it comes, all do", async (t) => {
		if (recorded === null) return t.skip("no recording");
		const { writes } = recorded.recording;
		const delivery = await start();
		const missing = nextHead(writes, begin, await delivery.head());
		assert(missing > 0);
		const following = writes.slice(begin, missing + 600).filter((_, i) => begin + i !== missing);
		// Home writes would run ahead of the log, which no guest does.
		await delivery.deliver(...following.filter((write) => delivery.isLog(write)));
		await delivery.judge();
		assert.equal(delivery.volume.commits, 0);
		await delivery.deliver(writes[missing]!);
		await delivery.judge();
		const inOrder = await start();
		await inOrder.deliver(...writes.slice(begin, missing + 600).filter((write) => inOrder.isLog(write)));
		await inOrder.judge();
		assert(inOrder.volume.commits > 0);
		assert.equal(delivery.volume.commits, inOrder.volume.commits);
		assert.equal(delivery.volume.incarnation, 1);
	});

	test("a record of which a sector is still the old one doesn't count", async (t) => {
		if (recorded === null) return t.skip("no recording");
		const { writes } = recorded.recording;
		const delivery = await start();
		const first = nextHead(writes, begin, await delivery.head());
		const { at, length, bytes } = writes[first]!;
		const torn = bytes!.slice();
		torn.set(delivery.disk.subarray(at + length - 512, at + length), length - 512);
		const some = writes.slice(begin, first + 300).filter((write) => delivery.isLog(write));
		await delivery.deliver(...some.map((write) => (write === writes[first] ? { ...write, bytes: torn } : write)));
		await delivery.judge();
		assert.equal(delivery.volume.commits, 0);
	});

	test("a log that goes back to an earlier state is another incarnation", async (t) => {
		if (recorded === null) return t.skip("no recording");
		const { writes } = recorded.recording;
		const delivery = await start();
		const before = delivery.disk.slice(delivery.log.start, delivery.log.end);
		await delivery.deliver(...writes.slice(begin, begin + 2000));
		await delivery.judge();
		const commits = delivery.volume.commits;
		assert(commits > 0);
		const rewound: RecordedWrite[] = [];
		for (let at = 0; at < before.length; at += 4096) {
			const bytes = before.subarray(at, at + 4096);
			if (Buffer.compare(bytes, delivery.disk.subarray(delivery.log.start + at, delivery.log.start + at + 4096)) === 0)
				continue;
			const place = { at: delivery.log.start + at, length: 4096, position: 0, end: 0, unchanged: false };
			rewound.push({ ...place, bytes });
		}
		assert(rewound.length > 20);
		await delivery.deliver(...rewound);
		const state = await delivery.judge();
		assert.equal(state.kind, "keep");
		assert.equal(delivery.volume.commits, 0, "what was counted counts no more");
	});

	test("foreign writes to headers and to the log end the incarnation", async (t) => {
		if (recorded === null) return t.skip("no recording");
		const { writes, size } = recorded.recording;
		const geometry = parseSuperblock((await readSuperblock(memory((await start()).disk)))!, byteCount(size));
		const groupBytes = geometry.agBlocks * geometry.blockSize;
		const { log } = await start();
		const far = (await (await start()).head()) + 16 * 2 ** 20;
		const places = {
			"a copy of the superblock": groupBytes,
			"the AGF of group 1": groupBytes + 512,
			"the log, far from its head": far < log.end ? far : far - (log.end - log.start),
		};
		for (const [what, at] of Object.entries(places)) {
			const delivery = await start();
			await delivery.deliver(...writes.slice(begin, begin + 2000));
			await delivery.judge();
			assert(delivery.volume.commits > 0);
			const bytes = delivery.disk.slice(at, at + 512);
			bytes[200]! ^= 1;
			await delivery.deliver({ at, length: 512, bytes, position: 0, end: 0, unchanged: false });
			await delivery.judge();
			assert.equal(delivery.volume.incarnation, 2, what);
			assert.equal(delivery.volume.commits, 0, what);
		}
	});
});
