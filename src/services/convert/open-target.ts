// Opening the target of a conversion: a new raw or qcow2 file, or a block device that the user gave up.

import { realpath, stat } from "node:fs/promises";
import { extname } from "node:path";
import type { DiskImage } from "../../adapters/images/disk-image.ts";
import { openRawImage } from "../../adapters/images/raw-image.ts";
import { ioError } from "../../adapters/images/write-run.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { byteCount, formatBytes } from "../../foundations/units.ts";
import { Qcow2Target } from "./qcow2-target.ts";
import { DeviceTarget, RawFileTarget } from "./raw-target.ts";
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

/** Opens the target of a conversion of `source`. Throws USAGE, FILE_EXISTS, FILE_NOT_FOUND, IMAGE_LOCKED, NO_SPACE or IO. */
export async function openTarget(name: string, source: DiskImage, options: TargetOptions): Promise<ConvertTarget> {
	const format = options.format ?? formatByName(name);
	if (format === "raw" && (options.compress !== "none" || options.clusterSize !== undefined))
		throw new VmsweepError(
			"USAGE",
			`${name} becomes a raw image, which has neither compression nor clusters. Add --format qcow2.`,
		);
	const there = await stat(name).catch((error: NodeJS.ErrnoException) => {
		if (error.code === "ENOENT") return undefined;
		throw ioError(error, `${name}: looking at it failed`);
	});
	if (there?.isBlockDevice()) return await openDevice(name, source, format, options);
	if (there !== undefined)
		throw new VmsweepError("FILE_EXISTS", `${name} exists already. Choose another name or remove it.`);
	if (options.overwriteDevice)
		throw new VmsweepError("USAGE", `${name} is no block device. Leave --overwrite-device out.`);
	if (format === "raw") return await RawFileTarget.create(name, source.size);
	const { compress, clusterSize = CLUSTER_SIZE } = options;
	return await Qcow2Target.create(name, { size: source.size, compress, clusterSize: byteCount(clusterSize) });
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
	if ((await realpath(name)) === (await realpath(source.path).catch(() => undefined)))
		throw new VmsweepError("USAGE", `${name} is the source itself. Name another target.`);
	const image = await openRawImage(name, "write");
	if (image.size >= source.size) return new DeviceTarget(image, source.size);
	await image.close();
	throw new VmsweepError(
		"NO_SPACE",
		`${name} has ${formatBytes(image.size)}, but ${source.path} is a disk of ${formatBytes(source.size)}. Choose a larger device.`,
	);
}
