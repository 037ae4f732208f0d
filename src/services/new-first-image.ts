// New first image: the empty log that a disk begins with, or begins anew with where its own was lost.

import { open } from "node:fs/promises";
import { ioError } from "../adapters/images/write-run.ts";
import { OsHostFile } from "../adapters/os/host-file.ts";
import { lockDisk } from "../adapters/os/locks.ts";
import { formatFirstImage } from "../core/log/first-image.ts";
import { byteCount } from "../foundations/units.ts";
import { firstImagePath } from "./disk-paths.ts";
import { type DiskDescription, uuidBytes } from "./disk-records.ts";

/** What of a new first image isn't decided by its disk. */
export interface NewFirstImage {
	/** Most host bytes that the log may fill; by the disk's size where not given. */
	readonly limitBytes?: number | undefined;
	/** The log's positions lie behind this one; for a disk whose first image was lost. */
	readonly afterPosition?: number;
}

/** Makes a disk's first image, empty; its name isn't durable yet. Throws DISK_LOCKED, NO_SPACE or IO, and where it is there already. */
export async function makeFirstImage(
	directory: string,
	{ uuid, size }: Pick<DiskDescription, "uuid" | "size">,
	{ limitBytes = defaultLimit(size), ...rest }: NewFirstImage = {},
): Promise<void> {
	const path = firstImagePath(directory);
	await using file = await open(path, "wx+", 0o600).catch((error: unknown) => {
		throw ioError(error, `${path}: making it failed`);
	});
	await lockDisk(file.fd, path);
	formatFirstImage(new OsHostFile(file.fd, path), {
		uuid: uuidBytes(uuid),
		diskBytes: byteCount(size),
		limitBytes,
		...rest,
	});
	await file.sync();
}

const GIB = 1024 ** 3;

/**
 * A quarter of the disk, between 4 and 16 GiB, but no more than the disk, and 1 GiB at least: room for bursts, and for
 * what is overwritten or deleted soon, and so never copied. A quiet guest's log is nearly empty whatever the limit.
 */
const defaultLimit = (size: number): number =>
	Math.max(GIB, Math.min(size, Math.max(4 * GIB, Math.min(16 * GIB, size / 4))));
