// `vmsweep sweep` on real images: what the kernel wrote stays, byte for byte, and du gets back what dumpe2fs calls free.

import assert from "node:assert/strict";
import { mkdir, open, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { SweepReport } from "../../src/services/sweep.ts";
import { TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { FuseMount } from "../support/fuse.ts";
import { allocatedBytes, hashFile, hashTree } from "../support/hashes.ts";
import { type Finished, run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { dumpFree } from "./map-images.ts";

const MIB = 2 ** 20;
/** Whole host blocks cut off at the ends of free extents, and the host's own metadata. */
const withinOnePercent = (value: number, expected: number): boolean =>
	Math.abs(value - expected) <= 0.01 * expected + 128 * 1024;

const sweep = async (image: string, ...options: readonly string[]): Promise<SweepReport> =>
	JSON.parse(await runOk(vmsweep, ["sweep", "--json", ...options, image])) as SweepReport;

function assertRefused({ exitCode, stdout, stderr }: Finished, code: number, message: RegExp): void {
	assert.match(stderr, message);
	assert.match(stderr, /^vmsweep: [^\n]+\n$/, "one line");
	assert.equal(exitCode, code, stdout);
}

/** Mounts a file system (the image, or what a loop device shows of it) for as long as `work` takes. */
async function mounted<T>(image: string, mount: string, work: () => Promise<T>): Promise<T> {
	await mkdir(mount, { recursive: true });
	await runOk("mount", ["-o", "loop,nodiscard", image, mount]);
	try {
		return await work();
	} finally {
		await runOk("umount", [mount]);
	}
}

/** Fills a mounted file system from a seed, and deletes about half of it; leaves what hashTree then sees. */
async function use(mount: string, seed: number, files: number, bytesMax: number): Promise<Record<string, string>> {
	const random = seededRandom(seed);
	const names: string[] = [];
	for (let index = 0; index < files; index++) {
		const name = `${mount}/f${index}`;
		await writeFile(name, random.bytes(random.between(1, bytesMax)));
		names.push(name);
	}
	await runOk("sync", ["-f", mount]);
	for (const name of names) {
		if (random.chance(0.5)) await runOk("rm", [name]);
		else if (random.chance(0.2)) await truncate(name, random.below(bytesMax / 2));
	}
	await runOk("sync", ["-f", mount]);
	return await hashTree(mount);
}

const variants: Readonly<Record<string, readonly string[]>> = {
	ext4: ["-t", "ext4"],
	"ext4, 1 KiB blocks": ["-t", "ext4", "-b", "1024"],
	"ext4, bigalloc": ["-t", "ext4", "-O", "bigalloc", "-C", "65536"],
	ext3: ["-t", "ext3"],
	ext2: ["-t", "ext2"],
};

describe("a real file system", () => {
	for (const [name, mkfsArguments] of Object.entries(variants))
		test(name, async (t) => {
			if (!requireTool(t, "mke2fs", "dumpe2fs", "e2fsck", "root", "loop devices")) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const [image, mount] = [folder.file("image.raw"), folder.file("mount")];
			await runOk("mke2fs", ["-q", "-F", ...mkfsArguments, image, "400M"]);
			const hashes = await mounted(image, mount, () => use(mount, seed, 60, 4 * MIB));
			await runOk("sync", [image]);

			const contents = await hashFile(image);
			const before = await allocatedBytes(image);
			const predicted = await sweep(image, "--dry-run");
			assert.equal(await hashFile(image), contents, "a dry run changes nothing");
			assert.equal(await allocatedBytes(image), before);

			const report = await sweep(image);
			const after = await allocatedBytes(image);
			assert.equal(report.hostBytesAfter, after);
			const back = before - after;
			assert(back > 20 * MIB, `only ${back} bytes came back`);
			assert(withinOnePercent(predicted.droppedBytes, back), `predicted ${predicted.droppedBytes}, came back ${back}`);

			// No whole host block of free space may hold anything: what is left is used, and edges.
			const { free, blockSize } = await dumpFree(image);
			let used = 0;
			let edges = 0;
			for (let block = 0; block < free.length; block++) {
				if (free[block] === 0) used += blockSize;
				if (block > 0 && free[block] !== free[block - 1]) edges += 4096;
			}
			assert(
				after <= used + edges * (blockSize < 4096 ? 1 : 0) + 0.01 * used + MIB,
				`${after} bytes for ${used} used ones`,
			);

			await runOk("e2fsck", ["-fn", image]);
			assert.deepEqual(await mounted(image, mount, () => hashTree(mount)), hashes);
			assert((await sweep(image)).droppedBytes <= 4 * MIB, "a second sweep finds next to nothing");
		});

	test("in a partition, beside one that is not understood and one that is dirty", async (t) => {
		if (!requireTool(t, "mke2fs", "e2fsck", "sfdisk", "debugfs")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("disk.raw");
		await writeFile(image, "");
		await truncate(image, 400 * MIB);
		await runOk("sfdisk", ["-q", image], { input: "label: gpt\nsize=100M\nsize=100M\nsize=100M\n" });
		const starts = [1, 101, 201];
		const noise = folder.file("noise");
		await writeFile(noise, seededRandom(1).bytes(300 * MIB));
		await runOk("dd", [`if=${noise}`, `of=${image}`, "bs=1M", "seek=1", "conv=notrunc", "status=none"]);
		for (const [index, state] of [
			[0, 1],
			[2, 0],
		] as const) {
			const offset = `offset=${starts[index]! * MIB}`;
			await runOk("mke2fs", ["-q", "-F", "-t", "ext2", "-E", `${offset},nodiscard`, image, "100M"]);
			await runOk("debugfs", ["-w", "-R", `ssv state ${state}`, `${image}?${offset}`]);
		}
		const range = (index: number) => ({ start: starts[index]! * MIB, end: (starts[index]! + 100) * MIB });
		const kept = [await hashFile(image, range(1)), await hashFile(image, range(2))];
		const report = await sweep(image);
		assert.deepEqual(
			report.volumes.map(({ id, kept: reason }) => [id, reason === null]),
			[
				["p1", true],
				["p2", false],
				["p3", false],
			],
		);
		assert.match(report.volumes[2]!.kept!, /cleanly/);
		assert.deepEqual([await hashFile(image, range(1)), await hashFile(image, range(2))], kept);
		assert(report.hostBytesBefore - report.hostBytesAfter > 90 * MIB);
		const part = folder.file("part");
		await runOk("dd", [`if=${image}`, `of=${part}`, "bs=1M", "skip=1", "count=100", "status=none"]);
		await runOk("e2fsck", ["-fn", part]);
	});

	test("space that was reserved without data comes back, too", async (t) => {
		if (!requireTool(t, "mke2fs", "e2fsck", "fallocate")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image.raw");
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image, "200M"]);
		await runOk("fallocate", ["-l", "200M", image]);
		const before = await allocatedBytes(image);
		const predicted = await sweep(image, "--dry-run");
		await sweep(image);
		const back = before - (await allocatedBytes(image));
		assert(back > 150 * MIB);
		assert(withinOnePercent(predicted.droppedBytes, back), `predicted ${predicted.droppedBytes}, came back ${back}`);
		await runOk("e2fsck", ["-fn", image]);
	});

	test("on a block device", async (t) => {
		if (!requireTool(t, "mke2fs", "e2fsck", "losetup", "root", "loop devices")) return;
		await using folder = await temporaryFolder();
		const [image, mount] = [folder.file("image.raw"), folder.file("mount")];
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image, "200M"]);
		const hashes = await mounted(image, mount, () => use(mount, 7, 20, 4 * MIB));
		const device = (await runOk("losetup", ["-f", "--show", image])).trim();
		try {
			const before = await allocatedBytes(image);
			await runOk("mount", [device, mount]);
			try {
				assertRefused(await run(vmsweep, ["sweep", device]), 3, /mounted/);
			} finally {
				await runOk("umount", [mount]);
			}
			await sweep(device);
			assert((await allocatedBytes(image)) < before);
			assert.deepEqual(await mounted(device, mount, () => hashTree(mount)), hashes);
			assertRefused(await run(vmsweep, ["sweep", image]), 3, /loop device \/dev\/loop/);
		} finally {
			await runOk("losetup", ["-d", device]);
		}
		await runOk("e2fsck", ["-fn", image]);
	});
});

/** A clean ext4 image full of deleted data. */
async function sweepable(folder: TemporaryFolder, size = "300M"): Promise<string> {
	const image = folder.file("image.raw");
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-E", "nodiscard", image, size]);
	const { free, blockSize } = await dumpFree(image);
	await using file = await open(image, "r+");
	const noise = seededRandom(2).bytes(MIB);
	for (let at = 0; at + MIB <= free.length * blockSize; at += MIB) {
		const first = at / blockSize;
		if (free.subarray(first, first + MIB / blockSize).every((one) => one === 1)) await file.write(noise, 0, MIB, at);
	}
	return image;
}

test("an image in use by another tool is refused, and one in use here is refused to it", async (t) => {
	if (!requireTool(t, "mke2fs", "dumpe2fs", "qemu-nbd", "qemu-io")) return;
	await using folder = await temporaryFolder();
	const image = await sweepable(folder, "60M");
	const contents = await hashFile(image);
	await using nbd = start("qemu-nbd", [
		"-f",
		"raw",
		"-k",
		folder.file("socket"),
		"-t",
		"--pid-file",
		folder.file("pid"),
		image,
	]);
	await nbd.until(
		() =>
			stat(folder.file("pid")).then(
				() => true,
				() => false,
			),
		"its pid file",
	);
	for (const words of [
		["sweep", image],
		["sweep", "--dry-run", image],
		["map", image],
	])
		assertRefused(
			await run(vmsweep, words),
			3,
			new RegExp(`${image} is in use by qemu-nbd \\(process ${nbd.pid}\\).*Shut down`),
		);
	assert.equal(await hashFile(image), contents);
});

test("what can't be swept is refused with the reason, unchanged", async (t) => {
	if (!requireTool(t, "mke2fs", "debugfs", "qemu-img")) return;
	await using folder = await temporaryFolder();
	const cases: Record<string, [code: number, message: RegExp, make: (path: string) => Promise<unknown>]> = {
		"missing.raw": [2, /doesn't exist/, async () => {}],
		folder: [2, /Name an image/, (path) => mkdir(path)],
		"empty.raw": [2, /is empty \(0 bytes\)/, (path) => writeFile(path, "")],
		"short.raw": [2, /is no disk image: .* 1 bytes/, (path) => writeFile(path, "x")],
		"noise.raw": [3, /nothing known is in it/, (path) => writeFile(path, seededRandom(4).bytes(MIB))],
		"image.qcow2": [
			3,
			/nothing known is in it/,
			(path) => runOk("qemu-img", ["create", "-q", "-f", "qcow2", path, "10M"]),
		],
		"image.vmdk": [
			3,
			/is a vmdk image; only raw and qcow2 images are swept in place/,
			(path) => runOk("qemu-img", ["create", "-q", "-f", "vmdk", path, "10M"]),
		],
		"cut.raw": [
			3,
			/disk \(ext4\)|disk \(unknown\)/,
			async (path) => {
				await runOk("mke2fs", ["-q", "-F", "-t", "ext4", path, "100M"]);
				await truncate(path, 40 * MIB);
			},
		],
		"dirty.raw": [
			3,
			/not unmounted cleanly|not shut down cleanly/,
			async (path) => {
				await runOk("mke2fs", ["-q", "-F", "-t", "ext4", path, "50M"]);
				await runOk("debugfs", ["-w", "-R", "feature needs_recovery", path]);
			},
		],
		"superblock.raw": [
			3,
			/nothing can be dropped safely/,
			async (path) => {
				await runOk("mke2fs", ["-q", "-F", "-t", "ext4", path, "50M"]);
				await using file = await open(path, "r+");
				await file.write(seededRandom(9).bytes(200), 0, 200, 1024 + 64);
			},
		],
	};
	for (const [name, [code, message, make]] of Object.entries(cases)) {
		const path = folder.file(name);
		await make(path);
		const before = await readFile(path).catch(() => undefined);
		const mapped = await run(vmsweep, ["map", path]);
		assert(mapped.exitCode === 0 || mapped.exitCode === code, mapped.stderr);
		for (const options of [["--dry-run"], []])
			assertRefused(await run(vmsweep, ["sweep", ...options, path]), code, message);
		assert.deepEqual(await readFile(path).catch(() => undefined), before, name);
	}
	assertRefused(
		await run(vmsweep, ["sweep", "nbd://localhost/x"]),
		3,
		/is an NBD address; only files and block devices are swept in place/,
	);
});

test("a full host is no hindrance", async (t) => {
	if (!requireTool(t, "mke2fs", "dumpe2fs", "e2fsck", "root")) return;
	await using folder = await temporaryFolder();
	const mount = folder.file("tmpfs");
	await mkdir(mount);
	await runOk("mount", ["-t", "tmpfs", "-o", "size=100M", "tmpfs", mount]);
	try {
		const image = await sweepable(new TemporaryFolder(mount), "80M");
		const filler = await run("dd", ["if=/dev/zero", `of=${mount}/filler`, "bs=64K", "status=none"]);
		assert.match(filler.stderr, /No space/);
		const before = await allocatedBytes(image);
		const predicted = await sweep(image, "--dry-run");
		const report = await sweep(image);
		const back = before - (await allocatedBytes(image));
		assert(back > 40 * MIB && withinOnePercent(predicted.droppedBytes, back), `${predicted.droppedBytes} ${back}`);
		assert.equal(report.hostBytesBefore - report.hostBytesAfter, back);
		await runOk("e2fsck", ["-fn", image]);
	} finally {
		await runOk("umount", [mount]);
	}
});

test("Ctrl-C and SIGKILL at any moment leave an image that is right; a last sweep finishes", async (t) => {
	if (!requireTool(t, "mke2fs", "dumpe2fs", "e2fsck", "debugfs", "root", "loop devices")) return;
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	const random = seededRandom(seed);
	await using folder = await temporaryFolder();
	const [image, mount] = [folder.file("image.raw"), folder.file("mount")];
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", image, "200M"]);
	// Many small files, every other one deleted: thousands of free extents.
	const hashes = await mounted(image, mount, () => use(mount, seed, 2000, 64 * 1024));
	const original = folder.file("original.raw");
	await runOk("cp", ["--sparse=never", image, original]);
	const full = await allocatedBytes(original);
	const seen = { partly: 0, interrupted: 0 };
	for (let round = 0; round < 8; round++) {
		await runOk("cp", ["--sparse=never", original, image]);
		await using sweeping = start(vmsweep, ["sweep", image]);
		const gone = full - random.below(80 * MIB);
		await sweeping
			.until(async () => (await allocatedBytes(image)) <= gone || !sweeping.alive, "some progress")
			.catch(() => {});
		const { exitCode, signal, stderr } = await sweeping.end(round % 3 === 2 ? "SIGKILL" : "SIGINT");
		if (exitCode === 1) {
			seen.interrupted++;
			assert.match(stderr, /^vmsweep: stopped before the end; .* Run the same command to finish\.\n$/);
		} else assert(exitCode === 0 || signal !== undefined, stderr);
		const left = await allocatedBytes(image);
		if (left < full && left > full - 90 * MIB) seen.partly++;
		await runOk("e2fsck", ["-fn", image]);
		assert.deepEqual(await mounted(image, mount, () => hashTree(mount)), hashes);
	}
	t.diagnostic(`${seen.interrupted} interrupted in order, ${seen.partly} left partly swept`);
	await sweep(image);
	await runOk("e2fsck", ["-fn", image]);
	assert.deepEqual(await mounted(image, mount, () => hashTree(mount)), hashes);
});

test("the second image of a disk is refused, also through a link; that disk's command is named", async (t) => {
	if (!requireTool(t, "mke2fs", "dumpe2fs")) return;
	await using folder = await temporaryFolder();
	const image = await sweepable(folder, "60M");
	const disk = folder.file("disk");
	await runOk(vmsweep, ["create", disk, "--second", image]);
	await runOk("ln", ["-s", image, folder.file("link.raw")]);
	for (const path of [image, folder.file("link.raw")])
		assertRefused(
			await run(vmsweep, ["sweep", path]),
			3,
			new RegExp(`part of the vmsweep disk ${disk}. Clean that disk instead: vmsweep clean`),
		);
	assertRefused(await run(vmsweep, ["map", `${disk}/first.log`]), 3, /first image of a vmsweep disk/);
	await runOk("rm", ["-r", disk]);
	await sweep(image);
});

test("storage that can't give space back is left as it is, and never filled with zeros", async (t) => {
	if (!requireTool(t, "mkntfs", "ntfs-3g", "fuse", "mke2fs", "root")) return;
	await using folder = await temporaryFolder();
	const [host, mount] = [folder.file("host"), folder.file("mount")];
	await runOk("truncate", ["-s", "300M", host]);
	await runOk("mkntfs", ["-q", "-F", "-f", host]);
	await using mounted = await FuseMount.mount("ntfs-3g", ["-o", "no_detach", host, mount]);
	const image = `${mount}/image.raw`;
	await runOk("truncate", ["-s", "100M", image]);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image]);
	const [before, contents] = [await allocatedBytes(image), await hashFile(image)];
	assertRefused(await run(vmsweep, ["sweep", image]), 3, /its storage can't give a part of it back.*vmsweep convert/);
	assert.deepEqual([await allocatedBytes(image), await hashFile(image)], [before, contents]);
	await mounted.unmount();
});

test("a data file in another folder is changed only where the user names it", async (t) => {
	if (!requireTool(t, "qemu-img", "mke2fs")) return;
	await using folder = await temporaryFolder();
	const [raw, image, elsewhere] = [folder.file("raw"), folder.file("image.qcow2"), folder.file("elsewhere")];
	await mkdir(elsewhere);
	await writeFile(raw, seededRandom(2).bytes(50 * MIB));
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-E", "nodiscard", raw]);
	const data = `${elsewhere}/data`;
	await runOk("qemu-img", ["convert", "-O", "qcow2", "-o", `data_file=${data}`, raw, image]);
	const before = await hashFile(data);
	assertRefused(await run(vmsweep, ["sweep", image]), 3, /has its data in another folder: .*--data-file/);
	assert.equal(await hashFile(data), before);
	const { droppedBytes } = await sweep(image, "--data-file", data);
	assert(droppedBytes > 20 * MIB, `${droppedBytes}`);
	assert((await allocatedBytes(data)) < 25 * MIB);
});
