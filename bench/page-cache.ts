// The page cache: what a benchmark finds in it decides what it measures.
//
// Files are read into it in single pages. ext4 may keep a file that was written or read in long runs in folios of up to
// 2 MiB, and then walks the whole folio for each write into it: writing 4 KiB in place costs five times as much. A VM's image
// is mostly touched at random places, so single pages are the usual case; and they are the one that is kind to the peers.

import { existsSync } from "node:fs";
import { open, readdir } from "node:fs/promises";
import { join } from "node:path";
import * as sys from "../src/adapters/os/syscalls.ts";
import { runOk } from "../test/support/processes.ts";

const READ_BYTES = 4 << 20;
/** No reading ahead, and with it no large folios (posix_fadvise(2)). */
const POSIX_FADV_RANDOM = 1;

/** Writes out what a file system has in memory, then takes all files below a folder out of the page cache. */
export async function forgetCached(folder: string): Promise<void> {
	await writeOut(folder);
	for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }))
		if (entry.isFile()) await advised(join(entry.parentPath, entry.name), sys.POSIX_FADV_DONTNEED);
}

/** Reads a file into the page cache, where it is not there yet. Nothing to do for a file that does not exist. */
export async function readIntoCache(path: string): Promise<void> {
	if (!existsSync(path)) return;
	await advised(path, POSIX_FADV_RANDOM, async (file) => {
		const into = new Uint8Array(READ_BYTES);
		while ((await file.read(into, 0, into.length, null)).bytesRead > 0);
	});
}

/** Waits until the file system of a folder has nothing left to write out. */
export async function writeOut(folder: string): Promise<void> {
	await runOk("sync", ["--file-system", folder]);
}

type Opened = Awaited<ReturnType<typeof open>>;

async function advised(path: string, advice: number, work?: (file: Opened) => Promise<void>): Promise<void> {
	const file = await open(path);
	try {
		const error = sys.fadvise(file.fd, 0, 0, advice);
		if (error !== 0) throw sys.hostError(-error, `${path}: advising about the page cache`);
		await work?.(file);
	} finally {
		await file.close();
	}
}
