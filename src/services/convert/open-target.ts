// Opening the target of a conversion: a new raw or qcow2 file, or a block device that the user gave up.

import type { Stats } from "node:fs";
import { lstat, stat } from "node:fs/promises";
import { dirname, extname } from "node:path";
import type { DiskImage } from "../../adapters/images/disk-image.ts";
import { openRawImage } from "../../adapters/images/raw-image.ts";
import { ioError } from "../../adapters/images/write-run.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { byteCount, formatBytes } from "../../foundations/units.ts";
import { Qcow2Target } from "./qcow2-target.ts";
import { DeviceTarget, RawFileTarget } from "./raw-target.ts";
import { shareStorage } from "./storage-below.ts";
import type { ConvertTarget } from "./target.ts";

export interface TargetOptions {
	/** By the target's name where not given. */
	readonly format?: "raw" | "qcow2" | undefined;
	/** Of qcow2 clusters. */
	readonly compress: "zstd" | "none";
	/** Of qcow2, in bytes. */
	readonly clusterSize?: number | undefined;
	/** The target may be a block device whose content goes. */
	readonly overwriteDevice: boolean;
}

/**
 * Opens the target of a conversion of `source`.
 * Throws USAGE, FILE_EXISTS, FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED, IMAGE_UNSUPPORTED, NO_SPACE or IO.
 */
export async function openTarget(name: string, source: DiskImage, options: TargetOptions): Promise<ConvertTarget> {
	// An empty variable of a script; and a folder's name would make a file inside of it.
	if (name === "" || name.endsWith("/"))
		throw new VmsweepError("USAGE", `the target's name (${JSON.stringify(name)}) is no file's name. Name a new file.`);
	const format = options.format ?? formatByName(name);
	if (format === "raw" && (options.compress !== "none" || options.clusterSize !== undefined))
		throw new VmsweepError(
			"USAGE",
			`${name} becomes a raw image, which has neither compression nor clusters. Add --format qcow2.`,
		);
	if (/^nbds?(\+\w+)?:/.test(name))
		throw new VmsweepError("USAGE", `${name} is an NBD address; a copy is a file or a block device. Name one.`);
	const there = await statusOf(name);
	if (there?.isBlockDevice()) return await openDevice(name, source, format, options);
	if (there?.isFile())
		throw new VmsweepError("FILE_EXISTS", `${name} exists already. Choose another name or remove it.`);
	if (there !== undefined) {
		const what = there.isDirectory() ? "a directory" : "neither a file nor a block device";
		throw new VmsweepError("FILE_WRONG_TYPE", `${name} is ${what}, so no copy can get this name. Choose another one.`);
	}
	await checkPlace(name);
	if (options.overwriteDevice)
		throw new VmsweepError("USAGE", `${name} is no block device. Leave --overwrite-device out.`);
	if (format === "raw") return await RawFileTarget.create(name, source.size);
	const { compress, clusterSize = CLUSTER_SIZE } = options;
	return await Qcow2Target.create(name, { size: source.size, compress, clusterSize: byteCount(clusterSize) });
}

async function statusOf(path: string): Promise<Stats | undefined> {
	return await stat(path).catch((error: NodeJS.ErrnoException) => {
		if (error.code === "ENOENT") return undefined;
		throw ioError(error, `${path}: looking at it failed`);
	});
}

/** What would only show when the copy is made and gets its name. */
async function checkPlace(name: string): Promise<void> {
	const isLink = await lstat(name).catch(() => undefined);
	if (isLink !== undefined)
		throw new VmsweepError("FILE_EXISTS", `${name} is a link that leads to nothing. Choose another name or remove it.`);
	const folder = dirname(name);
	if ((await statusOf(folder)) === undefined)
		throw new VmsweepError("FILE_NOT_FOUND", `the folder of ${name} doesn't exist. Make it first: mkdir -p ${folder}.`);
}

/** Formats by the ends of names. What qemu-img would not write as raw is refused rather than guessed. */
function formatByName(name: string): "raw" | "qcow2" {
	const end = extname(name).toLowerCase();
	if (end === ".qcow2" || end === ".qcow") return "qcow2";
	if ([".vmdk", ".vdi", ".vhd", ".vhdx", ".vpc"].includes(end))
		throw new VmsweepError(
			"USAGE",
			`${name}: raw and qcow2 images are written, not ${end.slice(1)}. Choose one with --format.`,
		);
	return "raw";
}

/** What qemu-img takes, too, in bytes. */
const CLUSTER_SIZE = 65_536;

async function openDevice(
	name: string,
	source: DiskImage,
	format: "raw" | "qcow2",
	options: TargetOptions,
): Promise<ConvertTarget> {
	if (format !== "raw")
		throw new VmsweepError("USAGE", `${name} is a block device, which is written as a raw image. Add --format raw.`);
	if (!options.overwriteDevice)
		throw new VmsweepError(
			"FILE_EXISTS",
			`${name} is a block device, whose content would go. Add --overwrite-device if it may.`,
		);
	for (const { path, format: partFormat } of await source.parts())
		if (partFormat !== "nbd" && (await shareStorage(name, path)))
			throw new VmsweepError("USAGE", `${name} is where ${path} is read from. Name another target.`);
	const image = await openRawImage(name, "write");
	if (image.size >= source.size) return new DeviceTarget(image, source.size);
	await image.close();
	throw new VmsweepError(
		"NO_SPACE",
		`${name} has ${formatBytes(image.size)}, but ${source.path} is a disk of ${formatBytes(source.size)}. Choose a larger device.`,
	);
}
