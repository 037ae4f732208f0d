// Map report: an image that a user names, opened safely and described: its format, its volumes, its extents.
//
//   path ─► open with QEMU's locks ─► its format ─► not a part of a vmsweep disk? ─► guest map ─► report
//
// The report's JSON is the product's interface (one object, `{"size","format","volumes","extents"}`). A fragmented
// disk has millions of extents, so they are walked while they are printed and never held.

import { realpath } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { detectFormat, FORMAT_PROBE_BYTES } from "../adapters/images/image-format.ts";
import { openRawImage, type RawImage } from "../adapters/images/raw-image.ts";
import type { ImageUse } from "../adapters/os/locks.ts";
import { VmsweepError } from "../foundations/errors.ts";
import type { GuestMap } from "../foundations/guest-map.ts";
import { byteOffset } from "../foundations/units.ts";
import { readDiskDescription, readSecondImageRecord, secondImageRecordPath } from "./disk-records.ts";
import { readGuestMap } from "./guest-map.ts";

/** An image with its guest map. Stays open and locked until disposed. */
export interface MappedImage extends AsyncDisposable {
	readonly path: string;
	readonly format: "raw";
	readonly map: GuestMap;
}

/**
 * Opens an image for reading, with the locks of a reader, and reads its guest map. Changes nothing.
 * Throws what {@link openNamedImage} throws.
 */
export async function mapImage(path: string): Promise<MappedImage> {
	const image = await openNamedImage(path, "read");
	try {
		const map = await readGuestMap(image);
		return { path, format: "raw", map, [Symbol.asyncDispose]: () => image.close() };
	} catch (error) {
		await image.close();
		throw error;
	}
}

/** The report as JSON text, in pieces, for a stream: one object, a line per volume and per extent. */
export function* mapReportJson(
	{ map, format }: MappedImage,
	options: { readonly extents: boolean },
): Generator<string> {
	yield `{"size":${map.size},"format":${JSON.stringify(format)},"volumes":[`;
	yield* jsonItems(map.volumes);
	yield "]";
	if (options.extents) {
		yield ',"extents":[';
		yield* jsonItems(map.extents);
		yield "]";
	}
	yield "}\n";
}

/** Characters gathered before a piece is handed on. */
const PIECE_CHARACTERS = 64 * 1024;

function* jsonItems(items: Iterable<object>): Generator<string> {
	let piece = "";
	let separator = "\n";
	for (const item of items) {
		piece += separator + JSON.stringify(item);
		separator = ",\n";
		if (piece.length < PIECE_CHARACTERS) continue;
		yield piece;
		piece = "";
	}
	yield piece;
}

/**
 * Opens an image that a user named on the command line: raw, whole in itself, and used by nobody else.
 * Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED, IMAGE_UNSUPPORTED, DISK_IMAGES_MIXED or IO.
 */
export async function openNamedImage(path: string, use: ImageUse): Promise<RawImage> {
	if (/^nbd(s?\+unix|s)?:/.test(path))
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${path}: NBD addresses are not read yet. Name a raw image or a block device (nbdfuse or nbd-client make one of it).`,
		);
	const image = await openRawImage(path, use);
	try {
		await checkFormat(image);
		await checkWhole(image, use);
		return image;
	} catch (error) {
		await image.close();
		throw error;
	}
}

/** First bytes of a first image (docs/format/first-image.md). */
const FIRST_IMAGE_MAGIC = "VMSWPLOG";

async function checkFormat(image: RawImage): Promise<void> {
	const start = new Uint8Array(Math.min(FORMAT_PROBE_BYTES, image.size));
	await image.read(byteOffset(0), start);
	const format = detectFormat(start);
	if (format !== "raw")
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${image.path} is a ${format} image; only raw images are read yet. Convert it: qemu-img convert -O raw ${image.path} NEW.`,
		);
	if (new TextDecoder("latin1").decode(start.subarray(0, FIRST_IMAGE_MAGIC.length)) === FIRST_IMAGE_MAGIC)
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${image.path} is the first image of a vmsweep disk. Name the disk's directory, for example: vmsweep status ${dirname(image.path)}.`,
		);
}

/**
 * Refuses the second image of a vmsweep disk: alone it lacks what the first image holds, so its metadata and its
 * data are of different times and no block of it is provably free. To write it would also break the disk apart.
 */
async function checkWhole(image: RawImage, use: ImageUse): Promise<void> {
	if (image.kind !== "file") return;
	// The record lies beside the path under which the disk knows its image, which may be a link.
	for (const path of new Set([resolve(image.path), await realpath(image.path)])) {
		const record = await readSecondImageRecord(secondImageRecordPath(dirname(path), path, "file"));
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
