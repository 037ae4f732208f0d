// A new qcow2 image on the host, for a conversion to be written into, or as a disk's own second image.

import { open, unlink } from "node:fs/promises";
import { Qcow2Writer, type Qcow2WriterOptions } from "../../core/images/qcow2/writer.ts";
import { byteCount } from "../../foundations/units.ts";
import { lockImage } from "../os/locks.ts";
import { HostImageFile } from "./host-image-file.ts";
import { openError } from "./open-file.ts";
import { openSecondQcow2 } from "./open-image.ts";
import { SpaceReturner } from "./punch.ts";
import type { Qcow2SecondImage } from "./qcow2-second.ts";

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

/**
 * Makes a new image that takes no space, and opens it as a second image. An image below is not looked at before it is
 * opened. Throws what {@link createQcow2} and opening it throw; nothing is left behind then.
 */
export async function createSecondQcow2(
	path: string,
	options: Pick<Qcow2WriterOptions, "size" | "backing">,
): Promise<Qcow2SecondImage> {
	const { file, writer } = await createQcow2(path, options);
	try {
		try {
			await writer.finish();
		} finally {
			await file.close();
		}
		return await openSecondQcow2(path);
	} catch (error) {
		await unlink(path).catch(() => {});
		throw error;
	}
}
