// exFAT: free clusters equal the allocation bitmap that dump.exfat names and counts, on volumes that mkfs.exfat made and
// exfat-fuse worked on; what is dirty, damaged or contradicts itself is kept; and garbage in all that is free changes no file.

import assert from "node:assert/strict";
import { copyFile, open, readFile, rm } from "node:fs/promises";
import { describe, test } from "node:test";
import { BootSector } from "../../src/core/filesystems/exfat/layout.ts";
import { bootChecksum } from "../../src/core/filesystems/exfat/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { isThorough, someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { FuseMount } from "../support/fuse.ts";
import { hashTree } from "../support/hashes.ts";
import { LoopPart } from "../support/loop.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import type { Reference } from "./map-clusters.ts";
import { expectNothingUsedIsFree, expectSameFree, mapVolume, scrambleFree, workOn } from "./map-clusters.ts";

const TOOLS = ["mkfs.exfat", "fsck.exfat", "dump.exfat"] as const;
const MOUNT_TOOLS = ["root", "fuse", "loop devices", "losetup", "mount.exfat-fuse"] as const;

/** Size, options of mkfs.exfat, sector size of the device. */
const variants: Readonly<Record<string, { size: string; options: readonly string[]; sector?: number }>> = {
	"as it comes": { size: "60M", options: ["-L", "Größe 1"] },
	"512-byte clusters": { size: "30M", options: ["-c", "512"] },
	"4 KiB sectors": { size: "60M", options: [], sector: 4096 },
	"64 KiB clusters": { size: "150M", options: ["-c", "64K"] },
	"bitmap beside the FAT": { size: "60M", options: ["--pack-bitmap", "-c", "2K"] },
	"4 MiB clusters": { size: "500M", options: ["-c", "4M"] },
	"odd size, little alignment": { size: "51235K", options: ["-b", "4K", "-c", "1K"] },
};

type Variant = (typeof variants)[string];

async function attach(image: string, sector = 512): Promise<LoopPart> {
	return new LoopPart((await runOk("losetup", ["-b", String(sector), "-f", "--show", image])).trim());
}

async function make(image: string, { size, options, sector }: Variant): Promise<void> {
	await rm(image, { force: true });
	await runOk("truncate", ["-s", size, image]);
	if (sector === undefined) await runOk("mkfs.exfat", [...options, image]);
	else {
		await using device = await attach(image, sector);
		await runOk("mkfs.exfat", [...options, device.path]);
	}
}

/** The bitmap's bits, from where dump.exfat says it lies; mkfs.exfat leaves it in one piece. */
async function decoded(image: string): Promise<Reference> {
	const said = await runOk("dump.exfat", [image]);
	const number = (name: string): number => Number(new RegExp(`${name}[^:]*:\\s+(\\d+)`).exec(said)![1]);
	const sectorSize = 2 ** number("Sector Size Bits");
	const clusterSize = number("Cluster size");
	const base = number("Cluster Heap Offset") * sectorSize;
	const raw = await readFile(image);
	const bitmapAt = base + (number("Bitmap start cluster") - 2) * clusterSize;
	const free = new Uint8Array(number("Cluster Count"));
	for (let cluster = 0; cluster < free.length; cluster++)
		free[cluster] = ((raw[bitmapAt + (cluster >> 3)]! >> (cluster & 7)) & 1) ^ 1;
	assert.equal(
		free.reduce((sum, bit) => sum + bit, 0),
		number("Free Clusters"),
	);
	return { base, clusterSize, free };
}

describe("free clusters equal the bitmap, and garbage in them changes no file", () => {
	for (const [name, variant] of someOf(Object.entries(variants), 2))
		test(name, async (t) => {
			if (!requireTool(t, ...TOOLS, ...MOUNT_TOOLS, ...(isThorough ? ["partclone.exfat"] : []))) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const [image, mnt, copy] = [folder.file("image"), folder.file("mnt"), folder.file("copy")];
			await make(image, variant);
			expectSameFree(await mapVolume(image), await decoded(image));

			const mounted = async (work: () => Promise<void>): Promise<void> => {
				await using device = await attach(image, variant.sector);
				await using mount = await FuseMount.mount("mount.exfat-fuse", ["-d", device.path, mnt]);
				await work();
				await mount.unmount();
			};
			let files: Record<string, string> = {};
			await mounted(async () => {
				await workOn(mnt, seededRandom(seed), 150);
				files = await hashTree(mnt);
				await runOk("sync", ["-f", mnt]);
				await copyFile(image, copy);
			});
			const volume = (await mapVolume(copy)).volumes[0]!;
			assert.deepEqual([volume.state, volume.freeBytes], ["dirty", null], "copied while mounted");

			const map = await mapVolume(image);
			expectSameFree(map, await decoded(image));
			if (isThorough) await expectNothingUsedIsFree(map, "partclone.exfat", image, folder);
			const { type, uuid, label, freeBytes } = map.volumes[0]!;
			assert.equal(type, "exfat");
			const known = await runOk("blkid", ["-p", image]);
			assert.equal(/ UUID="([^"]*)"/.exec(known)?.[1], uuid);
			assert.equal(label, name === "as it comes" ? "Größe 1" : null);

			assert.equal(await scrambleFree(image, map), freeBytes);
			await runOk("fsck.exfat", ["-n", image]);
			await mounted(async () => assert.deepEqual(await hashTree(mnt), files));
		});
});

/** Changes an image in memory, whose boot checksum is put right afterwards. */
async function change(from: string, to: string, edit: (raw: Buffer) => void, checksum = true): Promise<void> {
	const raw = await readFile(from);
	edit(raw);
	if (checksum) {
		const sum = bootChecksum(raw.subarray(0, 11 * 512));
		for (let at = 11 * 512; at < 12 * 512; at += 4) raw.writeUInt32LE(sum, at);
	}
	const file = await open(to, "w");
	await file.write(raw);
	await file.close();
}

test("kept whole", async (t) => {
	if (!requireTool(t, ...TOOLS)) return;
	await using folder = await temporaryFolder();
	const [good, image] = [folder.file("good"), folder.file("image")];
	await make(good, { size: "24M", options: ["-c", "4K"] });
	const boot = BootSector.at(viewOf(new Uint8Array(await readFile(good))));
	const { fatOffset, clusterHeapOffset, rootCluster } = boot;
	const fatAt = fatOffset * 512;
	const bitmapAt = clusterHeapOffset * 512;
	const rootAt = bitmapAt + (rootCluster - 2) * 4096;
	const flags = BootSector.offset.volumeFlags;
	/** Position of the root directory's entry of a type. */
	const entry = (raw: Buffer, type: number): number => {
		for (let at = rootAt; ; at += 32) if (raw[at] === type) return at;
	};
	const cases: Record<string, { edit: (raw: Buffer) => void; why: RegExp; state?: string; checksum?: false }> = {
		dirty: { edit: (raw) => raw.writeUInt8(2, flags), why: /not unmounted/, state: "dirty", checksum: false },
		"media failure": { edit: (raw) => raw.writeUInt8(4, flags), why: /had errors/, state: "dirty", checksum: false },
		"second FAT": { edit: (raw) => raw.writeUInt8(1, flags), why: /second FAT/, state: "dirty", checksum: false },
		"wrong checksum": { edit: (raw) => raw.writeUInt8(7, 0x100), why: /checksum is wrong/, checksum: false },
		"wrong copy of the checksum": {
			edit: (raw) => raw.writeUInt8(raw[6140]! ^ 1, 6140),
			why: /checksum is wrong/,
			checksum: false,
		},
		TexFAT: { edit: (raw) => raw.writeUInt8(2, BootSector.offset.fatCount), why: /2 FATs/ },
		"version 2": { edit: (raw) => raw.writeUInt16LE(0x200, BootSector.offset.revision), why: /version 2/ },
		"larger than its partition": { edit: (raw) => raw.writeUInt32LE(1, 0x4c), why: /more than its partition/ },
		"more clusters than fit": { edit: (raw) => raw.writeUInt32LE(10_000, 0x5c), why: /do not fit/ },
		"sectors of 256 bytes": { edit: (raw) => raw.writeUInt8(8, 0x6c), why: /2\^8 bytes/, checksum: false },
		"root directory outside": { edit: (raw) => raw.writeUInt32LE(99_999, 0x60), why: /root directory starts/ },
		"no bitmap": { edit: (raw) => raw.writeUInt8(1, entry(raw, 0x81)), why: /lacks the allocation bitmap/ },
		"no up-case table": { edit: (raw) => raw.writeUInt8(2, entry(raw, 0x82)), why: /lacks the allocation bitmap/ },
		"bitmap too short": { edit: (raw) => raw.writeUInt8(9, entry(raw, 0x81) + 0x18), why: /bitmap has \d+ bytes/ },
		"root directory free": { edit: (raw) => raw.writeUInt8(0, bitmapAt), why: /system files as free/ },
		"bitmap elsewhere": { edit: (raw) => raw.writeUInt32LE(500, entry(raw, 0x81) + 0x14), why: /cluster 0|as free/ },
		"a ring": { edit: (raw) => raw.writeUInt32LE(rootCluster, fatAt + rootCluster * 4), why: /longer|lacks/ },
	};
	assert.equal((await mapVolume(good)).volumes[0]!.kept, null);
	for (const [name, { edit, why, state, checksum }] of Object.entries(cases)) {
		await change(good, image, edit, checksum !== false);
		const volume = (await mapVolume(image)).volumes[0]!;
		assert.match(`${volume.kept}`, why, name);
		assert.deepEqual([volume.state, volume.freeBytes], [state ?? "unknown", null], name);
	}
});
