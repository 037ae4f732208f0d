// verify, with the host's own kernel as the guest and real checkers: right where the cleaner is right, loud where it isn't, and
// nothing of it stays on the host.

import assert from "node:assert/strict";
import { mkdir, open, readdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { wholeBlocks } from "../../src/core/cleaner/plan.ts";
import { describeVerify } from "../../src/edges/cli/verify.ts";
import { mapImage } from "../../src/services/map-report.ts";
import type { VerifyPoint } from "../../src/services/verify/point.ts";
import { type VerifyReport, verifyDisk } from "../../src/services/verify/verify.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { Lvm } from "../support/lvm.ts";
import { loadProgram } from "../support/oracle-run.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MiB = 2 ** 20;

/** A file's first disk block, where its file system begins with the disk. */
async function firstBlockOf(file: string): Promise<number> {
	const extents = await runOk("filefrag", ["-v", "-b4096", file]);
	return Number(/^ *0: +\d+\.\. *\d+: +(\d+)\.\./m.exec(extents)![1]);
}

/** Calls a block droppable that isn't. */
const alsoDroppable =
	(block: number) =>
	({ position, volumes }: VerifyPoint): VerifyPoint => ({
		position,
		volumes: volumes.map((volume) => ({ ...volume, kept: null, runs: withRun(volume.runs, block) })),
	});

function withRun(runs: readonly number[], block: number): number[] {
	const pairs = Array.from({ length: runs.length / 2 }, (_, i) => [runs[2 * i]!, runs[2 * i + 1]!]);
	return [...pairs, [block, 1]].sort((a, b) => a[0]! - b[0]!).flat();
}

/** Nothing of a verify that had its files in this folder is left on the host. */
async function assertNothingLeft(folder: string): Promise<void> {
	assert.deepEqual(await readdir(folder), []);
	assert.ok(!(await readFile("/proc/mounts", "utf8")).includes(folder), "a mount stays");
	assert.ok(!(await runOk("losetup", ["-a"])).includes(folder), "a loop device stays");
}

const verifyJson = async (disk: string, temporary: string, ...options: readonly string[]): Promise<VerifyReport> =>
	JSON.parse(
		await runOk(vmsweep, ["verify", disk, "--json", ...options], { environment: { TMPDIR: temporary } }),
	) as VerifyReport;

test("a mounted ext4 under cleaning: what may be dropped isn't needed; a block that is needed is found", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "filefrag", "debugfs")) return;
	await using folder = await temporaryFolder();
	const [disk, temporary] = [folder.file("web01"), folder.file("tmp")];
	await mkdir(temporary);
	await createDisk(disk, { size: "256M" });
	const files = new Map<string, number>();
	{
		await using server = await SweepServer.serve(disk);
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk("mke2fs", ["-q", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", device.path]);
		await using mounted = await Mounted.mount(device.path, folder.file("mnt"));
		await mkdir(join(mounted.path, "a folder"));
		await server.reaches(({ volumes }) => volumes[0]?.type === "ext4", "the volume to be found");
		for (let i = 0; i < 12; i++) {
			await writeFile(join(mounted.path, "a folder", `f${i}`), seededRandom(i).bytes(MiB));
			await runOk("sync", ["-f", mounted.path]);
		}
		await runOk("sh", ["-c", `rm "${mounted.path}/a folder"/f[0-4]`]);
		for (const name of ["x", "y", "z"]) {
			await writeFile(join(mounted.path, name), name);
			await runOk("sync", ["-f", mounted.path]);
		}
		// What was moved beside newer blocks counts as being as new as they are: it waits for further commits.
		const commit = async (): Promise<boolean> => {
			await writeFile(join(mounted.path, "z"), "z");
			await runOk("sync", ["-f", mounted.path]);
			return (await server.status()).cleaner.droppedBytes >= 5 * MiB;
		};
		await waitUntil(commit, "the deleted files to be dropped", { timeoutSeconds: 60, everyMs: 500 });
		const before = await hashesIn(mounted.path);

		const { isSame, volumes } = await verifyJson(disk, temporary);
		assert.equal(isSame, true, JSON.stringify(volumes));
		const [volume] = volumes;
		assert.deepEqual([volume!.id, volume!.checker!.verdict, volume!.files!.count], ["disk", "clean", before.length]);
		assert.ok(volume!.droppableBytes > 100 * MiB, `${volume!.droppableBytes} droppable`);
		assert.match(
			await runOk(vmsweep, ["verify", disk], { environment: { TMPDIR: temporary } }),
			/web01: all the same without \d+ MiB that may be dropped[\s\S]*e2fsck: clean[\s\S]*10 files with 7\.00 MiB compared/,
		);
		const checkedOnly = await verifyJson(disk, temporary, "--no-mount", "--volume", "disk");
		assert.deepEqual([checkedOnly.isSame, checkedOnly.volumes[0]!.files], [true, null]);

		assert.deepEqual((await server.status()).snapshots, []);
		assert.deepEqual(await hashesIn(mounted.path), before);
		await assertNothingLeft(temporary);

		for (const name of ["f7", "f9"]) files.set(name, await firstBlockOf(join(mounted.path, "a folder", name)));
		const wrong = await verifyDisk(disk, { distort: alsoDroppable(files.get("f7")!) });
		assert.deepEqual(
			[wrong.isSame, wrong.volumes[0]!.differences, wrong.volumes[0]!.checker!.verdict],
			[false, ["different: a folder/f7"], "clean"],
		);
		assert.deepEqual((await server.status()).snapshots, []);
		await mounted.unmount();
	}

	// At rest: cleanly unmounted.
	const resting = await verifyJson(disk, temporary);
	assert.deepEqual([resting.isSame, resting.volumes[0]!.checker!.verdict], [true, "clean"]);
	const wrong = await verifyDisk(disk, { distort: alsoDroppable(files.get("f9")!) });
	assert.deepEqual(wrong.volumes[0]!.differences, ["different: a folder/f9"]);
	const text = describeVerify("web01", wrong);
	assert.match(
		text,
		/^web01: DIFFERENT [\s\S]*DIFFERENCE: different: a folder\/f9[\s\S]*STOP CLEANING[\s\S]*--clean off/,
	);
	await assertNothingLeft(temporary);
});

for (const [type, make, options] of [
	["ext4", ["mke2fs", "-q", "-F", "-t", "ext4"], "commit=1"],
	["xfs", ["mkfs.xfs", "-q", "-K"], "defaults"],
] as const)
	test(`${type}: while a guest works and the cleaner drops, again and again`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, make[0])) return;
		const seed = testSeed() % 1_000_000;
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		await using folder = await temporaryFolder();
		const [disk, temporary] = [folder.file("web01"), folder.file("tmp")];
		await mkdir(temporary);
		await createDisk(disk, { size: "768M" });
		await using server = await SweepServer.serve(disk);
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk(make[0], [...make.slice(1), device.path]);
		await using mounted = await Mounted.mount(device.path, folder.file("mnt"), options);
		await using load = start(loadProgram, ["crash", mounted.path, "--seed", String(seed)]);
		for (let round = 1; round <= 3; round++) {
			await load.until(() => load.stdout.split("\n").length > round * 15, `${round * 15} synced files`, 120);
			await server.reaches(({ volumes }) => volumes[0]?.phase === "continuous", "a verdict");
			const report = await verifyJson(disk, temporary, "--max-rate", "1G");
			assert.equal(report.isSame, true, JSON.stringify(report));
			const [volume] = report.volumes;
			assert.deepEqual([volume!.skipped, volume!.checker!.verdict], [null, "clean"], JSON.stringify(report));
			t.diagnostic(`round ${round}: ${volume!.droppableBytes} bytes droppable, ${volume!.files!.count} files compared`);
			await assertNothingLeft(temporary);
		}
		await server.reaches(({ cleaner }) => cleaner.droppedBytes > 0, "a drop");
		await load.kill();
		await mounted.unmount();
	});

test("a logical volume in stripes over two partitions", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "pvcreate", "sfdisk")) return;
	await using folder = await temporaryFolder();
	const [image, inside, content] = [folder.file("image"), folder.file("inside"), folder.file("content")];
	await writeFile(image, "");
	await truncate(image, 200 * MiB);
	await runOk("sfdisk", ["-q", image], { input: "label: gpt\nstart=1MiB,size=98MiB\nstart=99MiB,size=98MiB\n" });
	await mkdir(content);
	for (let i = 0; i < 8; i++) await writeFile(join(content, `f${i}`), seededRandom(i).bytes(MiB));
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", "-d", content, inside, "60M"]);
	{
		await using lvm = await Lvm.on(folder, image, [1, 98], [99, 98]);
		for (const device of lvm.devices) await lvm.run("pvcreate", "-q", device);
		await lvm.run("vgcreate", "-q", "-s", "1M", "vg0", ...lvm.devices);
		await lvm.create("root", 60, "-i", "2", "-I", "64k");
		const place = await lvm.places("root");
		await using file = await open(image, "r+");
		const bytes = await readFile(inside);
		for (let at = 0; at < bytes.length; at += 64 * 1024) await file.write(bytes, at, 64 * 1024, place(at));
	}
	const disk = folder.file("web01");
	await createDisk(disk, { second: image });
	const { isSame, volumes } = await verifyDisk(disk);
	const root = volumes.find(({ id }) => id.endsWith("/vg0/root"))!;
	assert.deepEqual([isSame, root.skipped, root.checker!.verdict, root.files!.count], [true, null, "clean", 8]);
	assert.ok(root.droppableBytes > 30 * MiB, `${root.droppableBytes} droppable`);
	// All of it, but for the superblock's block and the descriptors: the contents must be missed.
	const wrong = await verifyDisk(disk, {
		distort: (point) => ({
			...point,
			volumes: point.volumes.map((volume) => ({
				...volume,
				runs: volume.areas.flatMap(({ diskStart, length }) => [diskStart / 4096 + 64, length / 4096 - 64]),
			})),
		}),
	});
	assert.equal(wrong.isSame, false);
});

test("metadata that would be dropped: the checker finds it, and what was wrong before is no alarm", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "debugfs", "dumpe2fs")) return;
	await using folder = await temporaryFolder();
	const [image, disk, temporary] = [folder.file("image"), folder.file("web01"), folder.file("tmp")];
	await mkdir(temporary);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", image, "64M"]);
	const dump = await runOk("dumpe2fs", [image]);
	const inodeTable = Number(/Inode table at (\d+)/.exec(dump)![1]);
	await createDisk(disk, { second: image });
	const wrong = await verifyDisk(disk, { distort: alsoDroppable(inodeTable) });
	assert.equal(wrong.isSame, false);
	const [volume] = wrong.volumes;
	assert.ok(volume!.differenceCount > 0);
	assert.match(volume!.differences.join("\n"), /e2fsck finds errors that the real view doesn't have|can't/);

	// A reference count that is wrong: free space is all right, so the volume is followed, but e2fsck complains in both views.
	const hurt = folder.file("hurt");
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", hurt, "64M"]);
	await runOk("debugfs", ["-w", "-R", "sif <2> links_count 7", hurt]);
	assert.notEqual((await run("e2fsck", ["-fn", hurt])).exitCode, 0);
	await createDisk(folder.file("web02"), { second: hurt });
	const report = await verifyJson(folder.file("web02"), temporary);
	assert.deepEqual([report.isSame, report.volumes[0]!.checker!.verdict], [true, "as-real"]);
	await assertNothingLeft(temporary);
});

test("Ctrl-C, however often, leaves nothing on the host", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS)) return;
	await using folder = await temporaryFolder();
	const [image, disk, temporary] = [folder.file("image"), folder.file("web01"), folder.file("tmp")];
	await mkdir(temporary);
	const content = folder.file("content");
	await mkdir(content);
	await writeFile(join(content, "large"), seededRandom(1).bytes(16 * MiB));
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", "-d", content, image, "64M"]);
	await createDisk(disk, { second: image });
	await using server = await SweepServer.serve(disk);
	const mounts = (): Promise<string> => readFile("/proc/mounts", "utf8");
	for (const until of [".fuse", ".mount"]) {
		await using verifying = start(vmsweep, ["verify", disk, "--max-rate", "1M"], {
			environment: { TMPDIR: temporary },
		});
		await verifying.until(
			async () => (await mounts()).split("\n").some((line) => line.includes(temporary) && line.includes(until)),
			`a ${until}`,
		);
		process.kill(verifying.pid, "SIGINT");
		process.kill(verifying.pid, "SIGINT");
		const { exitCode, stderr } = await verifying.finished;
		assert.match(stderr, /verify was stopped; nothing of it stays on this host\.\n$/);
		assert.equal(exitCode, 1);
		await assertNothingLeft(temporary);
		assert.deepEqual((await server.status()).snapshots, []);
	}
});

test("a server that ends in the middle is an error, and no alarm", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS)) return;
	await using folder = await temporaryFolder();
	const [image, disk, temporary] = [folder.file("image"), folder.file("web01"), folder.file("tmp")];
	const content = folder.file("content");
	for (const made of [temporary, content]) await mkdir(made);
	await writeFile(join(content, "large"), seededRandom(1).bytes(16 * MiB));
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", "-d", content, image, "64M"]);
	await createDisk(disk, { second: image });
	await using server = await SweepServer.serve(disk);
	await using verifying = start(vmsweep, ["verify", disk, "--max-rate", "4M"], { environment: { TMPDIR: temporary } });
	await verifying.until(
		async () => (await readdir(temporary, { recursive: true })).some((name) => name.endsWith("real.list")),
		"the list of the real view's files",
	);
	await server.kill();
	const { exitCode, stdout, stderr } = await verifying.finished;
	assert.equal(stdout, "");
	assert.doesNotMatch(stderr, /STOP CLEANING/);
	assert.equal(stderr.trimEnd().split("\n").length, 1, stderr);
	assert.equal(exitCode, 1, stderr);
	await assertNothingLeft(temporary);
	assert.match(await runOk(vmsweep, ["snapshot", disk]), /no snapshots/);
});

test("what can't be verified is said", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.vfat")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await createDisk(disk, { size: "64M" });
	await using server = await SweepServer.serve(disk, "--clean", "off");
	const { exitCode, stderr } = await run(vmsweep, ["verify", disk, "--volume", "p7"]);
	assert.match(stderr, /has no volume p7\. It has: disk\.\n$/);
	assert.equal(exitCode, 2);
	const { isSame, volumes } = await verifyDisk(disk);
	assert.equal(isSame, true);
	assert.match(volumes[0]!.skipped!, /nothing of it would be dropped: nothing known is in it/);
	assert.match(await runOk(vmsweep, ["verify", disk]), /web01: nothing to verify: nothing would be dropped/);
	assert.deepEqual((await server.status()).snapshots, []);
});

/** Makes a file system in an image file; those that this host's kernel mounts get a file. */
const others: Readonly<
	Record<string, { readonly make: readonly string[]; readonly tool: string; readonly mounts?: true }>
> = {
	xfs: { make: ["mkfs.xfs", "-q"], tool: "xfs_repair", mounts: true },
	btrfs: { make: ["mkfs.btrfs", "-q"], tool: "btrfs", mounts: true },
	vfat: { make: ["mkfs.vfat", "-F", "32"], tool: "fsck.fat" },
	ntfs: { make: ["mkntfs", "-q", "-F", "-f"], tool: "ntfsfix" },
	exfat: { make: ["mkfs.exfat"], tool: "fsck.exfat" },
	f2fs: { make: ["mkfs.f2fs", "-q"], tool: "fsck.f2fs" },
};

for (const [type, { make, tool, mounts }] of Object.entries(others))
	test(`${type}: its checker agrees that what the guest map calls free is not needed, and finds what is`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, make[0]!, tool)) return;
		await using folder = await temporaryFolder();
		const [image, disk] = [folder.file("image"), folder.file("web01")];
		await writeFile(image, "");
		await truncate(image, 512 * MiB);
		await runOk(make[0]!, [...make.slice(1), image]);
		if (mounts) {
			await using mounted = await Mounted.mount(image, folder.file("mnt"), "loop");
			for (let i = 0; i < 20; i++) await writeFile(join(mounted.path, `f${i}`), seededRandom(i).bytes(MiB));
			await mounted.unmount();
		}
		const [free, used] = await blocksByMap(image);
		await createDisk(disk, { second: image });
		const called =
			(runs: readonly number[]) =>
			(point: VerifyPoint): VerifyPoint => ({
				...point,
				volumes: point.volumes.map((volume) => ({ ...volume, kept: null, runs })),
			});
		const right = await verifyDisk(disk, { distort: called(free) });
		const [volume] = right.volumes;
		assert.deepEqual(
			[right.isSame, volume!.skipped, volume!.checker!.verdict],
			[true, null, "clean"],
			JSON.stringify(right),
		);
		if (mounts) assert.equal(volume!.files!.count, 20);
		const wrong = await verifyDisk(disk, { distort: called(used) });
		assert.equal(wrong.isSame, false, JSON.stringify(wrong));
	});

/** The disk blocks that are free, and those that aren't, by the guest map: as pairs [block, count]…. */
async function blocksByMap(image: string): Promise<[free: number[], used: number[]]> {
	await using mapped = await mapImage(image, { vmOff: false });
	const [free, used]: [number[], number[]] = [[], []];
	for (const extent of mapped.map.extents) {
		const run = wholeBlocks(extent);
		if (run !== undefined) (extent.state === "free" ? free : used).push(run.block, run.count);
	}
	return [free, used];
}
