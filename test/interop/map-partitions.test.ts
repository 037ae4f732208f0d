// Partition tables as sgdisk and sfdisk make them, with real file systems in the partitions.

import assert from "node:assert/strict";
import { open } from "node:fs/promises";
import { describe, test } from "node:test";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { differences, dumpFree, mapOf, mappedFree } from "./map-images.ts";

const MIB = 1 << 20;

/** Id, start and size in MiB, type and whether it is kept, of every volume. */
const summary = (map: GuestMap): unknown[] =>
	map.volumes.map(({ id, offset, size, type, kept }) => [
		id,
		offset / MIB,
		size / MIB,
		type,
		kept === null ? "read" : "kept",
	]);

async function writeAt(path: string, at: number, bytes: Uint8Array): Promise<void> {
	await using file = await open(path, "r+");
	await file.write(bytes, 0, bytes.length, at);
}

/** Makes ext4 in a file, compares it there, and copies it to its place on the disk. */
async function putExt4(disk: string, scratch: string, offset: number, size: string): Promise<void> {
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", scratch, size]);
	await runOk("dd", [`if=${scratch}`, `of=${disk}`, "bs=1M", `seek=${offset / MIB}`, "conv=notrunc,sparse"]);
}

async function expectSameFree(disk: string, scratch: string, id: string): Promise<GuestMap> {
	const dumped = await dumpFree(scratch);
	const map = await mapOf(disk);
	assert.deepEqual(differences(mappedFree(map, id, dumped), dumped.free), { onlyMine: [], onlyTheirs: [] });
	return map;
}

async function gptDisk(folder: { file(name: string): string }): Promise<{ disk: string; scratch: string }> {
	const [disk, scratch] = [folder.file("disk"), folder.file("scratch")];
	await runOk("truncate", ["-s", "500M", disk]);
	await runOk("sgdisk", ["-o", "-n", "1:2048:+100M", "-n", "3:206848:+200M", "-c", "3:data", "-n", "2:-50M:0", disk]);
	await putExt4(disk, scratch, 101 * MIB, "200M");
	return { disk, scratch };
}

describe("GPT", () => {
	test("partitions are found with the kernel's numbers", async (t) => {
		if (!requireTool(t, "sgdisk", "mke2fs", "dumpe2fs")) return;
		await using folder = await temporaryFolder();
		const { disk, scratch } = await gptDisk(folder);
		const map = await expectSameFree(disk, scratch, "p3");
		assert.equal(map.table, "gpt");
		assert.deepEqual(map.warnings, []);
		assert.deepEqual(
			summary(map),
			[
				["p1", 1, 100, "unknown", "kept"],
				["p2", 450, 49.98388671875, "unknown", "kept"],
				["p3", 101, 200, "ext4", "read"],
			].map((row) =>
				row[0] === "p2" ? [row[0], map.volumes[1]!.offset / MIB, map.volumes[1]!.size / MIB, row[3], row[4]] : row,
			),
		);
	});

	test("the copy is used where the first header is damaged; with both damaged all is kept", async (t) => {
		if (!requireTool(t, "sgdisk", "mke2fs", "dumpe2fs")) return;
		await using folder = await temporaryFolder();
		const { disk, scratch } = await gptDisk(folder);
		await writeAt(disk, 512 + 0x38, new Uint8Array([1, 2, 3]));
		const map = await expectSameFree(disk, scratch, "p3");
		assert.match(map.warnings.join(), /its copy at the disk's end is used/);
		await writeAt(disk, 500 * MIB - 512 + 0x38, new Uint8Array([1, 2, 3]));
		const lost = await mapOf(disk);
		assert.deepEqual(summary(lost), [["disk", 0, 500, "unknown", "kept"]]);
		assert.match(lost.volumes[0]!.kept!, /no valid GPT/);
	});

	test("a damaged entry makes the copy count", async (t) => {
		if (!requireTool(t, "sgdisk", "mke2fs", "dumpe2fs")) return;
		await using folder = await temporaryFolder();
		const { disk, scratch } = await gptDisk(folder);
		await writeAt(disk, 1024 + 2 * 128 + 0x20, new Uint8Array([9]));
		assert.match((await expectSameFree(disk, scratch, "p3")).warnings.join(), /checksum of the entries/);
	});

	test("a disk that grew has its copy in the middle", async (t) => {
		if (!requireTool(t, "sgdisk", "mke2fs", "dumpe2fs")) return;
		await using folder = await temporaryFolder();
		const { disk, scratch } = await gptDisk(folder);
		await runOk("truncate", ["-s", "700M", disk]);
		assert.deepEqual((await expectSameFree(disk, scratch, "p3")).warnings, []);
	});

	test("sectors of 4096 bytes", async (t) => {
		if (!requireTool(t, "root", "loop devices", "sfdisk", "mke2fs", "dumpe2fs")) return;
		await using folder = await temporaryFolder();
		const [disk, scratch] = [folder.file("disk"), folder.file("scratch")];
		await runOk("truncate", ["-s", "500M", disk]);
		const device = (await runOk("losetup", ["-f", "--show", "-b", "4096", disk])).trim();
		try {
			await runOk("sfdisk", ["-q", "--no-reread", device], {
				input: "label: gpt\nstart=256,size=25600\nstart=25856,size=51200\n",
			});
		} finally {
			await runOk("losetup", ["-d", device]);
		}
		await putExt4(disk, scratch, 101 * MIB, "200M");
		const map = await expectSameFree(disk, scratch, "p2");
		assert.deepEqual(summary(map), [
			["p1", 1, 100, "unknown", "kept"],
			["p2", 101, 200, "ext4", "read"],
		]);
	});
});

describe("MBR", () => {
	test("primary, extended and logical partitions", async (t) => {
		if (!requireTool(t, "sfdisk", "mke2fs", "dumpe2fs")) return;
		await using folder = await temporaryFolder();
		const [disk, scratch] = [folder.file("disk"), folder.file("scratch")];
		await runOk("truncate", ["-s", "600M", disk]);
		const M = 2048;
		const table = `label: dos\n1: start=${M},size=${50 * M},type=83\n2: start=${60 * M},size=${500 * M},type=5\n5: start=${61 * M},size=${50 * M},type=83\n6: start=${120 * M},size=${200 * M},type=83\n7: start=${330 * M},size=${100 * M},type=82\n`;
		await runOk("sfdisk", ["-q", disk], { input: table });
		await putExt4(disk, scratch, 120 * MIB, "200M");
		const map = await expectSameFree(disk, scratch, "p6");
		assert.equal(map.table, "mbr");
		assert.deepEqual(summary(map), [
			["p1", 1, 50, "unknown", "kept"],
			["p5", 61, 50, "unknown", "kept"],
			["p6", 120, 200, "ext4", "read"],
			["p7", 330, 100, "unknown", "kept"],
		]);
	});

	test("what mkfs.fat writes into its own boot sector divides nothing; half a disk is no such pretence", async (t) => {
		if (!requireTool(t, "mkfs.fat")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "100M", disk]);
		await runOk("mkfs.fat", ["-F", "32", "--mbr=yes", disk]);
		const entry = Buffer.alloc(16);
		{
			await using file = await open(disk);
			await file.read(entry, 0, entry.length, 0x1be);
		}
		assert.equal(entry.readUInt32LE(8), 0, "it begins with the disk");
		const sectors = (100 * MIB) / 512;
		assert.equal(entry.readUInt32LE(12), sectors);
		assert.deepEqual(summary(await mapOf(disk)), [["disk", 0, 100, "vfat", "read"]]);
		const withSectors = async (count: number): Promise<void> => {
			entry.writeUInt32LE(count, 12);
			await writeAt(disk, 0x1be, entry);
		};
		// As on a disk that shows tracks of 63 sectors.
		await withSectors(sectors - (sectors % 63));
		assert.deepEqual(summary(await mapOf(disk)), [["disk", 0, 100, "vfat", "read"]]);
		await withSectors(sectors / 2);
		assert.deepEqual(summary(await mapOf(disk)), [["p1", 0, 50, "unknown", "kept"]]);
	});

	test("a chain that bites its tail ends, with a warning", async (t) => {
		if (!requireTool(t, "sfdisk")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "200M", disk]);
		await runOk("sfdisk", ["-q", disk], {
			input:
				"label: dos\n2: start=2048,size=300000,type=5\n5: start=4096,size=4096,type=83\n6: start=12288,size=4096,type=83\n",
		});
		const link = Buffer.alloc(16);
		link[4] = 5;
		link.writeUInt32LE(0, 8);
		link.writeUInt32LE(300000, 12);
		await writeAt(disk, 2048 * 512 + 0x1ce, link);
		const map = await mapOf(disk);
		assert.match(map.warnings.join(), /comes back to sector 2048/);
		assert.deepEqual(
			map.volumes.map(({ id }) => id),
			["p5"],
		);
	});

	test("overlapping partitions, and one past the disk's end, are kept whole", async (t) => {
		if (!requireTool(t, "sfdisk", "mke2fs")) return;
		await using folder = await temporaryFolder();
		const [disk, scratch] = [folder.file("disk"), folder.file("scratch")];
		await runOk("truncate", ["-s", "600M", disk]);
		await runOk("sfdisk", ["-q", disk], {
			input:
				"label: dos\nstart=2048,size=409600,type=83\nstart=411648,size=409600,type=83\nstart=821248,size=204800,type=83\n",
		});
		await putExt4(disk, scratch, MIB, "200M");
		assert.deepEqual(summary(await mapOf(disk))[0], ["p1", 1, 200, "ext4", "read"]);
		const start = Buffer.alloc(4);
		start.writeUInt32LE(400000);
		await writeAt(disk, 0x1be + 16 + 8, start);
		await runOk("truncate", ["-s", "450M", disk]);
		const map = await mapOf(disk);
		assert.match(map.volumes[0]!.kept!, /overlaps p2/);
		assert.match(map.volumes[1]!.kept!, /overlaps p1/);
		assert.match(map.volumes[2]!.kept!, /past the end of the disk/);
		assert.ok([...map.extents].every(({ state }) => state === "unknown"));
	});
});

test("a partition whose type names another owner is kept, whatever lies in it", async (t) => {
	if (!requireTool(t, "sgdisk", "sfdisk", "mke2fs")) return;
	await using folder = await temporaryFolder();
	const { disk } = await gptDisk(folder);
	const keptOn = async (): Promise<readonly (string | null)[]> => {
		const { volumes } = await mapOf(disk);
		return volumes.filter(({ offset }) => offset === 101 * MIB).map(({ kept }) => kept);
	};
	assert.deepEqual(await keptOn(), [null]);
	await runOk("sgdisk", ["-t", "3:AF9B60A0-1431-4F62-BC68-3311714A69AD", disk]);
	assert.match((await keptOn())[0]!, /belongs to a Windows dynamic disk, whose volumes are not read/);
	await runOk("sgdisk", ["-Z", disk]);
	for (const [type, owner] of [
		["42", "a Windows dynamic disk"],
		["a5", "FreeBSD"],
		["83", null],
	] as const) {
		await runOk("sfdisk", ["-q", "--no-tell-kernel", disk], {
			input: `label: dos\nstart=${101 * 2048}, size=${200 * 2048}, type=${type}\n`,
		});
		const [kept] = await keptOn();
		if (owner === null) assert.equal(kept, null);
		else assert.match(kept!, new RegExp(`belongs to ${owner}`));
	}
});

describe("two owners of one volume", () => {
	const owners: Readonly<Record<string, readonly [number, string]>> = {
		xfs: [0, "XFSB"],
		luks: [0, "LUKS\xba\xbe"],
		"lvm-pv": [512, "LABELONE"],
		ntfs: [3, "NTFS    "],
		swap: [4086, "SWAPSPACE2"],
		btrfs: [0x10040, "_BHRfS_M"],
	};
	for (const [name, [at, text]] of Object.entries(owners))
		test(`ext4 and ${name}: kept whole`, async (t) => {
			if (!requireTool(t, "mke2fs")) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await runOk("mke2fs", ["-q", "-F", "-t", "ext4", image, "100M"]);
			await writeAt(image, at, Buffer.from(text, "latin1"));
			const map = await mapOf(image);
			assert.match(map.volumes[0]!.kept!, new RegExp(`marks of .*${name}`));
			assert.deepEqual(
				[...map.extents].map(({ state }) => state),
				["unknown"],
			);
		});

	test("a file system straight on a partitioned disk: kept whole", async (t) => {
		if (!requireTool(t, "mke2fs", "sfdisk")) return;
		await using folder = await temporaryFolder();
		const [disk, scratch] = [folder.file("disk"), folder.file("scratch")];
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", disk, "300M"]);
		await runOk("sfdisk", ["-q", "--wipe", "never", disk], { input: "label: dos\nstart=2048,size=409600,type=83\n" });
		await putExt4(disk, scratch, MIB, "200M");
		assert.match((await mapOf(disk)).volumes[0]!.kept!, /marks of ext2\/3\/4 outside its partitions/);
	});
});
