// Opening the files that images live in: regular files and block devices, under QEMU's locks. Whatever else a path
// may lead to (a directory, a pipe, a terminal, nothing) is refused in one line that says what to do.

import { constants } from "node:fs";
import { type FileHandle, lstat, open } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { type ByteCount, byteCount } from "../../foundations/units.ts";
import { type ImageUse, lockImage } from "../os/locks.ts";
import { hostError, lseek } from "../os/syscalls.ts";
import type { SecondImageKind } from "./second-image.ts";
import { ioError } from "./write-run.ts";

/** An open and locked file. Closing `file` gives the locks back. */
export interface LockedFile {
	readonly file: FileHandle;
	readonly kind: SecondImageKind;
	readonly size: ByteCount;
	/** The same for all paths that lead to this file. */
	readonly identity: string;
}

/**
 * Opens an existing file or block device as it is and takes QEMU's locks for `use` (see locks.ts). A block device is
 * also claimed exclusively where it is to be written, so that a mounted one is refused.
 * Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED or IO.
 */
export async function openLocked(path: string, use: ImageUse): Promise<LockedFile> {
	const file = await openFile(path, use);
	try {
		const status = await file.stat();
		const kind: SecondImageKind = status.isBlockDevice() ? "block-device" : "file";
		if (status.isDirectory()) throw isDirectory(path);
		if (!status.isBlockDevice() && !status.isFile())
			throw new VmsweepError("FILE_WRONG_TYPE", `${path} is neither a file nor a block device. Name an image.`);
		await lockImage(file.fd, path, use);
		const size = kind === "file" ? status.size : lseek(file.fd, 0, SEEK_END);
		if (size < 0) throw hostError(size, `${path}: asking for the device's size failed`);
		const identity = kind === "file" ? `${status.dev}:${status.ino}` : `device ${status.rdev}`;
		return { file, kind, size: byteCount(size), identity };
	} catch (error) {
		await file.close();
		throw error;
	}
}

const SEEK_END = 2;

async function openFile(path: string, use: ImageUse): Promise<FileHandle> {
	// An empty variable of a script, most of the time.
	if (path === "") throw new VmsweepError("USAGE", "the image's name is empty. Name an image.");
	const flags = use === "write" ? constants.O_RDWR : constants.O_RDONLY;
	try {
		// O_NONBLOCK: a path that is a FIFO must not hang the open. It means nothing to files and devices.
		const file = await open(path, flags | constants.O_NONBLOCK);
		if (use === "read" || !(await file.stat()).isBlockDevice()) return file;
		// O_EXCL without O_CREAT claims a block device: refused where it is mounted, and mounting it is refused then.
		await file.close();
		return await open(path, flags | constants.O_EXCL);
	} catch (error) {
		// What is at the path says more than the error does.
		const there = await lstat(path).catch(() => undefined);
		throw there?.isSymbolicLink() ? linkError(error, path) : openError(error, path);
	}
}

function linkError(cause: unknown, path: string): VmsweepError {
	switch ((cause as NodeJS.ErrnoException).code) {
		case "ENOENT":
			return new VmsweepError(
				"FILE_NOT_FOUND",
				`${path} is a link to a file that doesn't exist. Check where it leads.`,
				{
					cause,
				},
			);
		case "ELOOP":
			return new VmsweepError("FILE_NOT_FOUND", `${path} is a link that leads back to itself. Check where it leads.`, {
				cause,
			});
		default:
			return openError(cause, path);
	}
}

const isDirectory = (path: string, cause?: unknown): VmsweepError =>
	new VmsweepError("FILE_WRONG_TYPE", `${path} is a directory. Name an image in it.`, { cause });

/** Turns an error of opening or making `path` into ours. */
export function openError(cause: unknown, path: string): VmsweepError {
	switch ((cause as NodeJS.ErrnoException).code) {
		case "ENOENT":
			return new VmsweepError("FILE_NOT_FOUND", `${path} doesn't exist. Check the path.`, { cause });
		case "ENOTDIR":
			return new VmsweepError("FILE_NOT_FOUND", `a part of ${path} is no directory. Check the path.`, { cause });
		case "EISDIR":
			return isDirectory(path, cause);
		case "ENXIO":
			return new VmsweepError(
				"FILE_WRONG_TYPE",
				`${path} is a socket, or a device with nothing behind it. Name an image; a socket's NBD server is nbd+unix:///EXPORT?socket=${path}.`,
				{ cause },
			);
		case "EEXIST":
			return new VmsweepError("FILE_EXISTS", `${path} exists already. Choose another name or remove it.`, { cause });
		case "EACCES":
		case "EPERM":
		case "EROFS":
			return new VmsweepError("IO", `${path}: permission denied. Run as a user who may use it.`, { cause });
		case "EBUSY":
			return new VmsweepError("IMAGE_LOCKED", `${path} is mounted or used by the host. Unmount it first.`, { cause });
		default:
			return ioError(cause, `${path}: opening it failed`);
	}
}
