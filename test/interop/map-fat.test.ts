// FAT12, FAT16 and FAT32: free clusters equal the table as a plain loop reads it, its sum fsck.fat's and (in a soak) each
// byte partclone's, on volumes that mkfs.fat made and mtools worked on; what is dirty or contradicts itself is kept;
// and garbage in all that is free changes no file.

import assert from "node:assert/strict";
import { copyFile, mkdir, open, readFile, rm, truncate } from "node:fs/promises";
import { describe, test } from "node:test";
import { viewOf } from "../../src/foundations/struct.ts";
import { isThorough, someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashTree } from "../support/hashes.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import type { Reference } from "./map-clusters.ts";
import { expectNothingUsedIsFree, expectSameFree, mapVolume, scrambleFree, workOn } from "./map-clusters.ts";

const TOOLS = ["mkfs.fat", "fsck.fat", "mcopy", "mdel"] as const;

/** Size and options of mkfs.fat. */
const variants: Readonly<Record<string, { size: string; options: readonly string[] }>> = {
	"FAT12, a floppy": { size: "1440K", options: ["-F", "12", "-n", "FLOPPY"] },
	"FAT12, one cluster per sector": { size: "2M", options: ["-F", "12", "-s", "1"] },
	"FAT12, one FAT": { size: "8M", options: ["-F", "12", "-f", "1"] },
	"FAT12, 4 KiB clusters": { size: "15M", options: ["-F", "12", "-s", "8"] },
	"FAT16, 512-byte clusters": { size: "30M", options: ["-F", "16", "-s", "1"] },
	"FAT16, sectors of 2 KiB": { size: "100M", options: ["-F", "16", "-S", "2048", "-s", "2"] },
	"FAT16 as it comes": { size: "20M", options: ["-F", "16", "-n", "Some LABEL"] },
	"FAT16, 64 KiB clusters": { size: "280M", options: ["-F", "16", "-s", "128"] },
	"FAT32 as it comes": { size: "280M", options: ["-F", "32"] },
	"FAT32, 512-byte clusters": { size: "40M", options: ["-F", "32", "-s", "1", "-n", "BOOT"] },
	"FAT32, 4 KiB sectors": { size: "300M", options: ["-F", "32", "-S", "4096"] },
	"FAT32, odd size": { size: "71235K", options: ["-F", "32", "-s", "2"] },
	"FAT32, one FAT, not aligned": { size: "51234K", options: ["-F", "32", "-f", "1", "-a", "-R", "77", "-s", "1"] },
};

async function make(image: string, { size, options }: { size: string; options: readonly string[] }): Promise<void> {
	await rm(image, { force: true });
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkfs.fat", [...options, image]);
}

/** The first FAT, entry by entry, and what fsck.fat counts. */
async function decoded(image: string): Promise<Reference> {
	const said = (await run("fsck.fat", ["-n", "-v", image])).stdout;
	const number = (pattern: RegExp): number => Number(pattern.exec(said)![1]);
	const bits = number(/, (\d+) bit entries/);
	const fatAt = number(/First FAT starts at byte (\d+)/);
	const clusterSize = number(/(\d+) bytes per cluster/);
	const raw = await readFile(image);
	const free = new Uint8Array(number(/(\d+) data clusters/));
	for (let cluster = 0; cluster < free.length; cluster++) {
		const at = fatAt + Math.floor(((cluster + 2) * bits) / 8);
		let value = raw.readUInt16LE(at);
		if (bits === 32) value = raw.readUInt32LE(at) % 2 ** 28;
		else if (bits === 12) value = cluster % 2 === 0 ? value % 4096 : value >> 4;
		if (value === 0) free[cluster] = 1;
	}
	assert.equal(free.length - free.reduce((sum, bit) => sum + bit, 0), number(/files, (\d+)\/\d+ clusters/));
	return { base: number(/Data area starts at byte (\d+)/), clusterSize, free };
}

/** All files of the image, unpacked to a folder and hashed. */
async function filesIn(image: string, folder: string): Promise<Record<string, string>> {
	await mkdir(folder);
	await runOk("mcopy", ["-s", "-Q", "-n", "-i", image, "::/", folder]);
	return await hashTree(folder);
}

describe("free clusters equal the table, and garbage in them changes no file", () => {
	for (const [name, variant] of someOf(Object.entries(variants), 3))
		test(name, async (t) => {
			if (!requireTool(t, ...TOOLS, ...(isThorough ? ["partclone.fat"] : []))) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			const random = seededRandom(seed);
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await make(image, variant);
			expectSameFree(await mapVolume(image), await decoded(image));

			const content = folder.file("content");
			await mkdir(content);
			const size = name.includes("floppy") ? 30_000 : 200_000;
			for (const round of [1, 2, 3]) {
				await workOn(content, random, 40, size);
				// Full disks are welcome.
				await run("mcopy", ["-s", "-Q", "-o", "-i", image, content, `::/round ${round}`]);
				await run("mdel", ["-i", image, `::/round ${round}/file with a name ?`, `::/round ${round - 1}/*${round}`]);
			}
			const map = await mapVolume(image);
			expectSameFree(map, await decoded(image));
			if (isThorough && !name.startsWith("FAT12")) await expectNothingUsedIsFree(map, "partclone.fat", image, folder);
			const { type, uuid, label, freeBytes } = map.volumes[0]!;
			assert.equal(type, "vfat");
			const known = await runOk("blkid", ["-p", image]);
			assert.equal(/ UUID="([^"]*)"/.exec(known)?.[1], uuid);
			assert.equal(/ LABEL="([^"]*)"/.exec(known)?.[1] ?? null, label);

			const files = await filesIn(image, folder.file("before"));
			assert.ok(Object.keys(files).length > 5);
			assert.equal(await scrambleFree(image, map), freeBytes);
			await runOk("fsck.fat", ["-n", image]);
			assert.deepEqual(await filesIn(image, folder.file("after")), files);
		});

	test("FAT32 of few clusters, which mtools takes for FAT12", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await make(image, { size: "30M", options: ["-F", "32", "-s", "16"] });
		expectSameFree(await mapVolume(image), await decoded(image));
	});

	test("bad clusters are in use", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const [image, list] = [folder.file("image"), folder.file("list")];
		await runOk("bash", ["-c", 'seq 5000 5010 > "$1"', "list", list]);
		await make(image, { size: "40M", options: ["-F", "32", "-s", "2", "-l", list] });
		const map = await mapVolume(image);
		const bad = [...map.extents].find(({ start, length }) => start <= 5_000 * 1024 && start + length > 5_000 * 1024)!;
		assert.deepEqual([bad.state, bad.start, bad.length], ["used", 5_000 * 1024, 11 * 1024]);
	});
});

describe("kept whole", () => {
	for (const [name, options] of Object.entries({
		FAT12: ["-F", "12", "-s", "8"],
		FAT16: ["-F", "16", "-s", "1"],
		FAT32: ["-F", "32", "-s", "1"],
	}))
		test(name, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			await using folder = await temporaryFolder();
			const [good, image, file] = [folder.file("good"), folder.file("image"), folder.file("file")];
			await make(good, { size: name === "FAT12" ? "15M" : name === "FAT16" ? "20M" : "40M", options });
			await runOk("dd", ["if=/dev/urandom", `of=${file}`, "bs=1K", "count=100", "status=none"]);
			await runOk("mcopy", ["-i", good, file, "::/file"]);
			const boot = (await readFile(good)).subarray(0, 512);
			const fatAt = boot.readUInt16LE(0xe) * 512;
			const fatSize = (boot.readUInt16LE(0x16) || boot.readUInt32LE(0x24)) * 512;
			const [bytesPerEntry, stateAt] = name === "FAT32" ? [4, 0x41] : [name === "FAT16" ? 2 : 1.5, 0x25];
			type Change = readonly [at: number, change: (byte: number) => number];
			const inBoth = (at: number, change: (byte: number) => number): Change[] => [
				[fatAt + at, change],
				[fatAt + fatSize + at, change],
			];
			const clear = (bit: number) => (byte: number) => byte & ~bit;
			const cases: Record<string, { changes: readonly Change[]; why: RegExp; state: string; fsck?: RegExp }> = {
				"mounted by Linux": {
					changes: [[stateAt, () => 1]],
					why: /not unmounted cleanly/,
					state: "dirty",
					fsck: /Dirty bit is set/,
				},
				"copies that differ": {
					changes: [[fatAt + fatSize + 600, (byte) => byte ^ 1]],
					why: /two FATs differ/,
					state: "unknown",
					fsck: /FATs differ/,
				},
				"no media type": { changes: inBoth(0, () => 0x12), why: /media type/, state: "unknown" },
				"a file that goes on in a free cluster": {
					changes: Array.from({ length: 4 }, (_, i) => inBoth(bytesPerEntry * 12 + i, () => 0)).flat(),
					why: /part of a file and free/,
					state: "unknown",
					fsck: /free cluster|Truncating|File size is/,
				},
				"larger than its partition": {
					changes: [
						[0x13, () => 0],
						[0x14, () => 0],
						[0x23, () => 0x7f],
					],
					why: /more than its partition/,
					state: "unknown",
				},
			};
			if (name !== "FAT12") {
				const last = bytesPerEntry * 2 - 1;
				const [clean, noError] = name === "FAT16" ? [0x80, 0x40] : [0x08, 0x04];
				const marked = { why: /not unmounted cleanly/, state: "dirty" };
				cases["mounted by Windows"] = { changes: inBoth(last, clear(clean)), ...marked };
				cases["mounted by Windows, one FAT written"] = { changes: inBoth(last, clear(clean)).slice(1), ...marked };
				cases["errors met by Windows"] = { changes: inBoth(last, clear(noError)), ...marked };
			}
			if (name === "FAT32") {
				cases["one FAT active"] = { changes: [[0x28, () => 0x81]], why: /only one of its FATs/, state: "unknown" };
				cases["another version"] = { changes: [[0x2a, () => 1]], why: /version 1/, state: "unknown" };
				cases["a root directory outside"] = {
					changes: [[0x2f, () => 0x7f]],
					why: /root directory starts/,
					state: "unknown",
				};
				cases["a free root directory"] = {
					changes: [8, 9, 10, 11].flatMap((at) => inBoth(at, () => 0)),
					why: /cluster 2 is part of a file and free/,
					state: "unknown",
				};
			}
			assert.equal((await mapVolume(good)).volumes[0]!.kept, null);
			for (const [what, { changes, why, state, fsck }] of Object.entries(cases)) {
				await copyFile(good, image);
				await patch(image, changes);
				if (fsck !== undefined) assert.match((await run("fsck.fat", ["-n", "-v", image])).stdout, fsck, what);
				const volume = (await mapVolume(image)).volumes[0]!;
				assert.match(`${volume.kept}`, why, what);
				assert.deepEqual([volume.state, volume.freeBytes], [state, null], what);
			}
		});

	test("between FAT12 and FAT16", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await make(image, { size: "4M", options: ["-F", "12", "-s", "2"] });
		await truncate(image, 5 << 20);
		// The sector count decides how many clusters there are.
		const boot = viewOf(new Uint8Array(await readFile(image)));
		const first = boot.getUint16(0xe, true) + 2 * boot.getUint16(0x16, true) + boot.getUint16(0x11, true) / 16;
		for (const [clusters, kept] of [
			[4000, /^null$/],
			[4085, /some systems take for FAT12/],
			[4086, /some systems take for FAT12/],
		] as const) {
			await patch(image, [
				[0x13, () => (first + 2 * clusters) & 0xff],
				[0x14, () => (first + 2 * clusters) >> 8],
			]);
			assert.match(`${(await mapVolume(image)).volumes[0]!.kept}`, kept);
		}
	});
});

async function patch(image: string, changes: readonly (readonly [number, (byte: number) => number])[]): Promise<void> {
	const file = await open(image, "r+");
	try {
		const byte = new Uint8Array(1);
		for (const [at, change] of changes) {
			await file.read(byte, 0, 1, at);
			byte[0] = change(byte[0]!);
			await file.write(byte, 0, 1, at);
		}
	} finally {
		await file.close();
	}
}
