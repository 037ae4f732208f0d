// Content hashes, to compare what came back with what was written.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join, relative } from "node:path";
import { pipeline } from "node:stream/promises";

/** SHA-256 in hexadecimal. */
export const hashBytes = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** SHA-256 of a file, or of the part of a file or block device from byte `start` up to (not including) byte `end`. */
export async function hashFile(
	path: string,
	range?: { readonly start: number; readonly end: number },
): Promise<string> {
	const hash = createHash("sha256");
	if (range === undefined) await pipeline(createReadStream(path), hash);
	else if (range.end > range.start)
		await pipeline(createReadStream(path, { start: range.start, end: range.end - 1 }), hash);
	return hash.digest("hex");
}

/** Hash of every file under a folder, by its path from there, in path order: for deepEqual. */
export async function hashTree(folder: string): Promise<Record<string, string>> {
	const entries = await readdir(folder, { recursive: true, withFileTypes: true });
	const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
	const hashes: Record<string, string> = {};
	for (const file of files.sort()) hashes[relative(folder, file)] = await hashFile(file);
	return hashes;
}

/** Bytes that a file really takes on its host: what `du` shows, without the holes. */
export const allocatedBytes = async (path: string): Promise<number> => (await stat(path)).blocks * 512;
