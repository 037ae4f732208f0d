// Writing one run of an image, complete or with an error that the rest of the product knows.

import type { FileHandle } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";

/** Most buffers that the kernel takes in one call (IOV_MAX). */
const BUFFERS_MAX = 1024;

/** Writes the buffers one after the other from byte `at` on. Throws NO_SPACE or IO. */
export async function writeRun(
	file: FileHandle,
	path: string,
	at: number,
	buffers: readonly Uint8Array[],
): Promise<void> {
	for (let index = 0; index < buffers.length; index += BUFFERS_MAX) {
		let rest = buffers.slice(index, index + BUFFERS_MAX);
		while (rest.length > 0) {
			const { bytesWritten } = await file.writev(rest, at).catch((error: unknown) => {
				throw ioError(error, `${path}: writing at byte ${at} failed`);
			});
			if (bytesWritten === 0) throw new VmsweepError("IO", `${path}: the host wrote nothing at byte ${at}.`);
			at += bytesWritten;
			rest = afterBytes(rest, bytesWritten);
		}
	}
}

/** The buffers that are left after `count` bytes of them were written. */
function afterBytes(buffers: Uint8Array[], count: number): Uint8Array[] {
	let written = count;
	let index = 0;
	for (; index < buffers.length && written >= buffers[index]!.length; index++) written -= buffers[index]!.length;
	const rest = buffers.slice(index);
	if (written > 0) rest[0] = rest[0]!.subarray(written);
	return rest;
}

/** Turns an error of Node's file calls into ours: NO_SPACE where the host is full, IO otherwise. Ours stays as it is. */
export function ioError(cause: unknown, what: string): VmsweepError {
	if (cause instanceof VmsweepError) return cause;
	const errno = (cause as NodeJS.ErrnoException).code ?? "unknown error";
	const full = errno === "ENOSPC" || errno === "EDQUOT" || errno === "EFBIG";
	const forbidden = errno === "EACCES" || errno === "EPERM" || errno === "EROFS";
	const advice = full
		? "Free space on the host, then try again."
		: forbidden
			? "Run as a user who may write there."
			: "Check the host's storage.";
	return new VmsweepError(full ? "NO_SPACE" : "IO", `${what}: ${errno}. ${advice}`, { cause });
}
