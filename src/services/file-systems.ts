// File systems: which reader looks into a volume with which mark. The one place that names them all.
//
// A reader's code is loaded when a volume first needs it: a command should not wait for nine readers to use one.

import type { FileSystemReader } from "../foundations/guest-map.ts";

const onDemand =
	(load: () => Promise<FileSystemReader>): FileSystemReader =>
	async (volume, options) =>
		(await load())(volume, options);

/** Readers by the type that `findSignatures` reports. A type without one is kept whole. */
export const fileSystemReaders: ReadonlyMap<string, FileSystemReader> = new Map([
	["btrfs", onDemand(async () => (await import("../core/filesystems/btrfs/index.ts")).readBtrfs)],
	["cramfs", onDemand(async () => (await import("../core/filesystems/fully-used.ts")).readCramfs)],
	["erofs", onDemand(async () => (await import("../core/filesystems/fully-used.ts")).readErofs)],
	["exfat", onDemand(async () => (await import("../core/filesystems/exfat/index.ts")).readExfat)],
	["ext", onDemand(async () => (await import("../core/filesystems/ext4/index.ts")).readExt)],
	["f2fs", onDemand(async () => (await import("../core/filesystems/f2fs/index.ts")).readF2fs)],
	["iso9660", onDemand(async () => (await import("../core/filesystems/fully-used.ts")).readIso9660)],
	["ntfs", onDemand(async () => (await import("../core/filesystems/ntfs/index.ts")).readNtfs)],
	["squashfs", onDemand(async () => (await import("../core/filesystems/fully-used.ts")).readSquashfs)],
	["swap", onDemand(async () => (await import("../core/filesystems/swap/index.ts")).readSwap)],
	["vfat", onDemand(async () => (await import("../core/filesystems/fat/index.ts")).readFat)],
	["xfs", onDemand(async () => (await import("../core/filesystems/xfs/index.ts")).readXfs)],
]);
