// why and status, as users call them, on a served ext4 that the host's kernel writes.

import assert from "node:assert/strict";
import { rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { diskStatus } from "../../src/services/control-at-rest.ts";
import type { BlockReport } from "../../src/services/why.ts";
import { temporaryFolder } from "../support/folders.ts";
import { LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk, vmsweep } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const MiB = 2 ** 20;
const BLOCK = 4096;

const why = async (disk: string, at: number): Promise<BlockReport> =>
	JSON.parse(await runOk(vmsweep, ["why", "--json", disk, String(at)])) as BlockReport;

const waitsFor = async (server: SweepServer): Promise<string | undefined> =>
	(await server.status()).volumes[0]?.waitsFor;

/** The file system's blocks of a file's first and last byte, by its own account. */
async function blocksOf(file: string): Promise<{ readonly first: number; readonly last: number }> {
	const extents = [
		...(await runOk("filefrag", ["-v", "-b4096", file])).matchAll(/^ *\d+: +\d+\.\. *\d+: +(\d+)\.\. +(\d+)/gm),
	];
	return { first: Number(extents[0]![1]), last: Number(extents.at(-1)![2]) };
}

test("a file's block on its way from the first image to nowhere", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "filefrag", "debugfs")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await createDisk(disk, { size: "256M" });
	await using server = await SweepServer.serve(disk, "--clean", "off");
	await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
	await runOk("mke2fs", ["-q", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", device.path]);
	await using mounted = await Mounted.mount(device.path, folder.file("mnt"), "commit=300");
	let commits = 0;
	const commit = async (): Promise<void> => {
		await writeFile(join(mounted.path, `c${commits++}`), "");
		await runOk("sync", ["-f", mounted.path]);
	};
	const file = join(mounted.path, "file");
	await writeFile(file, seededRandom(1).bytes(16 * MiB));
	await commit();
	// Its end: what is written later takes the beginning first.
	const block = (await blocksOf(file)).last;

	// Watching begins with the first question.
	const first = await why(disk, block * BLOCK + 17);
	assert.deepEqual(first.block, { start: block * BLOCK, length: BLOCK });
	assert.deepEqual(first.volume, { id: "disk", type: "ext4", offset: block * BLOCK + 17, fileSystemBlock: block });
	assert.deepEqual([first.use, first.droppable], ["unknown", false]);
	assert.equal(await waitsFor(server), "commits");
	for (let i = 0; i < 3; i++) await commit();
	const used = await why(disk, block * BLOCK);
	assert.deepEqual([used.use, used.place.kind, used.lastWrite.exact], ["used", "first-image", true]);
	assert.match(used.because!, /in use by the file system/);
	assert.equal(used.evidence!.commits > 0, true);
	assert.match(
		await runOk(vmsweep, ["why", disk, String(block * BLOCK)]),
		new RegExp(`its file +in the guest: debugfs -R 'icheck ${block}'`),
	);
	const journal = Number(/\(0(?:-\d+)?\):(\d+)/.exec(await runOk("debugfs", ["-R", "stat <8>", device.path]))![1]);
	assert.equal((await why(disk, journal * BLOCK)).use, "journal");
	assert.equal((await why(disk, 1024)).use, "metadata");

	await rm(file);
	await commit();
	const dead = await why(disk, block * BLOCK);
	assert.deepEqual([dead.use, dead.droppable, dead.because], ["free", true, null]);
	// Overwritten in place and deleted with one commit: by the rule its writer might still own it.
	const late = join(mounted.path, "late");
	await writeFile(late, seededRandom(3).bytes(MiB));
	await commit();
	const lateBlock = (await blocksOf(late)).first;
	await runOk("dd", [
		"if=/dev/urandom",
		`of=${late}`,
		"bs=1M",
		"count=1",
		"conv=notrunc",
		"oflag=direct",
		"status=none",
	]);
	await rm(late);
	await runOk("sync", ["-f", mounted.path]);
	const young = await why(disk, lateBlock * BLOCK);
	assert.deepEqual([young.use, young.droppable], ["free", false]);
	assert.match(young.because!, /free but young: 1 more commit of the guest is needed/);
	assert.equal(await waitsFor(server), "young");

	await runOk(vmsweep, ["snapshot", disk, "before"]);
	await commit();
	await commit();
	await runOk(vmsweep, ["clean", disk]);
	const gone = await why(disk, block * BLOCK);
	assert.deepEqual([gone.use, gone.droppable], ["free", false]);
	assert.match(gone.because!, /nothing to drop/);
	assert.deepEqual(gone.snapshots, [{ name: "before", keepsCopy: true }]);
	const text = await runOk(vmsweep, ["status", disk]);
	assert.match(text, /disk +ext4, continuous phase\n +rule: 2 commits of its journal/);
	assert.match(text, /last commit point: position \d+, \d+ s ago/);
	assert.match(text, /of metadata, .* in the last pass; .* per GiB that the guest wrote/);

	await mounted.unmount();
	await device[Symbol.asyncDispose]();
	const { stderr } = await server.stop();
	const told = stderr.split("\n").filter((line) => line.includes("volume disk (ext4)"));
	assert.equal(told.filter((line) => line.includes("found; rule: 2 commits")).length, 1, stderr);
	assert.equal(told.filter((line) => /initialization done, read .* of metadata/.test(line)).length, 1, stderr);
	assert.equal(told.length, 2, stderr);

	// At rest: cleanly unmounted, so all is known; and it is the same answer.
	const resting = await why(disk, block * BLOCK);
	assert.deepEqual([resting.use, resting.volume!.fileSystemBlock], ["free", block]);
	assert.equal((await diskStatus(disk)).served, false);
});

test("volumes that no rule follows, gaps, and what is out of range", async (t) => {
	if (!requireTool(t, "mkfs.vfat", "sfdisk")) return;
	await using folder = await temporaryFolder();
	const [image, part, disk] = [folder.file("image"), folder.file("part"), folder.file("web01")];
	for (const [path, size] of [
		[image, 64 * MiB],
		[part, 32 * MiB],
	] as const) {
		await writeFile(path, "");
		await truncate(path, size);
	}
	await runOk("sfdisk", ["-q", image], { input: "start=2048,size=65536,type=c\n" });
	await runOk("mkfs.vfat", [part]);
	await runOk("dd", [`if=${part}`, `of=${image}`, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]);
	await createDisk(disk, { second: image });
	const gap = await why(disk, 512);
	assert.deepEqual([gap.volume, gap.use, gap.place.kind], [null, "unknown", "second-image"]);
	assert.match(gap.because!, /no volume/);
	const inside = await why(disk, 20 * MiB);
	assert.deepEqual([inside.volume!.id, inside.volume!.offset], ["p1", 19 * MiB]);
	assert.equal(inside.droppable, false);
	for (const [offset, message] of [
		["64M", /web01 has 67108864 bytes \(64\.0 MiB\); byte 67108864 lies behind its end\. Choose one below it\.\n$/],
		["much", /Give a byte's position such as 0/],
	] as const) {
		const { exitCode, stderr } = await run(vmsweep, ["why", disk, offset]);
		assert.equal(exitCode, 2);
		assert.match(stderr, message);
		assert.equal(stderr.trimEnd().split("\n").length, 1);
	}
});

test("what waits, and for what: a mounted file system without a journal, a damaged one; and what the quarantine holds", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "debugfs")) return;
	await using folder = await temporaryFolder();
	{
		const disk = folder.file("ext2");
		await createDisk(disk, { size: "64M" });
		await using server = await SweepServer.serve(disk, "--quarantine", "1000");
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk("mke2fs", ["-q", "-t", "ext2", "-b", "4096", "-E", "nodiscard", device.path]);
		await using mounted = await Mounted.mount(device.path, folder.file("mnt"));
		const file = join(mounted.path, "file");
		await writeFile(file, seededRandom(1).bytes(MiB));
		await runOk("sync", ["-f", mounted.path]);
		const { first } = await blocksOf(file);
		const { volumes } = await server.reaches(({ volumes }) => volumes[0]?.waitsFor === "rest", "the mounted ext2");
		assert.match(volumes[0]!.rule, /^clean unmount or freeze only/);
		assert.match(volumes[0]!.waiting!, /cleaned when it is cleanly unmounted or frozen$/);
		assert.match((await why(disk, first * BLOCK)).because!, /waits for rest/);
		await rm(file);
		await mounted.unmount();
		await server.reaches(({ volumes }) => volumes[0]?.waitsFor === "nothing", "the unmounted ext2");
		const held = await why(disk, first * BLOCK);
		assert.deepEqual([held.place.kind, held.undoable, held.droppable], ["zeros", true, false]);
		assert.match(
			await runOk(vmsweep, ["why", disk, String(first * BLOCK)]),
			/quarantine +it was dropped; vmsweep undo/,
		);
	}
	const [image, disk] = [folder.file("image"), folder.file("damaged")];
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image, "64M"]);
	await runOk("debugfs", ["-w", "-R", "ssv state 2", image]);
	await createDisk(disk, { second: image });
	await using server = await SweepServer.serve(disk);
	const { volumes } = await server.reaches(({ volumes }) => volumes[0]?.waitsFor === "repair", "the damaged ext4");
	assert.match(volumes[0]!.waiting!, /errors.*repair: e2fsck -f in the guest, with the volume unmounted$/);
	await server.process.line(/volume disk \(ext4\): kept: the guest has recorded errors/);
});
