// check, undo and shrink on a data plane in this process, with clients that come and go in the middle of them, and with
// storage that loses what it was given.

import assert from "node:assert/strict";
import { truncate, writeFile } from "node:fs/promises";
import { test } from "node:test";
import type { PlaneCall, PlanePort, PlaneStatus, ViewHandle } from "../../src/adapters/plane/messages.ts";
import { LastWritten } from "../../src/core/cleaner/last-written.ts";
import type { BlockRun } from "../../src/core/cleaner/runs.ts";
import type { LiveState, LiveVolume } from "../../src/core/filesystems/live.ts";
import { linearArea } from "../../src/core/volumes/areas.ts";
import { byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { Cleaner, type CleanerWorld } from "../../src/services/clean/cleaner.ts";
import { Dropper } from "../../src/services/clean/dropper.ts";
import { KEEP_ALL } from "../../src/services/clean/policy.ts";
import { SecondWriter } from "../../src/services/clean/second-writer.ts";
import type { ServedVolume } from "../../src/services/clean/volumes.ts";
import { RateLimit } from "../../src/services/rate-limit.ts";
import { Upkeep } from "../../src/services/upkeep.ts";
import { snapshotSource, viewSource } from "../../src/services/view-source.ts";
import { flip } from "../support/bit-rot.ts";
import { temporaryFolder } from "../support/folders.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { EXPORT, type PlaneServer, startPlane } from "../support/plane-server.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 2 ** 20;
const BLOCK = 4096;

/** What operators have of a disk. `quarantineMs`: dropped blocks are kept. */
function operators(
	server: PlaneServer,
	options: {
		readonly quarantineMs?: number;
		readonly plane?: PlanePort;
		readonly world?: CleanerWorld;
		readonly limit?: RateLimit;
		readonly rest?: (milliseconds: number) => Promise<boolean>;
	} = {},
): { readonly cleaner: Cleaner; readonly upkeep: Upkeep } {
	const { quarantineMs = 0, plane = server.plane, world, limit, rest = () => Promise.resolve(true) } = options;
	const { directory } = server;
	const { firstFd, firstSpace, second, snapshots } = directory;
	const cleaner = new Cleaner(
		{
			plane,
			firstFd,
			firstSpace,
			second,
			readView: (view) => viewSource(plane, view, firstFd, second, byteCount(server.size)),
			newestSnapshot: () => snapshots.newest,
			onLost: () => Promise.reject(new Error("nothing is lost here")),
			beforeChange: () => Promise.resolve(),
			onFolded: () => Promise.resolve(),
			closing: new AbortController().signal,
			rest,
			limit,
			policy: KEEP_ALL,
			quarantineMs,
		},
		// Of a new disk.
		logPosition(0),
		world,
	);
	return { cleaner, upkeep: new Upkeep({ directory, plane, cleaner, exclusive: (work) => work() }) };
}

/** A client that comes, does its work and goes, and of which nobody hears more. */
async function visit(server: PlaneServer, work: (client: NbdClient) => Promise<void>): Promise<void> {
	const client = await NbdClient.connect({ path: server.socketPath }, { exportName: EXPORT });
	await work(client);
	await client.disconnect();
	await waitUntil(async () => (await server.plane.ask("status")).clients === 0, "the client is gone");
}

/** A plane at which `work` is done once, `when` a call of this kind is answered or made. */
function interrupted(
	plane: PlanePort,
	kind: PlaneCall,
	when: "before" | "after",
	work: () => Promise<void>,
): PlanePort & { isDone: boolean } {
	const port = {
		isDone: false,
		ask: async (asked: PlaneCall, ...input: unknown[]): Promise<unknown> => {
			const isNow = asked === kind && !port.isDone;
			if (isNow) port.isDone = true;
			if (isNow && when === "before") await work();
			const answer = await (plane.ask as (kind: PlaneCall, ...input: unknown[]) => Promise<unknown>)(asked, ...input);
			if (isNow && when === "after") await work();
			return answer;
		},
	};
	return port as PlanePort & { isDone: boolean };
}

/** Moves everything to the second image. */
async function moveAll({ plane }: PlaneServer, cleaner: Cleaner): Promise<void> {
	await plane.ask("seal");
	await cleaner.round({ everything: true, evenYoung: true });
	const segments = await plane.ask("segments");
	assert.equal(
		segments.reduce((sum, { liveSlots }) => sum + liveSlots, 0),
		0,
	);
}

/** Makes the second image equal the disk, without looking for what could be dropped. */
async function foldAll(server: PlaneServer): Promise<void> {
	const { plane } = server;
	const view = await plane.ask("takeView");
	await plane.ask("flush");
	await operators(server).cleaner.foldView(view);
	await plane.ask("releaseView", view.id);
}

/** Drops blocks as the cleaner does. */
async function drop({ plane }: PlaneServer, cleaner: Cleaner, run: BlockRun): Promise<void> {
	const view = await plane.ask("takeView");
	assert.equal(await cleaner.giveUp([run], view), run.count);
	await plane.ask("releaseView", view.id);
}

const random = (seed: number, length: number): Buffer => Buffer.from(seededRandom(seed).bytes(length));

/** An image of 64 MiB with an empty ext4 in its first half. */
async function halfImage(path: string): Promise<void> {
	await writeFile(path, "");
	await truncate(path, 64 * MIB);
	await runOk("mke2fs", ["-q", "-t", "ext4", "-b", "4096", "-F", path, "32M"]);
}

test("shrink: what a client wrote into the end after it was looked at stays", async (t) => {
	if (!requireTool(t, "mke2fs")) return;
	await using folder = await temporaryFolder();
	await halfImage(folder.file("image"));
	await using server = await startPlane({ directory: folder.file("disk"), second: folder.file("image") });
	const bytes = random(1, BLOCK);
	const plane = interrupted(server.plane, "resize", "before", () =>
		visit(server, async (client) => {
			await client.write(60 * MIB, bytes);
			await client.flush();
		}),
	);
	const { upkeep } = operators(server, { plane });
	await assert.rejects(upkeep.resize(32 * MIB), { code: "DISK_LOCKED" });
	assert.equal(plane.isDone, true);
	assert.equal(server.directory.description.size, 64 * MIB);
	await visit(server, async (client) => assert.ok((await client.read(60 * MIB, BLOCK)).equals(bytes)));
});

test("written: answered once a client has written since, and at once where one has already", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const { guestEntries } = await server.plane.ask("status");
	let isWritten = false;
	const written = server.plane.ask("written", guestEntries).then(() => {
		isWritten = true;
	});
	await visit(server, async (client) => void (await client.read(0, BLOCK)));
	// Calls are answered in order: the one that waits would have been.
	await server.plane.ask("status");
	assert.equal(isWritten, false);
	await visit(server, (client) => client.write(0, random(1, BLOCK)));
	await written;
	await server.plane.ask("written", guestEntries);
});

test("fold: a view of which the first image has forgotten a block behind a punch is not folded any more", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	await visit(server, async (client) => {
		await client.write(BLOCK, random(1, BLOCK));
		await client.trim(BLOCK, BLOCK);
	});
	const trimmed = await server.plane.ask("takeView");
	let written: ViewHandle | undefined;
	const plane = interrupted(server.plane, "punched", "before", async () => {
		await visit(server, (client) => client.write(BLOCK, random(2, BLOCK)));
		written = await server.plane.ask("takeView");
		await visit(server, (client) => client.trim(BLOCK, BLOCK));
	});
	const { cleaner } = operators(server, { plane });
	await server.plane.ask("flush");
	await cleaner.foldView(trimmed);
	assert.ok(plane.isDone && written !== undefined);
	await server.plane.ask("flush");
	// The punch stands for the second trim as well: nothing has the block any more as it was before that one.
	await assert.rejects(cleaner.foldView(written), /folded over newer content/);
});

/** A world in which nothing is known of the disk, at the time that `now` gives. */
function noVolumes({ directory }: PlaneServer, now: () => number): CleanerWorld {
	return {
		identify: () =>
			Promise.resolve({ list: [], judge: () => Promise.resolve([]), isStillTheSame: () => Promise.resolve(true) }),
		allocated: () => directory.second.held,
		now,
	};
}

test("--max-rate: cleaning in the background waits for what it copied to be paid for, unless clients wait for room", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	await visit(server, async (client) => {
		for (let i = 0; i < 8; i++) await client.write(i * MIB, random(i, MIB));
		await client.flush();
	});
	await server.plane.ask("seal");
	let now = 0;
	let rested = 0;
	const limit = new RateLimit(MIB, () => now);
	let stalled = false;
	const plane = {
		ask: async (asked: PlaneCall, ...input: unknown[]): Promise<unknown> => {
			const answer = await (server.plane.ask as (kind: PlaneCall, ...input: unknown[]) => Promise<unknown>)(
				asked,
				...input,
			);
			return asked === "status" && stalled ? { ...(answer as PlaneStatus), stalled: 1 } : answer;
		},
	} as PlanePort;
	const { cleaner } = operators(server, {
		plane,
		world: noVolumes(server, () => now),
		limit,
		rest: (milliseconds) => {
			now += milliseconds;
			rested += milliseconds;
			return Promise.resolve(true);
		},
	});
	const settled = async (): Promise<number> => {
		await cleaner.round({ inBackground: true });
		now += 60_000;
		rested = 0;
		const { movedBytes } = cleaner.counters;
		await cleaner.round({ inBackground: true });
		return cleaner.counters.movedBytes - movedBytes;
	};
	// Read and written: twice 8 MiB at 1 MiB per second.
	assert.equal(await settled(), 8 * MIB);
	assert.ok(rested >= 16_000, `${rested} ms`);
	await visit(server, (client) => client.write(0, random(9, MIB)));
	await server.plane.ask("seal");
	stalled = true;
	assert.equal(await settled(), 0, "the first of both rounds did it");
	assert.equal(rested, 0);
	assert.equal(cleaner.counters.movedBytes, 9 * MIB);
});

test("what an operator asks for neither rests nor waits for the limit, in none of its parts", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	let now = 0;
	const { cleaner } = operators(server, {
		world: noVolumes(server, () => now),
		limit: new RateLimit(MIB, () => now),
		rest: () => Promise.reject(new Error("rested")),
	});
	await visit(server, (client) => client.write(0, random(1, MIB)));
	await server.plane.ask("seal");
	// In the segment that is being written: only a fold copies it.
	await visit(server, (client) => client.write(MIB, random(2, MIB)));
	await cleaner.round({ everything: true });
	now += 60_000;
	await cleaner.round({ everything: true });
	assert.equal(cleaner.counters.movedBytes, 2 * MIB);
	await visit(server, (client) => client.write(2 * MIB, random(3, MIB)));
	await cleaner.round();
	now += 60_000;
	await cleaner.round();
	assert.equal(cleaner.counters.movedBytes, 3 * MIB);
});

for (const [kind, when] of [
	["status", "after"],
	["dropped", "before"],
] as const)
	test(`check --repair gives up nothing that a client wrote after the guest map was read, ${when} "${kind}"`, async (t) => {
		if (!requireTool(t, "mke2fs", "fallocate")) return;
		await using folder = await temporaryFolder();
		await halfImage(folder.file("image"));
		await using server = await startPlane({ directory: folder.file("disk"), second: folder.file("image") });
		// Free in the file system, behind its metadata.
		const at = 24 * MIB;
		// The second image has lost one of them altogether.
		await visit(server, (client) => client.write(at - BLOCK, random(1, BLOCK)));
		await foldAll(server);
		const hole = ["--punch-hole", "--offset", `${at - BLOCK}`, "--length", `${BLOCK}`];
		await runOk("fallocate", [...hole, server.directory.second.path]);
		await visit(server, async (client) => {
			await client.write(at, random(2, 2 * BLOCK));
			await client.flush();
		});
		const view = await server.plane.ask("takeView");
		const located = await server.plane.ask("locate", { view: view.id, block: at / BLOCK, count: 2 });
		await server.plane.ask("releaseView", view.id);
		for (const block of [0, 1]) await flip(server.directory.firstPath, located[3]! + block * BLOCK);
		const bytes = random(3, BLOCK);
		const plane = interrupted(server.plane, kind, when, () =>
			visit(server, async (client) => {
				await client.write(at, bytes);
				await client.flush();
			}),
		);
		const { upkeep } = operators(server, { plane });
		const report = await upkeep.check({ repair: true });
		assert.equal(plane.isDone, true);
		assert.deepEqual(
			report.rotten.map(({ start, use }) => [start, use]),
			[
				[at - BLOCK, "unused"],
				[at, "unused"],
				[at + BLOCK, "unused"],
			],
		);
		await visit(server, async (client) => assert.ok((await client.read(at, BLOCK)).equals(bytes)));
		// Those that nobody wrote are given up, if not now then the next time.
		await upkeep.check({ repair: true });
		assert.equal((await upkeep.check()).isGood, true);
		await visit(server, async (client) => {
			assert.ok((await client.read(at, BLOCK)).equals(bytes));
			for (const other of [at - BLOCK, at + BLOCK])
				assert.ok((await client.read(other, BLOCK)).equals(Buffer.alloc(BLOCK)));
		});
	});

test("check finds blocks that the second image has lost altogether", async (t) => {
	if (!requireTool(t, "fallocate")) return;
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const { cleaner, upkeep } = operators(server);
	await visit(server, (client) => client.write(0, random(4, 64 * BLOCK)));
	await moveAll(server, cleaner);
	const before = await upkeep.check();
	assert.equal(before.isGood, true);
	assert.equal(before.secondBytes, 64 * BLOCK);
	assert.equal(before.unknownBytes, 0);
	const { path } = server.directory.second;
	await runOk("fallocate", ["--punch-hole", "--offset", `${16 * BLOCK}`, "--length", `${2 * BLOCK}`, path]);
	await visit(server, (client) => assert.rejects(client.read(16 * BLOCK, BLOCK)));
	const { isGood, rotten } = await upkeep.check();
	assert.equal(isGood, false);
	assert.deepEqual(
		rotten.map(({ block, where }) => [block, where]),
		[
			[16, "second-image"],
			[17, "second-image"],
		],
	);
});

test("check finds what only a snapshot reads from the second image", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const { cleaner, upkeep } = operators(server);
	await visit(server, (client) => client.write(0, random(5, 64 * BLOCK)));
	await server.directory.snapshots.take("s1", server.size, server.plane, cleaner);
	// The disk's own content of these is in the log now.
	await visit(server, (client) => client.write(8 * BLOCK, random(6, 4 * BLOCK)));
	assert.equal((await upkeep.check()).isGood, true);
	await flip(server.directory.second.path, 9 * BLOCK + 5);
	const { isGood, rotten } = await upkeep.check();
	assert.equal(isGood, false);
	assert.deepEqual(
		rotten.map(({ block, where }) => [block, where]),
		[[9, "snapshot s1"]],
	);
	// One that is deleted in the middle of it has nothing to be checked.
	const plane = interrupted(server.plane, "locateInSnapshot", "before", () =>
		server.directory.snapshots.delete("s1", server.plane),
	);
	assert.equal((await operators(server, { plane }).upkeep.check()).isGood, true);
	assert.equal(plane.isDone, true);
});

test("undo after a restart: what was punched doesn't count as brought back", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("disk");
	{
		await using server = await startPlane({ directory });
		const { cleaner } = operators(server);
		await visit(server, (client) => client.write(0, random(7, 64 * BLOCK)));
		await moveAll(server, cleaner);
		await drop(server, cleaner, { block: 16, count: 32 });
	}
	await using server = await startPlane({ directory });
	const { upkeep } = operators(server);
	await server.plane.ask("hold", logPosition(0));
	assert.ok((await server.plane.ask("undoable")).length > 0, "the drops are still in the log");
	assert.equal(await upkeep.undoableBytes(), 0);
	assert.deepEqual(await upkeep.undo(), { bytes: 0, rottenBytes: 0 });
});

test("undo brings back all blocks but the rotten ones", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const { cleaner, upkeep } = operators(server, { quarantineMs: 1e9 });
	const bytes = random(8, 64 * BLOCK);
	// Zeros are there already.
	bytes.fill(0, 20 * BLOCK, 22 * BLOCK);
	await visit(server, (client) => client.write(0, bytes));
	await moveAll(server, cleaner);
	await drop(server, cleaner, { block: 16, count: 32 });
	await flip(server.directory.second.path, 40 * BLOCK + 1);
	assert.deepEqual(await upkeep.undo(), { bytes: 29 * BLOCK, rottenBytes: BLOCK });
	await visit(server, async (client) => {
		const back = await client.read(0, bytes.length);
		bytes.fill(0, 40 * BLOCK, 41 * BLOCK);
		assert.ok(back.equals(bytes));
	});
});

test("a block of which the host stores several parts is kept once for a snapshot when it is dropped", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const { plane, directory } = server;
	const { firstFd, second, snapshots } = directory;
	const { cleaner } = operators(server);
	const bytes = random(9, 600 * BLOCK);
	await visit(server, (client) => client.write(0, bytes));
	await snapshots.take("s1", server.size, plane, cleaner);
	const writer = new SecondWriter({
		plane,
		firstFd,
		second,
		newestSnapshot: () => snapshots.newest,
		onLost: () => Promise.reject(new Error("nothing is lost here")),
		beforeChange: () => Promise.resolve(),
	});
	const lastWritten = new LastWritten(server.size / BLOCK, 0);
	// As a host file system with blocks of 1 KiB may tell; but for the first block, so that batches end inside of others.
	const parts = {
		*within(from: number, to: number) {
			for (let at = from; at < to; at += BLOCK) {
				const middle = at === 0 ? at + BLOCK : at + 1024;
				yield { start: at, end: middle };
				if (at > 0) yield { start: middle, end: at + BLOCK };
			}
		},
	};
	const dropper = new Dropper(plane, second, writer, lastWritten, parts);
	const settled = logPosition(Number.MAX_SAFE_INTEGER);
	const { droppedBytes } = await dropper.drop([{ block: 0, count: 600 }], settled);
	assert.equal(droppedBytes, bytes.length);
	const kept = Buffer.alloc(bytes.length);
	await snapshotSource(plane, "s1", second, byteCount(server.size)).read(byteOffset(0), kept);
	assert.ok(kept.equals(bytes));
	await visit(server, async (client) => assert.ok((await client.read(0, bytes.length)).every((byte) => byte === 0)));
});

/** What the next look at a toy volume finds. */
interface ToyVerdict {
	readonly settled: number;
	/** The volume's first bytes, so many. */
	readonly changedBytes: number;
}

/** A world in which the disk is one volume, of a file system with these free runs; `next` is asked in a new view at each look, and may know nothing new. */
function oneVolume(
	{ plane, size, directory }: PlaneServer,
	freeRuns: LiveVolume["freeRuns"],
	next: (view: ViewHandle) => Promise<ToyVerdict | undefined>,
): CleanerWorld {
	const areas = [linearArea(byteOffset(0), byteCount(size))];
	const volume = { id: "disk", type: "toy", areas, live: { commits: 1, freeRuns } } as unknown as ServedVolume;
	const volumes = {
		list: [volume],
		isStillTheSame: () => Promise.resolve(true),
		judge: async () => {
			const view = await plane.ask("takeView");
			const verdict = await next(view);
			if (verdict === undefined) {
				await plane.ask("releaseView", view.id);
				return [];
			}
			const changed = [{ start: byteOffset(0), length: byteCount(verdict.changedBytes) }];
			const { settled } = verdict;
			const state = { kind: "ready", position: view.position, settled, changed, metadataBytesRead: 0 };
			volume.verdict = state as unknown as LiveState;
			return [{ volume, view, state: volume.verdict }];
		},
	};
	return {
		identify: async () => {
			await plane.ask("watch", { volumes: [], ranges: [], identity: [] });
			return volumes;
		},
		allocated: () => directory.second.held,
		now: () => performance.now(),
	};
}

for (const first of ["round", "proven"] as const)
	test(`free blocks in more runs than are remembered are dropped all the same, after a first ${first}`, async () => {
		await using folder = await temporaryFolder();
		await using server = await startPlane({ directory: folder.file("disk") });
		await visit(server, (client) => client.write(0, random(10, 64 * BLOCK)));
		function* everyOtherBlock(from: number, to: number) {
			for (let at = from - (from % (2 * BLOCK)); at < Math.min(to, 64 * BLOCK); at += 2 * BLOCK)
				if (at >= from) yield { start: byteOffset(at), length: byteCount(BLOCK) };
		}
		// What was written last settles between the two verdicts.
		const verdicts = [
			{ settled: 0, changedBytes: 64 * BLOCK },
			{ settled: Number.POSITIVE_INFINITY, changedBytes: 0 },
		];
		const world = oneVolume(server, everyOtherBlock, () => Promise.resolve(verdicts.shift()));
		const { cleaner } = operators(server, { world: { ...world, youngRunsMax: 3 } });
		if (first === "round") await cleaner.round();
		else await cleaner.proven();
		assert.equal(cleaner.counters.droppedBytes, 0);
		assert.equal(cleaner.volumes()[0]!.pendingBytes, 3 * BLOCK);
		await cleaner.round();
		assert.equal(cleaner.counters.droppedBytes, 32 * BLOCK);
		await visit(server, async (client) => {
			const kept = random(10, 64 * BLOCK);
			for (let block = 0; block < 64; block += 2) kept.fill(0, block * BLOCK, (block + 1) * BLOCK);
			assert.ok((await client.read(0, kept.length)).equals(kept));
		});
	});

test("a volume was unmounted cleanly, and is mounted again at once: what is written after the look at it is kept", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const size = byteCount(8 * BLOCK);
	await visit(server, (client) => client.write(0, random(11, size)));
	const allFree = () => [{ start: byteOffset(0), length: size }];
	const world = oneVolume(server, allFree, async () => {
		await visit(server, (client) => client.write(2 * BLOCK, random(12, BLOCK)));
		return { settled: Number.POSITIVE_INFINITY, changedBytes: size };
	});
	const { cleaner } = operators(server, { world });
	await cleaner.round();
	assert.equal(cleaner.counters.droppedBytes, 7 * BLOCK);
	await visit(server, async (client) => {
		const kept = Buffer.alloc(size);
		random(12, BLOCK).copy(kept, 2 * BLOCK);
		assert.ok((await client.read(0, kept.length)).equals(kept));
	});
});

test("segments behind those that the quarantine holds are moved all the same", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const { plane } = server;
	const { cleaner } = operators(server, { quarantineMs: 1e9 });
	for (let segment = 0; segment < 9; segment++) {
		await visit(server, (client) => client.write(segment * BLOCK, random(segment, BLOCK)));
		await plane.ask("seal");
	}
	for (let round = 0; round < 3; round++) await cleaner.round({ everything: true });
	const segments = await plane.ask("segments");
	assert.ok(segments.length >= 9, "they are held");
	assert.deepEqual([...new Set(segments.map(({ liveSlots }) => liveSlots))], [0]);
});

test("what a question between two rounds has found is dropped by the next one, though the guest rests", async () => {
	await using folder = await temporaryFolder();
	await using server = await startPlane({ directory: folder.file("disk") });
	const size = byteCount(8 * BLOCK);
	await visit(server, (client) => client.write(0, random(1, size)));
	let looks = 0;
	const allFree = () => [{ start: byteOffset(0), length: size }];
	const world = oneVolume(server, allFree, ({ position }) =>
		Promise.resolve(looks++ === 0 ? { settled: position, changedBytes: size } : undefined),
	);
	const { cleaner } = operators(server, { world });
	await cleaner.proven();
	assert.equal(cleaner.counters.droppedBytes, 0);
	// It may be the file system's again: what is written since stays.
	await visit(server, (client) => client.write(3 * BLOCK, random(2, BLOCK)));
	await cleaner.round();
	assert.equal(cleaner.counters.droppedBytes, 7 * BLOCK);
	await cleaner.round();
	assert.equal(cleaner.counters.droppedBytes, 7 * BLOCK);
});
