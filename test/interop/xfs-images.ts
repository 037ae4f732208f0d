// What the tests of XFS share: a load for a mounted volume, and what xfs_db says is free in an image.

import { appendFile, mkdir, open, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { run, runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import type { Dumped } from "./map-images.ts";

/** A volume's free blocks as `xfs_db` sees them, and what its superblock counts. */
export interface DumpedXfs extends Dumped {
	/** `sb_fdblocks` */
	readonly countedFree: number;
	/** Blocks that the groups hold ready for their trees: neither free nor in a file. */
	readonly heldBlocks: number;
}

/** Reads an image's trees of free blocks with `xfs_db`. */
export async function dumpXfsFree(path: string): Promise<DumpedXfs> {
	const superblock = await xfsDb(path, "sb 0", "p blocksize dblocks agblocks agcount fdblocks");
	const number = (name: string, text = superblock): number =>
		Number(new RegExp(`^${name} = (\\d+)`, "m").exec(text)![1]);
	const [blockSize, blockCount, agBlocks] = [number("blocksize"), number("dblocks"), number("agblocks")];
	const groups = Array.from({ length: number("agcount") }, (_, group) => group);
	const counts = await xfsDb(path, ...groups.flatMap((group) => [`agf ${group}`, "p flcount"]));
	/** `freesp` lists the blocks held ready first, each by itself. */
	const held = [...counts.matchAll(/^flcount = (\d+)/gm)].map((match) => Number(match[1]));
	const heldBlocks = held.reduce((sum, count) => sum + count, 0);
	const free = new Uint8Array(blockCount);
	for (const line of (await xfsDb(path, "freesp -d")).matchAll(/^ +(\d+) +(\d+) +(\d+)$/gm)) {
		const [group, block, length] = line.slice(1).map(Number) as [number, number, number];
		if (held[group]! > 0) held[group]!--;
		else free.fill(1, group * agBlocks + block, group * agBlocks + block + length);
	}
	return { blockSize, blockCount, free, countedFree: number("fdblocks"), heldBlocks };
}

/** Runs commands of `xfs_db`, read-only; returns what they print. */
export async function xfsDb(path: string, ...commands: readonly string[]): Promise<string> {
	return await runOk("xfs_db", ["-r", ...commands.flatMap((command) => ["-c", command]), path]);
}

/** Files of a volume that a load works on. */
const FILES = 60;

/**
 * Creates, overwrites, cuts, grows and deletes files, small and large, with holes; every so often through programs that
 * preallocate, punch holes and share blocks. Ends early where the volume is full or gone.
 */
export async function workOn(folder: string, random: Random, steps: number): Promise<void> {
	const name = (): string => join(folder, `d${random.below(4)}`, `f${random.below(FILES)}`);
	for (let i = 0; i < 4; i++) await mkdir(join(folder, `d${i}`), { recursive: true });
	for (let step = 0; step < steps; step++) {
		try {
			switch (random.below(12)) {
				case 0:
				case 1:
				case 2:
					await writeFile(name(), random.bytes(random.below(random.pick([500, 9000, 100_000]))));
					break;
				case 3:
					await appendFile(name(), random.bytes(random.below(20_000)));
					break;
				case 4:
				case 5:
				case 6:
					await rm(name(), { force: true });
					break;
				case 7:
					await truncate(name(), random.below(400_000));
					break;
				case 8:
				case 9:
					await writeInto(name(), random);
					break;
				case 10:
					if (random.chance(0.1)) await writeFile(name(), random.bytes(random.below(3 << 20)));
					break;
				default:
					if (random.chance(0.1)) await useTools(name(), name(), random);
			}
		} catch (error) {
			const { code } = error as NodeJS.ErrnoException;
			if (code === "EIO") return;
			if (code !== "ENOENT" && code !== "ENOSPC") throw error;
		}
	}
}

/** Makes many small files in a row and deletes every other one, so that the trees of free space get levels. */
export async function fragment(folder: string, random: Random, files = 3000): Promise<void> {
	const content = random.bytes(4096);
	const name = (i: number): string => join(folder, `small${i}`);
	for (let i = 0; i < files; i++) await writeFile(name(i), content.subarray(0, random.between(1, 4096)));
	// Space is allocated when it is written, so that the files lie side by side only then.
	await runOk("sync", ["-f", folder]);
	for (let i = 0; i < files; i += 2) await rm(name(i));
}

/** Writes here and there, which leaves holes, and sometimes waits until it is on the disk. */
async function writeInto(path: string, random: Random): Promise<void> {
	await appendFile(path, "");
	await using file = await open(path, "r+");
	for (let i = random.between(1, 6); i > 0; i--)
		await file.write(random.bytes(random.between(1, 5000)), 0, undefined, random.below(300_000));
	if (random.chance(0.2)) await file.datasync();
}

async function useTools(path: string, other: string, random: Random): Promise<void> {
	const at = (): string => `${random.below(64) * 4096}`;
	await run("xfs_io", ["-f", "-c", `falloc ${at()} 200k`, "-c", `fpunch ${at()} 40k`, "-c", `falloc ${at()} 1m`, path]);
	await run("cp", ["--reflink=auto", path, other]);
}

/** The free runs of the map's only volume, as byte ranges. */
export function freeRanges(map: GuestMap): { start: number; length: number }[] {
	return [...map.extents].filter(({ state }) => state === "free").map(({ start, length }) => ({ start, length }));
}
