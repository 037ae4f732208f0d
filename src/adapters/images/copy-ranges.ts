// Copying blocks from the first to the second image in large batches.
//
//   long ranges   (>= 128 KiB): shared by the host's file system (FICLONERANGE), else copied by the kernel
//                 (copy_file_range), else read and written
//   short ranges  read together with what lies between them, up to 8 MiB at once, then written run by run in the
//                 order of the target
//
// A cleaned segment's live blocks lie close together in the first image but scatter over the second. One read of the
// whole stretch and one write per run costs far fewer system calls than two per block, and doesn't cut the second
// image into shared 4 KiB extents.
//
// What the host can do is found out by doing it: the first refusal moves on to the next way, for good.

import { read as readCallback } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { BatchWriter, type PlacedBytes } from "../os/batch-writes.ts";
import { copyFileRangeAsync, hostError, ioctlAsync, type Pinned, pin } from "../os/syscalls.ts";
import { callWithWords } from "./kernel-words.ts";
import type { CopyMethod, CopyRange } from "./second-image.ts";
import { ioError, writeRun } from "./write-run.ts";

/** Fills all of `into` from byte `at` of an open file; `path` of the target is for messages. Throws IO. */
export type ReadSource = (fd: number, into: Uint8Array, at: number, path: string) => Promise<void>;

const LONG_RANGE_BYTES = 128 * 1024;
/** Longest stretch of the source that is read at once, and longest single copy by the kernel. In bytes. */
const STRETCH_BYTES = 8 * 1024 * 1024;
/** A stretch is read whole only while at most this many times the wanted bytes are read. */
const READ_WASTE_MAX = 4;
const WRITES_AT_ONCE = 8;

/** Copies ranges of files into one target; remembers what the host can do. */
export class RangeCopier {
	#method: CopyMethod = "reflink";
	readonly #target: FileHandle;
	readonly #path: string;
	readonly #readSource: ReadSource;
	readonly #batch: BatchWriter | undefined;

	/** `path` of the target, for messages. */
	constructor(target: FileHandle, path: string, readSource?: ReadSource) {
		this.#target = target;
		this.#path = path;
		this.#readSource = readSource ?? readFully;
		// Who reads in a way of his own has no real file to write to, either.
		this.#batch = readSource === undefined ? batchWriter() : undefined;
	}

	/** What long ranges are copied with from now on. */
	get method(): CopyMethod {
		return this.#method;
	}

	/** Copies all ranges; their targets must not overlap. Throws NO_SPACE or IO, with some ranges copied. */
	async copy(sourceFd: number, ranges: readonly CopyRange[]): Promise<void> {
		const merged = mergeAdjacent(ranges);
		const short = merged.filter(({ length }) => length < LONG_RANGE_BYTES);
		const long = merged.filter(({ length }) => length >= LONG_RANGE_BYTES);
		for (const range of long) {
			for (let done = 0; done < range.length; done += STRETCH_BYTES) {
				const length = Math.min(STRETCH_BYTES, range.length - done);
				await this.#copyLong(sourceFd, { from: range.from + done, to: range.to + done, length });
			}
		}
		for (const stretch of stretches(short)) await this.#copyStretch(sourceFd, stretch);
	}

	async #copyLong(sourceFd: number, range: Piece): Promise<void> {
		if (this.#method === "reflink" && !(await this.#reflink(sourceFd, range))) this.#method = "copy_file_range";
		else if (this.#method === "reflink") return;
		if (this.#method === "copy_file_range" && !(await this.#copyFileRange(sourceFd, range)))
			this.#method = "read-write";
		else if (this.#method === "copy_file_range") return;
		await this.#copyStretch(sourceFd, [range]);
	}

	/** False where the host can't share extents between these two files. */
	async #reflink(sourceFd: number, { from, to, length }: Piece): Promise<boolean> {
		const result = await callWithWords([sourceFd, from, length, to], (fileCloneRange) =>
			ioctlAsync(this.#target.fd, FICLONERANGE, fileCloneRange),
		);
		if (result >= 0) return true;
		if (cantDo.has(-result)) return false;
		throw hostError(result, `${this.#path}: sharing ${length} bytes at byte ${to} with the first image failed`);
	}

	/** False where the kernel can't copy between these two files. */
	async #copyFileRange(sourceFd: number, { from, to, length }: Piece): Promise<boolean> {
		let done = 0;
		while (done < length) {
			const result = await callWithWords([from + done, to + done], (offsets) =>
				copyFileRangeAsync(sourceFd, offsets, this.#target.fd, offsets + 8, length - done, 0),
			);
			if (result > 0) done += result;
			else if (result === -EINTR) continue;
			else if (result === 0) throw sourceEnded(this.#path, from + done);
			else if (cantDo.has(-result)) return false;
			else throw hostError(result, `${this.#path}: copying ${length - done} bytes to byte ${to + done} failed`);
		}
		return true;
	}

	async #copyStretch(sourceFd: number, stretch: readonly Piece[]): Promise<void> {
		// Ranges may overlap in the source (one block copied to two places), so the last one needn't end last.
		const start = stretch.reduce((least, { from }) => Math.min(least, from), Number.POSITIVE_INFINITY);
		const end = stretch.reduce((most, { from, length }) => Math.max(most, from + length), start);
		const memory = pin(end - start);
		const buffer = memory.bytes;
		await this.#readSource(sourceFd, buffer, start, this.#path);
		if (this.#batch !== undefined && (await this.#writeBatch(this.#batch, memory, start, stretch))) return;
		const runs: Run[] = [];
		for (const { from, to, length } of stretch.toSorted((a, b) => a.to - b.to)) {
			const last = runs.at(-1);
			const bytes = buffer.subarray(from - start, from - start + length);
			if (last?.end === to) {
				last.pieces.push(bytes);
				last.end += length;
			} else runs.push({ at: to, end: to + length, pieces: [bytes] });
		}
		await this.#writeRuns(runs);
	}

	/** All at once through io_uring, neighbours in both files joined. False where that can't be. */
	async #writeBatch(batch: BatchWriter, memory: Pinned, start: number, stretch: readonly Piece[]): Promise<boolean> {
		const pieces: PlacedBytes[] = [];
		for (const { from, to, length } of stretch.toSorted((a, b) => a.to - b.to))
			pieces.push({ at: to, address: memory.address + from - start, length });
		const result = await batch.write(this.#target.fd, pieces, memory);
		if (result !== undefined && result < 0) throw hostError(result, `${this.#path}: writing failed`);
		return result !== undefined;
	}

	/** Several writes under way hide how long each takes to reach a thread and come back. */
	async #writeRuns(runs: readonly Run[]): Promise<void> {
		const queue = runs.values();
		const writer = async (): Promise<void> => {
			for (const { at, pieces } of queue) await writeRun(this.#target, this.#path, at, pieces);
		};
		const results = await Promise.allSettled(Array.from({ length: WRITES_AT_ONCE }, writer));
		// Only now, so that no write is still under way when the caller learns of the failure.
		const failed = results.find((result) => result.status === "rejected");
		if (failed !== undefined) throw failed.reason;
	}
}

let shared: BatchWriter | undefined | null = null;

/** One ring for all images of the process; undefined where the host has no io_uring. */
function batchWriter(): BatchWriter | undefined {
	if (shared === null) shared = BatchWriter.open();
	return shared;
}

/** Pieces that follow each other in the target, from `at` to `end`. */
interface Run {
	readonly at: number;
	end: number;
	readonly pieces: Uint8Array[];
}

/** A range without units, so that parts of it can be computed. */
interface Piece {
	readonly from: number;
	readonly to: number;
	readonly length: number;
}

/** Joins ranges that follow each other in both files. Sorted by target, where reflinks and kernel copies go. */
function mergeAdjacent(ranges: readonly CopyRange[]): Piece[] {
	const merged: Piece[] = [];
	for (const range of ranges.toSorted((a, b) => a.to - b.to)) {
		const last = merged.at(-1);
		const follows = last !== undefined && last.from + last.length === range.from && last.to + last.length === range.to;
		if (follows) merged[merged.length - 1] = { ...last, length: last.length + range.length };
		else if (range.length > 0) merged.push(range);
	}
	return merged;
}

/** Groups short ranges into stretches of the source that are worth reading at once. */
function* stretches(ranges: readonly Piece[]): Generator<Piece[]> {
	let stretch: Piece[] = [];
	let start = 0;
	let end = 0;
	let wanted = 0;
	for (const range of ranges.toSorted((a, b) => a.from - b.from)) {
		const rangeEnd = range.from + range.length;
		const span = Math.max(end, rangeEnd) - start;
		const fits = span <= STRETCH_BYTES && span <= READ_WASTE_MAX * (wanted + range.length);
		if (stretch.length > 0 && !fits) {
			yield stretch;
			stretch = [];
		}
		if (stretch.length === 0) {
			start = range.from;
			end = range.from;
			wanted = 0;
		}
		stretch.push(range);
		end = Math.max(end, rangeEnd);
		wanted += range.length;
	}
	if (stretch.length > 0) yield stretch;
}

/** Reads exactly `into.length` bytes at `at` from a descriptor that has no FileHandle. */
async function readFully(fd: number, into: Uint8Array, at: number, path: string): Promise<void> {
	let done = 0;
	while (done < into.length) {
		const count = await new Promise<number>((resolve, reject) => {
			readCallback(fd, into, done, into.length - done, at + done, (error, bytesRead) =>
				error ? reject(ioError(error, `reading the first image at byte ${at + done}`)) : resolve(bytesRead),
			);
		});
		if (count === 0) throw sourceEnded(path, at + done);
		done += count;
	}
}

const sourceEnded = (path: string, at: number): VmsweepError =>
	new VmsweepError("IO", `${path}: the first image ends at byte ${at}, before blocks that were to be copied from it.`);

/** Takes a struct file_clone_range of <linux/fs.h>: source descriptor, source offset, length, target offset. */
const FICLONERANGE = 0x4020_940d;
const EINTR = 4;

/** Errors that mean "not between these files" or "not on this host", rather than broken or full storage. */
const cantDo: ReadonlySet<number> = new Set(
	Object.values({ EPERM: 1, EBADF: 9, EXDEV: 18, EINVAL: 22, ENOTTY: 25, ETXTBSY: 26, ENOSYS: 38, EOPNOTSUPP: 95 }),
);
