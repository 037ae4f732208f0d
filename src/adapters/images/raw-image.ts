// Raw image: a second image that is a sparse file or a block device, byte for byte what the guest sees.
//
// Invariants
//  - QEMU's image locks are held as long as it is open (see locks.ts); a block device is also claimed exclusively
//    where it is to be written, so that a mounted one is refused
//  - a punched range reads as zeros on every kind of host (punch.ts)
//  - after a failed flush nothing is believed any more: the kernel reports a lost write once and then forgets it

import { type FileHandle, open, unlink } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset, formatBytes } from "../../foundations/units.ts";
import { type ImageUse, lockImage } from "../os/locks.ts";
import { hostError, lseek } from "../os/syscalls.ts";
import { type CopyMethod, RangeCopier } from "./copy-ranges.ts";
import { openError, openLocked } from "./open-file.ts";
import { Puncher } from "./punch.ts";
import { readRun } from "./read-run.ts";
import type { AllocatedRange, CopyRange, SecondImage, SecondImageKind, WritePiece } from "./second-image.ts";
import { ioError, writeRun } from "./write-run.ts";

/**
 * Opens an existing raw image, as it is: its size may be anything. Takes QEMU's locks for `use`.
 * Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED or IO.
 */
export async function openRawImage(path: string, use: ImageUse): Promise<RawImage> {
	const { file, kind, size } = await openLocked(path, use);
	return new RawImage(file, path, kind, size);
}

/**
 * Makes a new, empty raw image of `size` bytes that takes no space, and opens it for writing.
 * Throws FILE_EXISTS, FILE_NOT_FOUND (its directory), NO_SPACE or IO.
 */
export async function createRawImage(path: string, size: ByteCount): Promise<RawImage> {
	const file = await open(path, "wx+", 0o600).catch((error: unknown) => {
		throw openError(error, path);
	});
	try {
		await lockImage(file.fd, path, "write");
		// A sparse file: the size takes no space.
		await file.truncate(size).catch((error: unknown) => {
			throw ioError(error, `${path}: setting its size to ${formatBytes(size)} failed`);
		});
		await file.sync();
		return new RawImage(file, path, "file", size);
	} catch (error) {
		await file.close();
		await unlink(path).catch(() => {});
		throw error;
	}
}

/** An open raw image. Made by {@link openRawImage} and {@link createRawImage}. */
export class RawImage implements SecondImage {
	readonly size: ByteCount;
	readonly path: string;
	readonly kind: SecondImageKind;
	readonly #file: FileHandle;
	readonly #copier: RangeCopier;
	readonly #puncher: Puncher;
	#flushFailed = false;

	constructor(file: FileHandle, path: string, kind: SecondImageKind, size: ByteCount) {
		this.#file = file;
		this.path = path;
		this.kind = kind;
		this.size = size;
		this.#copier = new RangeCopier(file, path);
		this.#puncher = new Puncher(file, path, kind);
	}

	get fd(): number {
		return this.#file.fd;
	}

	/** How long ranges are copied from the first image on this host, for status reports. */
	get copyMethod(): CopyMethod {
		return this.#copier.method;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		this.#check(at, into.length);
		await readRun(this.#file, this.path, at, into);
	}

	async writeBatch(pieces: readonly WritePiece[]): Promise<void> {
		let run: Uint8Array[] = [];
		let runStart = 0;
		let runEnd = -1;
		for (const { at, bytes } of pieces) {
			this.#check(at, bytes.length);
			if (at < runEnd)
				throw new VmsweepError("BUG", `internal error: batch for ${this.path} is not sorted. Please report it.`);
			if (at !== runEnd) {
				await writeRun(this.#file, this.path, runStart, run);
				run = [];
				runStart = at;
			}
			run.push(bytes);
			runEnd = at + bytes.length;
		}
		await writeRun(this.#file, this.path, runStart, run);
	}

	async copyFrom(sourceFd: number, ranges: readonly CopyRange[]): Promise<void> {
		for (const { to, length } of ranges) this.#check(to, length);
		await this.#copier.copy(sourceFd, ranges);
	}

	async punch(at: ByteOffset, length: ByteCount): Promise<void> {
		this.#check(at, length);
		await this.#puncher.punch(at, length);
	}

	async flush(): Promise<void> {
		this.#check(0, 0);
		await this.#file.datasync().catch((error: unknown) => {
			this.#flushFailed = true;
			throw ioError(error, `${this.path}: making writes durable failed`);
		});
	}

	/** As {@link flush}, and the file's size and times are durable, too: what a clean close compares later. */
	async flushAll(): Promise<void> {
		this.#check(0, 0);
		await this.#file.sync().catch((error: unknown) => {
			this.#flushFailed = true;
			throw ioError(error, `${this.path}: making writes durable failed`);
		});
	}

	async allocatedBytes(): Promise<ByteCount> {
		if (this.kind === "block-device") return this.size;
		const { blocks } = await this.#file.stat();
		// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
		return byteCount(blocks * 512);
	}

	async *allocatedRanges(): AsyncGenerator<AllocatedRange> {
		let at = 0;
		while (at < this.size) {
			const start = lseek(this.fd, at, SEEK_DATA);
			if (start === -ENXIO) return;
			if (start === -EINVAL) {
				// A block device, or a file system that doesn't tell.
				yield { start: byteOffset(at), length: byteCount(this.size - at) };
				return;
			}
			if (start < 0) throw hostError(start, `${this.path}: looking for data from byte ${at} on failed`);
			const end = lseek(this.fd, start, SEEK_HOLE);
			if (end < 0) throw hostError(end, `${this.path}: looking for a hole from byte ${start} on failed`);
			const stop = Math.min(end, this.size);
			if (stop <= start) return;
			yield { start: byteOffset(start), length: byteCount(stop - start) };
			at = stop;
			// Each seek may read the host's metadata; others get their turn in between.
			await new Promise(setImmediate);
		}
	}

	/** Size and time of the last change; they tell whether somebody else changed the image. Nothing for devices. */
	async fingerprint(): Promise<ImageFingerprint | undefined> {
		if (this.kind === "block-device") return undefined;
		const { size, mtimeNs } = await this.#file.stat({ bigint: true });
		return { size: Number(size), changedNs: mtimeNs.toString() };
	}

	async close(): Promise<void> {
		await this.#file.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	#check(at: number, length: number): void {
		if (this.#flushFailed)
			throw new VmsweepError(
				"IO",
				`${this.path}: an earlier flush failed, so what it holds is unknown. Stop the disk and check the host's storage.`,
			);
		checkRange(this.size, at, length, this.path);
	}
}

/** What a file looked like at one moment. */
export interface ImageFingerprint {
	/** In bytes. */
	readonly size: number;
	/** Time of the last change, nanoseconds since 1970, decimal. */
	readonly changedNs: string;
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = 6;
const EINVAL = 22;
