// Reading qcow2 images that QEMU made, of every kind: the same bytes, the same map.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { DiskImage } from "../../src/adapters/images/disk-image.ts";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { someOf } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import {
	activity,
	assertSameBytes,
	contentByQemu,
	contentOf,
	io,
	MIB,
	makeImage,
	mapByQemu,
	variants,
} from "./qcow2-images.ts";

const SIZE = 24 * MIB;

/** Per 512 bytes: does QEMU, and do we, say that there may be something else than zeros? */
async function assertSameMap(image: DiskImage, path: string): Promise<void> {
	const sectors = image.size / 512;
	const qemu = new Uint8Array(sectors);
	// `data` alone also marks preallocated clusters; a compressed cluster is data.
	for (const { start, length, data, zero } of await mapByQemu(path))
		qemu.fill(data || !zero ? 1 : 0, start / 512, (start + length) / 512);
	const ours = new Uint8Array(sectors);
	let at = 0;
	for await (const { start, length, kind } of image.runs(byteOffset(0), byteOffset(image.size))) {
		assert.equal(start, at, "runs leave no gap");
		at += length;
		ours.fill(kind === "data" ? 1 : 0, start / 512, at / 512);
	}
	assert.equal(at, image.size, "runs cover the disk");
	// QEMU looks for holes of the file in data clusters, too; a cluster that the format calls data is data for us.
	const missed = qemu.findIndex((has, sector) => has === 1 && ours[sector] === 0);
	assert.equal(missed, -1, `sector ${missed} has data for qemu-img, none for us`);
}

async function check(folder: TemporaryFolder, path: string, seed: number): Promise<void> {
	await using image = await openDiskImage(path);
	assertSameBytes(await contentOf(image, seededRandom(seed)), await contentByQemu(folder, path), path);
	await assertSameMap(image, path);
}

describe("qcow2, read", () => {
	const seed = testSeed() % 1_000_000;
	for (const [index, variant] of someOf(variants, 1).entries())
		test(variant.name, async (t) => {
			if (!requireTool(t, "qemu-img", "qemu-io")) return;
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			const random = seededRandom(seed + index);
			await using folder = await temporaryFolder();
			const path = await makeImage(folder, variant, "image.qcow2", SIZE);
			await io(path, activity(random, variant, SIZE, 60));
			await check(folder, path, seed);
		});

	test("an L2 table that spans more than 4 GiB", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		for (const clusterSize of ["256k", "2M"]) {
			const path = folder.file(clusterSize);
			await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-o", `cluster_size=${clusterSize}`, path, "9G"]);
			await io(path, ["write -P 7 4096M 4M", "write -P 9 4104M 64k", "write -P 11 9215M 1M"]);
			await using image = await openDiskImage(path);
			await assertSameMap(image, path);
			for (const [mib, value] of [
				[4099, 7],
				[4104, 9],
				[9215, 11],
			] as const) {
				const bytes = new Uint8Array(65_536);
				await image.read(byteOffset(mib * MIB), bytes);
				assert.ok(
					bytes.every((byte) => byte === value),
					`${clusterSize}: ${mib} MiB`,
				);
			}
		}
	});

	test("chains of backing files, shorter and longer, raw and qcow2", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		const random = seededRandom(seed);
		await using folder = await temporaryFolder();
		const [usual, , extended] = variants;
		await writeFile(folder.file("base.raw"), random.bytes(3 * MIB + 512));
		const middle = await makeImage(folder, usual!, "middle.qcow2", 16 * MIB, "-b", "base.raw", "-F", "raw");
		await io(middle, activity(random, usual!, 16 * MIB, 20));
		const top = await makeImage(folder, extended!, "top.qcow2", 9 * MIB + 512, "-b", "middle.qcow2", "-F", "qcow2");
		await io(top, activity(random, extended!, 8 * MIB, 20));
		await check(folder, top, seed);
		const long = await makeImage(folder, usual!, "long.qcow2", 40 * MIB, "-b", top, "-F", "qcow2");
		await io(long, activity(random, usual!, 40 * MIB, 10));
		await check(folder, long, seed);
		await using image = await openDiskImage(long);
		assert.deepEqual(
			(await image.parts()).map(({ format, role }) => `${format} ${role}`),
			["qcow2 image", "qcow2 backing", "qcow2 backing", "raw backing"],
		);
		await runOk("qemu-img", ["info", long]);
	});
});
