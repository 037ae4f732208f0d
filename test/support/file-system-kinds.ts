// What differs between file systems that tests have a real kernel work on.

import { runOk } from "./processes.ts";

export interface FileSystemKind {
	readonly name: string;
	/** Programs that the functions below run. */
	readonly tools: readonly string[];
	/** Makes it on the device that is named last. */
	readonly mkfs: readonly string[];
	/** The host's kernel may lack it; then only a guest can look inside. */
	readonly onlyInGuests?: true;
	/** The file system promises nothing after a power cut, not even that what was synced is found. */
	readonly fragile?: true;
	/** It doesn't show whether it was unmounted: its space comes back with the VM off. */
	readonly hidesUnmount?: true;
	/** Where the kernel doesn't find it out itself. */
	readonly mountType?: string;
	/** How tests mount it to work on it: with commits as often as it can. */
	readonly mountOptions: string;
	/** How an image is mounted to look at it. */
	readonly mountToRead: string;
	/** The same after a crash: what its log holds is replayed onto the image. */
	readonly mountToReplay: string;
	/** Finds nothing wrong with the image that is named last, and changes nothing. */
	readonly check: readonly string[];
	/** What a cleanly unmounted image uses by its own account, metadata included, in bytes. */
	readonly usedBytes: (image: string) => Promise<number>;
}

/** Makes it on a device or in an image, over whatever is there; `more` goes before its name. */
export async function makeFileSystem(
	{ mkfs: [program, ...options] }: FileSystemKind,
	device: string,
	...more: readonly string[]
): Promise<void> {
	await runOk(program!, [...options, ...more, device]);
}

export const ext4: FileSystemKind = {
	name: "ext4",
	tools: ["mke2fs", "e2fsck", "dumpe2fs"],
	mkfs: ["mke2fs", "-q", "-F", "-t", "ext4"],
	mountOptions: "commit=1",
	mountToRead: "loop,ro",
	mountToReplay: "loop",
	check: ["e2fsck", "-fn"],
	async usedBytes(image) {
		const dump = await runOk("dumpe2fs", ["-h", image]);
		const field = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(dump)![1]);
		return (field("Block count") - field("Free blocks")) * field("Block size");
	},
};

export const ext3: FileSystemKind = { ...ext4, name: "ext3", mkfs: ["mke2fs", "-q", "-F", "-t", "ext3"] };

export const xfs: FileSystemKind = {
	name: "xfs",
	tools: ["mkfs.xfs", "xfs_repair", "xfs_db"],
	mkfs: ["mkfs.xfs", "-q", "-f"],
	mountOptions: "defaults",
	mountToRead: "loop,ro,nouuid",
	mountToReplay: "loop,nouuid",
	check: ["xfs_repair", "-n"],
	async usedBytes(image) {
		const { dblocks, fdblocks, blocksize } = await xfsSuperblock(image, ["dblocks", "fdblocks", "blocksize"]);
		return (dblocks! - fdblocks!) * blocksize!;
	},
};

export const btrfs: FileSystemKind = {
	name: "btrfs",
	hidesUnmount: true,
	tools: ["mkfs.btrfs", "btrfs"],
	mkfs: ["mkfs.btrfs", "-q", "-f"],
	mountOptions: "commit=1",
	mountToRead: "loop,ro",
	mountToReplay: "loop",
	check: ["btrfs", "check", "--readonly"],
	async usedBytes(image) {
		const dump = await runOk("btrfs", ["inspect-internal", "dump-super", image]);
		return Number(/^bytes_used\s+(\d+)/m.exec(dump)![1]);
	},
};

export const vfat: FileSystemKind = {
	name: "vfat",
	onlyInGuests: true,
	fragile: true,
	tools: ["mkfs.vfat", "fsck.vfat"],
	mkfs: ["mkfs.vfat", "-F", "32"],
	mountOptions: "defaults",
	mountToRead: "loop,ro",
	mountToReplay: "loop",
	check: ["fsck.vfat", "-n"],
	async usedBytes(image) {
		const said = await runOk("fsck.vfat", ["-n", "-v", image]);
		const bytes = Number(/(\d+) bytes per cluster/.exec(said)![1]);
		return Number(/(\d+)\/\d+ clusters/.exec(said)![1]) * bytes;
	},
};

export const ntfs: FileSystemKind = {
	name: "ntfs",
	hidesUnmount: true,
	fragile: true,
	tools: ["mkfs.ntfs", "ntfs-3g", "ntfsinfo", "ntfsfix"],
	mkfs: ["mkfs.ntfs", "-q", "-Q", "-F"],
	mountType: "ntfs-3g",
	mountOptions: "defaults",
	mountToRead: "loop,ro",
	mountToReplay: "loop",
	check: ["ntfsfix", "-n"],
	async usedBytes(image) {
		const dump = await runOk("ntfsinfo", ["-m", image]);
		const field = (name: string): number => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(dump)![1]);
		return (field("Volume Size in Clusters") - field("Free Clusters")) * field("Cluster Size");
	},
};

/** Fields of an XFS superblock, by xfs_db. */
export async function xfsSuperblock(image: string, fields: readonly string[]): Promise<Record<string, number>> {
	const dump = await runOk("xfs_db", ["-r", "-c", "sb 0", "-c", `print ${fields.join(" ")}`, image]);
	return Object.fromEntries(
		fields.map((field) => [field, Number(new RegExp(`^${field} = (\\d+)`, "m").exec(dump)![1])]),
	);
}
