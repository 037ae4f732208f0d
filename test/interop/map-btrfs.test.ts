// The guest map of btrfs against btrfs-progs and a real kernel.
//
//  - unmounted: free sectors equal what the trees say, as `btrfs inspect-internal dump-tree` prints them, one by one
//  - everything free is punched out: the kernel still reads every file, and `btrfs check` and `btrfs scrub` are content
//  - cut off in the middle: an image with a log tree is kept; without one, the kernel's own recovery finds everything

import assert from "node:assert/strict";
import { open } from "node:fs/promises";
import { describe, test } from "node:test";
import { crc32c } from "../../src/foundations/crc.ts";
import type { Extent, GuestMap } from "../../src/foundations/guest-map.ts";
import { someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, LoopPart, Mounted } from "../support/loop.ts";
import { run, runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import {
	BTRFS_TOOLS,
	type BtrfsVariant,
	dumpedFree,
	dumpSuper,
	makeBtrfs,
	makeHoles,
	work,
} from "./map-btrfs-images.ts";
import { differences, mapOf, mappedFree } from "./map-images.ts";

const variants: Readonly<Record<string, BtrfsVariant>> = {
	default: { mkfs: ["-L", "default"], options: "noatime" },
	"extent tree": { mkfs: ["-R", "^free-space-tree"], options: "nospace_cache" },
	"mixed block groups": { mkfs: ["-M"], options: "noatime" },
	"metadata once, blocks of 4 KiB": { mkfs: ["-m", "single", "-n", "4096"], options: "noatime" },
	"blocks of 64 KiB, compressed": { mkfs: ["-n", "65536"], options: "compress-force=zstd" },
	"data twice, extent tree, old cache": { mkfs: ["-d", "dup", "-R", "^free-space-tree"], options: "space_cache=v1" },
	"no skinny metadata, extent tree": {
		mkfs: ["-O", "^skinny-metadata,^no-holes", "-R", "^free-space-tree"],
		options: "nospace_cache",
	},
	quota: { mkfs: ["-R", "quota"], options: "autodefrag" },
};

/** Variants whose free space is overwritten, too. */
const sound = someOf(Object.keys(variants), 3);

describe("free sectors equal btrfs-progs after the kernel has worked and unmounted", () => {
	for (const [name, variant] of Object.entries(variants))
		test(name, async (t) => {
			if (!requireTool(t, ...BTRFS_TOOLS)) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const made = await makeBtrfs(folder, variant);
			if (made === null) return t.skip("this kernel does not mount it");
			const { image } = made;
			await using mounted = made.mounted;
			await work(mounted.path, seed);
			const before = await hashesIn(mounted.path);
			await mounted.unmount();
			await expectEqual(image);
			if (!sound.includes(name)) return;
			await overwrite(image, await mapOf(image), "free");
			await expectSound(image, mounted.path, before);
		});
});

async function expectEqual(image: string): Promise<void> {
	const free = await dumpedFree(image);
	const map = await mapOf(image);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null, `${volume.kept}`);
	assert.equal(volume.state, "clean");
	assert.deepEqual(volume.warnings, []);
	const mine = mappedFree(map, volume.id, { blockSize: 4096, blockCount: free.length, free });
	assert.deepEqual(differences(mine, free), { onlyMine: [], onlyTheirs: [] });
}

describe("dirty images", () => {
	test("a copy made while mounted: what the kernel finds in it is still there", async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		await using folder = await temporaryFolder();
		const [copy, overwritten] = [folder.file("copy"), folder.file("overwritten")];
		const made = await makeBtrfs(folder, { mkfs: [], options: "commit=300" });
		if (made === null) return t.skip("this kernel does not mount it");
		await using mounted = made.mounted;
		await work(mounted.path, seed);
		// Not committed: what lies on the device of it is nobody's.
		await runOk("bash", ["-c", 'cd "$1"; rm -rf holes work/d2; head -c 9M /dev/urandom > late', "late", mounted.path]);
		await runOk("cp", ["--sparse=always", made.image, copy]);
		await mounted.unmount();
		await runOk("cp", ["--sparse=always", copy, overwritten]);
		await overwrite(overwritten, await mapOf(overwritten), "free");
		const before = await hashesOf(copy, mounted.path);
		assert.ok(before.length > 20 && before.every((line) => !line.endsWith("  late")));
		await expectSound(overwritten, mounted.path, before);
	});

	test("the oracle notices when used space is overwritten", async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		await using folder = await temporaryFolder();
		const made = await makeBtrfs(folder, { mkfs: ["-m", "single"], options: "noatime" }, "200M");
		if (made === null) return t.skip("this kernel does not mount it");
		await using mounted = made.mounted;
		await runOk("bash", ["-c", 'head -c 9M /dev/urandom > "$1/file"', "file", mounted.path]);
		await mounted.unmount();
		const map = await mapOf(made.image);
		const used = [...map.extents].find(({ state, length }) => state === "used" && length === 9 * 2 ** 20);
		assert.ok(used !== undefined, "the file is one extent");
		await overwrite(made.image, { extents: [used] }, "used");
		assert.notEqual((await run("btrfs", ["check", "--check-data-csum", made.image])).exitCode, 0);
	});
});

describe("kept whole", () => {
	const keptOf = async (image: string): Promise<string> => {
		const { volumes, extents } = await mapOf(image);
		const { kept } = volumes[0]!;
		assert.equal(
			[...extents].some(({ state }) => state === "free"),
			kept === null,
		);
		return kept ?? "not kept";
	};

	test("a log tree, until the kernel has replayed it", async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		await using folder = await temporaryFolder();
		const copy = folder.file("copy");
		const made = await makeBtrfs(folder, { mkfs: [], options: "commit=300" }, "200M");
		if (made === null) return t.skip("this kernel does not mount it");
		await using mounted = made.mounted;
		await runOk("bash", ["-c", 'cd "$1"; echo old > file; sync -f .; echo new > file; sync file', "log", mounted.path]);
		await runOk("cp", ["--sparse=always", made.image, copy]);
		await mounted.unmount();
		assert.match(await dumpSuper(copy), /^log_root\s+[1-9]/m);
		assert.match(await keptOf(copy), /log of the last fsyncs/);
		assert.equal((await mapOf(copy)).volumes[0]!.state, "dirty");
		assert.equal((await hashesOf(copy, mounted.path)).length, 1);
		assert.match(await keptOf(copy), /not kept/);
	});

	test("several devices", async (t) => {
		if (!requireTool(t, "mkfs.btrfs")) return;
		await using folder = await temporaryFolder();
		const images = [folder.file("a"), folder.file("b")];
		await runOk("truncate", ["-s", "200M", ...images]);
		await runOk("mkfs.btrfs", ["-q", "-f", ...images]);
		for (const image of images) assert.match(await keptOf(image), /spans 2 devices/);
	});

	test("a seed, another checksum, copies of the superblock that differ", async (t) => {
		if (!requireTool(t, "mkfs.btrfs", "btrfstune")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image");
		await runOk("truncate", ["-s", "200M", image]);
		await runOk("mkfs.btrfs", ["-q", "-f", image]);
		assert.equal(await keptOf(image), "not kept");
		const [first, second] = [0x10000, 0x4000000];
		await withSuperblock(image, second, (view) => view.setBigUint64(0x48, view.getBigUint64(0x48, true) + 1n, true));
		assert.match(await keptOf(image), /copy .* at 64.0 MiB is newer/);
		await withSuperblock(image, second, (view) => view.setBigUint64(0x48, view.getBigUint64(0x48, true) - 2n, true));
		assert.equal(await keptOf(image), "not kept");
		assert.match((await mapOf(image)).volumes[0]!.warnings.join(), /copy .* is older/);
		await withSuperblock(image, first, (view) => view.setUint16(0xc4, 9, true));
		assert.match(await keptOf(image), /checksums of type 9/);
		await runOk("mkfs.btrfs", ["-q", "-f", image]);
		await runOk("btrfstune", ["-S", "1", image]);
		assert.match(await keptOf(image), /seed device/);
	});

	test("a paused balance", async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		await using folder = await temporaryFolder();
		const made = await makeBtrfs(folder, { mkfs: ["-m", "single"], options: "noatime" });
		if (made === null) return t.skip("this kernel does not mount it");
		await using mounted = made.mounted;
		const pause = `cd "$1"; head -c 150M /dev/urandom > file; sync -f .
			btrfs balance start --full-balance . > /dev/null & until btrfs balance pause . 2> /dev/null; do [ -d /proc/$! ] || exit 9; done; wait; exit 0`;
		const paused = await run("bash", ["-c", pause, "pause", mounted.path]);
		await mounted.unmount();
		if (paused.exitCode === 9) return t.skip("the balance was over before it could be paused");
		assert.match(await keptOf(made.image), /a balance of it is under way or paused/);
	});
});

for (const checksum of ["xxhash", "sha256", "blake2"])
	test(`checksums by ${checksum}`, async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		await using folder = await temporaryFolder();
		const made = await makeBtrfs(folder, { mkfs: ["--csum", checksum], options: "noatime" }, "200M");
		if (made === null) return t.skip("this kernel does not mount it");
		await using mounted = made.mounted;
		await makeHoles(mounted.path, 1, 100);
		await mounted.unmount();
		await expectEqual(made.image);
	});

test("a device that was replaced, and data in RAID0 on one device", async (t) => {
	if (!requireTool(t, ...BTRFS_TOOLS)) return;
	await using folder = await temporaryFolder();
	const made = await makeBtrfs(folder, { mkfs: [], options: "noatime" }, "300M");
	if (made === null) return t.skip("this kernel does not mount it");
	const other = folder.file("other");
	await runOk("truncate", ["-s", "300M", other]);
	await using mounted = made.mounted;
	await makeHoles(mounted.path, 1, 300);
	await using device = new LoopPart((await runOk("losetup", ["-f", "--show", other])).trim());
	await runOk("btrfs", ["replace", "start", "-B", "-f", "1", device.path, mounted.path]);
	await runOk("btrfs", ["balance", "start", "-dconvert=raid0", mounted.path]);
	await mounted.unmount();
	await expectEqual(other);
});

test("a file system whose blocks carry another id (metadata_uuid)", async (t) => {
	if (!requireTool(t, "mkfs.btrfs", "btrfs", "btrfstune")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await runOk("truncate", ["-s", "200M", image]);
	await runOk("mkfs.btrfs", ["-q", "-f", image]);
	await runOk("btrfstune", ["-m", image]);
	await expectEqual(image);
});

/** Overwrites with a pattern everything that has this state in a map. */
async function overwrite(
	path: string,
	{ extents }: Pick<GuestMap, "extents">,
	overwritten: Extent["state"],
): Promise<void> {
	const junk = Buffer.alloc(1 << 20, 0x5a);
	const file = await open(path, "r+");
	try {
		for (const { start, length, state } of extents)
			for (let done = 0; state === overwritten && done < length; done += junk.length)
				await file.write(junk, 0, Math.min(junk.length, length - done), start + done);
	} finally {
		await file.close();
	}
}

/** Hashes of all files of an image. */
async function hashesOf(image: string, folder: string): Promise<string[]> {
	await using mounted = await Mounted.mount(image, folder, "loop");
	const hashes = await hashesIn(folder);
	await mounted.unmount();
	return hashes;
}

/** `btrfs check` finds nothing, nor does a scrub, and all files have the hashes of before. */
async function expectSound(image: string, folder: string, before: readonly string[]): Promise<void> {
	await runOk("btrfs", ["check", "--check-data-csum", image]);
	await using mounted = await Mounted.mount(image, folder, "loop");
	assert.deepEqual(await hashesIn(folder), before);
	assert.match(await runOk("btrfs", ["scrub", "start", "-B", folder]), /no errors found/);
	await mounted.unmount();
}

/** Changes a copy of the superblock and puts its checksum (CRC-32C) right. */
async function withSuperblock(image: string, at: number, change: (view: DataView) => void): Promise<void> {
	const file = await open(image, "r+");
	try {
		const raw = new Uint8Array(4096);
		await file.read(raw, 0, raw.length, at);
		const view = new DataView(raw.buffer);
		change(view);
		view.setUint32(0, ~crc32c(0xffffffff, raw.subarray(32)) >>> 0, true);
		await file.write(raw, 0, raw.length, at);
	} finally {
		await file.close();
	}
}
