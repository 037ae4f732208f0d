// Named image: an image that a user named on the command line, opened safely: whole in itself, used by nobody else.
//
//   name ─► format and locks (adapters/images/open-image.ts) ─► no part of a vmsweep disk? ─► DiskImage

import { realpath } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import type { DiskImage, SweepableImage } from "../adapters/images/disk-image.ts";
import { openDiskImage, openSweepableImage, type SweepableOptions } from "../adapters/images/open-image.ts";
import { exists } from "../adapters/os/exists.ts";
import { isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import { readBytes } from "../foundations/source.ts";
import { byteOffset } from "../foundations/units.ts";
import { diskJsonPath, secondImageRecordPath } from "./disk-paths.ts";

/**
 * Opens an image for reading, with the locks of a reader. Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED,
 * IMAGE_UNSUPPORTED, IMAGE_DAMAGED, DISK_IMAGES_MIXED or IO.
 */
export async function openNamedImage(name: string): Promise<DiskImage> {
	await checkNoDisk(name);
	return await checked(await openDiskImage(name), "read");
}

/**
 * Opens an image for sweeping, with the locks of a writer; for a dry run with those of a reader, and only `wouldDrop`
 * may be asked for. Throws as {@link openNamedImage} does.
 */
export async function openNamedForSweep(path: string, options: SweepableOptions): Promise<SweepableImage> {
	await checkNoDisk(path);
	return await checked(await openSweepableImage(path, options), "write");
}

/** An image that is open for reading, and what may be asked about sweeping it. */
export interface Predictable {
	readonly image: DiskImage;
	/** The same image, of which `wouldDrop` may be asked; undefined where its format, or this image, isn't swept. */
	readonly sweepable: SweepableImage | undefined;
	/** Why not, where its format is swept in place but this image can't be, in one sentence; otherwise null. */
	readonly whyNot: string | null;
}

/** Opens an image to foretell what a sweep would do. Throws as {@link openNamedImage} does. */
export async function openNamedForPrediction(name: string): Promise<Predictable> {
	const image = await openNamedImage(name);
	if (image.format !== "raw" && image.format !== "qcow2") return { image, sweepable: undefined, whyNot: null };
	try {
		const sweepable = await checked(await openSweepableImage(name, { dryRun: true }), "read");
		await image.close();
		return { image: sweepable, sweepable, whyNot: null };
	} catch (error) {
		// What must be right before an image is changed (reference counts, dirty bitmaps) needn't be to read it.
		if (isVmsweepError(error, "IMAGE_DAMAGED") || isVmsweepError(error, "IMAGE_UNSUPPORTED"))
			return { image, sweepable: undefined, whyNot: error.message };
		await image.close();
		throw error;
	}
}

async function checked<I extends DiskImage>(image: I, use: "read" | "write"): Promise<I> {
	try {
		await checkNoLog(image);
		for (const { path, role } of await image.parts())
			if (image.format !== "nbd") await checkWhole(path, role === "image" ? use : "read");
		return image;
	} catch (error) {
		await image.close();
		throw error;
	}
}

/** Whoever names a disk's folder means the disk, which has commands of its own. */
async function checkNoDisk(name: string): Promise<void> {
	if (name === "" || !(await exists(diskJsonPath(name)))) return;
	throw new VmsweepError(
		"FILE_WRONG_TYPE",
		`${name} is the folder of a vmsweep disk, not an image. For a disk there are: vmsweep status, explain, clean and commit ${name}.`,
	);
}

/** First bytes of a first image (docs/format/first-image.md). */
const FIRST_IMAGE_MAGIC = "VMSWPLOG";

async function checkNoLog(image: DiskImage): Promise<void> {
	if (image.format !== "raw" || image.size < FIRST_IMAGE_MAGIC.length) return;
	const start = await readBytes(image, byteOffset(0), FIRST_IMAGE_MAGIC.length);
	if (new TextDecoder("latin1").decode(start) !== FIRST_IMAGE_MAGIC) return;
	throw new VmsweepError(
		"IMAGE_UNSUPPORTED",
		`${image.path} is the first image of a vmsweep disk. Name the disk's folder, for example: vmsweep status ${dirname(image.path)}.`,
	);
}

/**
 * Refuses the second image of a vmsweep disk: alone it lacks what the first image holds, so its metadata and its
 * data are of different times and no block of it is provably free. To write it would also break the disk apart.
 */
async function checkWhole(image: string, use: "read" | "write"): Promise<void> {
	// The record lies beside the path under which the disk knows its image, which may be a link.
	for (const path of new Set([resolve(image), await realpath(image)])) {
		const recordPath = secondImageRecordPath(dirname(path), path, "file");
		if (!(await exists(recordPath))) continue;
		// Loaded only for images that have a record: what reads it takes longer to load than a small map takes.
		const { readDiskDescription, readSecondImageRecord } = await import("./disk-records.ts");
		const record = await readSecondImageRecord(recordPath);
		if (record === undefined || (record.state === "whole" && use === "read")) continue;
		const owner = await readDiskDescription(record.disk).catch(() => undefined);
		if (owner?.uuid !== record.uuid && record.state === "whole") continue;
		const advice =
			use === "write"
				? `Clean that disk instead: vmsweep clean ${record.disk}`
				: `Fold both images together first: vmsweep commit ${record.disk}`;
		throw new VmsweepError("DISK_IMAGES_MIXED", `${path} is a part of the vmsweep disk ${record.disk}. ${advice}.`);
	}
}
