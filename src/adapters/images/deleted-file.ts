// A file that was deleted while it is open: what is flushed into it dies with the process, so no flush may succeed.

import type { FileHandle } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";

/** Throws IO where no name leads to the file any more. Not to be asked about devices. */
export async function refuseDeleted(file: FileHandle, path: string): Promise<void> {
	if ((await file.stat()).nlink > 0) return;
	throw new VmsweepError(
		"IO",
		`${path} was deleted while its disk is served. Copy /proc/${process.pid}/fd/${file.fd} to its place before the server ends; without it the disk is lost.`,
	);
}
