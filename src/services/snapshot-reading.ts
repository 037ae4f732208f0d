// Snapshot reading: a snapshot's bytes, for commands that only look at them.

import { stat } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { openDiskImage } from "../adapters/images/open-image.ts";
import { exportUri } from "../adapters/nbd/listen-address.ts";
import { VmsweepError } from "../foundations/errors.ts";
import type { ByteSource } from "../foundations/source.ts";
import { isDiskServed } from "./disk-directory.ts";
import { nbdSocketPath } from "./disk-paths.ts";
import { ServedDisk } from "./served-disk.ts";

/**
 * Gives a snapshot's bytes to `work`: as a client of the process that serves the disk, or from the disk itself.
 * Throws FILE_NOT_FOUND where there is no such snapshot, NBD_PROTOCOL, or what opening the disk throws.
 */
export async function readSnapshot<T>(
	path: string,
	name: string,
	work: (source: ByteSource) => Promise<T>,
): Promise<T> {
	const directory = resolve(path);
	if (await isDiskServed(directory)) {
		const socket = nbdSocketPath(directory);
		if (!(await stat(socket).catch(() => undefined))?.isSocket())
			throw new VmsweepError(
				"DISK_NOT_SERVED",
				`${path} is served on an address of its own. Name the snapshot by it: nbd://HOST:PORT/${basename(directory)}@${name}.`,
			);
		await using image = await openDiskImage(
			exportUri({ kind: "unix", path: socket }, `${basename(directory)}@${name}`),
		);
		return await work(image);
	}
	await using disk = await ServedDisk.open(directory);
	return await disk.withSnapshot(name, work);
}
