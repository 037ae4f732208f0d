// Create: makes a disk, with a new empty second image or around an image that is there already.
//
// disk.json is written last: a directory without it is no disk. Whatever fails before takes back what it made; an
// adopted image is never changed, not even by a byte.

import { randomUUID } from "node:crypto";
import { mkdir, readdir, rm, rmdir } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { syncDirectory, writeRecord } from "../adapters/images/durable-json.ts";
import { detectFormat, FORMAT_PROBE_BYTES } from "../adapters/images/image-format.ts";
import { openDiskImage } from "../adapters/images/open-image.ts";
import { openSecondImage } from "../adapters/images/open-second.ts";
import { createSecondQcow2 } from "../adapters/images/qcow2-create.ts";
import { createRawImage, openRawImage } from "../adapters/images/raw-image.ts";
import type { SecondImage, SecondImageFormat } from "../adapters/images/second-image.ts";
import { ioError } from "../adapters/images/write-run.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE, type ByteCount, byteOffset, roundUp } from "../foundations/units.ts";
import { newSecondImageRecord } from "./disk-directory.ts";
import {
	closedPath,
	diskJsonPath,
	firstImagePath,
	ownSecondImage,
	ownSecondImagePath,
	secondImageRecordPath,
} from "./disk-paths.ts";
import {
	DISK_BYTES_MAX,
	DISK_BYTES_MIN,
	type DiskDescription,
	RECORD_FORMAT,
	readDiskDescription,
	readSecondImageRecord,
} from "./disk-records.ts";
import { checkNewSize, sizeProblem } from "./disk-size.ts";
import { makeFirstImage } from "./new-first-image.ts";

export interface CreateDiskOptions {
	/** The disk's directory: to be made, or empty. Its parent must exist. */
	readonly directory: string;
	/** `adopt`: the disk that an existing raw or qcow2 image or a block device holds. */
	readonly second: NewSecondImage | { readonly kind: "adopt"; readonly path: string };
	/** Most host space that the first image may take, in bytes; by the disk's size where not given. */
	readonly limitBytes?: number;
}

/** A disk of its own, empty but for what is in the image below it. */
export interface NewSecondImage {
	readonly kind: "new";
	/** Default: the size of the image below. */
	readonly size?: ByteCount;
	/** Default: raw; with an image below, qcow2. */
	readonly format?: SecondImageFormat;
	/** The image below, raw or qcow2: never changed, and not to be changed by others from now on. */
	readonly backing?: string;
}

export interface CreatedDisk {
	readonly description: DiskDescription;
	/** What the user should know, one line each. */
	readonly notes: readonly string[];
}

/**
 * Makes a disk, durable once resolved. Throws USAGE (a size that can't be), FILE_EXISTS, FILE_NOT_FOUND,
 * FILE_WRONG_TYPE, IMAGE_UNSUPPORTED (another format than raw or qcow2, a qcow2 image that can't be changed safely, no
 * whole blocks), IMAGE_DAMAGED, IMAGE_LOCKED, DISK_IMAGES_MIXED, NO_SPACE or IO.
 */
export async function createDisk(options: CreateDiskOptions): Promise<CreatedDisk> {
	const directory = resolve(options.directory);
	const made = options.second.kind === "new" ? await checkNew(options.second) : undefined;
	// An image to adopt is opened first: the likeliest refusals then leave nothing to take back.
	await using adopted = options.second.kind === "adopt" ? await openToAdopt(resolve(options.second.path)) : undefined;
	const undo: (() => Promise<unknown>)[] = [];
	try {
		if (await claimDirectory(directory)) undo.push(() => rmdir(directory));
		await using own = made === undefined ? undefined : await makeSecondImage(directory, made);
		if (own !== undefined) undo.push(() => rm(own.path));
		const second = (adopted ?? own)!;
		const description: DiskDescription = {
			format: RECORD_FORMAT,
			uuid: randomUUID(),
			size: second.size,
			created: new Date().toISOString(),
			second: {
				path: own === undefined ? second.path : ownSecondImage(own.format),
				kind: second.kind,
				format: second.format,
				adopted: own === undefined,
			},
		};
		undo.push(() => rm(firstImagePath(directory)));
		await makeFirstImage(directory, description, { limitBytes: options.limitBytes });
		const recordPath = secondImageRecordPath(directory, second.path, second.kind);
		undo.push(() => rm(recordPath));
		await writeRecord(recordPath, newSecondImageRecord(description.uuid, directory));
		undo.push(() => rm(closedPath(directory)));
		const fingerprint = await second.fingerprint();
		const closed = { format: RECORD_FORMAT, uuid: description.uuid, second: fingerprint ?? null };
		await writeRecord(closedPath(directory), closed);
		undo.push(() => rm(diskJsonPath(directory)));
		await writeRecord(diskJsonPath(directory), description);
		await syncDirectory(dirname(directory));
		return { description, notes: notesAbout(second, fingerprint?.below?.map(({ path }) => path) ?? []) };
	} catch (error) {
		for (const step of undo.reverse()) await step().catch(() => {});
		throw error;
	}
}

/** A new second image, as everything about it is known. */
interface CheckedNewImage {
	readonly size: ByteCount;
	readonly format: SecondImageFormat;
	readonly backing?: { readonly name: string; readonly format: SecondImageFormat };
}

/** Looks at the image below, if there is one, before anything is made. */
async function checkNew({ size, format, backing }: NewSecondImage): Promise<CheckedNewImage> {
	if (backing === undefined) {
		if (size === undefined) throw new VmsweepError("USAGE", "a new disk needs a size.");
		checkNewSize(size);
		return { size, format: format ?? "raw" };
	}
	if (format === "raw")
		throw new VmsweepError("USAGE", "a raw image can't have another one below it. Make it qcow2: --format qcow2.");
	await using below = await openDiskImage(backing);
	const name = resolve(backing);
	if (below.format !== "raw" && below.format !== "qcow2")
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${backing} is a ${below.format} image; only raw and qcow2 images can be below a disk. Convert it: qemu-img convert -O qcow2 ${backing} NEW.`,
		);
	const wanted = size ?? below.size;
	checkNewSize(wanted);
	if (wanted < below.size)
		throw new VmsweepError(
			"USAGE",
			`a disk of ${wanted} bytes is too small for ${backing}, which has ${below.size}. Leave out --size, or make it larger.`,
		);
	return { size: wanted, format: "qcow2", backing: { name, format: below.format } };
}

async function makeSecondImage(directory: string, { format, ...rest }: CheckedNewImage): Promise<SecondImage> {
	const path = ownSecondImagePath(directory, format);
	return format === "raw" ? await createRawImage(path, rest.size) : await createSecondQcow2(path, rest);
}

/** Opens and locks an image that is to become a second image, after everything that speaks against it. */
async function openToAdopt(path: string): Promise<SecondImage> {
	const image = await openSecondImage(path, await formatToAdopt(path));
	try {
		const problem = sizeProblem(image.size);
		if (problem !== undefined) throw new VmsweepError("IMAGE_UNSUPPORTED", wrongSize(image, problem));
		if (image.kind === "file") await checkUnclaimed(path);
		return image;
	} catch (error) {
		await image.close();
		throw error;
	}
}

/** Asked once, when a user names the image; from then on the disk's description says it. */
async function formatToAdopt(path: string): Promise<SecondImageFormat> {
	await using image = await openRawImage(path, "write");
	const start = new Uint8Array(Math.min(FORMAT_PROBE_BYTES, image.size));
	await image.read(byteOffset(0), start);
	const format = detectFormat(start);
	if (format === "raw" || format === "qcow2") return format;
	throw new VmsweepError(
		"IMAGE_UNSUPPORTED",
		`${path} is a ${format} image; a second image must be raw or qcow2. Convert it: qemu-img convert -O qcow2 ${path} NEW.`,
	);
}

/** Growing an image moves the place where a guest expects its second partition table, so nobody does it unasked. */
function wrongSize({ path, size, kind, format }: SecondImage, problem: string): string {
	const rounded = roundUp(size, BLOCK_SIZE);
	const command = format === "raw" ? `truncate -s %${BLOCK_SIZE} ${path}` : `qemu-img resize ${path} ${rounded}`;
	const advice =
		kind === "file" && size >= DISK_BYTES_MIN && size <= DISK_BYTES_MAX
			? ` Round it up with the VM off: ${command}.`
			: "";
	return `${path} has ${size} bytes: ${problem}.${advice}`;
}

/** Refuses an image that another disk still needs. A disk that is gone, or whose image is whole, lets go of it. */
async function checkUnclaimed(path: string): Promise<void> {
	const record = await readSecondImageRecord(secondImageRecordPath(dirname(path), path, "file"));
	if (record === undefined) return;
	const owner = await readDiskDescription(record.disk).catch(() => undefined);
	if (owner?.uuid !== record.uuid && record.state === "whole") return;
	throw new VmsweepError(
		"DISK_IMAGES_MIXED",
		`${path} is the second image of the disk ${record.disk} (${record.uuid}). Serve or commit that disk; if it is gone for good, remove ${path}.vmsweep.`,
	);
}

/** Makes the directory, or takes an empty one. True where it was made. */
async function claimDirectory(directory: string): Promise<boolean> {
	try {
		await mkdir(directory, { mode: 0o700 });
		return true;
	} catch (cause) {
		const { code } = cause as NodeJS.ErrnoException;
		if (code === "ENOENT" || code === "ENOTDIR")
			throw new VmsweepError("FILE_NOT_FOUND", `${dirname(directory)} is no directory. Make it first.`, { cause });
		if (code === "EACCES" || code === "EPERM" || code === "EROFS")
			throw new VmsweepError("IO", `${directory} can't be made: permission denied. Choose another place.`, { cause });
		if (code !== "EEXIST") throw ioError(cause, `${directory}: making the directory failed`);
	}
	const entries = await readdir(directory).catch((cause: NodeJS.ErrnoException) => {
		if (cause.code === "ENOTDIR")
			throw new VmsweepError("FILE_EXISTS", `${directory} exists and is no directory. Choose another name.`, { cause });
		throw ioError(cause, `${directory}: reading the directory failed`);
	});
	if (entries.includes("disk.json"))
		throw new VmsweepError("FILE_EXISTS", `${directory} is a disk already. Choose another name.`);
	if (entries.length > 0)
		throw new VmsweepError("FILE_EXISTS", `${directory} exists and isn't empty. Choose another name.`);
	return false;
}

function notesAbout({ path, kind }: SecondImage, below: readonly string[]): string[] {
	const notes: string[] = [];
	if (kind === "block-device")
		notes.push(
			`${path} is a block device: nothing on it says that it belongs to this disk. Keep other tools away from it while the disk isn't served.`,
		);
	if (below.length > 0)
		notes.push(`the disk lies on ${below.join(" and ")}: keep ${below.length > 1 ? "them" : "it"} there, unchanged.`);
	return notes;
}
