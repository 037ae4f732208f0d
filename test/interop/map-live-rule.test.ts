// The live rule of ext4 in small, write by write: each condition of live-safety section 2, and what must break it.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import type { TestContext } from "node:test";
import { describe, test } from "node:test";
import { Ext4LiveVolume, readExt } from "../../src/core/filesystems/ext4/index.ts";
import { overlaid, readJournalInfo, replay } from "../../src/core/filesystems/ext4/journal.ts";
import type { Ext4LiveOptions } from "../../src/core/filesystems/ext4/live.ts";
import type { LiveState } from "../../src/core/filesystems/live.ts";
import { byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { isAllFree } from "../support/live-volumes.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { JournalWriter, memorySource } from "./map-journal-writer.ts";

const V3 = 0x10;
const V3_64 = 0x12;

/** A guest: file system, its journal's writer, and the live volume that sees all of its writes. */
class Guest {
	readonly writer: JournalWriter;
	readonly volume: Ext4LiveVolume;
	constructor(writer: JournalWriter, volume: Ext4LiveVolume) {
		this.writer = writer;
		this.volume = volume;
	}

	/** Feeds all writes so far and judges the disk as it is now. */
	async advance(): Promise<LiveState> {
		await this.volume.observe(this.writer.takeWrites());
		return await this.volume.advance(memorySource(this.writer.disk), logPosition(this.writer.position));
	}

	/** The volume with the journal applied: what the guest's memory holds. */
	async view(): Promise<ReturnType<typeof memorySource>> {
		const { geometry, file, disk } = this.writer;
		const source = memorySource(disk);
		const found = await replay(source, geometry, file, await readJournalInfo(source, geometry, file));
		return overlaid(source, geometry.blockSize, found.blocks);
	}

	/** A transaction that marks `block` used or free. Returns its commit's position. */
	async commitMark(block: number, used: boolean): Promise<number> {
		return this.writer.commit(await this.writer.mark(block, used, await this.view()));
	}
	/** A transaction that changes nothing that counts: an inode table's block. */
	commitNothing(): number {
		return this.writer.commit([{ block: 7000, content: new Uint8Array(this.writer.geometry.blockSize) }]);
	}
	isFree(block: number): boolean {
		const size = this.writer.geometry.blockSize;
		return isAllFree(this.volume, byteOffset(block * size), byteCount(size));
	}
}

async function makeDisk(mkfs: readonly string[]): Promise<Uint8Array> {
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await runOk("mke2fs", ["-q", "-F", "-b", "1024", ...mkfs, image, "48M"]);
	return new Uint8Array(await readFile(image));
}

const plain = ["-t", "ext4", "-O", "^metadata_csum,^uninit_bg,^64bit"];

/** A mounted file system without checksums (so that tests can change bitmaps easily), no commit yet. */
async function mounted(
	t: TestContext,
	options: Ext4LiveOptions = {},
	incompat = 0,
	mkfs = plain,
): Promise<Guest | null> {
	if (!requireTool(t, "mke2fs")) return null;
	const disk = await makeDisk(mkfs);
	const volume = await Ext4LiveVolume.open(memorySource(disk), options);
	const guest = new Guest(await JournalWriter.open(disk), volume);
	guest.writer.mount(1, 5, incompat);
	return guest;
}

const BLOCK = 30_000;
const someBytes = new Uint8Array(1024).fill(7);

/** Settled position of a state that must be ready. */
function settledOf(state: LiveState): number {
	assert.equal(state.kind, "ready", state.kind === "keep" ? state.reason : "");
	return state.kind === "ready" ? state.settled : Number.NaN;
}
function reasonOf(state: LiveState): string {
	assert.equal(state.kind, "keep");
	return state.kind === "keep" ? state.reason : "";
}

describe("counting commits (E2)", () => {
	for (const incompat of [0, V3, V3_64])
		test(`a freed block waits for two commits (journal features 0x${incompat.toString(16)})`, async (t) => {
			const guest = await mounted(t, {}, incompat);
			if (guest === null) return;
			await guest.commitMark(BLOCK, true);
			assert.match(reasonOf(await guest.advance()), /1 of 2 commits/);
			const written = guest.writer.writeBlock(BLOCK, someBytes);
			const second = await guest.commitMark(BLOCK, false);
			let state = await guest.advance();
			assert.ok(guest.isFree(BLOCK));
			assert.ok(written >= settledOf(state), "one commit is not enough");
			guest.commitNothing();
			state = await guest.advance();
			assert.equal(settledOf(state), second);
			assert.ok(written < settledOf(state));
			assert.ok(
				state.kind === "ready" && state.groupsRead === 0 && state.changed.length === 0,
				"nothing changed, so nothing is read",
			);
		});

	test("only the groups that a transaction changed are read", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		guest.commitNothing();
		await guest.advance();
		guest.commitNothing();
		await guest.advance();
		await guest.commitMark(BLOCK, true);
		const state = await guest.advance();
		assert.ok(state.kind === "ready" && state.groupsRead === 1);
		assert.deepEqual(
			state.changed.map(({ start }) => Math.floor(start / (8192 * 1024))),
			[Math.floor((BLOCK - 1) / 8192)],
		);
		assert.ok(state.metadataBytesRead <= 6 * 1024, `${state.metadataBytesRead} bytes`);
		assert.equal(guest.isFree(BLOCK), false);
	});

	test("a remount skips numbers: the naive rule would lose the second transaction's write, counting does not (9.3)", async (t) => {
		for (const countBy of ["tid", "records"] as const) {
			const guest = await mounted(t, { countBy });
			if (guest === null) return;
			for (let i = 0; i < 3; i++) {
				guest.commitNothing();
				await guest.advance();
			}
			await guest.writer.unmount();
			guest.writer.mount(1, guest.writer.head.sequence + 3);
			// The second transaction's data arrives while the first one commits.
			const at = guest.writer.writeTransaction([{ block: 7000, content: someBytes }]);
			const written = guest.writer.writeBlock(BLOCK, someBytes);
			guest.writer.writeCommit(at);
			const state = await guest.advance();
			const wouldDrop = state.kind === "ready" && guest.isFree(BLOCK) && written < state.settled;
			assert.equal(wouldDrop, countBy === "tid");
		}
	});

	test("a journal that wraps around, with revokes and escaped blocks", async (t) => {
		const guest = await mounted(t, {}, V3_64);
		if (guest === null) return;
		const magic = new Uint8Array(1024);
		magic.set([0xc0, 0x3b, 0x39, 0x98]);
		for (let i = 0; i < 600; i++) {
			const logged = [7000, 7001, 7002, 7003, 7004].map((block) => ({
				block,
				content: i % 2 === 0 ? magic : someBytes,
			}));
			guest.writer.commit(
				[...logged, ...(await guest.writer.mark(BLOCK + (i % 50), i % 3 === 0, await guest.view()))],
				[7005],
			);
			// The kernel moves the tail before the head comes round.
			if (i % 100 === 99) {
				for (const [block, content] of await homeOf(guest)) guest.writer.writeBlock(block, content);
				guest.writer.writeSuperblock({ start: guest.writer.head.position, sequence: guest.writer.head.sequence });
				guest.commitNothing();
			}
			const state = await guest.advance();
			if (i > 0) settledOf(state);
			if (i % 50 === 49) await expectSameAsReadingAll(guest);
		}
		assert.equal(guest.volume.incarnation, 2, "no discontinuity after the mount");
	});
});

/** What a checkpoint writes home. */
async function homeOf(guest: Guest): Promise<[number, Uint8Array][]> {
	const { geometry, file, disk, info } = guest.writer;
	const source = memorySource(disk);
	const found = await replay(source, geometry, file, info);
	const view = overlaid(source, geometry.blockSize, found.blocks);
	const home: [number, Uint8Array][] = [];
	for (const block of found.blocks.keys()) {
		const content = new Uint8Array(geometry.blockSize);
		await view.read(byteOffset(block * geometry.blockSize), content);
		home.push([block, content]);
	}
	return home;
}

async function expectSameAsReadingAll(guest: Guest): Promise<void> {
	const whole = await readExt(memorySource(guest.writer.disk));
	assert.equal(whole?.kept, null, `${whole?.kept}`);
	const [from, to] = [byteOffset(0), byteOffset(guest.writer.disk.length)];
	assert.deepEqual([...guest.volume.freeRuns(from, to)], [...whole!.freeRuns(from, to)]);
}

test("a journal in stripes: blocks that come before their descriptor are known again when they are written home", async (t) => {
	const guest = await mounted(t, {}, V3);
	if (guest === null) return;
	const { writer, volume } = guest;
	for (let i = 0; i < 2; i++) {
		guest.commitNothing();
		await guest.advance();
	}
	const before = volume.incarnation;
	const logged = await writer.mark(BLOCK, true, await guest.view());
	writer.commit(logged);
	const writes = writer.takeWrites();
	const arrived = [...writes.slice(0, -1).reverse(), writes.at(-1)!];
	assert.ok(writes.length > 2, "descriptor, bitmap, commit");
	await volume.observe(
		arrived.map((write, index) => ({ ...write, position: writes[index]!.position, end: writes[index]!.end })),
	);
	assert.equal((await guest.advance()).kind, "ready");
	for (const { block, content } of logged) writer.writeBlock(block, content);
	guest.commitNothing();
	assert.equal((await guest.advance()).kind, "ready");
	assert.equal(volume.incarnation, before);
	assert.equal(guest.isFree(BLOCK), false);
});

describe("discontinuities begin a new incarnation (L6)", () => {
	const breaks: Readonly<Record<string, (guest: Guest) => Promise<void> | void>> = {
		"a commit whose number does not follow": ({ writer }) => {
			writer.head = { ...writer.head, sequence: writer.head.sequence + 1 };
			writer.commit([{ block: 7000, content: someBytes }]);
		},
		"a commit at another place": ({ writer }) => {
			writer.writeTransaction([{ block: 7000, content: someBytes }]);
			writer.writeCommit(writer.head.position + 7);
		},
		"a commit without its descriptor": ({ writer }) => {
			writer.writeCommit(writer.head.position + 2);
		},
		"a commit with a wrong checksum": ({ writer }) => {
			writer.writeCommit(writer.writeTransaction([{ block: 7000, content: someBytes }]), (block) => (block[40] = 9));
		},
		"a descriptor that was overwritten before its commit": ({ writer }) => {
			const at = writer.writeTransaction([{ block: 7000, content: someBytes }]);
			writer.writeBlock(writer.file.locate(writer.head.position).physical, someBytes);
			writer.writeCommit(at);
		},
		"a journal superblock that jumps": ({ writer }) => writer.writeSuperblock({ start: 500, sequence: 900 }),
		"a journal superblock in pieces": ({ writer }) =>
			void writer.write(writer.file.locate(0).physical * 1024, new Uint8Array(512)),
		"a bitmap written from outside": async (guest) => {
			const [bitmap] = await guest.writer.mark(BLOCK, true, await guest.view());
			guest.writer.writeBlock(bitmap!.block, bitmap!.content);
		},
		"another file system's superblock": ({ writer }) => {
			const raw = writer.disk.slice(1024, 2048);
			raw[0x68] = raw[0x68]! ^ 1;
			writer.write(1024, raw);
		},
		"a superblock overwritten with something else": ({ writer }) => void writer.write(1024, new Uint8Array(1024)),
		"a part of the superblock overwritten": ({ writer }) => void writer.write(1024, writer.disk.slice(1024, 1536)),
	};
	for (const [name, damage] of Object.entries(breaks))
		test(name, async (t) => {
			const guest = await mounted(t, {}, V3);
			if (guest === null) return;
			for (let i = 0; i < 3; i++) {
				guest.commitNothing();
				await guest.advance();
			}
			const before = guest.volume.incarnation;
			const written = guest.writer.writeBlock(BLOCK, someBytes);
			await damage(guest);
			const state = await guest.advance();
			assert.equal(state.kind, "keep");
			assert.ok(guest.volume.incarnation > before);
			assert.equal(guest.isFree(BLOCK), false, "nothing is called free while it is kept");
			guest.commitNothing();
			const next = await guest.advance();
			assert.ok(next.kind === "keep" || written >= next.settled, "one commit of the new incarnation proves nothing");
		});

	test("after a break two commits of the new incarnation count again", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		guest.commitNothing();
		await guest.advance();
		guest.commitNothing();
		settledOf(await guest.advance());
		// The chain breaks: a descriptor is lost.
		guest.writer.writeTransaction([{ block: 7000, content: someBytes }]);
		const lost = guest.writer.takeWrites().slice(1);
		await guest.volume.observe(lost);
		guest.writer.writeCommit(guest.writer.head.position + 2);
		assert.match(reasonOf(await guest.advance()), /1 of 2 commits/);
		guest.commitNothing();
		settledOf(await guest.advance());
		await expectSameAsReadingAll(guest);
	});
});

describe("what must be kept", () => {
	test("a view that does not end at a commit", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		guest.commitNothing();
		await guest.advance();
		guest.commitNothing();
		guest.writer.writeBlock(BLOCK, someBytes);
		assert.match(reasonOf(await guest.advance()), /does not end at a commit/);
	});

	test("journal_async_commit", async (t) => {
		const guest = await mounted(t, {}, V3 | 0x4);
		if (guest === null) return;
		for (let i = 0; i < 3; i++) {
			guest.commitNothing();
			assert.match(reasonOf(await guest.advance()), /journal_async_commit/);
		}
	});

	test("another owner's mark", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		guest.commitNothing();
		await guest.advance();
		guest.writer.write(0, new TextEncoder().encode("XFSB").slice());
		guest.commitNothing();
		assert.match(reasonOf(await guest.advance()), /marks of/);
	});

	test("a group whose bitmap and descriptor disagree, and only that", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		guest.commitNothing();
		await guest.advance();
		const [bitmap] = await guest.writer.mark(BLOCK, true, await guest.view());
		guest.writer.commit([bitmap!]);
		const state = await guest.advance();
		assert.ok(state.kind === "ready" && /group 3 is kept whole/.test(state.warnings.join()));
		assert.equal(guest.isFree(BLOCK + 1), false);
		assert.equal(guest.isFree(BLOCK - 9000), true);
	});

	test("blocks of the journal and block 0 are never free (E5)", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		for (let i = 0; i < 2; i++) {
			guest.commitNothing();
			await guest.advance();
		}
		for (const block of [0, 1, 2, guest.writer.file.locate(0).physical, guest.writer.geometry.blocksCount])
			assert.equal(guest.isFree(block), false, `block ${block}`);
	});

	test("a mounted file system without a journal", async (t) => {
		if (!requireTool(t, "mke2fs")) return;
		const disk = await makeDisk(["-t", "ext2"]);
		const volume = await Ext4LiveVolume.open(memorySource(disk));
		assert.match(reasonOf(await volume.advance(memorySource(disk), logPosition(0))), /no journal/);
	});
});

describe("clean unmount (F3)", () => {
	test("everything free may go at once, until something is written behind the clean mark", async (t) => {
		const guest = await mounted(t);
		if (guest === null) return;
		const { writer, volume } = guest;
		await guest.commitMark(BLOCK, true);
		for (const [block, content] of await homeOf(guest)) writer.writeBlock(block, content);
		const view = memorySource(writer.disk);
		await volume.observe(writer.takeWrites());
		assert.equal(
			(await volume.advanceClean(view, logPosition(writer.position), logPosition(writer.position))).kind,
			"keep",
			"still mounted",
		);
		await writer.unmount();
		await volume.observe(writer.takeWrites());
		const last = logPosition(writer.position);
		const state = await volume.advanceClean(view, last, last);
		assert.equal(settledOf(state), Number.POSITIVE_INFINITY);
		assert.equal(guest.isFree(BLOCK), false);
		assert.equal(guest.isFree(BLOCK + 1), true);
		writer.writeBlock(BLOCK + 5, someBytes);
		await volume.observe(writer.takeWrites());
		const after = logPosition(writer.position);
		assert.match(reasonOf(await volume.advanceClean(view, after, after)), /written to after/);
	});

	test("ext2 and journal-less ext4, nothing written since", async (t) => {
		if (!requireTool(t, "mke2fs")) return;
		for (const mkfs of [
			["-t", "ext2"],
			["-t", "ext4", "-O", "^has_journal"],
		]) {
			const disk = await makeDisk(mkfs);
			const volume = await Ext4LiveVolume.open(memorySource(disk));
			assert.equal((await volume.advanceClean(memorySource(disk), logPosition(0), null)).kind, "ready");
			assert.ok(isAllFree(volume, byteOffset(BLOCK * 1024), byteCount(4096)));
		}
	});
});

test("a journal in use is taken up where it stands: the guest ran before the server started", async (t) => {
	const guest = await mounted(t);
	if (guest === null) return;
	guest.commitNothing();
	await guest.commitMark(BLOCK, true);
	guest.writer.takeWrites();
	const volume = await Ext4LiveVolume.open(memorySource(guest.writer.disk));
	const later = new Guest(guest.writer, volume);
	later.commitNothing();
	assert.match(reasonOf(await later.advance()), /1 of 2/);
	later.commitNothing();
	settledOf(await later.advance());
	assert.equal(later.isFree(BLOCK), false);
	assert.equal(volume.incarnation, 1);
});
