// Sweeping qcow2 images of every kind: what was dropped reads as zeros, all else is as before, snapshots too, and
// QEMU's own check finds nothing to complain about.

import assert from "node:assert/strict";
import { stat } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { openSweepableImage } from "../../src/adapters/images/open-image.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import { someOf } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { allocatedBytes, hashBytes } from "../support/hashes.ts";
import { runOk } from "../support/processes.ts";
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
