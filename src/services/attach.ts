// Attach: brings a disk back to use whose first image is lost, from the second image alone.
//
//   record beside the second image ─► whole or stands: the disk as it was then ─► a new, empty first image
//                                  └► needs-first-image: its content is of two times ─► refused, unless told otherwise
//
// Everything written since is lost, and whoever runs this is told since when.

import { rm, truncate } from "node:fs/promises";
import { resolve } from "node:path";
import { removeRecord, syncDirectory } from "../adapters/images/durable-json.ts";
import { exists } from "../adapters/os/exists.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { openDiskDirectory } from "./disk-directory.ts";
import { closedPath, firstImagePath, secondImageRecordPath, secondSumsPath, snapshotRecordPath } from "./disk-paths.ts";
import { readDiskDescription, readSecondImageRecord, readSnapshotRecord, secondImagePath } from "./disk-records.ts";
import { makeFirstImage } from "./new-first-image.ts";
import { snapshotNames } from "./snapshots.ts";

/** What the disk is now. */
export interface Attached {
	/** Log position at which the second image stood by itself last. */
	readonly position: number;
	/** When that was, ISO 8601; null where nobody noted it. */
	readonly stoodAt: string | null;
	/** False: the content is of two different times. */
	readonly isConsistent: boolean;
	/** What else is lost, one line each. */
	readonly notes: readonly string[];
}

/** How far the new log's positions lie behind the last known one: the lost log may have gone further. */
const POSITIONS_SKIPPED = 2 ** 32;

/**
 * Gives a disk without a first image a new one. Throws FILE_NOT_FOUND, FILE_EXISTS where the first image is there,
 * DISK_DAMAGED where the second image doesn't stand by itself, DISK_IMAGES_MIXED, IMAGE_LOCKED, NO_SPACE or IO.
 */
export async function attachSecondOnly(
	path: string,
	{ acceptBroken }: { readonly acceptBroken: boolean },
): Promise<Attached> {
	const directory = resolve(path);
	const description = await readDiskDescription(directory);
	const firstPath = firstImagePath(directory);
	if (await exists(firstPath))
		throw new VmsweepError(
			"FILE_EXISTS",
			`${firstPath} is there, and with it the disk's newest data. Serve the disk; where that file is damaged for good, move it away first.`,
		);
	const secondPath = secondImagePath(directory, description);
	const record = await readSecondImageRecord(secondImageRecordPath(directory, secondPath, description.second.kind));
	if (record?.uuid !== description.uuid)
		throw new VmsweepError(
			"DISK_IMAGES_MIXED",
			`${secondPath} is not known to be this disk's second image. Put the right image, with its .vmsweep file, in its place.`,
		);
	const isConsistent = record.state !== "needs-first-image";
	if (!isConsistent && !acceptBroken)
		throw new VmsweepError(
			"DISK_DAMAGED",
			`${secondPath} stood by itself last at log position ${record.position} (${record.stoodAt ?? "time unknown"}); cleaning has changed a part of it since, so that it is of two times. Restore a backup, or take it as it is with --accept-broken and have the guest check its file systems.`,
		);
	await makeFirstImage(directory, description, { afterPosition: record.position + POSITIONS_SKIPPED });
	await syncDirectory(directory);
	const notes: string[] = [];
	try {
		// What is of two times may not match its checksums either.
		if (!isConsistent) await truncate(secondSumsPath(directory), 0).catch(() => {});
		for (const name of await snapshotNames(directory))
			if ((await readSnapshotRecord(directory, name))?.state === "taking") {
				await removeRecord(snapshotRecordPath(directory, name));
				notes.push(`snapshot ${name} was not complete, and is lost`);
			}
		await removeRecord(closedPath(directory));
		// Everything else that speaks against serving the disk does so now.
		await using opened = await openDiskDirectory(directory);
		await opened.close();
	} catch (error) {
		await rm(firstPath, { force: true });
		throw error;
	}
	return { position: record.position, stoodAt: record.stoodAt ?? null, isConsistent, notes };
}
