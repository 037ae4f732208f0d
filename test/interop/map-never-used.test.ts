// What ext counts as used though nobody reads it: zeroed, the file system must be as good as before, for e2fsck and
// for a kernel that mounts it, takes those very inodes, and crashes.

import assert from "node:assert/strict";
import { copyFile, open, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, Mounted } from "../support/loop.ts";
import { run, runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { mapOf } from "./map-images.ts";

const TOOLS = ["root", "loop devices", "mke2fs", "e2fsck", "debugfs"] as const;

const neverUsed = (map: GuestMap): { start: number; length: number }[] =>
	[...map.extents].filter((extent) => extent.neverUsed === true);

async function zero(path: string, ranges: readonly { start: number; length: number }[]): Promise<void> {
	await using file = await open(path, "r+");
	for (const { start, length } of ranges) await file.write(Buffer.alloc(length), 0, length, start);
}

/** Names, modes, owners, times and inode numbers of all files, and their content. */
async function inventory(folder: string): Promise<string> {
	const facts = await runOk("find", [folder, "-printf", "%P %i %m %u %s %n %t %l\n"]);
	return [facts.split("\n").sort().join("\n"), ...(await hashesIn(folder))].join("\n");
}

async function mounted<T>(image: string, mount: string, options: string, use: () => Promise<T>): Promise<T> {
	await using at = await Mounted.mount(image, mount, options);
	const result = await use();
	await at.unmount();
	return result;
}

const script = (text: string, ...words: readonly string[]): Promise<string> =>
	runOk("bash", ["-ec", text, "script", ...words]);

describe("never used blocks of ext", () => {
	const variants: readonly { name: string; options: readonly string[]; tables: boolean; journal: boolean }[] = [
		{ name: "ext4", options: ["-t", "ext4", "-E", "lazy_itable_init=1"], tables: true, journal: true },
		{
			name: "ext4, tables zeroed by mke2fs",
			options: ["-t", "ext4", "-E", "lazy_itable_init=0"],
			tables: true,
			journal: true,
		},
		{ name: "ext4, uninit_bg", options: ["-t", "ext4", "-O", "^metadata_csum,uninit_bg"], tables: true, journal: true },
		{ name: "ext3", options: ["-t", "ext3"], tables: false, journal: true },
		{
			name: "ext4, blocks of 1 KiB, bigalloc",
			options: ["-t", "ext4", "-b1024", "-O", "bigalloc", "-C8192"],
			tables: true,
			journal: true,
		},
		{
			name: "ext4, meta_bg, no flex_bg, no journal",
			options: ["-t", "ext4", "-b1024", "-O", "meta_bg,^resize_inode,^flex_bg,^has_journal"],
			tables: true,
			journal: false,
		},
		{ name: "ext2", options: ["-t", "ext2"], tables: false, journal: false },
		{ name: "ext4, fast_commit", options: ["-t", "ext4", "-O", "fast_commit"], tables: true, journal: true },
	];
	for (const { name, options, tables, journal } of someOf(variants, 2))
		test(`${name}: zeroed, read again, filled, crashed`, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			await using folder = await temporaryFolder();
			const [image, mount] = [folder.file("image"), folder.file("mount")];
			await runOk("mke2fs", ["-q", "-F", ...options, "-N", "8192", image, "96M"]);
			const before = await mounted(image, mount, "loop,noinit_itable", async () => {
				// Three hundred files, of which every other one goes again, and something in every kind of inode.
				await script(
					'cd "$1"; mkdir d; for i in $(seq 300); do echo $i > d/$i; done; rm d/*[02468]; ln -s d link; mkfifo pipe; head -c 3000000 /dev/urandom > big; sync',
					mount,
				);
				return await inventory(mount);
			});
			const map = await mapOf(image);
			const [volume] = map.volumes;
			assert.equal(volume!.kept, null);
			const runs = neverUsed(map);
			const bytes = runs.reduce((sum, { length }) => sum + length, 0);
			assert.equal(volume!.neverUsedBytes ?? 0, bytes);
			if (!tables && !journal) return assert.equal(bytes, 0);
			const inodeBytes = 8192 * 256 * 0.9;
			const journalBytes = journal ? 3 << 20 : 0;
			assert.ok(bytes > (tables ? inodeBytes : 0) + journalBytes, `only ${bytes} bytes`);
			assert.ok(bytes < 8192 * 256 + (17 << 20), `${bytes} bytes`);

			const swept = folder.file("swept");
			await copyFile(image, swept);
			await zero(swept, runs);
			await runOk("e2fsck", ["-fn", swept]);
			assert.equal(await mounted(swept, mount, "loop,ro", () => inventory(mount)), before);

			// A kernel takes the inodes and the journal, and is cut off in the middle.
			const crashed = folder.file("crashed");
			const filled = await mounted(swept, mount, "loop", async () => {
				await script('cd "$1"; mkdir more; for i in $(seq 5000); do : > more/$i; done; sync', mount);
				await copyFile(swept, crashed);
				return await inventory(mount);
			});
			await runOk("e2fsck", ["-fn", swept]);
			const after = await mapOf(swept);
			if (tables) {
				const left = neverUsed(after).reduce((sum, { length }) => sum + length, 0);
				assert.ok(left < bytes - 4000 * 128, `${left} of ${bytes} bytes are still never used`);
			}
			if (!journal) return;
			assert.equal(neverUsed(await mapOf(crashed)).length, 0, "mounted: its journal and tables are in use");
			assert.ok(((await run("e2fsck", ["-fy", crashed])).exitCode ?? 8) <= 1);
			assert.equal(await mounted(crashed, mount, "loop,ro", () => inventory(mount)), filled);
		});

	test("negative control: one block more is missed", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image, "32M"]);
		const table = neverUsed(await mapOf(image)).find(({ length }) => length > 256 << 10)!;
		await zero(image, [{ start: table.start - 4096, length: 4096 }]);
		assert.notEqual((await run("e2fsck", ["-fn", image])).exitCode, 0);
	});

	test("a descriptor with a wrong checksum, and one that contradicts itself: nothing of its table", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		const tables = async (): Promise<number> =>
			neverUsed(await mapOf(image)).reduce((sum, { length }) => sum + length, 0);
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-b1024", image, "32M"]);
		const all = await tables();
		assert.ok(all > 1 << 20);
		const commands = folder.file("commands");
		await writeFile(commands, "set_bg 2 free_inodes_count 5\nset_bg 2 checksum calc\n");
		await runOk("debugfs", ["-w", "-f", commands, image]);
		const less = await tables();
		assert.ok(less < all && less > all / 2, `${less} of ${all}`);
		await runOk("debugfs", ["-w", "-R", "set_bg 2 checksum 0x1234", image]);
		assert.equal(await tables(), 0, "a wrong descriptor might claim what lies in another group's table");
	});
});
