// Disks for the tests of sweep: file systems that were made on junk, worked on, and cleanly unmounted, and what their own
// tools say of them. Since they lie on junk, all that is free in them holds something and takes host space.

import assert from "node:assert/strict";
import { mkdir, open, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TemporaryFolder } from "../support/folders.ts";
import { FuseMount } from "../support/fuse.ts";
import { hashFile, hashTree } from "../support/hashes.ts";
import { hashesIn, LoopPart, Mounted } from "../support/loop.ts";
import { run, runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import { BTRFS_TOOLS, dumpedFree, work } from "./map-btrfs-images.ts";
import { type Reference, workOn as workOnPlain } from "./map-clusters.ts";
import { dumpFree } from "./map-images.ts";
import { dumpXfsFree, fragment, workOn as workOnLinux } from "./xfs-images.ts";

export const MIB = 2 ** 20;
export const SECTOR = 512;

const [XFS4_MIB, F2FS_MIB, LVM_MIB, SWAP_MIB] = [320, 120, 270, 80];

/** A disk that was made. Its methods look at any raw image of it: it, or what became of a copy. */
export interface TestDisk {
	/** Works on an image of it, and unmounts it cleanly. `round` is 1, then 2. */
	use(image: string, random: Random, round: number): Promise<void>;
	/** One byte for each sector: 1 where its own tools call it free. */
	freeSectors(image: string): Promise<Uint8Array>;
	/** Its own checker finds nothing. */
	check(image: string): Promise<void>;
	/** What its files hold, as something to compare. */
	contents(image: string): Promise<unknown>;
}

export interface DiskKind {
	readonly name: string;
	readonly tools: readonly string[];
	readonly mib: number;
	/** Given to sweep. */
	readonly options?: readonly string[];
	/** Makes it in an image that is full of junk. */
	make(image: string, folder: TemporaryFolder): Promise<TestDisk>;
}

/** Fills a new image with junk, which can be compressed somewhat. */
export async function makeJunk(path: string, mib: number, random: Random): Promise<void> {
	await using file = await open(path, "w");
	const junk = random.bytes(MIB).map((byte) => byte & 0x1f);
	for (let at = 0; at < mib; at++) {
		junk.set(random.bytes(16), random.below(MIB / 16) * 16);
		await file.write(junk, 0, MIB, at * MIB);
	}
}

/** As if files had come and gone, before a file system is made that nothing here can delete from. */
async function comeAndGo(image: string, random: Random): Promise<void> {
	await using file = await open(image, "r+");
	for (let at = 60; at < 80; at++) await file.write(random.bytes(MIB), 0, MIB, at * MIB);
}

/** What a reference calls free, sector by sector. */
function sectorsOf({ base, clusterSize, free }: Reference, mib: number): Uint8Array {
	const sectors = new Uint8Array((mib * MIB) / SECTOR);
	for (let cluster = 0; cluster < free.length; cluster++)
		if (free[cluster] === 1) {
			const at = base + cluster * clusterSize;
			sectors.fill(1, at / SECTOR, Math.min(sectors.length, (at + clusterSize) / SECTOR));
		}
	return sectors;
}

/** Bits of a bitmap in which 1 means used, lowest first. */
function clearBits(bits: Uint8Array, count: number): Uint8Array {
	const free = new Uint8Array(count);
	for (let at = 0; at < count; at++) free[at] = ((bits[at >> 3]! >> (at & 7)) & 1) ^ 1;
	return free;
}

const sumOf = (free: Uint8Array): number => free.reduce((sum, each) => sum + each, 0);

/** The number after a name in what a tool printed. */
const numberAfter = (text: string, name: string): number => Number(new RegExp(`${name}\\D*?(\\d+)`).exec(text)![1]);

// What this host's kernel mounts.

interface LinuxKind {
	readonly mib: number;
	readonly mkfs: readonly [string, ...string[]];
	readonly mount?: string;
	readonly tools: readonly string[];
	readonly free: (image: string) => Promise<Reference>;
	readonly check: readonly [string, ...string[]];
	/** More work in round 1, after the usual. */
	readonly more?: (mount: string, random: Random) => Promise<void>;
}

function linux(name: string, kind: LinuxKind): DiskKind {
	const { mib, mkfs, mount = "nodiscard", free, check } = kind;
	return {
		name,
		mib,
		tools: ["root", "loop devices", "bash", mkfs[0], check[0], ...kind.tools],
		async make(image, folder) {
			await runOk(mkfs[0], [...mkfs.slice(1), image]);
			const at = folder.file("mount");
			const mounted = async <T>(which: string, options: string, act: () => Promise<T>): Promise<T> => {
				await using place = await Mounted.mount(which, at, options);
				const result = await act();
				await place.unmount();
				return result;
			};
			return {
				use: (which, random, round) =>
					mounted(which, `loop,${mount}`, async () => {
						await useLinux(at, random, round);
						if (round === 1) await kind.more?.(at, random);
					}),
				freeSectors: async (which) => sectorsOf(await free(which), mib),
				check: async (which) => void (await runOk(check[0], [...check.slice(1), which])),
				contents: (which) => mounted(which, "loop,ro", () => hashesIn(at)),
			};
		},
	};
}

/** Many small files and some large ones, sparse, preallocated and cloned ones; about half of all goes again. */
async function useLinux(mount: string, random: Random, round: number): Promise<void> {
	const home = join(mount, `round-${round}`);
	await mkdir(home);
	await workOnLinux(home, random, 400);
	await fragment(home, random, 400);
	const large = Array.from({ length: 10 }, (_, index) => join(home, `large-${index}`));
	for (const path of large) await writeFile(path, random.bytes(random.between(MIB / 2, 3 * MIB)));
	await runOk("cp", ["--reflink=auto", large[0]!, join(home, "clone")]);
	await runOk("sync", ["-f", mount]);
	{
		await using sparse = await open(join(home, "sparse"), "w");
		for (let piece = 0; piece < 20; piece++)
			await sparse.write(random.bytes(random.between(1, 20_000)), 0, undefined, random.below(30 * MIB));
	}
	// Where the file system can't preallocate, nothing is.
	for (const path of ["preallocated", "preallocated-too"])
		await run("xfs_io", ["-f", "-c", "falloc 1m 3m", "-c", "pwrite -q 2m 100k", join(home, path)]);
	for (const path of [...large.filter((_, index) => index % 2 === 0), join(home, "preallocated-too")])
		await rm(path, { force: true });
	if (round === 2) await rm(join(mount, "round-1", "d1"), { recursive: true });
	await runOk("sync", ["-f", mount]);
}

const blocksOf = ({ blockSize, free }: { blockSize: number; free: Uint8Array }): Reference => ({
	base: 0,
	clusterSize: blockSize,
	free,
});

const ext = (name: string, mib: number, ...options: readonly string[]): DiskKind =>
	linux(name, {
		mib,
		mkfs: ["mke2fs", "-q", "-F", "-E", "nodiscard", ...options],
		tools: ["dumpe2fs", "xfs_io"],
		free: async (image) => blocksOf(await dumpFree(image)),
		check: ["e2fsck", "-fn"],
	});

const xfs = (name: string, mib: number, ...options: readonly string[]): DiskKind =>
	linux(name, {
		mib,
		mkfs: ["mkfs.xfs", "-q", "-f", "-K", ...options],
		tools: ["xfs_db", "xfs_io"],
		free: async (image) => blocksOf(await dumpXfsFree(image)),
		check: ["xfs_repair", "-n"],
	});

const btrfs = (name: string, mib: number, options: readonly string[], mount = ""): DiskKind =>
	linux(name, {
		mib,
		mkfs: ["mkfs.btrfs", "-q", "-f", "-K", ...options],
		mount: `nodiscard${mount}`,
		tools: BTRFS_TOOLS,
		free: async (image) => ({ base: 0, clusterSize: 4096, free: await dumpedFree(image) }),
		check: ["btrfs", "check", "--check-data-csum"],
		// Subvolumes, snapshots, reflinks.
		more: (at, random) => work(at, random.below(32768)),
	});

/** XFS of version 4, which today's kernels don't mount: its files come from a prototype. */
const xfs4: DiskKind = {
	name: "XFS version 4",
	mib: XFS4_MIB,
	tools: ["mkfs.xfs", "xfs_db", "xfs_repair"],
	async make(image, folder) {
		return {
			async use(which, random, round) {
				await comeAndGo(which, random);
				const files: string[] = [];
				for (let index = 0; index < 60; index++) {
					const content = folder.file(`content-${round}-${index}`);
					await writeFile(content, random.bytes(random.below(random.pick([3000, 100_000, 2 * MIB]))));
					files.push(`f${index} ---644 0 0 ${content}`);
				}
				const prototype = folder.file("prototype");
				await writeFile(prototype, `/dev/null\n0 0\nd--755 0 0\n${files.join("\n")}\n$\n$\n`);
				await runOk("mkfs.xfs", ["-q", "-f", "-K", "-m", "crc=0", "-p", prototype, which]);
			},
			freeSectors: async (which) => sectorsOf(blocksOf(await dumpXfsFree(which)), XFS4_MIB),
			check: async (which) => void (await runOk("xfs_repair", ["-n", which])),
			// No used byte may change, which the tests look at anyway.
			contents: async () => image,
		};
	},
};

// What FUSE programs and mtools reach.

const ntfs = (name: string, mib: number, options: readonly string[], ...mountOptions: readonly string[]): DiskKind => ({
	name,
	mib,
	tools: ["root", "fuse", "ntfs-3g", "mkntfs", "ntfscat", "ntfsinfo", "ntfsfix", "ntfsresize"],
	async make(image, folder) {
		await runOk("mkntfs", ["-q", "-F", "-f", ...options, image]);
		const mounted = async <T>(
			which: string,
			option: readonly string[],
			act: (at: string) => Promise<T>,
		): Promise<T> => {
			const at = folder.file("mount");
			await using place = await FuseMount.mount("ntfs-3g", ["-o", ["no_detach", ...option].join(","), which, at]);
			const result = await act(at);
			await place.unmount();
			return result;
		};
		return {
			use: (which, random, round) => mounted(which, mountOptions, (at) => usePlain(at, random, round)),
			async freeSectors(which) {
				const facts = await runOk("ntfsinfo", ["-m", "-f", which]);
				const bits = (await run("ntfscat", ["-f", "-i", "6", which])).stdoutBytes;
				const free = clearBits(bits, numberAfter(facts, "Volume Size in Clusters:"));
				assert.equal(sumOf(free), numberAfter(facts, "Free Clusters:"));
				return sectorsOf({ base: 0, clusterSize: numberAfter(facts, "Cluster Size:"), free }, mib);
			},
			async check(which) {
				await runOk("ntfsfix", ["-n", which]);
				// Walks the whole MFT and compares it with $Bitmap.
				await runOk("ntfsresize", ["-i", "-f", "-P", which]);
			},
			contents: (which) => mounted(which, ["ro"], hashTree),
		};
	},
});

/** Work that any file system can do. */
async function usePlain(at: string, random: Random, round: number): Promise<void> {
	const home = join(at, `round-${round}`);
	await mkdir(home);
	await workOnPlain(home, random, 150);
	for (let index = 0; index < 6; index++) await writeFile(join(home, `large-${index}`), random.bytes(MIB));
	for (let index = 0; index < 200; index++)
		await writeFile(join(home, `small-${index}`), random.bytes(random.below(9000)));
	for (let index = 0; index < 200; index += 2) await rm(join(home, `small-${index}`));
	for (const index of [0, 2, 5]) await rm(join(home, `large-${index}`));
}

const exfat = (name: string, mib: number, ...options: readonly string[]): DiskKind => ({
	name,
	mib,
	tools: ["root", "fuse", "loop devices", "mount.exfat-fuse", "mkfs.exfat", "fsck.exfat", "dump.exfat"],
	async make(image, folder) {
		await runOk("mkfs.exfat", [...options, image]);
		const mounted = async <T>(which: string, act: (at: string) => Promise<T>): Promise<T> => {
			await using device = new LoopPart((await runOk("losetup", ["-f", "--show", which])).trim());
			await using place = await FuseMount.mount("mount.exfat-fuse", ["-d", device.path, folder.file("mount")]);
			const result = await act(place.path);
			await place.unmount();
			return result;
		};
		return {
			use: (which, random, round) => mounted(which, (at) => usePlain(at, random, round)),
			async freeSectors(which) {
				const said = await runOk("dump.exfat", [which]);
				const clusterSize = numberAfter(said, "Cluster size:");
				const base = numberAfter(said, "Cluster Heap Offset[^:]*:") * SECTOR;
				const raw = await readFile(which);
				// mkfs.exfat leaves the bitmap in one piece.
				const bitmap = raw.subarray(base + (numberAfter(said, "Bitmap start cluster:") - 2) * clusterSize);
				const free = clearBits(bitmap, numberAfter(said, "Cluster Count:"));
				assert.equal(sumOf(free), numberAfter(said, "Free Clusters:"));
				return sectorsOf({ base, clusterSize, free }, mib);
			},
			check: async (which) => void (await runOk("fsck.exfat", ["-n", which])),
			contents: (which) => mounted(which, hashTree),
		};
	},
});

const fat = (name: string, mib: number, ...options: readonly string[]): DiskKind => ({
	name,
	mib,
	tools: ["mkfs.fat", "fsck.fat", "mcopy", "mdel"],
	async make(image, folder) {
		await runOk("mkfs.fat", [...options, image]);
		let unpacked = 0;
		return {
			async use(which, random, round) {
				const content = folder.file(`content-${round}`);
				await mkdir(content);
				for (let index = 0; index < 60; index++)
					await writeFile(join(content, `f${index}`), random.bytes(random.below(random.pick([2000, 60_000]))));
				for (const index of [0, 1, 2]) await writeFile(join(content, `large-${index}`), random.bytes(MIB));
				await runOk("mcopy", ["-s", "-Q", "-o", "-i", which, content, `::/round-${round}`]);
				const gone = ["f?", `f?${random.below(10)}`, "large-*"].map((names) => `::/round-${round}/${names}`);
				await runOk("mdel", ["-i", which, ...gone]);
				if (round === 2) await runOk("mdel", ["-i", which, "::/round-1/f3*"]);
			},
			async freeSectors(which) {
				const said = (await run("fsck.fat", ["-n", "-v", which])).stdout;
				const number = (pattern: RegExp): number => Number(pattern.exec(said)![1]);
				const bits = number(/, (\d+) bit entries/);
				const fatAt = number(/First FAT starts at byte (\d+)/);
				const raw = await readFile(which);
				const free = new Uint8Array(number(/(\d+) data clusters/));
				for (let cluster = 0; cluster < free.length; cluster++) {
					const at = fatAt + Math.floor(((cluster + 2) * bits) / 8);
					let value = raw.readUInt16LE(at);
					if (bits === 32) value = raw.readUInt32LE(at) % 2 ** 28;
					else if (bits === 12) value = cluster % 2 === 0 ? value % 4096 : value >> 4;
					if (value === 0) free[cluster] = 1;
				}
				assert.equal(free.length - sumOf(free), number(/files, (\d+)\/\d+ clusters/));
				const clusterSize = number(/(\d+) bytes per cluster/);
				return sectorsOf({ base: number(/Data area starts at byte (\d+)/), clusterSize, free }, mib);
			},
			check: async (which) => void (await runOk("fsck.fat", ["-n", which])),
			async contents(which) {
				const to = folder.file(`unpacked-${unpacked++}`);
				await mkdir(to);
				await runOk("mcopy", ["-s", "-Q", "-n", "-i", which, "::/", to]);
				const hashes = await hashTree(to);
				await rm(to, { recursive: true });
				return hashes;
			},
		};
	},
});

/** No driver here mounts F2FS: sload.f2fs puts files in, and dump.f2fs takes them out. */
const f2fs: DiskKind = {
	name: "F2FS",
	mib: F2FS_MIB,
	tools: ["mkfs.f2fs", "sload.f2fs", "fsck.f2fs", "dump.f2fs"],
	async make(image, folder) {
		const makeFresh = (which: string): Promise<string> => runOk("mkfs.f2fs", ["-q", "-f", "-t", "0", which]);
		await makeFresh(image);
		const dump = async (which: string, ...what: readonly string[]): Promise<string> =>
			(await run("dump.f2fs", [...what, which], { folder: folder.path, input: "Y\n" })).stdout;
		const read = (name: string): Promise<string> => readFile(folder.file(name), "utf8");
		return {
			async use(which, random, round) {
				if (round === 1) return;
				await comeAndGo(which, random);
				const content = folder.file("content");
				await mkdir(content);
				for (let index = 0; index < 40; index++)
					await writeFile(join(content, `f${index}`), random.bytes(random.below(random.pick([3000, 50_000, MIB]))));
				await makeFresh(which);
				await runOk("sload.f2fs", ["-f", content, which]);
			},
			async freeSectors(which) {
				const mainAt = numberAfter(await dump(which, "-d", "1", "-s", "0~-1"), "main_blkaddr\\s+\\[0x\\s*\\w+ :");
				const free: number[] = [];
				for (const [, valid, map] of (await read("dump_sit")).matchAll(
					/vblocks:\s*(\d+)\tseg_type.*\n\n((?:(?: {2}[0-9a-f]{2})+\n)*)/g,
				)) {
					const bytes = [...map!.matchAll(/[0-9a-f]{2}/g)].map(([hex]) => Number.parseInt(hex, 16));
					const segment = Array.from({ length: 512 }, (_, at) => (((bytes[at >> 3] ?? 0) >> (7 - (at & 7))) & 1) ^ 1);
					assert.equal(512 - segment.reduce((sum, bit) => sum + bit, 0), Number(valid));
					free.push(...segment);
				}
				const reference = { base: mainAt * 4096, clusterSize: 4096, free: Uint8Array.from(free) };
				return sectorsOf(reference, F2FS_MIB);
			},
			check: async (which) => void (await runOk("fsck.f2fs", ["--dry-run", which])),
			async contents(which) {
				const found = folder.file("lost_found");
				await rm(found, { recursive: true, force: true });
				await mkdir(found);
				await dump(which, "-n", "0~-1");
				for (const [, inode] of (await read("dump_nat")).matchAll(/ino:\s*(\d+)\toffset:\s*0\t/g))
					await dump(which, "-i", `0x${Number(inode).toString(16)}`);
				return await hashTree(found);
			},
		};
	},
};

// Disks with several volumes.

/** A logical volume's piece: `at` byte `from` of the volume lies at byte `to` of the disk. */
interface Piece {
	readonly from: number;
	readonly to: number;
	readonly length: number;
}

/**
 * A volume group with ext4 in two pieces, XFS between them, and free extents before, between (from an odd MiB on) and behind
 * them. This host has no device mapper: the volumes are worked on as images of their own and copied to their places.
 */
const lvm: DiskKind = {
	name: "LVM with ext4 and XFS",
	mib: LVM_MIB,
	tools: ["pvcreate", "losetup", ...ext("", 0).tools, ...xfs("", 0).tools],
	async make(image, folder) {
		const listed = await makeGroup(image, folder);
		const kinds = { root: ext("", 80, "-t", "ext4"), data: xfs("", 121, "--unsupported", "-l", "size=6m") };
		const volumes: { content: string; disk: TestDisk; pieces: readonly Piece[] }[] = [];
		for (const [name, kind] of Object.entries(kinds)) {
			const content = folder.file(name);
			const pieces = listed.filter((piece) => piece.name === name);
			await copyPieces(image, content, pieces, "out");
			const home = new TemporaryFolder(folder.file(`${name}.d`));
			await mkdir(home.path);
			const disk = await kind.make(content, home);
			await copyPieces(image, content, pieces, "in");
			volumes.push({ content, disk, pieces });
		}
		/** Works on images of the volumes, taken out of one of the disk. */
		const each = async (
			which: string,
			act: (volume: (typeof volumes)[number]) => Promise<unknown>,
		): Promise<unknown[]> => {
			const results: unknown[] = [];
			for (const volume of volumes) {
				await copyPieces(which, volume.content, volume.pieces, "out");
				results.push(await act(volume));
			}
			return results;
		};
		return {
			use: async (which, random, round) =>
				void (await each(which, async ({ content, disk, pieces }) => {
					await disk.use(content, random, round);
					await copyPieces(which, content, pieces, "in");
				})),
			async freeSectors(which) {
				const sectors = new Uint8Array((LVM_MIB * MIB) / SECTOR);
				for (const { name, to, length } of listed)
					if (name === "") sectors.fill(1, to / SECTOR, (to + length) / SECTOR);
				await each(which, async ({ content, disk, pieces }) => {
					const inside = await disk.freeSectors(content);
					for (const { from, to, length } of pieces)
						sectors.set(inside.subarray(from / SECTOR, (from + length) / SECTOR), to / SECTOR);
				});
				return sectors;
			},
			check: async (which) => void (await each(which, ({ content, disk }) => disk.check(content))),
			contents: (which) => each(which, ({ content, disk }) => disk.contents(content)),
		};
	},
};

/** Makes the group with lvm2's own tools; returns the pieces of its volumes, and its free extents under no name. */
async function makeGroup(image: string, folder: TemporaryFolder): Promise<(Piece & { readonly name: string })[]> {
	await using device = new LoopPart((await runOk("losetup", ["-f", "--show", image])).trim());
	await writeFile(
		folder.file("lvm.conf"),
		`devices { dir="/dev" scan=["/dev"] filter=["a|^${device.path}$|","r|.*|"] use_devicesfile=0 }
global { event_activation=0 locking_dir="${folder.file("locks")}" activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
`,
	);
	const lvm2 = (...words: readonly [string, ...string[]]): Promise<string> =>
		runOk(words[0], words.slice(1), { environment: { LVM_SYSTEM_DIR: folder.path } });
	const create = ["lvcreate", "-an", "-Zn", "-Wn", "-y"] as const;
	await lvm2("pvcreate", "-q", "-ff", "-y", device.path);
	await lvm2("vgcreate", "-q", "-s1M", "vg0", device.path);
	const layout = { first: 11, root: 50, data: 121, gap: 7 };
	for (const [name, extents] of Object.entries(layout)) await lvm2(...create, `-l${extents}`, `-n${name}`, "vg0");
	await lvm2("lvextend", "-l80", "vg0/root");
	for (const name of ["first", "gap"]) await lvm2("lvremove", "-y", `vg0/${name}`);
	const columns = "-olv_name,seg_start_pe,pvseg_start,pvseg_size,pe_start";
	const rows = await lvm2("pvs", "--noheadings", "--nosuffix", "--units=b", "--separator=|", columns, "--segments");
	return rows
		.split("\n")
		.filter((row) => row.trim() !== "")
		.map((row) => {
			const [name, ...numbers] = row.trim().split("|");
			const [from, to, extents, start] = numbers.map(Number) as [number, number, number, number];
			return { name: name!, from: from * MIB, to: start + to * MIB, length: extents * MIB };
		});
}

async function copyPieces(disk: string, content: string, pieces: readonly Piece[], way: "in" | "out"): Promise<void> {
	await writeFile(content, "", { flag: "a" });
	await using diskFile = await open(disk, "r+");
	await using contentFile = await open(content, "r+");
	const buffer = new Uint8Array(MIB);
	for (const { from, to, length } of pieces)
		for (let at = 0; at < length; at += MIB)
			if (way === "out") {
				await diskFile.read(buffer, 0, MIB, to + at);
				await contentFile.write(buffer, 0, MIB, from + at);
			} else {
				await contentFile.read(buffer, 0, MIB, from + at);
				await diskFile.write(buffer, 0, MIB, to + at);
			}
}

/** A partition with swap in the midst of what isn't understood. */
const swap: DiskKind = {
	name: "swap with --vm-off",
	mib: SWAP_MIB,
	options: ["--vm-off"],
	tools: ["sfdisk", "mkswap", "swaplabel", "losetup", "root", "loop devices"],
	async make(image) {
		const [start, size] = [3 * MIB, 66 * MIB];
		await runOk("sfdisk", ["-q", "--wipe", "never", image], { input: "label: gpt\nstart=3M, size=66M, type=S\n" });
		const part = async <T>(which: string, act: (device: string) => Promise<T>): Promise<T> => {
			const range = ["-o", `${start}`, "--sizelimit", `${size}`];
			await using device = new LoopPart((await runOk("losetup", [...range, "-f", "--show", which])).trim());
			return await act(device.path);
		};
		await part(image, (device) => runOk("mkswap", ["-q", "-L", "exchange", device]));
		return {
			/** Pages come and go. */
			async use(which, random) {
				await using file = await open(which, "r+");
				for (let index = 0; index < 20; index++)
					await file.write(random.bytes(MIB / 2), 0, undefined, start + random.between(1, 65 * 256) * 4096);
			},
			async freeSectors() {
				const sectors = new Uint8Array((SWAP_MIB * MIB) / SECTOR);
				return sectors.fill(1, (start + 4096) / SECTOR, (start + size) / SECTOR);
			},
			check: async (which) => assert.match(await part(which, (device) => runOk("swaplabel", [device])), /exchange/),
			contents: (which) => hashFile(which, { start: 0, end: start + 4096 }),
		};
	},
};

export const diskKinds: readonly DiskKind[] = [
	ext("ext4", 200, "-t", "ext4"),
	xfs("XFS", 320),
	btrfs("btrfs", 300, []),
	ntfs("NTFS", 90, []),
	fat("FAT32", 60, "-F", "32", "-s", "1"),
	exfat("exFAT", 80),
	f2fs,
	lvm,
	swap,
];
/** Further ones, for a soak. */
export const moreDiskKinds: readonly DiskKind[] = [
	ext("ext4, 1 KiB blocks", 200, "-t", "ext4", "-b", "1024"),
	ext("ext4, bigalloc", 300, "-t", "ext4", "-O", "bigalloc", "-C", "65536"),
	ext("ext3", 200, "-t", "ext3"),
	ext("ext2, 2 KiB blocks", 200, "-t", "ext2", "-b", "2048"),
	xfs("XFS, 1 KiB blocks, rmapbt", 320, "-b", "size=1024", "-m", "rmapbt=1"),
	xfs("XFS, 16 KiB blocks", 400, "-b", "size=16384"),
	xfs("XFS, 64 KiB blocks", 1024, "-b", "size=65536"),
	xfs("XFS without reflinks", 320, "-m", "reflink=0,finobt=0,inobtcount=0"),
	xfs4,
	btrfs("btrfs, metadata once, compressed", 300, ["-m", "single", "-n", "4096"], ",compress-force=zstd"),
	btrfs("btrfs, data twice", 400, ["-d", "dup", "-R", "^free-space-tree"], ",space_cache=v1"),
	btrfs("btrfs, mixed", 300, ["-M"]),
	ntfs("NTFS, compressed", 90, ["-C"], "compression"),
	ntfs("NTFS, 512-byte clusters", 90, ["-c", "512"]),
	ntfs("NTFS, 64 KiB clusters", 120, ["-c", "65536"]),
	fat("FAT12", 15, "-F", "12", "-s", "8"),
	fat("FAT16", 30, "-F", "16", "-s", "1"),
	fat("FAT32, 16 KiB clusters", 1100, "-F", "32", "-s", "32"),
	exfat("exFAT, 64 KiB clusters", 150, "-c", "64K"),
];
