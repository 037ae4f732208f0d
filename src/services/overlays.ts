// Overlays: images that were made on top of another one and read from it what they don't hold themselves. To change
// the lower one is to change what they show, so it is refused.
//
// Nothing in the lower image tells that it has overlays. Two things do: the user (`--overlay`), and images in the same
// folder that name it. One elsewhere that nobody tells of is not found; while a VM runs on it, QEMU's locks refuse.

import { open, readdir, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { detectFormat, FORMAT_PROBE_BYTES } from "../adapters/images/image-format.ts";
import { openDiskImage } from "../adapters/images/open-image.ts";
import { BACKING_NAME_BYTES_MAX, HeaderV2 } from "../core/images/qcow2/layout.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { viewOf } from "../foundations/struct.ts";

/** Files of a folder that are looked at; a folder with more holds other things than images. */
const FILES_MAX = 1000;

/**
 * Throws IMAGE_HAS_OVERLAY where one of `told`, or a qcow2 image in the image's own folder, has the image below it;
 * and what opening one of `told` throws.
 */
export async function checkNoOverlay(image: string, told: readonly string[]): Promise<void> {
	const identity = await identityOf(image);
	if (identity === undefined) return; // opening it says what is wrong
	for (const overlay of told) if (await standsOn(overlay, identity)) throw refusal(image, overlay);
	for (const candidate of await imagesBeside(image))
		if (await isMaybeOn(candidate, identity)) throw refusal(image, candidate);
}

const refusal = (image: string, overlay: string): VmsweepError =>
	new VmsweepError(
		"IMAGE_HAS_OVERLAY",
		`${image} is the backing file of ${overlay}, which shows its blocks as its own. Sweep ${overlay} instead, or merge the two first: qemu-img commit ${overlay}.`,
	);

/** Is the file with this identity in the chain below an image? */
async function standsOn(overlay: string, identity: string): Promise<boolean> {
	await using image = await openDiskImage(overlay);
	for (const { path, role } of await image.parts())
		if (role === "backing" && (await identityOf(path)) === identity) return true;
	return false;
}

/** As {@link standsOn}, of a file that nobody told of: one that can't be read is none of the image's. */
async function isMaybeOn(candidate: string, identity: string): Promise<boolean> {
	return await standsOn(candidate, identity)
		.catch(() => namesBelow(candidate, identity))
		.catch(() => false);
}

/**
 * Of a qcow2 image that can't be opened as a whole (encrypted, of a newer QEMU, in use, a file missing): does its header
 * name the file as the one right below it?
 */
async function namesBelow(overlay: string, identity: string): Promise<boolean> {
	const file = await open(overlay, "r");
	try {
		const start = new Uint8Array(HeaderV2.size);
		await file.read(start, 0, start.length, 0);
		const { backingFileOffset, backingFileSize } = HeaderV2.at(viewOf(start));
		if (backingFileSize === 0 || backingFileSize > BACKING_NAME_BYTES_MAX) return false;
		const { buffer } = await file.read(new Uint8Array(backingFileSize), 0, backingFileSize, backingFileOffset);
		const name = new TextDecoder().decode(buffer).replace(/^file:/, "");
		return (await identityOf(resolve(dirname(overlay), name))) === identity;
	} finally {
		await file.close();
	}
}

/** The qcow2 images in an image's folder, without the image itself. */
async function imagesBeside(image: string): Promise<string[]> {
	const folder = dirname(resolve(image));
	const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
	const files = entries.filter((entry) => entry.isFile()).map(({ name }) => join(folder, name));
	const found: string[] = [];
	for (const file of files.slice(0, FILES_MAX))
		if (file !== resolve(image) && (await isQcow2(file).catch(() => false))) found.push(file);
	return found;
}

async function isQcow2(path: string): Promise<boolean> {
	const file = await open(path, "r");
	try {
		const start = new Uint8Array(FORMAT_PROBE_BYTES);
		const { bytesRead } = await file.read(start, 0, start.length, 0);
		return detectFormat(start.subarray(0, bytesRead)) === "qcow2";
	} finally {
		await file.close();
	}
}

/** The same for all paths that lead to one file. Undefined where nothing is there. */
async function identityOf(path: string): Promise<string | undefined> {
	const status = await stat(path).catch(() => undefined);
	if (status === undefined) return undefined;
	return status.isBlockDevice() ? `device ${status.rdev}` : `${status.dev}:${status.ino}`;
}
