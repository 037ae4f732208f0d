// Raw image: a second image that is a sparse file or a block device, byte for byte what the guest sees.
//
// Invariants
//  - QEMU's image locks are held as long as it is open (see locks.ts); a block device is also claimed exclusively
//    where it is to be written, so that a mounted one is refused
//  - a punched range reads as zeros on every kind of host (punch.ts)
//  - after a failed flush nothing is believed any more: the kernel reports a lost write once and then forgets it
//  - nor once the file was deleted: what is flushed into it dies with the process, so no flush succeeds

import { type FileHandle, open, unlink } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";
import { checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, formatBytes } from "../../foundations/units.ts";
import { AllocatedRuns } from "../os/allocated-runs.ts";
import { type ImageUse, lockImage } from "../os/locks.ts";
import { lseek } from "../os/syscalls.ts";
import { RangeCopier, type ReadSource } from "./copy-ranges.ts";
import { refuseDeleted } from "./deleted-file.ts";
import { openError, openLocked } from "./open-file.ts";
import { Puncher } from "./punch.ts";
import { readRun } from "./read-run.ts";
import type {
	CopyMethod,
	CopyRange,
	HeldParts,
	ImageFingerprint,
	SecondImage,
	SecondImageKind,
	WritePiece,
} from "./second-image.ts";
import type { SecondLayout } from "./second-layout.ts";
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
	readonly path: string;
	readonly kind: SecondImageKind;
	readonly format = "raw";
	readonly held: HeldParts;
	#size: ByteCount;
	readonly #file: FileHandle;
	readonly #copier: RangeCopier;
	readonly #puncher: Puncher;
	#flushFailed = false;

	/** @param readSource how `copyFrom` reads; by default from the host's open files */
	constructor(file: FileHandle, path: string, kind: SecondImageKind, size: ByteCount, readSource?: ReadSource) {
		this.#file = file;
		this.path = path;
		this.kind = kind;
		this.#size = size;
		this.held = new AllocatedRuns(file.fd);
		this.#copier = new RangeCopier(file, path, readSource);
		this.#puncher = new Puncher(file, path, kind);
	}

	get size(): ByteCount {
		return this.#size;
	}

	get fd(): number {
		return this.#file.fd;
	}

	get layout(): SecondLayout {
		return { kind: "flat", fd: this.fd, size: this.size };
	}

	/** It has no tables. */
	writeTablesBy(): void {}

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
		if (this.kind === "file") await refuseDeleted(this.#file, this.path);
	}

	async flushAll(): Promise<void> {
		this.#check(0, 0);
		await this.#file.sync().catch((error: unknown) => {
			this.#flushFailed = true;
			throw ioError(error, `${this.path}: making writes durable failed`);
		});
		if (this.kind === "file") await refuseDeleted(this.#file, this.path);
	}

	async checkResize(size: ByteCount): Promise<void> {
		if (this.kind !== "block-device") return;
		const there = lseek(this.fd, 0, SEEK_END);
		if (there < size)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.path} is a block device of ${there} bytes; ${size} are wanted. Make the device larger first.`,
			);
	}

	/** A block device keeps its size; only its first `size` bytes are used from now on. */
	async resize(size: ByteCount): Promise<void> {
		this.#check(0, 0);
		await this.checkResize(size);
		if (this.kind !== "block-device") {
			await this.#file.truncate(size).catch((error: unknown) => {
				throw ioError(error, `${this.path}: setting its size to ${formatBytes(size)} failed`);
			});
		}
		this.#size = size;
		await this.flushAll();
	}

	async allocatedBytes(): Promise<ByteCount> {
		if (this.kind === "block-device") return this.size;
		const { blocks } = await this.#file.stat();
		// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
		return byteCount(blocks * 512);
	}

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

const SEEK_END = 2;
