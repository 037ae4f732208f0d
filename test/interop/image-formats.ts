// What the tests of image formats share: raw images to convert, and what every opened image must keep.

import assert from "node:assert/strict";
import { open, readFile, truncate, writeFile } from "node:fs/promises";
import type { DiskImage } from "../../src/adapters/images/disk-image.ts";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import type { DiskRunKind, VirtualDisk } from "../../src/core/images/virtual-disk.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { readGuestMap } from "../../src/services/guest-map.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";

export const MIB = 1 << 20;

/** A sparse raw image: random runs at odd places, one of them at the very end, and a lot of nothing. */
export async function makeRaw(path: string, size: number, seed: number): Promise<void> {
	const random = seededRandom(seed);
	await writeFile(path, "");
	await truncate(path, size);
	await using file = await open(path, "r+");
	for (let i = 0; i < 16; i++) {
		const length = random.between(1, Math.min(400_000, size >> 3));
		await file.write(random.bytes(length), 0, length, random.below(size - length));
	}
	await file.write(random.bytes(700), 0, 700, size - 700);
}

/** A raw image with an ext4 file system with some files in it. */
export async function makeExt4(path: string, size: number): Promise<void> {
	await runOk("truncate", ["-s", `${size}`, path]);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", path]);
	const random = seededRandom(9);
	for (let i = 0; i < 4; i++) {
		await writeFile(`${path}.file`, random.bytes(random.between(1000, 600_000)));
		await runOk("debugfs", ["-w", "-R", `write ${path}.file file-${i}`, path]);
	}
	await runOk("debugfs", ["-w", "-R", "rm file-1", path]);
}

interface Run {
	readonly start: number;
	readonly length: number;
}

/** Neighbouring runs as one. */
export function merged(runs: Iterable<Run>): Run[] {
	const all: { start: number; length: number }[] = [];
	for (const { start, length } of runs) {
		const last = all.at(-1);
		if (last !== undefined && last.start + last.length === start) last.length += length;
		else all.push({ start, length });
	}
	return all;
}

/** A disk's runs of one kind. Checks that all of them cover the disk. */
export async function runsOf(disk: VirtualDisk, wanted: DiskRunKind): Promise<Run[]> {
	const found: Run[] = [];
	let end = 0;
	for await (const { start, length, kind } of disk.runs(byteOffset(0), byteOffset(disk.size))) {
		assert.equal(start, end);
		assert.ok(length > 0);
		end += length;
		if (kind === wanted) found.push({ start, length });
	}
	assert.equal(end, disk.size);
	return merged(found);
}

/** What QEMU calls data. */
export async function qemuData(path: string, format: string): Promise<Run[]> {
	const extents = JSON.parse(await runOk("qemu-img", ["map", "--output=json", "-f", format, path])) as (Run & {
		readonly data: boolean;
	})[];
	return merged(extents.filter(({ data }) => data));
}

/** Compares an opened image with the raw bytes that it should show, in all that the contract promises. */
export async function checkContent(image: DiskImage, raw: Uint8Array, seed: number): Promise<void> {
	const random = seededRandom(seed);
	assert.equal(image.size, raw.length);
	const whole = new Uint8Array(raw.length).fill(0xa5);
	await image.read(byteOffset(0), whole);
	assert.ok(Buffer.compare(whole, raw) === 0, "the content differs");
	await Promise.all(
		Array.from({ length: 60 }, async () => {
			const length = random.pick([1, 512, 4096, 65_536, 300_000]);
			const at = random.below(raw.length - length);
			const part = new Uint8Array(length).fill(0xa5);
			await image.read(byteOffset(at), part);
			assert.ok(Buffer.compare(part, raw.subarray(at, at + length)) === 0, `${length} bytes at ${at} differ`);
		}),
	);
	const zeros = new Uint8Array(raw.length);
	for (const kind of ["zero", "absent"] as const)
		for (const { start, length } of await runsOf(image, kind))
			assert.ok(
				Buffer.compare(raw.subarray(start, start + length), zeros.subarray(0, length)) === 0,
				`${kind} at ${start}`,
			);
	await checkParts(image, random.below(raw.length));
	await assert.rejects(image.read(byteOffset(raw.length - 5), new Uint8Array(6)), { code: "OUT_OF_RANGE" });
}

/** Asked for in two parts, runs and what is held are the same as asked for at once. */
async function checkParts(image: DiskImage, cut: number): Promise<void> {
	const all = { from: byteOffset(0), to: byteOffset(image.size) };
	const halves = [
		{ from: byteOffset(0), to: byteOffset(cut) },
		{ from: byteOffset(cut), to: byteOffset(image.size) },
	];
	const runs = async ({ from, to }: typeof all) => await Array.fromAsync(image.runs(from, to));
	const held = async ({ from, to }: typeof all) => await Array.fromAsync(image.held(from, to));
	const data = (some: Awaited<ReturnType<typeof runs>>) => merged(some.filter(({ kind }) => kind === "data"));
	assert.deepEqual(data((await Promise.all(halves.map(runs))).flat()), data(await runs(all)));
	const allHeld = await held(all);
	assert.deepEqual(merged((await Promise.all(halves.map(held))).flat()), allHeld);
	for (const [index, { start, length }] of allHeld.entries())
		assert.ok(length > 0 && start + length <= (allHeld[index + 1]?.start ?? image.size));
}

/** Opens an image by its name, compares it with a raw file, and closes it. Returns its warnings. */
export async function checkImage(
	path: string,
	rawPath: string,
	format: string,
	{ compressed = false } = {},
): Promise<readonly string[]> {
	await using image = await openDiskImage(path);
	assert.equal(image.format, format);
	const content = await readFile(rawPath);
	await checkContent(image, content, 1);
	const parts = await image.parts();
	assert.equal(parts[0]!.path, path);
	assert.equal(parts[0]!.role, "image");
	const held = (await Array.fromAsync(image.held(byteOffset(0), byteOffset(image.size)))).reduce(
		(sum, { length }) => sum + length,
		0,
	);
	assert.ok(held > 0 || content.every((byte) => byte === 0), "it has content, and holds nothing");
	const allocated = await image.allocatedBytes();
	// What is compressed is held as what it unpacks to.
	if (allocated !== null && !compressed) assert.ok(held <= allocated, `${held} of ${allocated}`);
	return image.warnings;
}

/** An ext4 file system has the same map in the image and raw. */
export async function checkGuestMap(path: string, rawPath: string): Promise<void> {
	await using image = await openDiskImage(path);
	await using raw = await openDiskImage(rawPath);
	const [map, expected] = [await readGuestMap(image), await readGuestMap(raw)];
	assert.equal(expected.volumes[0]?.type, "ext4");
	assert.equal(expected.volumes[0].kept, null);
	assert.deepEqual(map.volumes, expected.volumes);
	// A format may round the disk's size up.
	const inside = (extents: typeof map.extents) => [...extents].filter(({ start }) => start < expected.volumes[0]!.size);
	assert.deepEqual(inside(map.extents), inside(expected.extents));
	assert.ok([...map.extents].some(({ state }) => state === "free"));
}
