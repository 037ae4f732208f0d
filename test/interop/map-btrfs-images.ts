// btrfs images for tests: made by mkfs.btrfs, worked on by the host's kernel, and what btrfs-progs says is used in them.

import { mkdir, stat } from "node:fs/promises";
import { isThorough } from "../support/breadth.ts";
import type { TemporaryFolder } from "../support/folders.ts";
import { Mounted } from "../support/loop.ts";
import { run, runOk } from "../support/processes.ts";

/** What these tests need; for `requireTool`. */
export const BTRFS_TOOLS = ["root", "loop devices", "mkfs.btrfs", "btrfs", "bash", "xfs_io"] as const;

/** A way to make and mount a file system. */
export interface BtrfsVariant {
	readonly mkfs: readonly string[];
	/** Mount options. */
	readonly options: string;
}

/**
 * Random work on files from a seed, then everything that moves space: reflinks, preallocation, sparse files, snapshots,
 * deleted subvolumes, a balance.
 */
const activity = `
set -e
cd "$1"; RANDOM=$2; rounds=$3
btrfs -q subvolume create work
cd work
for i in $(seq 1 $rounds); do
	f=d$((RANDOM % 5))/f$((RANDOM % 300))
	mkdir -p "\${f%/*}"
	case $((RANDOM % 12)) in
		0|1|2) head -c $((RANDOM * 2)) /dev/urandom > $f;;
		3) head -c $((RANDOM % 3000)) /dev/urandom > $f;;
		4) rm -f $f;;
		5) [ ! -e $f ] || truncate -s $((RANDOM * 2)) $f;;
		6) [ ! -e $f ] || cp --reflink=always $f $f.link;;
		7) rm -f $f.link;;
		8) xfs_io -f -c "falloc $((RANDOM * 4)) $((RANDOM * 3))" $f;;
		9) [ ! -e $f ] || xfs_io -c "fpunch $((RANDOM))  $((RANDOM))" $f;;
		10) truncate -s $((RANDOM * 100)) $f; head -c 5000 /dev/urandom | dd of=$f bs=5000 seek=$((RANDOM % 200)) conv=notrunc status=none;;
		11) [ $((i % 9)) != 0 ] || btrfs filesystem sync . > /dev/null;;
	esac
done
cd ..
btrfs -q subvolume snapshot work snap1
btrfs -q subvolume snapshot -r work snap2
rm -rf work/d1
btrfs -q subvolume delete -c snap1
head -c 9M /dev/urandom > large
btrfs filesystem sync . > /dev/null
rm large
btrfs subvolume sync . > /dev/null
btrfs filesystem sync . > /dev/null
exit 0`;

/** Many small files, every other one deleted: enough runs that the free-space tree goes over to bitmaps. */
const holes = `
set -e
mkdir "$1/holes"; cd "$1/holes"; RANDOM=$2
head -c $(($3 * 8192)) /dev/urandom | split -b 8192 -a 5 - part
btrfs filesystem sync . > /dev/null
ls | awk 'NR % 2' | xargs rm
btrfs filesystem sync . > /dev/null`;

/** Makes a file system in a new image and mounts it. Null where this kernel cannot. */
export async function makeBtrfs(
	folder: TemporaryFolder,
	{ mkfs, options }: BtrfsVariant,
	size = "300M",
): Promise<{ image: string; mounted: Mounted } | null> {
	const [image, mount] = [folder.file("image"), folder.file("mount")];
	await mkdir(mount);
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkfs.btrfs", ["-q", "-f", ...mkfs, image]);
	if ((await run("mount", ["-o", `loop,${options}`, image, mount])).exitCode !== 0) return null;
	return { image, mounted: await Mounted.adopt(mount) };
}

/** Lets the kernel work on a mounted file system. */
export async function work(mount: string, seed: number): Promise<void> {
	const rounds = isThorough ? 1500 : 200;
	await runOk("bash", ["-c", activity, "activity", mount, String(seed % 32768), String(rounds)]);
	await makeHoles(mount, seed, isThorough ? 3000 : 400);
}

/** Makes many small files and deletes every other one. */
export async function makeHoles(mount: string, seed: number, files: number): Promise<void> {
	await runOk("bash", ["-c", holes, "holes", mount, String(seed % 32768), String(files)]);
}

/** Which sectors of the device are free, from what `btrfs inspect-internal dump-tree` prints of chunks and extents. */
export async function dumpedFree(image: string, sectorSize = 4096): Promise<Uint8Array> {
	const dump = (tree: string): Promise<string> =>
		runOk("btrfs", ["inspect-internal", "dump-tree", "-t", tree, image], { timeoutSeconds: 300 });
	const chunks: { start: number; length: number; stripes: number[] }[] = [];
	for (const line of (await dump("chunk")).split("\n")) {
		const key = /CHUNK_ITEM (\d+)\)/.exec(line);
		if (key !== null) chunks.push({ start: Number(key[1]), length: 0, stripes: [] });
		const length = /^\t\tlength (\d+) owner/.exec(line);
		if (length !== null) chunks.at(-1)!.length = Number(length[1]);
		const stripe = /stripe \d+ devid 1 offset (\d+)/.exec(line);
		if (stripe !== null) chunks.at(-1)!.stripes.push(Number(stripe[1]));
	}
	const nodeSize = Number(/^nodesize\s+(\d+)/m.exec(await dumpSuper(image))![1]);
	const { size } = await stat(image);
	const free = new Uint8Array(Math.floor(size / sectorSize)).fill(1);
	const use = (start: number, length: number): void =>
		void free.fill(0, Math.floor(start / sectorSize), Math.ceil((start + length) / sectorSize));
	use(0, 2 ** 20);
	for (const copy of [64 * 2 ** 20, 256 * 2 ** 30]) use(copy, 2 ** 16);
	for (const [, start, type, offset] of (await dump("extent")).matchAll(
		/^\titem \d+ key \((\d+) (EXTENT_ITEM|METADATA_ITEM) (\d+)\)/gm,
	)) {
		const length = type === "EXTENT_ITEM" ? Number(offset) : nodeSize;
		const chunk = chunks.find((each) => each.start <= Number(start) && Number(start) < each.start + each.length)!;
		for (const stripe of chunk.stripes) use(stripe + Number(start) - chunk.start, length);
	}
	return free;
}

export const dumpSuper = (image: string): Promise<string> =>
	runOk("btrfs", ["inspect-internal", "dump-super", "-f", image]);
