// Aged images: a disk that a guest has worked on. Files are written, then most of them deleted, so the image holds far
// more on the host than its file system uses; what is left lies scattered between what is gone.
//
//   mkfs ─► mount (host's kernel, or ntfs-3g) ─► write files of random bytes ─► delete 60 % of them, by seed ─► unmount

import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import { LoopPart, Mounted } from "../test/support/loop.ts";
import { runOk } from "../test/support/processes.ts";
import { seededRandom } from "../test/support/randomness.ts";

export type AgedType = "ext4" | "xfs" | "btrfs" | "ntfs";

/** How each is made and mounted. */
export const agedTypes: Readonly<
	Record<AgedType, { readonly mkfs: readonly [string, ...string[]]; readonly mount: readonly string[] }>
> = {
	ext4: { mkfs: ["mke2fs", "-q", "-F", "-t", "ext4"], mount: [] },
	xfs: { mkfs: ["mkfs.xfs", "-q", "-f"], mount: [] },
	btrfs: { mkfs: ["mkfs.btrfs", "-q", "-f"], mount: [] },
	ntfs: { mkfs: ["mkntfs", "-q", "-F", "-f"], mount: ["-t", "ntfs-3g", "-o", "big_writes"] },
};

const MIB = 1 << 20;
/** Files of 64 KiB to 8 MiB: few enough to be made quickly, many enough to be scattered. */
const FILE_BYTES = [64 * 1024, 8 * MIB] as const;
const DELETED_SHARE = 0.6;

export interface AgedImage {
	readonly sizeBytes: number;
	readonly writtenBytes: number;
}

/** Mounts a file system of `type` that lies on `device`. */
export async function mountAged(type: AgedType, device: string, folder: string): Promise<Mounted> {
	const options = agedTypes[type].mount;
	await runOk("mkdir", ["-p", folder]);
	await runOk("mount", [...options, device, folder]);
	return await Mounted.adopt(folder);
}

/** Makes an aged raw image at `path`. */
export async function makeAgedImage(
	path: string,
	type: AgedType,
	{ sizeBytes, writtenBytes }: AgedImage,
): Promise<void> {
	await rm(path, { force: true });
	await runOk("truncate", ["-s", String(sizeBytes), path]);
	const [program, ...options] = agedTypes[type].mkfs;
	await runOk(program, [...options, path]);
	await using loop = new LoopPart((await runOk("losetup", ["-f", "--show", path])).trim());
	await using mounted = await mountAged(type, loop.path, `${path}.mounted`);
	const random = seededRandom(7);
	const names: string[] = [];
	const pool = new Uint8Array(random.bytes(16 * MIB));
	for (let written = 0; written < writtenBytes; ) {
		const length = random.between(...FILE_BYTES);
		const name = join(mounted.path, `file-${names.length}`);
		await using file = await open(name, "w");
		for (let done = 0; done < length; ) {
			// The same random bytes at another place each time: as good as new ones to every tool that looks for zeros.
			const from = random.between(0, pool.length - MIB);
			const { bytesWritten } = await file.write(pool, from, Math.min(MIB, length - done));
			done += bytesWritten;
		}
		names.push(name);
		written += length;
	}
	await runOk("sync", ["--file-system", mounted.path]);
	for (const name of names) if (random.between(0, 999) < DELETED_SHARE * 1000) await rm(name);
	await mounted.unmount();
}
