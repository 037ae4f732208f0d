// What the tests of NTFS, FAT and exFAT share: free clusters compared one by one, files made and removed from a seed,
// and garbage in all that is called free.

import assert from "node:assert/strict";
import { mkdir, open, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { readGuestMap } from "../../src/services/guest-map.ts";
import type { TemporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import { openSource } from "./map-images.ts";

/** What another program says of a volume: where its clusters start, and which are free (1). */
export interface Reference {
	readonly base: number;
	readonly clusterSize: number;
	readonly free: Uint8Array;
}

/** The map of an image that is one volume. */
export async function mapVolume(path: string, options: { vmOff?: boolean } = {}): Promise<GuestMap> {
	await using source = await openSource(path);
	return await readGuestMap(source, options);
}

/** Free clusters of the map must equal the reference's, one by one, and nothing else may be free. */
export function expectSameFree(map: GuestMap, { base, clusterSize, free }: Reference): void {
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null);
	assert.deepEqual(volume.warnings, []);
	assert.equal(volume.state, "clean");
	const mine = new Uint8Array(free.length);
	let cursor = 0;
	let bytes = 0;
	for (const { start, length, state } of map.extents) {
		assert.equal(start, cursor);
		cursor += length;
		if (state !== "free") continue;
		bytes += length;
		const first = (start - base) / clusterSize;
		const count = length / clusterSize;
		assert.ok(Number.isInteger(first) && Number.isInteger(count) && first >= 0, `extent ${start}+${length}`);
		assert.ok(first + count <= free.length, `cluster ${first + count} of ${free.length}`);
		mine.fill(1, first, first + count);
	}
	assert.equal(cursor, map.size);
	assert.equal(volume.freeBytes, bytes);
	assert.equal(
		Buffer.compare(mine, free),
		0,
		`cluster ${mine.findIndex((bit, cluster) => bit !== free[cluster])} differs`,
	);
}

/** Every byte that partclone would copy must be something else than free in the map; independent, but slow. */
export async function expectNothingUsedIsFree(
	map: GuestMap,
	program: string,
	image: string,
	folder: TemporaryFolder,
): Promise<void> {
	const [domains, log] = [folder.file("domains"), folder.file("log")];
	await rm(domains, { force: true });
	await runOk(program, ["-D", "-s", image, "-o", domains, "-L", log, "-F"]);
	const used = [...(await readFile(domains, "utf8")).matchAll(/^0x(\w+) +0x(\w+) +\+$/gm)].map(([, start, size]) => {
		const from = Number.parseInt(start!, 16);
		return { from, to: from + Number.parseInt(size!, 16) };
	});
	assert.ok(used.length > 0);
	for (const { start, length, state } of map.extents)
		if (state === "free")
			for (const { from, to } of used)
				assert.ok(to <= start || from >= start + length, `${program} says ${from}-${to} is used`);
}

/** Overwrites everything that the map calls free. Returns how much that was. */
export async function scrambleFree(path: string, map: GuestMap): Promise<number> {
	const file = await open(path, "r+");
	const garbage = new Uint8Array(1 << 20).fill(0xa5);
	let bytes = 0;
	try {
		for (const { start, length, state } of map.extents) {
			if (state !== "free") continue;
			bytes += length;
			for (let done = 0; done < length; done += garbage.length)
				await file.write(garbage, 0, Math.min(garbage.length, length - done), start + done);
		}
	} finally {
		await file.close();
	}
	return bytes;
}

/** Makes, overwrites, cuts, grows and removes files below a folder. Stops early where the volume is full. */
export async function workOn(folder: string, random: Random, steps: number, largest = 600_000): Promise<void> {
	const directories = [folder];
	for (let step = 0; step < steps; step++) {
		const path = join(random.pick(directories), `file with a name ${random.below(60)}`);
		try {
			switch (random.below(8)) {
				case 0:
				case 1:
				case 2:
					await writeFile(path, random.bytes(random.below(3000)));
					break;
				case 3:
				case 4:
					await writeFile(path, random.bytes(random.below(largest)));
					break;
				case 5:
					await rm(path, { force: true });
					break;
				case 6:
					await writeFile(path, random.bytes(random.below(9000)), { flag: "a" });
					await truncate(path, random.below(20_000));
					break;
				default:
					if (directories.length < 6) {
						const made = join(random.pick(directories), `folder-${random.below(2 ** 30)}`);
						await mkdir(made);
						directories.push(made);
					}
			}
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code === "ENOSPC") return;
			throw error;
		}
	}
}
