// The guest map of XFS volumes that a real kernel works on, through a loop device, and that mkfs.xfs alone makes.
//
//  - unmounted: free blocks equal `xfs_db`'s, block for block
//  - cut off in the middle: what our map calls free is free after the kernel's own recovery, and nothing that the
//    recovered volume holds changes when all of it is overwritten before
//  - hostile: groups that contradict themselves are kept, the others are not hurt

import assert from "node:assert/strict";
import { open, readFile, rm, writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { Allocation } from "../../src/core/filesystems/xfs/groups.ts";
import { findLogEnds, type LogEnds } from "../../src/core/filesystems/xfs/log-ends.ts";
import { LogRing } from "../../src/core/filesystems/xfs/log-records.ts";
import { MetadataView } from "../../src/core/filesystems/xfs/metadata-view.ts";
import { parseSuperblock, readSuperblock } from "../../src/core/filesystems/xfs/open.ts";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { isThorough, someOf } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashesIn, Mounted } from "../support/loop.ts";
import { run, runOk } from "../support/processes.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { differences, mapOf, mappedFree, openSource } from "./map-images.ts";
import { memorySource } from "./map-journal-writer.ts";
import { LoopDevice, type RecordedWrite, Recorder } from "./map-recorder.ts";
import { dumpXfsFree, fragment, freeRanges, workOn, xfsDb } from "./xfs-images.ts";

/** What mkfs.xfs gets, and the size of the image. */
interface Variant {
	readonly name: string;
	readonly mkfs: readonly string[];
	readonly size?: string;
}
const v = (name: string, mkfs: string, size?: string): Variant => ({
	name,
	mkfs: mkfs.split(" ").filter((word) => word !== ""),
	...(size === undefined ? {} : { size }),
});
/** Variants that today's kernels mount. Those that differ most come first in each group of three. */
const variants: readonly Variant[] = [
	v("as mkfs.xfs makes it", ""),
	v("16 groups", "-d agcount=16", "2g"),
	v("rmapbt", "-m rmapbt=1"),
	v("rmapbt, 1 KiB blocks, sectors of 1 KiB", "-m rmapbt=1 -b size=1024 -s size=1024"),
	v("2 KiB blocks", "-b size=2048"),
	v("sectors of 4 KiB", "-s size=4096"),
	v("64 KiB blocks", "-b size=65536", "1G"),
	v("16 KiB blocks", "-b size=16384"),
	v("no reflink, no bigtime, no finobt", "-m reflink=0,bigtime=0,finobt=0,inobtcount=0"),
	v("odd size, short last group", "-d agsize=77m", "371111k"),
	v("no sparse inodes, nrext64", "-i sparse=0,nrext64=1"),
	v("log of 200 MiB in group 1, striped", "-l agnum=1,size=200m,su=64k", "1500m"),
	v("striped data, large inodes", "-d su=128k,sw=4 -i size=2048", "1g"),
	v("nothing optional", "-m finobt=0,reflink=0,inobtcount=0 -i sparse=0 -n ftype=1"),
];

const TOOLS = ["root", "loop devices", "mkfs.xfs", "xfs_db", "xfs_io", "xfs_repair"] as const;

async function makeImage(path: string, { mkfs, size }: Variant): Promise<void> {
	await runOk("truncate", ["-s", "0", path]);
	await runOk("truncate", ["-s", size ?? "400M", path]);
	await runOk("mkfs.xfs", ["-q", "-f", ...mkfs, path]);
}

function seeded(t: TestContext): Random {
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	return seededRandom(seed);
}

/** The map must have exactly the free blocks that xfs_db lists. */
async function expectEqual(path: string): Promise<GuestMap> {
	const dumped = await dumpXfsFree(path);
	const map = await mapOf(path);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null);
	assert.equal(volume.type, "xfs");
	assert.equal(volume.state, "clean");
	assert.deepEqual(volume.warnings, []);
	assert.deepEqual(differences(mappedFree(map, volume.id, dumped), dumped.free), { onlyMine: [], onlyTheirs: [] });
	return map;
}

describe("free blocks equal xfs_db's after the kernel has worked and unmounted", () => {
	for (const variant of someOf(variants, 3))
		test(variant.name, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			const random = seeded(t);
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await makeImage(image, variant);
			await expectEqual(image);
			for (let round = 0; round < 2; round++) {
				await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
				await workOn(mounted.path, random, 700);
				if (round === 1) await fragment(mounted.path, random);
				await mounted.unmount();
				const map = await expectEqual(image);
				if (round === 1) assert.ok(freeRanges(map).length > 500, "too little is fragmented to make trees grow");
			}
		});
});

/**
 * Finishing what was begun before the cut, recovery itself takes some blocks afresh: for lists of blocks held ready, for
 * tree blocks. Nobody reads what was in them before, which the comparison of contents proves.
 */
const MOST_TAKEN = 32;

/** Free blocks when the log is ignored: what must not be believed. */
async function homeOnlyFree(path: string, blockCount: number): Promise<Uint8Array> {
	await using source = await openSource(path);
	const geometry = parseSuperblock((await readSuperblock(source))!, source.size);
	// Behind the log's end lies nothing then.
	const allocation = await Allocation.ofAll(new MetadataView(source, new Map()), geometry, 1n << 64n);
	const free = new Uint8Array(blockCount);
	for (let group = 0; group < geometry.agCount; group++)
		for (const { start, length } of allocation.runs.runsOf(group)) {
			const first = group * geometry.agBlocks + start;
			free.fill(1, first, first + length);
		}
	return free;
}

/** Fills all free ranges of a map with a pattern, in the image. */
async function overwriteFree(path: string, map: GuestMap): Promise<void> {
	await using file = await open(path, "r+");
	const pattern = Buffer.alloc(1 << 20, 0xa5);
	for (const { start, length } of freeRanges(map))
		for (let at = 0; at < length; at += pattern.length)
			await file.write(pattern, 0, Math.min(pattern.length, length - at), start + at);
}

/** Lets the kernel recover an image; returns the hashes of all files. */
async function recoverImage(path: string, folder: TemporaryFolder): Promise<string[]> {
	await using mounted = await Mounted.mount(path, folder.file("recovered"), "loop");
	const hashes = await hashesIn(mounted.path);
	await mounted.unmount();
	return hashes;
}

/**
 * Compares the map of a dirty image with what the kernel makes of it. Returns how many blocks are free in the map and in
 * use after recovery (what recovery itself took), the other way round, and how many the home blocks alone get wrong.
 */
async function expectRecoverable(
	t: TestContext,
	image: string,
	folder: TemporaryFolder,
): Promise<{ taken: number; more: number; homeWrong: number }> {
	const map = await mapOf(image);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null);
	assert.equal(volume.state, "dirty");
	assert.deepEqual(volume.warnings, []);
	const [plain, swept] = [folder.file("plain"), folder.file("swept")];
	await runOk("cp", ["--sparse=always", image, plain]);
	await runOk("cp", ["--sparse=always", image, swept]);
	await overwriteFree(swept, map);
	const hashes = await recoverImage(plain, folder);
	assert.deepEqual(await recoverImage(swept, folder), hashes, "a file changed when free blocks were overwritten");
	const checked = await run("xfs_repair", ["-n", swept]);
	assert.equal(checked.exitCode, 0, checked.stderr);
	const dumped = await dumpXfsFree(plain);
	const mine = mappedFree(map, volume.id, dumped);
	const count = (a: Uint8Array, b: Uint8Array): number =>
		a.reduce((sum, bit, at) => sum + (bit === 1 && b[at] === 0 ? 1 : 0), 0);
	const home = await homeOnlyFree(image, dumped.blockCount);
	const outcome = {
		taken: count(mine, dumped.free),
		more: count(dumped.free, mine),
		homeWrong: count(home, dumped.free),
	};
	t.diagnostic(`${hashes.length} files, free ${volume.freeBytes}, ${JSON.stringify(outcome)}`);
	return outcome;
}

describe("what is free in the map of a dirty volume", () => {
	for (const variant of someOf(variants, 5))
		test(variant.name, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			const random = seeded(t);
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await makeImage(image, variant);
			{
				await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
				await workOn(mounted.path, random, 500);
				await fragment(mounted.path, random);
				await workOn(mounted.path, random, 500);
				await runOk("xfs_io", ["-x", "-c", random.chance(0.5) ? "shutdown -f" : "shutdown", mounted.path]);
				await mounted.unmount();
			}
			const { taken, homeWrong } = await expectRecoverable(t, image, folder);
			assert.ok(taken <= MOST_TAKEN, `${taken} blocks were called free and are in use after recovery`);
			assert.notEqual(homeWrong, 0, "the log changed nothing, so its replay was not tested");
		});

	test("after creating files only: exactly what is free after recovery", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		const random = seeded(t);
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await makeImage(image, v("", "-d agcount=2 -m reflink=0"));
		{
			await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
			for (let i = 0; i < 300; i++) await writeFile(`${mounted.path}/f${i}`, random.bytes(random.below(30_000)));
			await runOk("sync", ["-f", mounted.path]);
			await runOk("xfs_io", ["-x", "-c", "shutdown", mounted.path]);
			await mounted.unmount();
		}
		const { taken, more, homeWrong } = await expectRecoverable(t, image, folder);
		assert.deepEqual({ taken, more }, { taken: 0, more: 0 });
		assert.notEqual(homeWrong, 0);
	});

	test("frozen: the log is quiet, and its replay changes nothing", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		const random = seeded(t);
		await using folder = await temporaryFolder();
		const [image, copy] = [folder.file("image"), folder.file("copy")];
		await makeImage(image, v("", ""));
		{
			await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
			await workOn(mounted.path, random, 300);
			await runOk("xfs_freeze", ["-f", mounted.path]);
			try {
				await runOk("cp", ["--sparse=always", image, copy]);
			} finally {
				await runOk("xfs_freeze", ["-u", mounted.path]);
			}
			await mounted.unmount();
		}
		const { taken, homeWrong } = await expectRecoverable(t, copy, folder);
		assert.deepEqual({ taken, homeWrong }, { taken: 0, homeWrong: 0 });
	});

	test("cut off after any write, with a log that goes round", async (t) => {
		if (!requireTool(t, ...TOOLS, "fuse", "nbdfuse")) return;
		const random = seeded(t);
		await using folder = await temporaryFolder();
		const { initial, writes } = await record(folder, random);
		t.diagnostic(`${writes.length} writes`);
		const log = await logOf(initial);
		// Most of what is written is data; what matters is how far the log got.
		const toLog = writes.map((_, index) => index).filter((index) => log.isIn(writes[index]!.at));
		const cuts = Array.from({ length: isThorough ? 60 : 3 }, () => random.pick(toLog.slice(toLog.length >> 3)));
		let wrapped = 0;
		for (const cut of cuts.sort((a, b) => a - b)) {
			const disk = initial.slice();
			for (const { at, bytes } of writes.slice(0, cut)) disk.set(bytes, at);
			const torn = writes[cut]!;
			disk.set(torn.bytes.subarray(0, 512 * random.below(torn.bytes.length / 512)), torn.at);
			const image = folder.file("cut");
			await writeFile(image, disk);
			t.diagnostic(`cut after write ${cut}`);
			const { taken } = await expectRecoverable(t, image, folder);
			assert.ok(taken <= MOST_TAKEN, `${taken} blocks were called free and are in use after recovery`);
			const { head, tail } = await logEnds(image);
			t.diagnostic(`log from ${tail} to ${head}`);
			if (head < tail) wrapped++;
		}
		if (cuts.length > 10) assert.ok(wrapped > 0, "no log went round");
	});
});

async function logEnds(path: string): Promise<LogEnds> {
	await using source = await openSource(path);
	const geometry = parseSuperblock((await readSuperblock(source))!, source.size);
	return await findLogEnds(new LogRing(source, geometry.log!), geometry);
}

async function logOf(image: Uint8Array): Promise<{ isIn: (at: number) => boolean }> {
	const source = memorySource(image);
	const { log } = parseSuperblock((await readSuperblock(source))!, source.size);
	return { isIn: (at) => at >= log!.start && at < log!.start + log!.basicBlocks * 512 };
}

/** Makes and deletes files, so that the log goes round its end. */
async function comeAndGo(folder: string, random: Random, rounds: number): Promise<void> {
	for (let round = 0; round < rounds; round++) {
		await workOn(folder, random, 80);
		for (let i = 0; i < 300; i++) await writeFile(`${folder}/come${i}`, random.chance(0.1) ? "and go" : "");
		await runOk("sync", ["-f", folder]);
		for (let i = 0; i < 300; i++) await rm(`${folder}/come${i}`);
	}
}

/** Lets the kernel work on a small volume, and records all of its writes in their order. */
async function record(
	folder: TemporaryFolder,
	random: Random,
): Promise<{ initial: Uint8Array; writes: readonly RecordedWrite[] }> {
	const image = folder.file("image");
	await runOk("truncate", ["-s", "96M", image]);
	await runOk("mkfs.xfs", ["-q", "-f", "--unsupported", "-l", "size=6m", image]);
	{
		await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
		await fragment(mounted.path, random, 1000);
		await comeAndGo(mounted.path, random, 10);
		await mounted.unmount();
	}
	await using recorder = new Recorder(96 << 20);
	recorder.disk.set(await readFile(image));
	const initial = recorder.disk.slice();
	await recorder.listen(folder.file("s"));
	await using device = await LoopDevice.attach(folder.file("s"), folder.file("f"));
	await using mounted = await Mounted.mount(device.path, folder.file("mount"));
	await comeAndGo(mounted.path, random, 10);
	await mounted.unmount();
	return { initial, writes: [...recorder.writes] };
}

describe("free blocks equal xfs_db's in what mkfs.xfs alone makes", () => {
	const made: readonly Variant[] = [
		v("version 4, 512-byte blocks", "-m crc=0 -b size=512"),
		v("version 4", "-m crc=0"),
		v("version 4, 64 KiB blocks, 3 groups", "-m crc=0 -b size=65536 -d agcount=3", "1g"),
		v("version 4, log of version 1, no lazy counters", "-m crc=0 -l version=1,lazy-count=0"),
		v("version 4, sectors of 4 KiB", "-m crc=0 -s size=4096"),
		v("version 5, 32 KiB blocks, sectors of 32 KiB", "-b size=32768 -s size=32768", "2g"),
		v("version 5, log stripes of 256 KiB", "-l su=256k"),
		v("version 5, 500 groups", "--unsupported -d agsize=16m", "8000m"),
		v("version 5, 3 TiB", "", "3t"),
	];
	for (const variant of made)
		test(variant.name, async (t) => {
			if (!requireTool(t, "mkfs.xfs", "xfs_db")) return;
			await using folder = await temporaryFolder();
			const [image, prototype, content] = [folder.file("image"), folder.file("prototype"), folder.file("content")];
			await writeFile(content, "x".repeat(300_000));
			const files = Array.from({ length: 40 }, (_, i) => `f${i} ---644 0 0 ${content}`);
			await writeFile(prototype, `/dev/null\n0 0\nd--755 0 0\n${files.join("\n")}\nd d--755 0 0\n$\n$\n`);
			await makeImage(image, { ...variant, mkfs: [...variant.mkfs, "-L", "my label", "-p", prototype] });
			const map = variant.name.endsWith("TiB") ? await mapOf(image) : await expectEqual(image);
			const { kept, label, uuid, freeBytes, blockSize } = map.volumes[0]!;
			assert.deepEqual({ kept, label }, { kept: null, label: "my label" });
			const superblock = await xfsDb(image, "sb 0", "p uuid fdblocks");
			assert.match(superblock, new RegExp(`^uuid = ${uuid}$`, "m"));
			const counted = Number(/^fdblocks = (\d+)$/m.exec(superblock)![1]);
			assert.ok(counted * blockSize! - freeBytes! < 16 * 500 * blockSize!);
			assert.ok(map.bytesRead < 4 << 20, `${map.bytesRead} bytes read`);
		});

	test("the visible identifier was changed: the metadata's own is another", async (t) => {
		if (!requireTool(t, "mkfs.xfs", "xfs_db", "xfs_admin")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await makeImage(image, v("", ""));
		await runOk("xfs_admin", ["-U", "11111111-2222-3333-4444-555555555555", image]);
		const map = await expectEqual(image);
		assert.equal(map.volumes[0]!.uuid, "11111111-2222-3333-4444-555555555555");
	});
});

describe("what can't be believed is kept", () => {
	/** Makes an image with three groups, changes it, and maps it. */
	async function mapChanged(
		t: TestContext,
		mkfs: string,
		change: (image: string) => Promise<unknown>,
	): Promise<{ map: GuestMap; freeIn: (group: number) => number } | null> {
		if (!requireTool(t, "mkfs.xfs", "xfs_db")) return null;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await makeImage(image, v("", `-d agcount=3 ${mkfs}`, "1200m"));
		await change(image);
		const map = await mapOf(image);
		const groupBytes = (1200 << 20) / 3;
		const freeIn = (group: number): number =>
			freeRanges(map).reduce(
				(sum, { start, length }) => sum + (Math.floor(start / groupBytes) === group ? length : 0),
				0,
			);
		return { map, freeIn };
	}

	const write = (image: string, ...commands: readonly string[]): Promise<string> =>
		runOk("xfs_db", ["-x", ...commands.flatMap((command) => ["-c", command]), image]);

	test("an AGF with a wrong checksum keeps its group, and no other", async (t) => {
		const changed = await mapChanged(t, "", (image) => write(image, "agf 1", "write -c flcount 2"));
		if (changed === null) return;
		const { map, freeIn } = changed;
		assert.equal(map.volumes[0]!.kept, null);
		assert.match(map.volumes[0]!.warnings.join(), /^allocation group 1 is kept whole: its AGF has a wrong checksum/);
		assert.equal(freeIn(1), 0);
		assert.ok(freeIn(0) > 0 && freeIn(2) > 0);
	});

	test("an AGF that is right by its checksum, but not by its tree", async (t) => {
		const changed = await mapChanged(t, "", (image) =>
			write(image, "agf 2", "write -d freeblks 77", "write -d longest 77"),
		);
		if (changed === null) return;
		assert.match(changed.map.volumes[0]!.warnings.join(), /^allocation group 2 .* its AGF says 77 free blocks/);
		assert.equal(changed.freeIn(2), 0);
	});

	for (const version of ["0", "1"])
		test(`a tree that leads back to itself, crc=${version}`, async (t) => {
			const changed = await mapChanged(t, `-m crc=${version}`, async (image) => {
				// The root becomes an inner node with itself as its child.
				const root = /= (\d+)/.exec(await xfsDb(image, "agf 1", "p bnoroot"))![1];
				await write(image, "agf 1", "write -d bnolevel 4");
				await write(image, "agf 1", "addr bnoroot", "write -d level 3");
				await write(image, "agf 1", "addr bnoroot", "write -d numrecs 1");
				await write(image, "agf 1", "addr bnoroot", `write -d ptrs[1] ${root}`);
			});
			if (changed === null) return;
			assert.match(
				changed.map.volumes[0]!.warnings.join(),
				/^allocation group 1 .* its tree of free blocks is damaged/,
			);
			assert.equal(changed.freeIn(1), 0);
			assert.ok(changed.freeIn(2) > 0);
		});

	test("free blocks that the headers are in, or that overlap", async (t) => {
		const changed = await mapChanged(t, "", async (image) => {
			await write(image, "agf 0", "addr bnoroot", "write -d recs[1].startblock 0");
			await write(image, "agf 2", "addr bnoroot", "write -d recs[1].blockcount 4000000");
		});
		if (changed === null) return;
		assert.equal(changed.map.volumes[0]!.warnings.length, 2);
		assert.equal(changed.freeIn(0) + changed.freeIn(2), 0);
	});

	const refused: readonly [string, string, readonly string[], RegExp][] = [
		[
			"a newer incompatible feature",
			"",
			["sb 0", "write -d features_incompat 0x8000000b"],
			/unknown incompatible feature 0x80000000/,
		],
		["metadir", "", ["sb 0", "write -d features_incompat 0x10b"], /feature metadir/],
		[
			"a newer read-only compatible feature",
			"",
			["sb 0", "write -d features_ro_compat 0x4000000d"],
			/feature 0x40000000/,
		],
		["needs repair", "", ["sb 0", "write -d features_incompat 0x1b"], /needing repair/],
		["mkfs not finished", "", ["sb 0", "write -d inprogress 1"], /mkfs.xfs has not finished/],
		["a wrong checksum in the superblock", "", ["sb 0", "write -c fdblocks 0"], /superblock's checksum is wrong/],
		["a wrong total", "", ["sb 0", "write -d fdblocks 5"], /superblock says 5 free blocks/],
		["a wrong total in version 4", "-m crc=0", ["sb 0", "write fdblocks 5"], /superblock says 5 free blocks/],
		["a log elsewhere", "", ["sb 0", "write -d logstart 0"], /log is on another device/],
		["groups beyond the disk", "", ["sb 0", "write -d dblocks 400000"], /more than its partition holds/],
	];
	for (const [name, mkfs, commands, why] of refused)
		test(name, async (t) => {
			const changed = await mapChanged(t, mkfs, (image) => write(image, ...commands));
			if (changed === null) return;
			const { map } = changed;
			assert.match(map.volumes[0]!.kept!, why);
			assert.deepEqual(freeRanges(map), []);
		});

	test("a log of zeros, and one of noise", async (t) => {
		for (const fill of [0, 0xa5]) {
			const changed = await mapChanged(t, "", async (image) => {
				const text = await xfsDb(image, "sb 0", "p logblocks", "convert fsblock 1 byte", "p logstart");
				assert.match(text, /logstart/);
				await using source = await openSource(image);
				const { log } = parseSuperblock((await readSuperblock(source))!, source.size);
				await using file = await open(image, "r+");
				await file.write(Buffer.alloc(log!.basicBlocks * 512, fill), 0, undefined, log!.start);
			});
			if (changed === null) return;
			assert.match(changed.map.volumes[0]!.kept!, /its log is damaged/);
			assert.deepEqual(freeRanges(changed.map), []);
		}
	});

	test("mounted, and nothing logged yet: not clean, although its log ends with an unmount", async (t) => {
		if (!requireTool(t, "root", "loop devices", "mkfs.xfs", "dd")) return;
		await using folder = await temporaryFolder();
		const [image, copy] = [folder.file("image"), folder.file("copy")];
		await makeImage(image, v("", ""));
		await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
		await runOk("dd", ["if=/dev/urandom", `of=${mounted.path}/new`, "bs=1M", "count=4", "oflag=direct"]);
		await runOk("cp", [image, copy]);
		assert.equal((await mapOf(copy)).volumes[0]!.state, "dirty");
		await mounted.unmount();
		assert.equal((await mapOf(image)).volumes[0]!.state, "clean");
		await using readOnly = await Mounted.mount(image, folder.file("mount"), "loop,ro");
		await readOnly.unmount();
		assert.equal((await mapOf(image)).volumes[0]!.state, "clean");
	});

	test("version 4 with a dirty log", async (t) => {
		const changed = await mapChanged(t, "-m crc=0", async (image) => {
			await using source = await openSource(image);
			const { log } = parseSuperblock((await readSuperblock(source))!, source.size);
			await using file = await open(image, "r+");
			// The only record is the one that says "unmounted"; it becomes an ordinary one.
			const operation = Buffer.alloc(1);
			await file.write(operation, 0, 1, log!.start + 512 + 9);
		});
		if (changed === null) return;
		assert.match(changed.map.volumes[0]!.kept!, /format version 4 can't tell its true state/);
		assert.equal(changed.map.volumes[0]!.state, "dirty");
		assert.deepEqual(freeRanges(changed.map), []);
	});
});
