// Lists all files below a folder with the hashes of their contents, for a comparison: a program of its own, so that it may wait
// for a mount whose bytes the process that started it serves.
//
//   list-files-worker FOLDER ─► a line for each: ["path", "what it is"], in the order of its walk
//
// Paths are bytes, written as Latin-1. Folders are sorted by name, so two lists of the same tree have the same order.

import { createHash } from "node:crypto";
import {
	closeSync,
	constants,
	lstatSync,
	openSync,
	readdirSync,
	readlinkSync,
	readSync,
	type Stats,
	writeSync,
} from "node:fs";
import { dataRuns } from "../../adapters/os/data-runs.ts";

const PIECE_BYTES = 1024 * 1024;
/** Characters gathered before they are written. */
const OUTPUT_CHARACTERS = 64 * 1024;
/** Deeper folders are named, and not walked. */
const DEPTH_MAX = 512;

const piece = Buffer.alloc(PIECE_BYTES);
let pending = "";

function say(path: Buffer, what: string): void {
	pending += `${JSON.stringify([path.toString("latin1"), what])}\n`;
	if (pending.length >= OUTPUT_CHARACTERS) sendPending();
}

function sendPending(): void {
	const bytes = Buffer.from(pending);
	for (let done = 0; done < bytes.length; ) done += writeSync(1, bytes, done);
	pending = "";
}

const SLASH = Buffer.from("/");

function walk(folder: Buffer, path: Buffer, depth: number): void {
	const entries = readdirSync(folder, { encoding: "buffer" }).sort((a, b) => a.compare(b));
	for (const name of entries) {
		const full = Buffer.concat([folder, SLASH, name]);
		const relative = path.length === 0 ? name : Buffer.concat([path, SLASH, name]);
		try {
			const status = lstatSync(full);
			say(relative, describe(full, status));
			if (!status.isDirectory()) continue;
			if (depth < DEPTH_MAX) walk(full, relative, depth + 1);
			else say(relative, "too deep");
		} catch (error) {
			say(relative, `error ${(error as NodeJS.ErrnoException).code ?? String(error)}`);
		}
	}
}

function describe(path: Buffer, status: Stats): string {
	const { mode, uid, gid, size } = status;
	// Not its times: a replay that finishes a truncation sets them to the present.
	const owner = `${mode.toString(8)} ${uid}:${gid}`;
	if (status.isFile()) return `file ${size} ${hashOf(path, size)} ${owner}`;
	if (status.isSymbolicLink()) return `link ${readlinkSync(path, { encoding: "buffer" }).toString("latin1")} ${owner}`;
	return `${status.isDirectory() ? "folder" : `special ${status.rdev}`} ${owner}`;
}

/** SHA-256 of a file's data and where it lies; holes are the same in both lists. */
function hashOf(path: Buffer, size: number): string {
	const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
	try {
		const hash = createHash("sha256");
		for (const { start, end } of dataRuns(fd, 0, size)) {
			hash.update(`${start} ${end};`);
			for (let at = start; at < end; ) {
				const length = readSync(fd, piece, 0, Math.min(PIECE_BYTES, end - at), at);
				if (length === 0) break;
				hash.update(piece.subarray(0, length));
				at += length;
			}
		}
		return hash.digest("hex");
	} finally {
		closeSync(fd);
	}
}

walk(Buffer.from(process.argv[2]!), Buffer.alloc(0), 0);
sendPending();
