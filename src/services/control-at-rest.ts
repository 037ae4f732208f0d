// At rest: what can be told of a disk that nobody serves, without opening it for writing and without any lock.

import { readdir, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { VmsweepError } from "../foundations/errors.ts";
import { askStatus } from "./control.ts";
import { isDiskServed, type SecondImageStand } from "./disk-directory.ts";
import { closedPath, diskJsonPath, firstImagePath, secondImageRecordPath } from "./disk-paths.ts";
import { readClosedRecord, readDiskDescription, readSecondImageRecord, secondImagePath } from "./disk-records.ts";
import type { DiskStatus } from "./disk-status.ts";
import { type SnapshotStatus, snapshotsAtRest } from "./snapshots.ts";

/** A disk that nobody serves. Sizes in bytes. */
export interface RestingDiskStatus {
	readonly name: string;
	readonly uuid: string;
	readonly size: number;
	readonly served: false;
	readonly created: string;
	/** `unclean`: the last process that had it crashed; the next one recovers it. */
	readonly left: "clean" | "unclean";
	readonly first: { readonly path: string; readonly hostBytes: number | null };
	readonly second: {
		readonly path: string;
		readonly kind: "file" | "block-device";
		readonly adopted: boolean;
		/** Null where the image is missing. */
		readonly hostBytes: number | null;
		/** How far it stands by itself; see `SecondImageRecord`. Null where its record is missing. */
		readonly state: SecondImageStand["state"] | null;
		readonly standsAt: number | null;
		/** When it last stood by itself, ISO 8601; null where nobody noted it. */
		readonly stoodAt: string | null;
	};
	readonly snapshots: readonly SnapshotStatus[];
	/** What speaks against serving it, one line each. */
	readonly problems: readonly string[];
}

export type AnyDiskStatus = DiskStatus | RestingDiskStatus;

/** The status of a disk, served or not. Throws FILE_NOT_FOUND, DISK_DAMAGED, DISK_WRONG_VERSION, DISK_NOT_SERVED or IO. */
export async function diskStatus(path: string): Promise<AnyDiskStatus> {
	const directory = resolve(path);
	const description = await readDiskDescription(directory);
	const firstPath = firstImagePath(directory);
	const firstBytes = await hostBytes(firstPath);
	if (firstBytes !== null && (await isDiskServed(directory))) return await askStatus(directory);
	const { uuid, size, created, second } = description;
	const secondPath = secondImagePath(directory, description);
	const recordPath = secondImageRecordPath(directory, secondPath, second.kind);
	const record = await readSecondImageRecord(recordPath);
	const closed = await readClosedRecord(directory);
	const secondBytes = second.kind === "block-device" ? size : await hostBytes(secondPath);
	const problems: string[] = [];
	if (firstBytes === null) problems.push(`${firstPath} is missing, and with it the disk's newest data. Put it back.`);
	if (secondBytes === null) problems.push(`${secondPath} is missing. Put it back.`);
	if (record === undefined) problems.push(`${recordPath} is missing. Put it back.`);
	else if (record.uuid !== uuid) problems.push(`${secondPath} belongs to disk ${record.uuid} (${record.disk}).`);
	if (closed !== undefined && closed.uuid !== uuid) problems.push(`${closedPath(directory)} is of another disk.`);
	return {
		name: basename(directory),
		uuid,
		size,
		served: false,
		created,
		left: closed === undefined ? "unclean" : "clean",
		first: { path: firstPath, hostBytes: firstBytes },
		second: {
			path: secondPath,
			kind: second.kind,
			adopted: second.adopted,
			hostBytes: secondBytes,
			state: record?.state ?? null,
			standsAt: record?.position ?? null,
			stoodAt: record?.stoodAt ?? null,
		},
		snapshots: await snapshotsAtRest(directory, async (path) => (await hostBytes(path)) ?? 0),
		problems,
	};
}

/** The folders of disks in a folder, sorted; the folder itself where it is a disk. */
export async function findDisks(folder: string): Promise<string[]> {
	if (await isDisk(folder)) return [folder];
	const entries = await readdir(folder, { withFileTypes: true }).catch((cause: NodeJS.ErrnoException) => {
		throw new VmsweepError("IO", `${folder} can't be listed (${cause.code}). Check its permissions.`, { cause });
	});
	const folders = entries.filter((entry) => entry.isDirectory() || entry.isSymbolicLink()).map(({ name }) => name);
	const found = await Promise.all(
		folders.sort().map(async (name) => ((await isDisk(join(folder, name))) ? [name] : [])),
	);
	return found.flat().map((name) => join(folder, name));
}

const isDisk = async (folder: string): Promise<boolean> =>
	(await stat(diskJsonPath(folder)).catch(() => undefined))?.isFile() === true;

/** Host space of a file; null where there is none. */
async function hostBytes(path: string): Promise<number | null> {
	const status = await stat(path).catch(() => undefined);
	// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
	return status === undefined ? null : status.blocks * 512;
}
