// What must be kept, and what comes back, on disks that are cleaned while the host's own kernel uses them
// (live-safety 9.8, 9.9, 2.5).

import assert from "node:assert/strict";
import { closeSync, fsyncSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashBytes } from "../support/hashes.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk } from "../support/processes.ts";
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
		const server = await SweepServer.serve(folder.file("d"));
		return new Bench(folder, server, await LoopDevice.attach(server.uri, folder.file("fuse")));
	}
	mount(name = "mnt", device = this.device.path): Promise<Mounted> {
		return Mounted.mount(device, this.folder.file(name), "commit=1");
	}
	/** Waits until the cleaner has looked at the disk this many times more. */
	async rounds(count: number): Promise<void> {
		const { cleaner } = await this.server.status();
		await this.server.reaches((now) => now.cleaner.rounds >= cleaner.rounds + count, `${count} rounds`);
	}
	async dropped(): Promise<number> {
		return (await this.server.status()).cleaner.droppedBytes;
	}
	/** Waits until that much was dropped; commits something in `folders` now and then, as a guest at work does. */
	async reachesDropped(bytes: number, ...folders: readonly string[]): Promise<void> {
		const enough = async (): Promise<boolean> => {
			for (const folder of folders) await put(join(folder, "tick"), random.bytes(16));
			return (await this.dropped()) >= bytes;
		};
		const shown = async (): Promise<string> => JSON.stringify(await this.server.status());
		await waitUntil(enough, `${bytes} bytes to be dropped`, { timeoutSeconds: 60, everyMs: 400 }).catch(
			async (error) => {
				throw new Error(`${String(error)}: ${await shown()}`);
			},
		);
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

test("an open file without a name is kept while its neighbours go", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS)) return;
	await using bench = await Bench.open();
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", bench.device.path]);
	await using mounted = await bench.mount();
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

test("an image of a mounted file system written over a live disk: nothing of it is dropped", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS)) return;
	await using other = await temporaryFolder();
	const image = other.file("image");
	await runOk("truncate", ["-s", "256M", image]);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image]);
	{
		// Many transactions, so that its journal is far ahead; copied while mounted.
		await using mounted = await Mounted.mount(image, other.file("m"), "loop,commit=1");
		for (let commit = 0; commit < 60; commit++) {
			await put(join(mounted.path, `f${commit}`), random.bytes(random.below(MIB)));
			if (commit % 3 === 0) await runOk("rm", [join(mounted.path, `f${random.below(commit + 1)}`), "-f"]);
		}
		await runOk("sync", ["-f", mounted.path]);
		await runOk("cp", ["--sparse=never", image, other.file("copy")]);
		await mounted.unmount();
	}
	const bytes = await readFile(other.file("copy"));

	await using bench = await Bench.open("256M");
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", bench.device.path]);
	{
		await using mounted = await bench.mount();
		await put(join(mounted.path, "old"), random.bytes(30 * MIB));
		await remove(join(mounted.path, "old"), mounted.path);
		await bench.reachesDropped(30 * MIB, mounted.path);
		await mounted.unmount();
	}
	await bench.rounds(3);
	// In random order, some of it twice, while the cleaner runs.
	const places = Array.from({ length: 256 }, (_, place) => ({ place, order: random.below(1e9) }));
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
	await using mounted = await bench.mount("new");
	assert.ok((await hashesIn(mounted.path)).length > 20);
	await mounted.unmount();
});

describe("another file system made over ext4 is kept", () => {
	for (const [type, force] of [
		["xfs", "-f"],
		["btrfs", "-f"],
	] as const)
		test(type, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, `mkfs.${type}`)) return;
			await using bench = await Bench.open();
			await runOk("mke2fs", ["-q", "-F", "-t", "ext4", bench.device.path]);
			{
				await using mounted = await bench.mount();
				await put(join(mounted.path, "old"), random.bytes(30 * MIB));
				await remove(join(mounted.path, "old"), mounted.path);
				await bench.reachesDropped(30 * MIB, mounted.path);
				await mounted.unmount();
			}
			await bench.rounds(3);
			await runOk(`mkfs.${type}`, [force, bench.device.path]);
			const path = bench.folder.file("new");
			await runOk("mkdir", [path]);
			if ((await run("mount", [bench.device.path, path])).exitCode !== 0) return t.skip(`this kernel has no ${type}`);
			await using mounted = await Mounted.adopt(path);
			for (let file = 0; file < 20; file++) await put(join(path, `f${file}`), random.bytes(random.below(4 * MIB)));
			const before = await hashesIn(path);
			const dropped = await bench.dropped();
			await bench.rounds(4);
			assert.equal(await bench.dropped(), dropped);
			await mounted.unmount();
			await bench.rounds(4);
			await dropCaches();
			await runOk("mount", [bench.device.path, path]);
			assert.deepEqual(await hashesIn(path), before);
			await mounted.unmount();
		});
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
			const folder = await temporaryFolder();
			await createDisk(folder.file("d"), { size: "768M" });
			const server = await SweepServer.serve(folder.file("d"));
			await using bench = new Bench(folder, server, await LoopDevice.attach(server.uri, folder.file("fuse")));
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
