// The guest map of XFS volumes that a real kernel works on, through a loop device, and that mkfs.xfs alone makes.
//
//  - unmounted: free blocks equal `xfs_db`'s, block for block
//  - cut off in the middle: what our map calls free is free after the kernel's own recovery, and nothing that the
//    recovered volume holds changes when all of it is overwritten before
//  - hostile: groups that contradict themselves are kept, the others are not hurt

import assert from "node:assert/strict";
import { open } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { readGroups } from "../../src/core/filesystems/xfs/groups.ts";
import { MetadataView } from "../../src/core/filesystems/xfs/metadata-view.ts";
import { parseSuperblock, readSuperblock } from "../../src/core/filesystems/xfs/open.ts";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { someOf } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashesIn, Mounted } from "../support/loop.ts";
import { run, runOk } from "../support/processes.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { differences, mapOf, mappedFree, openSource } from "./map-images.ts";
import { dumpXfsFree, fragment, freeRanges, workOn } from "./xfs-images.ts";

/** What mkfs.xfs gets, and the size of the image. */
interface Variant {
	readonly name: string;
	readonly mkfs: readonly string[];
	readonly size?: string;
}
const v = (name: string, mkfs: string, size?: string): Variant => ({
	name,
	mkfs: mkfs.split(" ").filter((word) => word !== ""),
	...(size === undefined ? {} : { size }),
});
/** Variants that today's kernels mount. Those that differ most come first in each group of three. */
const variants: readonly Variant[] = [
	v("as mkfs.xfs makes it", ""),
	v("16 groups", "-d agcount=16", "2g"),
	v("rmapbt", "-m rmapbt=1"),
	v("rmapbt, 1 KiB blocks, sectors of 1 KiB", "-m rmapbt=1 -b size=1024 -s size=1024"),
	v("2 KiB blocks", "-b size=2048"),
	v("sectors of 4 KiB", "-s size=4096"),
	v("64 KiB blocks", "-b size=65536", "1G"),
	v("16 KiB blocks", "-b size=16384"),
	v("no reflink, no bigtime, no finobt", "-m reflink=0,bigtime=0,finobt=0,inobtcount=0"),
	v("odd size, short last group", "-d agsize=77m", "371111k"),
	v("no sparse inodes, nrext64", "-i sparse=0,nrext64=1"),
	v("log of 200 MiB in group 1, striped", "-l agnum=1,size=200m,su=64k", "1500m"),
	v("striped data, large inodes", "-d su=128k,sw=4 -i size=2048", "1g"),
	v("nothing optional", "-m finobt=0,reflink=0,inobtcount=0 -i sparse=0 -n ftype=1"),
];

const TOOLS = ["root", "loop devices", "mkfs.xfs", "xfs_db", "xfs_io", "xfs_repair"] as const;

async function makeImage(path: string, { mkfs, size }: Variant): Promise<void> {
	await runOk("truncate", ["-s", "0", path]);
	await runOk("truncate", ["-s", size ?? "400M", path]);
	await runOk("mkfs.xfs", ["-q", "-f", ...mkfs, path]);
}

function seeded(t: TestContext): Random {
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	return seededRandom(seed);
}

/** The map must have exactly the free blocks that xfs_db lists. */
async function expectEqual(path: string): Promise<GuestMap> {
	const dumped = await dumpXfsFree(path);
	const map = await mapOf(path);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null);
	assert.equal(volume.type, "xfs");
	assert.equal(volume.state, "clean");
	assert.deepEqual(volume.warnings, []);
	assert.deepEqual(differences(mappedFree(map, volume.id, dumped), dumped.free), { onlyMine: [], onlyTheirs: [] });
	return map;
}

describe("free blocks equal xfs_db's after the kernel has worked and unmounted", () => {
	for (const variant of someOf(variants, 3))
		test(variant.name, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			const random = seeded(t);
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await makeImage(image, variant);
			await expectEqual(image);
			for (let round = 0; round < 2; round++) {
				await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
				await workOn(mounted.path, random, 700);
				if (round === 1) fragment(mounted.path, random);
				await mounted.unmount();
				const map = await expectEqual(image);
				if (round === 1) assert.ok(freeRanges(map).length > 500, "too little is fragmented to make trees grow");
			}
		});
});

/** Free blocks when the log is ignored: what must not be believed. */
async function homeOnlyFree(path: string, blockCount: number): Promise<Uint8Array> {
	await using source = await openSource(path);
	const geometry = parseSuperblock((await readSuperblock(source))!, source.size);
	const { runs } = await readGroups(new MetadataView(source, new Map()), geometry, () => false);
	const free = new Uint8Array(blockCount);
	for (let group = 0; group < geometry.agCount; group++)
		for (const { start, length } of runs.runsOf(group)) {
			const first = group * geometry.agBlocks + start;
			free.fill(1, first, first + length);
		}
	return free;
}

/** Fills all free ranges of a map with a pattern, in the image. */
async function overwriteFree(path: string, map: GuestMap): Promise<void> {
	await using file = await open(path, "r+");
	const pattern = Buffer.alloc(1 << 20, 0xa5);
	for (const { start, length } of freeRanges(map))
		for (let at = 0; at < length; at += pattern.length)
			await file.write(pattern, 0, Math.min(pattern.length, length - at), start + at);
}

/** Lets the kernel recover an image; returns the hashes of all files. */
async function recoverImage(path: string, folder: TemporaryFolder): Promise<string[]> {
	await using mounted = await Mounted.mount(path, folder.file("recovered"), "loop");
	const hashes = await hashesIn(mounted.path);
	await mounted.unmount();
	return hashes;
}

/**
 * Compares the map of a dirty image with what the kernel makes of it. Returns how many blocks are free in the map and in
 * use after recovery (what recovery itself took), the other way round, and how many the home blocks alone get wrong.
 */
async function expectRecoverable(
	t: TestContext,
	image: string,
	folder: TemporaryFolder,
): Promise<{ taken: number; more: number; homeWrong: number }> {
	const map = await mapOf(image);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null);
	assert.equal(volume.state, "dirty");
	assert.deepEqual(volume.warnings, []);
	const [plain, swept] = [folder.file("plain"), folder.file("swept")];
	await runOk("cp", ["--sparse=always", image, plain]);
	await runOk("cp", ["--sparse=always", image, swept]);
	await overwriteFree(swept, map);
	const hashes = await recoverImage(plain, folder);
	assert.deepEqual(await recoverImage(swept, folder), hashes, "a file changed when free blocks were overwritten");
	const checked = await run("xfs_repair", ["-n", swept]);
	assert.equal(checked.exitCode, 0, checked.stderr);
	const dumped = await dumpXfsFree(plain);
	const mine = mappedFree(map, volume.id, dumped);
	const count = (a: Uint8Array, b: Uint8Array): number => a.reduce((sum, bit, at) => sum + (bit === 1 && b[at] === 0 ? 1 : 0), 0);
	const home = await homeOnlyFree(image, dumped.blockCount);
	const outcome = { taken: count(mine, dumped.free), more: count(dumped.free, mine), homeWrong: count(home, dumped.free) };
	t.diagnostic(`${hashes.length} files, free ${volume.freeBytes}, ${JSON.stringify(outcome)}`);
	return outcome;
}

describe("what is free in the map of a dirty volume", () => {
	for (const variant of someOf(variants, 5))
		test(variant.name, async (t) => {
			if (!requireTool(t, ...TOOLS)) return;
			const random = seeded(t);
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await makeImage(image, variant);
			{
				await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
				await workOn(mounted.path, random, 500);
				fragment(mounted.path, random);
				await workOn(mounted.path, random, 500);
				await runOk("xfs_io", ["-x", "-c", random.chance(0.5) ? "shutdown -f" : "shutdown", mounted.path]);
				await mounted.unmount();
			}
			await expectRecoverable(t, image, folder);
		});
});
