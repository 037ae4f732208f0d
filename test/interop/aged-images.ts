// Aged file systems: the host's kernel fills them and deletes about half, so that the image holds what the guest doesn't
// need any more. And what the tests of `explain` and `convert` ask of them.

import assert from "node:assert/strict";
import { mkdir, open, rm, truncate, writeFile } from "node:fs/promises";
import type { TemporaryFolder } from "../support/folders.ts";
import { hashTree } from "../support/hashes.ts";
import { type Finished, runOk } from "../support/processes.ts";
import { type Random, seededRandom } from "../support/randomness.ts";

export const MIB = 2 ** 20;

/** A kind of file system: how it is made and checked. */
interface AgedKind {
	readonly tools: readonly string[];
	readonly make: readonly [program: string, ...options: string[]];
	/** Fails where anything is wrong, and changes nothing. */
	readonly check: readonly [program: string, ...options: string[]];
	/** The smallest that the kernel mounts, or a little more. */
	readonly mib: number;
}

/** What all of them need; for `requireTool`. */
const COMMON_TOOLS = ["root", "loop devices", "fallocate"] as const;

export const agedKinds = {
	ext4: {
		tools: [...COMMON_TOOLS, "mke2fs", "e2fsck"],
		make: ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard"],
		check: ["e2fsck", "-fn"],
		mib: 128,
	},
	xfs: {
		tools: [...COMMON_TOOLS, "mkfs.xfs", "xfs_repair"],
		make: ["mkfs.xfs", "-q", "-f", "-K"],
		check: ["xfs_repair", "-n"],
		mib: 310,
	},
	btrfs: {
		tools: [...COMMON_TOOLS, "mkfs.btrfs", "btrfs"],
		make: ["mkfs.btrfs", "-q", "-f", "-K"],
		check: ["btrfs", "check", "--readonly"],
		mib: 256,
	},
} as const satisfies Readonly<Record<string, AgedKind>>;

export type AgedKindName = keyof typeof agedKinds;

export interface AgedImage {
	/** A raw image with the file system alone, unmounted. */
	readonly image: string;
	/** Of all files in it, by path. */
	readonly hashes: Record<string, string>;
}

/** Makes a file system on `image` and ages it. `onYoung` is called in between, with the file system unmounted. */
export async function makeAged(
	folder: TemporaryFolder,
	kind: AgedKindName,
	seed: number,
	{
		name = "aged.raw",
		onYoung,
	}: { readonly name?: string; readonly onYoung?: (image: string) => Promise<unknown> } = {},
): Promise<AgedImage> {
	const { make, mib } = agedKinds[kind];
	const image = folder.file(name);
	await runOk("truncate", ["-s", `${mib}M`, image]);
	await runOk(make[0], [...make.slice(1), image]);
	const random = seededRandom(seed);
	await whileMounted(folder, image, (mount) => fill(mount, random, "young"));
	await onYoung?.(image);
	const hashes = await whileMounted(folder, image, async (mount) => {
		await fill(mount, random, "old");
		return await hashTree(mount);
	});
	return { image, hashes };
}

/** Writes files and deletes about half of them, some in part; one is preallocated, one is all zeros. */
async function fill(mount: string, random: Random, prefix: string): Promise<void> {
	const names: string[] = [];
	for (let index = 0; index < 30; index++) {
		const name = `${mount}/${prefix}${index}`;
		await writeFile(name, random.bytes(random.between(1, random.pick([20_000, 2 * MIB]))));
		names.push(name);
	}
	names.push(`${mount}/${prefix}-deleted`);
	await writeFile(names.at(-1)!, random.bytes(12 * MIB));
	await writeFile(`${mount}/${prefix}-zeros`, new Uint8Array(2 * MIB));
	await runOk("fallocate", ["-l", "3M", `${mount}/${prefix}-reserved`]);
	await runOk("sync", ["-f", mount]);
	for (const name of names) {
		if (random.chance(0.5) || name.endsWith("deleted")) await rm(name);
		else if (random.chance(0.2)) await truncate(name, random.below(MIB));
	}
	await runOk("sync", ["-f", mount]);
}

/** Mounts a file system (an image, or a block device) for as long as `work` takes. */
export async function whileMounted<T>(
	folder: TemporaryFolder,
	image: string,
	work: (mount: string) => Promise<T>,
): Promise<T> {
	const mount = folder.file("mount");
	await mkdir(mount, { recursive: true });
	await runOk("mount", ["-o", "loop,nodiscard", image, mount]);
	try {
		return await work(mount);
	} finally {
		await runOk("umount", [mount]);
	}
}

/** The file system's own checker finds nothing, and all files are there. */
export async function assertIntact(
	folder: TemporaryFolder,
	kind: AgedKindName,
	image: string,
	hashes: Record<string, string>,
): Promise<void> {
	const { check } = agedKinds[kind];
	await runOk(check[0], [...check.slice(1), image]);
	assert.deepEqual(await whileMounted(folder, image, hashTree), hashes);
}

/** Writes noise to a part of a file, where a guest would have had something once. */
export async function writeNoise(path: string, at: number, length: number, seed = 5): Promise<void> {
	await using file = await open(path, "r+");
	await file.write(seededRandom(seed).bytes(length), 0, length, at);
}

/** Ended with this exit code and one line that says so. */
export function assertFails({ exitCode, signal, stdout, stderr }: Finished, code: number, message: RegExp): void {
	assert.match(stderr, message);
	assert.match(stderr, /^vmsweep: [^\n]+\n$/, "one line");
	assert.equal(exitCode, code, `${signal ?? ""}${stdout}`);
}
