// Sweeping qcow2 images of every kind: what was dropped reads as zeros, all else is as before, snapshots too, and
// QEMU's own check finds nothing to complain about.

import assert from "node:assert/strict";
import { mkdir, open, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { openSweepableImage } from "../../src/adapters/images/open-image.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import type { SweepReport } from "../../src/services/sweep.ts";
import { isThorough, someOf } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { allocatedBytes, hashBytes, hashFile } from "../support/hashes.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import {
	activity,
	assertSameBytes,
	checkByQemu,
	contentByQemu,
	contentOf,
	freeClusters,
	io,
	MIB,
	makeImage,
	mapByQemu,
	type Variant,
	variants,
	withoutCompressed,
} from "./qcow2-images.ts";

const SIZE = 24 * MIB;

/** Random ranges in order, at all alignments, that cover about half of the disk. */
function ranges(seed: number, size: number): { start: number; length: number }[] {
	const random = seededRandom(seed);
	const found: { start: number; length: number }[] = [];
	for (let at = 0; at < size; ) {
		const length = Math.min(size - at, random.between(1, 3000) * 512);
		if (random.chance(0.5)) found.push({ start: at, length });
		at += length;
	}
	return found;
}

type Mode = "alone" | "on a backing file" | "with a snapshot";

/** Kinds of images that QEMU can't make in a mode: a snapshot adds one to counts that must have room for it. */
function isPossible({ options, dataFile }: Variant, mode: Mode): boolean {
	if (mode === "with a snapshot") return dataFile !== true && !/refcount_bits=[124](,|$)/.test(options);
	return mode === "alone" || !/raw=on|preallocation/.test(options);
}

describe("qcow2, sweep", () => {
	const seed = testSeed() % 1_000_000;
	for (const [index, variant] of someOf(variants, 3).entries())
		for (const mode of ["alone", "on a backing file", "with a snapshot"] as const)
			if (isPossible(variant, mode))
				test(`${variant.name}, ${mode}`, async (t) => {
					if (!requireTool(t, "qemu-img", "qemu-io")) return;
					t.diagnostic(`VMSWEEP_SEED=${seed}`);
					await using folder = await temporaryFolder();
					await sweepOne(t, folder, variant, mode, seed + index);
				});
});

async function sweepOne(
	t: TestContext,
	folder: TemporaryFolder,
	variant: Variant,
	mode: Mode,
	seed: number,
): Promise<void> {
	const random = seededRandom(seed);
	const usual = variants[0]!;
	let more: string[] = [];
	if (mode === "on a backing file") {
		const base = await makeImage(folder, usual, "base.qcow2", SIZE - 5 * MIB);
		await io(base, activity(random, usual, SIZE - 5 * MIB, 10));
		more = ["-b", base, "-F", "qcow2"];
	}
	const path = await makeImage(folder, variant, "image.qcow2", SIZE, ...more);
	const uncompressed = variant.options.includes("preallocation") || random.chance(0.5);
	await io(path, activity(random, uncompressed ? withoutCompressed(variant) : variant, SIZE, 60));
	const hasSnapshot = mode === "with a snapshot";
	if (hasSnapshot) {
		await runOk("qemu-img", ["snapshot", "-c", "before", path]);
		await io(path, activity(random, withoutCompressed(variant), SIZE, 20));
	}
	await checkByQemu(path);
	const content = await contentByQemu(folder, path);
	const kept = hasSnapshot ? hashBytes(await contentByQemu(folder, path, "-l", "before")) : "";
	const space = async (): Promise<number> =>
		(await allocatedBytes(path)) + (variant.dataFile === true ? await allocatedBytes(`${path}.data`) : 0);
	const before = await space();

	let predicted = 0;
	{
		await using image = await openSweepableImage(path, { dryRun: true });
		for (const { start, length } of ranges(seed, SIZE))
			predicted += await image.wouldDrop(byteOffset(start), byteCount(length));
	}
	assert.equal(await space(), before, "a dry run changes nothing");
	let unit: number;
	const expected = content.slice();
	{
		await using image = await openSweepableImage(path);
		unit = image.unit;
		for (const { start, length } of ranges(seed, SIZE)) {
			const end = start + length === SIZE ? SIZE : Math.floor((start + length) / unit) * unit;
			const from = Math.ceil(start / unit) * unit;
			if (from < end && mode === "alone") expected.fill(0, from, end);
			await image.drop(byteOffset(start), byteCount(length));
		}
		await image.flush();
		const random = seededRandom(seed);
		if (mode === "alone") assertSameBytes(await contentOf(image, random), expected, "read through the swept image");
	}
	await checkByQemu(path);
	if (hasSnapshot)
		assert.equal(hashBytes(await contentByQemu(folder, path, "-l", "before")), kept, "the snapshot is as before");
	const swept = await contentByQemu(folder, path);
	if (mode === "alone") assertSameBytes(swept, expected, "swept image");
	else assertZeroOrSame(content, swept, { seed, unit });
	const got = before - (await space());
	t.diagnostic(`predicted ${predicted}, got ${got} of ${before}`);
	assert.ok(Math.abs(got - predicted) <= 0.01 * got + 8192, `predicted ${predicted}, got ${got}`);
	if (variant.dataFile !== true) await compactOne(path, folder, swept, !uncompressed);
	if (hasSnapshot)
		assert.equal(hashBytes(await contentByQemu(folder, path, "-l", "before")), kept, "the snapshot is as before");
	const stays = hasSnapshot || (mode === "on a backing file" && variant.options.includes("0.10"));
	if (!stays && variant.cluster >= 4096 && variant.cluster < MIB) assert.ok(got > 0, "something was given back");
}

/** After a sweep: the file gets shorter, and nothing else changes. */
async function compactOne(
	path: string,
	folder: TemporaryFolder,
	content: Uint8Array,
	compressed: boolean,
): Promise<void> {
	const { size } = await stat(path);
	{
		await using image = await openSweepableImage(path);
		const steps: number[] = [];
		await image.compact?.({ onProgress: (done, total) => steps.push(done, total) });
		assert.ok(steps.length >= 2, "progress is told");
		assertSameBytes(await contentOf(image, seededRandom(1)), content, "read through the compacted image");
	}
	await checkByQemu(path);
	assertSameBytes(await contentByQemu(folder, path), content, "compacted image");
	const shorter = await stat(path);
	assert.ok(shorter.size <= size);
	// As short as it gets: all clusters in use, one after the other.
	if (compressed) return;
	assert.equal(await freeClusters(path), 0, "no free cluster is left");
}

/** Whole dropped units are zero, or as before: a snapshot shares them, or the backing file shows. All else is as before. */
function assertZeroOrSame(
	before: Uint8Array,
	after: Uint8Array,
	{ seed, unit }: { readonly seed: number; readonly unit: number },
): void {
	const expected = before.slice();
	for (const { start, length } of ranges(seed, before.length)) {
		const to = start + length === before.length ? before.length : Math.floor((start + length) / unit) * unit;
		for (let at = Math.ceil(start / unit) * unit; at < to; at += unit) {
			const end = Math.min(at + unit, to);
			if (Buffer.compare(before.subarray(at, end), after.subarray(at, end)) !== 0) expected.fill(0, at, end);
		}
	}
	assertSameBytes(after, expected, "swept image");
}

/** An image with ext4 in it, on junk: about half of what it holds can be dropped. */
async function makeFileSystem(folder: TemporaryFolder, path: string, format: "raw" | "qcow2"): Promise<string> {
	const raw = folder.file("file-system");
	await writeFile(raw, seededRandom(3).bytes(SIZE));
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-E", "nodiscard", raw]);
	await runOk("qemu-img", ["convert", "-S", "0", "-O", format, raw, path]);
	return path;
}

/** Refused with one line, and not changed. */
async function expectRefused(image: string, options: readonly string[], why: RegExp): Promise<void> {
	const before = await hashFile(image);
	const { exitCode, stdout, stderr } = await run(vmsweep, ["sweep", ...options, image]);
	assert.match(stderr, why);
	assert.match(stderr, /^vmsweep: [^\n]+\n$/, "one line");
	assert.equal(exitCode, 3, stdout);
	assert.equal(await hashFile(image), before);
}

const reportOf = async (image: string, ...options: readonly string[]): Promise<SweepReport> =>
	JSON.parse(await runOk(vmsweep, ["sweep", "--json", ...options, image])) as SweepReport;

for (const format of ["raw", "qcow2"] as const)
	test(`a ${format} image below an overlay is refused: beside it, told of, and further up`, async (t) => {
		if (!requireTool(t, "qemu-img", "mke2fs")) return;
		await using folder = await temporaryFolder();
		const elsewhere = folder.file("elsewhere");
		await mkdir(elsewhere);
		const base = await makeFileSystem(folder, folder.file(`base.${format}`), format);
		const overlay = async (path: string, below: string, belowFormat: string): Promise<string> => {
			await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", below, "-F", belowFormat, path]);
			return path;
		};
		const beside = await overlay(folder.file("beside.qcow2"), base, format);
		const why = new RegExp(`${base} is the backing file of ${beside}.*qemu-img commit`);
		await expectRefused(base, [], why);
		await expectRefused(base, ["--dry-run"], why);
		const link = folder.file("link");
		await symlink(base, link);
		await expectRefused(link, [], /is the backing file of/);
		await rm(beside);

		const middle = await overlay(join(elsewhere, "middle.qcow2"), base, format);
		const top = await overlay(join(elsewhere, "top.qcow2"), middle, "qcow2");
		for (const told of [middle, top]) await expectRefused(base, ["--overlay", told], /is the backing file of/);
		await expectRefused(middle, [], /is the backing file of .*top\.qcow2/);
		assert.equal((await reportOf(top)).droppedBytes, 0, "the topmost one may be swept; it holds nothing yet");
		// Nobody tells of them, and nothing in the image does.
		assert.ok((await reportOf(base)).droppedBytes > 4 * MIB);
		await runOk("qemu-img", ["compare", top, base]);
	});

test("an image that QEMU has open is refused: itself, below another, and only for reading", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-nbd", "mke2fs")) return;
	await using folder = await temporaryFolder();
	const image = await makeFileSystem(folder, folder.file("image.qcow2"), "qcow2");
	const elsewhere = folder.file("elsewhere");
	await mkdir(elsewhere);
	const overlay = join(elsewhere, "overlay.qcow2");
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay]);
	for (const opened of [[image], [overlay], ["-r", image]]) {
		const socket = folder.file("s");
		await using server = start("qemu-nbd", ["-t", "-f", "qcow2", "-k", socket, ...opened]);
		const exists = (): Promise<boolean> =>
			stat(socket).then(
				() => true,
				() => false,
			);
		await server.until(exists, "its socket");
		await expectRefused(image, [], new RegExp(`${image} is in use by qemu-nbd \\(process ${server.pid}\\)`));
		await server.end();
		await rm(socket, { force: true });
	}
	assert.ok((await reportOf(image)).droppedBytes > 4 * MIB);
	await checkByQemu(image);
});

test("what nothing refers to comes back, too, and is foretold", async (t) => {
	if (!requireTool(t, "qemu-img", "mke2fs")) return;
	await using folder = await temporaryFolder();
	const image = await makeFileSystem(folder, folder.file("image.qcow2"), "qcow2");
	// As after an interruption: entries are gone, and their clusters are still counted.
	const lost = 40;
	{
		await using file = await open(image, "r+");
		const word = async (at: number): Promise<number> => {
			const bytes = Buffer.alloc(8);
			await file.read(bytes, 0, 8, at);
			return Number(bytes.readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n);
		};
		const l2 = await word(await word(40));
		const entries = SIZE / 65536;
		await file.write(Buffer.alloc(lost * 8), 0, lost * 8, l2 + (entries - lost) * 8);
	}
	await checkByQemu(image, { leaksAllowed: true });
	await runOk("sync", [image]);
	const before = await allocatedBytes(image);
	const [foretold, done] = [await reportOf(image, "--dry-run"), await reportOf(image)];
	const got = before - (await allocatedBytes(image));
	assert.ok(got > lost * 65536 + 4 * MIB, `${got}`);
	for (const { droppedBytes } of [foretold, done])
		assert.ok(Math.abs(droppedBytes - got) <= 8192, `${droppedBytes} ${got}`);
	await checkByQemu(image);
});

test("more free clusters than a Map can hold", async (t) => {
	if (!isThorough) return t.skip("only with VMSWEEP_THOROUGH=1: takes a minute");
	if (!requireTool(t, "qemu-img")) return;
	await using folder = await temporaryFolder();
	const usual = variants[0]!;
	const size = 70 * 1024 * MIB;
	const image = await makeImage(
		folder,
		{ ...usual, options: "preallocation=metadata,cluster_size=4096" },
		"large",
		size,
	);
	for (const dryRun of [true, false]) {
		await using sweepable = await openSweepableImage(image, { dryRun });
		const act = dryRun ? sweepable.wouldDrop.bind(sweepable) : sweepable.drop.bind(sweepable);
		for (let at = 0; at < size; at += 1024 * MIB) await act(byteOffset(at), byteCount(1024 * MIB));
		if (!dryRun) await sweepable.flush();
	}
	await checkByQemu(image);
	assert.deepEqual(
		(await mapByQemu(image)).filter(({ present }) => present),
		[],
	);
});
