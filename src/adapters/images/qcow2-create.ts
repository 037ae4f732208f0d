// A new qcow2 image on the host, for a conversion to be written into.

import { open, unlink } from "node:fs/promises";
import { Qcow2Writer, type Qcow2WriterOptions } from "../../core/images/qcow2/writer.ts";
import { byteCount } from "../../foundations/units.ts";
import { lockImage } from "../os/locks.ts";
import { HostImageFile } from "./host-image-file.ts";
import { openError } from "./open-file.ts";
import { SpaceReturner } from "./punch.ts";

/** An image that is being written. Closing it before `writer.finish` leaves a file that is no image. */
export interface NewQcow2 {
	readonly writer: Qcow2Writer;
	/** For copies by the kernel to where `writer.reserve` says. */
	readonly file: HostImageFile;
}

/**
 * Makes the file at `path`, which must not exist, and locks it for writing. The caller closes `file`, and removes the
 * file where it gives up. Throws FILE_EXISTS, FILE_NOT_FOUND (its directory), IMAGE_UNSUPPORTED, NO_SPACE or IO.
 */
export async function createQcow2(path: string, options: Omit<Qcow2WriterOptions, "path">): Promise<NewQcow2> {
	const handle = await open(path, "wx+", 0o600).catch((error: unknown) => {
		throw openError(error, path);
	});
	try {
		await lockImage(handle.fd, path, "write");
		const { dev, ino } = await handle.stat();
		const locked = { file: handle, kind: "file", size: byteCount(0), identity: `${dev}:${ino}` } as const;
		const file = new HostImageFile(path, locked, await SpaceReturner.of(handle, path, "file"));
		return { writer: new Qcow2Writer(file, { ...options, path }), file };
	} catch (error) {
		await handle.close();
		await unlink(path).catch(() => {});
		throw error;
	}
}
