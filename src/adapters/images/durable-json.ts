// Small JSON records that are either the old or the new one after any crash, never half of one.
//
// Written beside their place, made durable, then renamed over it; the directory is made durable last.

import { open, readFile, rename, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { VmsweepError } from "../../foundations/errors.ts";
import { ioError } from "./write-run.ts";

/** Longest record that is read, in bytes; ours are a few hundred. */
const RECORD_BYTES_MAX = 64 * 1024;

/** The parsed record; undefined where there is none. Throws DISK_DAMAGED where it is no JSON, or IO. */
export async function readRecord(path: string): Promise<unknown> {
	const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
		if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
		throw ioError(error, `${path}: reading it failed`);
	});
	if (text === undefined) return undefined;
	try {
		if (text.length > RECORD_BYTES_MAX) throw new RangeError("too long");
		return JSON.parse(text) as unknown;
	} catch (cause) {
		throw new VmsweepError("DISK_DAMAGED", `${path} is damaged (no JSON). Restore it from a copy.`, { cause });
	}
}

/** Replaces the record; durable once resolved. Throws NO_SPACE or IO, with the old record still there. */
export async function writeRecord(path: string, record: object): Promise<void> {
	const fresh = `${path}.new`;
	try {
		const file = await open(fresh, "w", 0o600);
		try {
			await file.writeFile(`${JSON.stringify(record, undefined, "\t")}\n`);
			await file.sync();
		} finally {
			await file.close();
		}
		await rename(fresh, path);
		await syncDirectory(dirname(path));
	} catch (error) {
		await unlink(fresh).catch(() => {});
		throw ioError(error, `${path}: writing it failed`);
	}
}

/** Removes the record, durably. No record is fine. */
export async function removeRecord(path: string): Promise<void> {
	try {
		await unlink(path);
	} catch (error) {
		if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
		throw ioError(error, `${path}: removing it failed`);
	}
	await syncDirectory(dirname(path));
}

/** Makes a directory's entries durable. */
export async function syncDirectory(path: string): Promise<void> {
	const directory = await open(path, "r");
	try {
		await directory.sync();
	} catch (error) {
		throw ioError(error, `${path}: making the directory durable failed`);
	} finally {
		await directory.close();
	}
}
