// The guest map against e2fsprogs: every feature that mke2fs can switch on, free blocks compared one by one.

import assert from "node:assert/strict";
import { mkdir, open, truncate, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { differences, dumpFree, mapOf, mappedFree } from "./map-images.ts";

/** Name: arguments of mke2fs, then the size. */
const combinations: Readonly<Record<string, readonly string[]>> = {
	"ext4 as it comes": ["-t", "ext4", "300M"],
	"ext3 as it comes": ["-t", "ext3", "100M"],
	"ext2 as it comes": ["-t", "ext2", "100M"],
	"ext4 without journal": ["-t", "ext4", "-O", "^has_journal", "100M"],
	"revision 0": ["-t", "ext2", "-r", "0", "-O", "none", "50M"],
	"1 KiB blocks": ["-t", "ext4", "-b", "1024", "90M"],
	"2 KiB blocks": ["-t", "ext4", "-b", "2048", "200M"],
	"16 KiB blocks": ["-t", "ext4", "-b", "16384", "600M"],
	"64 KiB blocks": ["-t", "ext4", "-b", "65536", "3G"],
	"ext2, 1 KiB blocks": ["-t", "ext2", "-b", "1024", "90M"],
	"ext3, 1 KiB blocks, no resize_inode": ["-t", "ext3", "-b", "1024", "-O", "^resize_inode", "90M"],
	bigalloc: ["-t", "ext4", "-O", "bigalloc", "-C", "65536", "2G"],
	"bigalloc, 16 KiB clusters of 1 KiB blocks": ["-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384", "700M"],
	"bigalloc, 1 MiB clusters": ["-t", "ext4", "-O", "bigalloc,^resize_inode", "-C", "1048576", "9G"],
	"bigalloc, odd end": ["-t", "ext4", "-O", "bigalloc", "-C", "32768", "1234567k"],
	sparse_super2: ["-t", "ext4", "-O", "sparse_super2,^resize_inode", "2G"],
	"sparse_super2, no backups": ["-t", "ext4", "-O", "sparse_super2", "-E", "num_backup_sb=0", "1G"],
	"sparse_super2, one backup, resize_inode": ["-t", "ext4", "-O", "sparse_super2", "-E", "num_backup_sb=1", "1G"],
	"no sparse_super": ["-t", "ext4", "-O", "^sparse_super,^resize_inode", "2G"],
	meta_bg: ["-t", "ext4", "-O", "meta_bg,^resize_inode", "3G"],
	"meta_bg, 1 KiB blocks": ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "900M"],
	"meta_bg, bigalloc, 1 KiB blocks": [
		"-t",
		"ext4",
		"-b",
		"1024",
		"-O",
		"meta_bg,^resize_inode,bigalloc",
		"-C",
		"4096",
		"900M",
	],
	"meta_bg, no flex_bg, not 64bit": ["-t", "ext4", "-O", "meta_bg,^resize_inode,^flex_bg,^64bit", "3G"],
	"no flex_bg": ["-t", "ext4", "-O", "^flex_bg", "2G"],
	"flex_bg of 64": ["-t", "ext4", "-G", "64", "5G"],
	"not 64bit": ["-t", "ext4", "-O", "^64bit", "500M"],
	"uninit_bg instead of metadata_csum": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "500M"],
	"uninit_bg, 64bit": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg,64bit", "500M"],
	"uninit_bg, no flex_bg, not 64bit": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg,^flex_bg,^64bit", "2G"],
	"no checksums": ["-t", "ext4", "-O", "^metadata_csum,^uninit_bg", "500M"],
	"metadata_csum, not 64bit": ["-t", "ext4", "-O", "metadata_csum,^64bit", "500M"],
	metadata_csum_seed: ["-t", "ext4", "-O", "metadata_csum_seed", "500M"],
	orphan_file: ["-t", "ext4", "-O", "orphan_file", "500M"],
	fast_commit: ["-t", "ext4", "-O", "fast_commit", "500M"],
	"quota, project": ["-t", "ext4", "-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota", "500M"],
	"encrypt, casefold, verity": ["-t", "ext4", "-O", "encrypt,casefold,verity,stable_inodes", "500M"],
	"inline_data, ea_inode, large_dir": ["-t", "ext4", "-O", "inline_data,ea_inode,large_dir", "500M"],
	mmp: ["-t", "ext4", "-O", "mmp", "500M"],
	"journal with indirect blocks": ["-t", "ext3", "-J", "size=64", "500M"],
	"large journal": ["-t", "ext4", "-J", "size=256", "1G"],
	"small groups": ["-t", "ext4", "-g", "1024", "200M"],
	"odd size": ["-t", "ext4", "123457k"],
	"last group of few blocks": ["-t", "ext4", "-b", "1024", "16600k"],
	tiny: ["-t", "ext2", "-b", "1024", "-N", "16", "64k"],
	"tiny ext4": ["-t", "ext4", "400k"],
	"many inodes": ["-t", "ext4", "-N", "200000", "500M"],
	"few inodes": ["-t", "ext4", "-i", "4194304", "1G"],
	"inodes of 128 bytes": ["-t", "ext4", "-I", "128", "-O", "^metadata_csum", "200M"],
	"inodes of 1 KiB": ["-t", "ext4", "-I", "1024", "200M"],
	"lazy journal": ["-t", "ext4", "-E", "lazy_journal_init=1", "300M"],
	"resize up to 64 TiB": ["-t", "ext4", "-E", "resize=4194304000", "300M"],
	"no inode table yet": ["-t", "ext4", "-E", "lazy_itable_init=1", "3G"],
};

/** A folder with some files: many small ones, a large one, holes, directories. */
async function fillFolder(path: string): Promise<void> {
	const random = seededRandom(5);
	await mkdir(path);
	for (let i = 0; i < 12; i++) await writeFile(`${path}/small-${i}`, random.bytes(random.between(0, 9000)));
	await mkdir(`${path}/folder`);
	await writeFile(`${path}/folder/large`, random.bytes(random.between(30_000, 60_000)));
	await writeFile(`${path}/sparse`, "x");
	await truncate(`${path}/sparse`, 5_000_000);
}

async function compare(path: string): Promise<void> {
	const dumped = await dumpFree(path);
	const map = await mapOf(path);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null, `kept: ${volume.kept}`);
	assert.deepEqual(volume.warnings, []);
	assert.equal(volume.state, "clean");
	assert.deepEqual(differences(mappedFree(map, volume.id, dumped), dumped.free), { onlyMine: [], onlyTheirs: [] });
}

describe("free blocks equal dumpe2fs, block for block", () => {
	for (const [name, programArguments] of Object.entries(combinations))
		test(name, async (t) => {
			if (!requireTool(t, "mke2fs", "dumpe2fs", "debugfs")) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			const size = programArguments.at(-1)!;
			const contents = folder.file("contents");
			await fillFolder(contents);
			const tiny = size === "64k" || size === "400k";
			const options = [...programArguments.slice(0, -1), ...(tiny ? [] : ["-d", contents])];
			await runOk("truncate", ["-s", size.replace(/k$/, "K"), image]);
			await runOk("mke2fs", ["-q", "-F", ...options, image, size]);
			await compare(image);
			// Tools that open such a volume for writing first wait a minute for a sign of another host.
			if (tiny || name === "mmp") return;
			await runOk("debugfs", ["-w", "-R", "rm small-3", image]);
			await runOk("debugfs", ["-w", "-R", "rm folder/large", image]);
			await runOk("e2fsck", ["-fp", image]).catch(() => {}); // repairs counts that debugfs leaves behind
			await compare(image);
		});
});

describe("after tools have changed the layout", () => {
	const steps: Readonly<Record<string, readonly (readonly string[])[]>> = {
		grown: [
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "200M"],
			["truncate", "-s", "9G", "IMAGE"],
			["resize2fs", "IMAGE"],
		],
		"grown, 64bit off": [
			["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^64bit", "IMAGE", "200M"],
			["truncate", "-s", "3G", "IMAGE"],
			["resize2fs", "IMAGE"],
		],
		"grown past the reserved descriptors (meta_bg)": [
			["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^resize_inode", "IMAGE", "100M"],
			["truncate", "-s", "40G", "IMAGE"],
			["resize2fs", "IMAGE"],
		],
		shrunk: [
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "4G"],
			["resize2fs", "IMAGE", "1100M"],
		],
		"converted to 64bit": [
			["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^64bit", "IMAGE", "1G"],
			["resize2fs", "-b", "IMAGE"],
		],
		"converted from 64bit": [
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "1G"],
			["resize2fs", "-s", "IMAGE"],
		],
		"resize_inode taken away": [
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "1G"],
			["tune2fs", "-O", "^resize_inode", "IMAGE"],
			["e2fsck", "-fy", "IMAGE"],
		],
		"journal added": [
			["mke2fs", "-q", "-F", "-t", "ext2", "IMAGE", "500M"],
			["tune2fs", "-j", "IMAGE"],
		],
		"checksums added": [
			["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "IMAGE", "500M"],
			["tune2fs", "-O", "metadata_csum", "IMAGE"],
		],
		"UUID changed": [
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "500M"],
			["tune2fs", "-U", "random", "IMAGE"],
		],
		"quota added": [
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "500M"],
			["tune2fs", "-O", "quota", "IMAGE"],
		],
	};
	for (const [name, commands] of Object.entries(steps))
		test(name, async (t) => {
			if (!requireTool(t, "mke2fs", "dumpe2fs", "resize2fs", "tune2fs")) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			for (const [program, ...rest] of commands) {
				const { exitCode, stderr } = await run(
					program!,
					rest.map((word) => (word === "IMAGE" ? image : word)),
				);
				assert.ok(exitCode === 0 || (program === "e2fsck" && exitCode === 1), stderr);
			}
			await run("e2fsck", ["-fy", image]);
			await compare(image);
		});
});

describe("what cannot be believed is kept whole, with a reason", () => {
	const cases: Readonly<Record<string, readonly [RegExp, ...(readonly string[])[]]>> = {
		"journal on another device": [
			/another device/,
			["mke2fs", "-q", "-F", "-O", "journal_dev", "JOURNAL", "20M"],
			["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "IMAGE", "100M"],
			["debugfs", "-w", "-R", "ssv journal_inum 0", "IMAGE"],
		],
		"errors recorded": [
			/errors/,
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "100M"],
			["debugfs", "-w", "-R", "ssv state 3", "IMAGE"],
		],
		"ext2 still mounted": [
			/not unmounted cleanly/,
			["mke2fs", "-q", "-F", "-t", "ext2", "IMAGE", "100M"],
			["debugfs", "-w", "-R", "ssv state 0", "IMAGE"],
		],
		"unknown feature": [
			/unknown incompatible feature 0x800000/,
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "100M"],
			["debugfs", "-w", "-R", "feature FEATURE_I23", "IMAGE"],
		],
		"feature shared_blocks": [
			/shared_blocks/,
			["mke2fs", "-q", "-F", "-t", "ext4", "IMAGE", "100M"],
			["debugfs", "-w", "-R", "feature shared_blocks", "IMAGE"],
		],
	};
	for (const [name, [reason, ...commands]] of Object.entries(cases))
		test(name, async (t) => {
			if (!requireTool(t, "mke2fs", "debugfs")) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			for (const [program, ...rest] of commands)
				await runOk(
					program!,
					rest.map((word) => (word === "IMAGE" ? image : word === "JOURNAL" ? folder.file("journal") : word)),
				);
			const map = await mapOf(image);
			assert.match(map.volumes[0]!.kept ?? "not kept", reason);
			assert.deepEqual(
				[...map.extents].map(({ state }) => state),
				["unknown"],
			);
		});
});

test("a damaged bitmap, descriptor or superblock keeps the group or the volume", async (t) => {
	if (!requireTool(t, "mke2fs", "dumpe2fs")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "4096", image, "600M"]);
	const healthy = await mapOf(image);
	const bytes = Buffer.alloc(64 << 20);
	await using start = await open(image, "r");
	await start.read(bytes, 0, bytes.length, 0);
	const damage = async (at: number): Promise<Awaited<ReturnType<typeof mapOf>>> => {
		await using file = await open(image, "r+");
		await file.write(new Uint8Array([bytes[at]! ^ 0x10]), 0, 1, at);
		const map = await mapOf(image);
		await file.write(bytes, at, 1, at);
		return map;
	};
	const descriptor = await damage(4096 + 64 * 2 + 0xc);
	assert.match(descriptor.volumes[0]!.warnings.join(), /group 2 is kept whole: its descriptor's checksum/);
	const bitmapBlock = bytes.readUInt32LE(4096);
	const bitmap = await damage(bitmapBlock * 4096 + 3000);
	assert.match(bitmap.volumes[0]!.warnings.join(), /group 0 is kept whole: its block bitmap's checksum/);
	assert.ok(bitmap.volumes[0]!.freeBytes! < healthy.volumes[0]!.freeBytes!);
	const superblock = await damage(1024 + 0x20);
	assert.match(superblock.volumes[0]!.kept ?? "", /superblock's checksum/);
});
