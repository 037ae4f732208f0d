// Raw image: a second image that is a sparse file or a block device, byte for byte what the guest sees.
//
// Invariants
//  - QEMU's image locks are held as long as it is open (see locks.ts); a block device is also claimed exclusively
//    where it is to be written, so that a mounted one is refused
//  - a punched range reads as zeros on every kind of host: hole, device zeroing, or written zeros, in this order
//  - after a failed flush nothing is believed any more: the kernel reports a lost write once and then forgets it

import { constants } from "node:fs";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset, formatBytes } from "../../foundations/units.ts";
import { type ImageUse, lockImage } from "../os/locks.ts";
import {
	EOPNOTSUPP,
	FALLOC_FL_KEEP_SIZE,
	FALLOC_FL_PUNCH_HOLE,
	fallocateAsync,
	hostError,
	ioctlAsync,
	lseek,
} from "../os/syscalls.ts";
import { type CopyMethod, RangeCopier } from "./copy-ranges.ts";
import { callWithWords } from "./kernel-words.ts";
import type { AllocatedRange, CopyRange, SecondImage, SecondImageKind, WritePiece } from "./second-image.ts";
import { ioError, writeRun } from "./write-run.ts";

/**
 * Opens an existing raw image, as it is: its size may be anything. Takes QEMU's locks for `use`.
 * Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED or IO.
 */
export async function openRawImage(path: string, use: ImageUse): Promise<RawImage> {
	const file = await openFile(path, use);
	try {
		const status = await file.stat();
		const kind: SecondImageKind = status.isBlockDevice() ? "block-device" : "file";
		if (!status.isBlockDevice() && !status.isFile())
			throw new VmsweepError("FILE_WRONG_TYPE", `${path} is neither a file nor a block device. Name an image.`);
		await lockImage(file.fd, path, use);
		const size = kind === "file" ? status.size : lseek(file.fd, 0, SEEK_END);
		if (size < 0) throw hostError(size, `${path}: asking for the device's size failed`);
		return new RawImage(file, path, kind, byteCount(size));
	} catch (error) {
		await file.close();
		throw error;
	}
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
	#punchMethod: "hole" | "device" | "write" = "hole";
	#flushFailed = false;

	constructor(file: FileHandle, path: string, kind: SecondImageKind, size: ByteCount) {
		this.#file = file;
		this.path = path;
		this.kind = kind;
		this.size = size;
		this.#copier = new RangeCopier(file, path);
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
		let done = 0;
		while (done < into.length) {
			const { bytesRead } = await this.#file.read(into, done, into.length - done, at + done).catch((error: unknown) => {
				throw ioError(error, `${this.path}: reading at byte ${at + done} failed`);
			});
			if (bytesRead === 0)
				throw new VmsweepError("IO", `${this.path} ends at byte ${at + done}. Somebody made it smaller; restore it.`);
			done += bytesRead;
		}
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
		if (length === 0) return;
		if (this.#punchMethod === "hole") {
			const result = await fallocateAsync(this.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length);
			if (result >= 0) return;
			if (!cantPunch.has(-result))
				throw hostError(result, `${this.path}: freeing ${length} bytes at byte ${at} failed`);
			this.#punchMethod = this.kind === "block-device" ? "device" : "write";
		}
		if (this.#punchMethod === "device") {
			// BLKDISCARD gives more space back but doesn't promise zeros; BLKZEROOUT does.
			const result = await callWithWords([at, length], (address) => ioctlAsync(this.fd, BLKZEROOUT, address));
			if (result >= 0) return;
			if (!cantPunch.has(-result))
				throw hostError(result, `${this.path}: zeroing ${length} bytes at byte ${at} failed`);
			this.#punchMethod = "write";
		}
		const zeros = new Uint8Array(Math.min(length, ZEROS_BYTES));
		for (let done = 0; done < length; done += zeros.length) {
			const piece = zeros.subarray(0, Math.min(zeros.length, length - done));
			await writeRun(this.#file, this.path, at + done, [piece]);
		}
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

/** Longest piece of zeros that is written where nothing else helps. In bytes. */
const ZEROS_BYTES = 1024 * 1024;
const BLKZEROOUT = 0x127f;
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ENXIO = 6;
const EINVAL = 22;
/** EINVAL, ENOTTY, ENODEV, ENOSYS, EOPNOTSUPP: the host or its storage has no such operation. */
const cantPunch: ReadonlySet<number> = new Set([22, 25, 19, 38, EOPNOTSUPP]);

async function openFile(path: string, use: ImageUse): Promise<FileHandle> {
	const flags = use === "write" ? constants.O_RDWR : constants.O_RDONLY;
	try {
		// O_NONBLOCK: a path that is a FIFO must not hang the open. It means nothing to files and devices.
		const file = await open(path, flags | constants.O_NONBLOCK);
		if (use === "read" || !(await file.stat()).isBlockDevice()) return file;
		// O_EXCL without O_CREAT claims a block device: refused where it is mounted, and mounting it is refused then.
		await file.close();
		return await open(path, flags | constants.O_EXCL);
	} catch (error) {
		throw openError(error, path);
	}
}

function openError(cause: unknown, path: string): VmsweepError {
	switch ((cause as NodeJS.ErrnoException).code) {
		case "ENOENT":
			return new VmsweepError("FILE_NOT_FOUND", `${path} doesn't exist. Check the path.`, { cause });
		case "ENOTDIR":
			return new VmsweepError("FILE_NOT_FOUND", `a part of ${path} is no directory. Check the path.`, { cause });
		case "EISDIR":
			return new VmsweepError("FILE_WRONG_TYPE", `${path} is a directory. Name an image.`, { cause });
		case "ENXIO":
			return new VmsweepError("FILE_WRONG_TYPE", `${path} is no image (no device behind it). Name an image.`, {
				cause,
			});
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
