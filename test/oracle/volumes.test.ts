// What must be kept, and what comes back, on disks that are cleaned while the host's own kernel uses them
// (live-safety 9.8, 9.9, 2.5).

import assert from "node:assert/strict";
import { closeSync, fsyncSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { btrfs, ext4, type FileSystemKind, makeFileSystem, ntfs, xfs } from "../support/file-system-kinds.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashBytes } from "../support/hashes.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1024 * 1024;

/** A served disk and its device. */
class Bench implements AsyncDisposable {
	readonly folder: TemporaryFolder;
	readonly server: SweepServer;
	readonly device: LoopDevice;
	constructor(folder: TemporaryFolder, server: SweepServer, device: LoopDevice) {
		this.folder = folder;
		this.server = server;
		this.device = device;
	}
	static async open(size = "512M"): Promise<Bench> {
		const folder = await temporaryFolder();
		await createDisk(folder.file("d"), { size });
		return await Bench.serve(folder);
	}
	/** Serves the disk `d` of the folder. */
	static async serve(folder: TemporaryFolder): Promise<Bench> {
		const server = await SweepServer.serve(folder.file("d"));
		return new Bench(folder, server, await LoopDevice.attach(server.uri, folder.file("fuse")));
	}
	mount(name = "mnt", device = this.device.path, kind = ext4): Promise<Mounted> {
		return Mounted.mount(device, this.folder.file(name), kind.mountOptions, kind.mountType);
	}
	async make(kind: FileSystemKind): Promise<void> {
		await makeFileSystem(kind, this.device.path);
	}
	/** What `sha256sum` says of all files, mounted once more, and read from the disk: what caches held is forgotten. */
	async filesAfresh(
		kind: FileSystemKind,
		{ name = "again", device = this.device.path, checks = false } = {},
	): Promise<string[]> {
		await runOk("blockdev", ["--flushbufs", device]);
		await dropCaches();
		const [checker, ...options] = kind.check;
		if (checks) await runOk(checker!, [...options, device]);
		await using again = await this.mount(name, device, kind);
		const hashes = await hashesIn(again.path);
		await again.unmount();
		return hashes;
	}
	/** Waits until the cleaner has looked at the disk this many times more. */
	async rounds(count: number): Promise<void> {
		await this.server.rounds(count);
	}
	async dropped(): Promise<number> {
		return (await this.server.status()).cleaner.droppedBytes;
	}
	/** Waits until that much was dropped; commits something in `folders` now and then, as a guest at work does. */
	async reachesDropped(bytes: number, ...folders: readonly string[]): Promise<void> {
		const meanwhile = async (): Promise<void> => {
			// XFS's rule wants many commits.
			for (let commit = 0; commit < 6; commit++)
				for (const folder of folders) await put(join(folder, "tick"), random.bytes(16));
		};
		const what = `${bytes} bytes to be dropped`;
		await this.server.reaches(({ cleaner }) => cleaner.droppedBytes >= bytes, what, { everyMs: 400, meanwhile });
	}
	async [Symbol.asyncDispose](): Promise<void> {
		await this.device[Symbol.asyncDispose]();
		await this.server[Symbol.asyncDispose]();
		await this.folder[Symbol.asyncDispose]();
	}
}

const dropCaches = (): Promise<void> => writeFile("/proc/sys/vm/drop_caches", "3\n");
const random = seededRandom(testSeed());

/** Writes a file, and makes it durable. */
async function put(path: string, bytes: Uint8Array): Promise<void> {
	await writeFile(path, bytes, { flush: true });
}

/** Deletes a file and lets the file system commit that. */
async function remove(path: string, folder: string): Promise<void> {
	await runOk("rm", [path]);
	await runOk("sync", ["-f", folder]);
}

for (const kind of [ext4, xfs])
	test(`${kind.name}: an open file without a name is kept while its neighbours go`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, ...kind.tools)) return;
		await using bench = await Bench.open();
		await bench.make(kind);
		await using mounted = await bench.mount("mnt", bench.device.path, kind);
		const bytes = random.bytes(20 * MIB);
		await put(join(mounted.path, "other"), random.bytes(40 * MIB));
		const fd = openSync(join(mounted.path, "nameless"), "wx+");
		try {
			writeSync(fd, bytes);
			fsyncSync(fd);
			unlinkSync(join(mounted.path, "nameless"));
			await remove(join(mounted.path, "other"), mounted.path);
			await bench.reachesDropped(40 * MIB, mounted.path);
			await bench.rounds(3);
			await dropCaches();
			const found = new Uint8Array(bytes.length);
			assert.equal(readSync(fd, found, 0, found.length, 0), found.length);
			assert.equal(hashBytes(found), hashBytes(bytes));
		} finally {
			closeSync(fd);
		}
		await bench.reachesDropped(60 * MIB, mounted.path);
		await mounted.unmount();
	});

/** Bytes of an image of a file system that was copied while it was mounted, after many commits. */
async function copiedWhileMounted(kind: FileSystemKind, size: number, folder: TemporaryFolder): Promise<Uint8Array> {
	const image = folder.file("image");
	await runOk("truncate", ["-s", String(size), image]);
	await makeFileSystem(kind, image);
	await using mounted = await Mounted.mount(image, folder.file("m"), `loop,${kind.mountOptions}`);
	for (let commit = 0; commit < 60; commit++) {
		await put(join(mounted.path, `f${commit}`), random.bytes(random.below(MIB)));
		if (commit % 3 === 0) await runOk("rm", [join(mounted.path, `f${random.below(commit + 1)}`), "-f"]);
	}
	await runOk("sync", ["-f", mounted.path]);
	await runOk("cp", ["--sparse=never", image, folder.file("copy")]);
	await mounted.unmount();
	return await readFile(folder.file("copy"));
}

for (const [kind, size] of [
	[ext4, 256 * MIB],
	[xfs, 320 * MIB],
] as const)
	test(`${kind.name}: an image of a mounted file system written over a live disk: nothing of it is dropped`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, ...kind.tools)) return;
		await using other = await temporaryFolder();
		const bytes = await copiedWhileMounted(kind, size, other);

		await using bench = await Bench.open(String(size));
		await bench.make(kind);
		{
			await using mounted = await bench.mount("mnt", bench.device.path, kind);
			await put(join(mounted.path, "old"), random.bytes(30 * MIB));
			await remove(join(mounted.path, "old"), mounted.path);
			await bench.reachesDropped(30 * MIB, mounted.path);
			await mounted.unmount();
		}
		await bench.rounds(3);
		// In random order, some of it twice, while the cleaner runs.
		const places = Array.from({ length: size / MIB }, (_, place) => ({ place, order: random.below(1e9) }));
		const fd = openSync(bench.device.path, "r+");
		try {
			for (const { place } of [...places, ...places.slice(0, 40)].sort((a, b) => a.order - b.order)) {
				writeSync(fd, bytes, place * MIB, MIB, place * MIB);
				if (place % 16 === 0) fsyncSync(fd);
			}
			fsyncSync(fd);
		} finally {
			closeSync(fd);
		}
		await bench.rounds(5);
		await runOk("nbdcopy", [bench.server.uri, other.file("back")]);
		assert.equal(hashBytes(await readFile(other.file("back"))), hashBytes(bytes), "blocks of the new image are gone");
		await dropCaches();
		await using mounted = await bench.mount("new", bench.device.path, kind);
		assert.ok((await hashesIn(mounted.path)).length > 20);
		await mounted.unmount();
	});

test("file systems made one over the other: what each of them holds stays right", async (t) => {
	const kinds = [ext4, xfs, btrfs, ntfs];
	if (!requireTool(t, ...LOOP_TOOLS, ...kinds.flatMap(({ tools }) => tools))) return;
	await using bench = await Bench.open();
	// Some of all pairs; test/soak/mkfs-over.soak.ts has all, of more kinds.
	const order = [ext4, xfs, btrfs, ext4, ntfs, xfs, ext4];
	for (const [step, kind] of order.entries()) {
		await bench.make(kind);
		let before: string[];
		{
			await using mounted = await bench.mount(`m${step}`, bench.device.path, kind);
			for (let file = 0; file < 24; file++)
				await put(join(mounted.path, `f${file}`), random.bytes(random.below(2 * MIB)));
			for (let file = 0; file < 24; file += 2) await runOk("rm", [join(mounted.path, `f${file}`)]);
			await runOk("sync", ["-f", mounted.path]);
			before = await hashesIn(mounted.path);
			await bench.rounds(2);
			await mounted.unmount();
		}
		await bench.rounds(2);
		assert.deepEqual(await bench.filesAfresh(kind, { name: `again${step}` }), before, `step ${step}: ${kind.name}`);
	}
	assert.ok((await bench.dropped()) > 0, "nothing was dropped: the test is blind");
});

describe("without a journal: kept while mounted, dropped after a clean unmount", () => {
	const kinds = { ext2: ["-t", "ext2"], "ext4 without journal": ["-t", "ext4", "-O", "^has_journal"] };
	for (const [name, mkfs] of Object.entries(kinds))
		test(name, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS)) return;
			await using bench = await Bench.open();
			await runOk("mke2fs", ["-q", "-F", ...mkfs, bench.device.path]);
			await using mounted = await Mounted.mount(bench.device.path, bench.folder.file("mnt"));
			await bench.rounds(3);
			const before = await bench.dropped();
			await put(join(mounted.path, "kept"), random.bytes(5 * MIB));
			await put(join(mounted.path, "big"), random.bytes(60 * MIB));
			const hashes = (await hashesIn(mounted.path)).filter((line) => line.endsWith("kept"));
			await remove(join(mounted.path, "big"), mounted.path);
			await bench.rounds(5);
			assert.equal(await bench.dropped(), before, "dropped while mounted");
			await mounted.unmount();
			await bench.reachesDropped(before + 60 * MIB);
			await dropCaches();
			await using again = await bench
				.mount("again")
				.catch(() => Mounted.mount(bench.device.path, bench.folder.file("again")));
			assert.deepEqual(
				(await hashesIn(again.path)).filter((line) => line.endsWith("kept")),
				hashes,
			);
			await again.unmount();
		});
});

describe("partitions", () => {
	for (const label of ["gpt", "dos"] as const)
		test(`two volumes on a ${label} disk`, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, "sfdisk")) return;
			await using bench = await Bench.open("768M");
			await runOk("sfdisk", ["-q", "--no-reread", bench.device.path], {
				input: `label: ${label}\n1M,320M\n321M,400M\n`,
			});
			await using partOne = await bench.device.part(MIB, 320 * MIB);
			await using partTwo = await bench.device.part(321 * MIB, 400 * MIB);
			const [one, two] = [partOne.path, partTwo.path];
			for (const part of [one, two]) await runOk("mke2fs", ["-q", "-F", "-t", "ext4", part]);
			await using first = await bench.mount("one", one);
			await using second = await bench.mount("two", two);
			for (const { path } of [first, second]) {
				await put(join(path, "kept"), random.bytes(8 * MIB));
				await put(join(path, "big"), random.bytes(40 * MIB));
			}
			const before = await bench.dropped();
			const hashes = await Promise.all([hashesIn(first.path), hashesIn(second.path)]);
			for (const { path } of [first, second]) await remove(join(path, "big"), path);
			await bench.reachesDropped(before + 80 * MIB, first.path, second.path);
			await dropCaches();
			const now = await Promise.all([hashesIn(first.path), hashesIn(second.path)]);
			const kept = (lists: string[][]): string[] => lists.flat().filter((line) => line.endsWith("kept"));
			assert.deepEqual(kept(now), kept(hashes));
			for (const mounted of [first, second]) await mounted.unmount();
			for (const part of [one, two]) await runOk("e2fsck", ["-fn", part]);
		});
});

test("a partition table rewritten while its first volume is in use", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools, "sfdisk")) return;
	await using bench = await Bench.open("1100M");
	const divide = (table: string): Promise<string> =>
		runOk("sfdisk", ["-q", "--no-reread", "--no-tell-kernel", "--force", "--wipe", "never", bench.device.path], {
			input: `label: gpt\n${table}`,
		});
	await divide("1M,320M\n321M,700M\n");
	await using one = await bench.device.part(MIB, 320 * MIB);
	await makeFileSystem(ext4, one.path);
	await using first = await bench.mount("one", one.path);
	await put(join(first.path, "kept"), random.bytes(8 * MIB));
	{
		await using two = await bench.device.part(321 * MIB, 700 * MIB);
		await makeFileSystem(xfs, two.path);
		await using second = await bench.mount("two", two.path, xfs);
		await put(join(second.path, "big"), random.bytes(60 * MIB));
		await remove(join(second.path, "big"), second.path);
		await bench.rounds(2);
		await second.unmount();
	}
	// The second one becomes two others, which begin elsewhere and lie where it had its free space.
	await divide("1M,320M\n321M,330M\n651M,400M\n");
	await using two = await bench.device.part(321 * MIB, 330 * MIB);
	await using three = await bench.device.part(651 * MIB, 400 * MIB);
	await makeFileSystem(ext4, two.path);
	await makeFileSystem(xfs, three.path);
	const kinds = [ext4, ext4, xfs];
	const parts = [one, two, three];
	await using second = await bench.mount("second", two.path);
	await using third = await bench.mount("third", three.path, xfs);
	const mounts = [first, second, third];
	for (const { path } of mounts) {
		for (let file = 0; file < 20; file++) await put(join(path, `f${file}`), random.bytes(random.below(3 * MIB)));
		for (let file = 0; file < 20; file += 2) await runOk("rm", [join(path, `f${file}`)]);
	}
	const before = await Promise.all(mounts.map(({ path }) => hashesIn(path)));
	await bench.rounds(4);
	for (const mounted of mounts) await mounted.unmount();
	await bench.rounds(3);
	for (const [index, { path: device }] of parts.entries()) {
		const files = await bench.filesAfresh(kinds[index]!, { name: `again${index}`, device });
		assert.deepEqual(files, before[index], `partition ${index + 1}`);
	}
	assert.ok((await bench.dropped()) > 0, "nothing was dropped: the test is blind");
});

test("xfs: found before mkfs.xfs is done with it, and followed from then on", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools)) return;
	const folder = await temporaryFolder();
	const image = folder.file("image");
	await runOk("truncate", ["-s", "512M", image]);
	await makeFileSystem(xfs, image);
	const setInProgress = (device: string, value: 0 | 1): Promise<string> =>
		runOk("xfs_db", ["-x", "-c", "sb 0", "-c", `write -d inprogress ${value}`, device]);
	await setInProgress(image, 1);
	await createDisk(folder.file("d"), { second: image });
	await using bench = await Bench.serve(folder);
	const seen = async () => (await bench.server.status()).volumes[0]!;
	await waitUntil(async () => /has not finished making it/.test((await seen()).reason ?? ""), "the volume to be kept");
	assert.equal((await seen()).waitsFor, "repair");
	// As mkfs.xfs ends: with one write to the superblock.
	await setInProgress(bench.device.path, 0);
	await using mounted = await bench.mount("mnt", bench.device.path, xfs);
	await put(join(mounted.path, "kept"), random.bytes(8 * MIB));
	await put(join(mounted.path, "big"), random.bytes(40 * MIB));
	const hashes = (await hashesIn(mounted.path)).filter((line) => line.endsWith("kept"));
	await remove(join(mounted.path, "big"), mounted.path);
	await bench.reachesDropped(40 * MIB, mounted.path);
	await mounted.unmount();
	const files = await bench.filesAfresh(xfs, { checks: true });
	assert.deepEqual(
		files.filter((line) => line.endsWith("kept")),
		hashes,
	);
});

test("xfs: grows while it is in use", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools, "xfs_growfs")) return;
	await using bench = await Bench.open("1G");
	await runOk("mkfs.xfs", ["-q", "-f", "-d", "size=320m", bench.device.path]);
	await using mounted = await bench.mount("mnt", bench.device.path, xfs);
	const fill = async (from: number): Promise<void> => {
		for (let file = from; file < from + 24; file++)
			await put(join(mounted.path, `f${file}`), random.bytes(random.below(6 * MIB)));
		for (let file = from; file < from + 24; file += 2) await runOk("rm", [join(mounted.path, `f${file}`)]);
		await runOk("sync", ["-f", mounted.path]);
	};
	await fill(0);
	await bench.rounds(2);
	await runOk("xfs_growfs", [mounted.path]);
	await fill(100);
	await put(join(mounted.path, "big"), random.bytes(300 * MIB));
	const before = await bench.dropped();
	const hashes = (await hashesIn(mounted.path)).filter((line) => !line.endsWith("big"));
	await remove(join(mounted.path, "big"), mounted.path);
	await bench.reachesDropped(before + 300 * MIB, mounted.path);
	await mounted.unmount();
	const files = await bench.filesAfresh(xfs, { checks: true });
	assert.deepEqual(
		files.filter((line) => !line.endsWith("tick")),
		hashes,
	);
});
