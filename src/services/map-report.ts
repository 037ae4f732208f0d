// Map report: an image that a user names, opened safely and described: its format, its volumes, its extents.
//
// The report's JSON is the product's interface (one object, `{"size","format","volumes","extents"}`). A fragmented
// disk has millions of extents, so they are walked while they are printed and never held.

import { access } from "node:fs/promises";
import type { DiskFormat } from "../adapters/images/disk-image.ts";
import type { GuestMap } from "../foundations/guest-map.ts";
import { diskJsonPath } from "./disk-paths.ts";
import { readGuestMap } from "./guest-map.ts";
import { openNamedImage } from "./named-image.ts";

/** An image with its guest map. Stays open and locked until disposed. */
export interface MappedImage extends AsyncDisposable {
	readonly path: string;
	readonly format: DiskFormat;
	readonly map: GuestMap;
	/** About the image, its format and the disk as a whole. */
	readonly warnings: readonly string[];
}

/**
 * Opens an image for reading, with the locks of a reader, and reads its guest map. Changes nothing.
 * Throws what {@link openNamedImage} throws.
 */
export async function mapImage(path: string, options: { readonly vmOff: boolean }): Promise<MappedImage> {
	const snapshot = await snapshotIn(path);
	if (snapshot !== undefined) return await mapSnapshot(path, snapshot, options);
	const image = await openNamedImage(path);
	try {
		const map = await readGuestMap(image, options);
		return {
			path,
			format: image.format,
			map,
			warnings: [...image.warnings, ...map.warnings],
			[Symbol.asyncDispose]: () => image.close(),
		};
	} catch (error) {
		await image.close();
		throw error;
	}
}

/** The disk and the snapshot that a name of the form DISK@NAME means; undefined where it means something else. */
async function snapshotIn(path: string): Promise<{ readonly disk: string; readonly name: string } | undefined> {
	const mark = path.lastIndexOf("@");
	if (mark < 0 || path.includes("/", mark)) return undefined;
	const disk = path.slice(0, mark);
	const isDisk = await access(diskJsonPath(disk)).then(
		() => true,
		() => false,
	);
	return isDisk ? { disk, name: path.slice(mark + 1) } : undefined;
}

/** A snapshot of a disk: by its server where one has it, else by opening the disk. Throws FILE_NOT_FOUND and others. */
async function mapSnapshot(
	path: string,
	{ disk, name }: { readonly disk: string; readonly name: string },
	options: { readonly vmOff: boolean },
): Promise<MappedImage> {
	const { readSnapshot } = await import("./snapshot-reading.ts");
	return await readSnapshot(disk, name, async (source) => {
		const map = await readGuestMap(source, options);
		return { path, format: "raw", map, warnings: map.warnings, [Symbol.asyncDispose]: async () => {} };
	});
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
