// Host image file: a file or block device on the host, as the image formats' code sees it (core/images/image-file.ts).
//
// Invariants
//  - QEMU's image locks are held as long as it is open
//  - after a failed flush nothing is believed any more: the kernel reports a lost write once and then forgets it

import type { FileHandle } from "node:fs/promises";
import type { WritableImageFile } from "../../core/images/image-file.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, isPowerOfTwo } from "../../foundations/units.ts";
import { AllocatedRuns } from "../os/allocated-runs.ts";
import { type DataRun, dataRuns } from "../os/data-runs.ts";
import type { ImageUse } from "../os/locks.ts";
import { RangeCopier } from "./copy-ranges.ts";
import { refuseDeleted } from "./deleted-file.ts";
import { type LockedFile, openLocked } from "./open-file.ts";
import { Puncher, SpaceReturner } from "./punch.ts";
import { readRun } from "./read-run.ts";
import type { FileMark, SecondImageKind } from "./second-image.ts";
import { ioError, writeRun } from "./write-run.ts";

/**
 * Opens a file of an image under QEMU's locks for `use`. Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED or IO.
 */
export async function openHostImageFile(path: string, use: ImageUse): Promise<HostImageFile> {
	const locked = await openLocked(path, use);
	try {
		return new HostImageFile(path, locked, await SpaceReturner.of(locked.file, path, locked.kind));
	} catch (error) {
		await locked.file.close();
		throw error;
	}
}

/** An open file of an image. Writing fails with IO where it was opened for reading. */
export class HostImageFile implements WritableImageFile, AsyncDisposable {
	readonly path: string;
	readonly kind: SecondImageKind;
	/** The same for all paths that lead to this file. */
	readonly identity: string;
	readonly #file: FileHandle;
	readonly #returner: SpaceReturner;
	#size: number;
	#allocated: AllocatedRuns | undefined;
	#puncher: Puncher | undefined;
	#flushFailed = false;

	constructor(path: string, { file, kind, size, identity }: LockedFile, returner: SpaceReturner) {
		this.path = path;
		this.kind = kind;
		this.identity = identity;
		this.#file = file;
		this.#size = size;
		this.#returner = returner;
	}

	get size(): ByteCount {
		return byteCount(this.#size);
	}

	/** Open descriptor, for copies by the kernel. It belongs to this object and dies with `close`. */
	get fd(): number {
		return this.#file.fd;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		this.#check(at, into.length);
		await readRun(this.#file, this.path, at, into);
	}

	async write(at: ByteOffset, bytes: Uint8Array): Promise<void> {
		this.#checkUsable();
		await writeRun(this.#file, this.path, at, [bytes]);
		this.#size = Math.max(this.#size, at + bytes.length);
	}

	async punch(at: ByteOffset, length: ByteCount): Promise<void> {
		this.#check(at, length);
		await this.#returner.giveBack(at, length);
	}

	/** The range, which lies inside the file, reads as zeros afterwards, and takes no space where the host can do that. */
	async zero(at: ByteOffset, length: ByteCount): Promise<void> {
		this.#check(at, length);
		this.#puncher ??= new Puncher(this.#file, this.path, this.kind);
		await this.#puncher.punch(at, length);
	}

	/** Copies from other files into this one. What it writes behind the end is not seen in `size`. */
	copier(): RangeCopier {
		return new RangeCopier(this.#file, this.path);
	}

	/** Punches where nothing else would come of it: throws IMAGE_UNSUPPORTED, with nothing done, where the host can't. */
	async giveBack(at: ByteOffset, length: ByteCount): Promise<void> {
		await this.punch(at, length);
		if (!this.#returner.can)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.path}: its storage can't give a part of it back. Copy it without its free space: vmsweep convert ${this.path} NEW.qcow2.`,
			);
	}

	/** Does what was punched read as zeros? */
	get punchesToZeros(): boolean {
		return this.#returner.zeroes;
	}

	async truncate(size: ByteCount): Promise<void> {
		this.#checkUsable();
		// A device's size is what it is; the formats find their end by their own records.
		if (this.kind === "block-device") return;
		await this.#file.truncate(size).catch((error: unknown) => {
			throw ioError(error, `${this.path}: setting its size to ${size} bytes failed`);
		});
		this.#size = size;
	}

	async flush(): Promise<void> {
		this.#checkUsable();
		await this.#file.datasync().catch((error: unknown) => {
			this.#flushFailed = true;
			throw ioError(error, `${this.path}: making writes durable failed`);
		});
	}

	/** As {@link flush}, and the file's size and times are durable, too; refuses where the file was deleted meanwhile. */
	async flushAll(): Promise<void> {
		this.#checkUsable();
		await this.#file.sync().catch((error: unknown) => {
			this.#flushFailed = true;
			throw ioError(error, `${this.path}: making writes durable failed`);
		});
		await this.refuseDeleted();
	}

	/** Throws IO where no name leads to the file any more. */
	async refuseDeleted(): Promise<void> {
		if (this.kind === "file") await refuseDeleted(this.#file, this.path);
	}

	/** How it looks now; nothing for a device. */
	async mark(): Promise<FileMark | undefined> {
		if (this.kind === "block-device") return undefined;
		const { size, mtimeNs } = await this.#file.stat({ bigint: true });
		return { size: Number(size), changedNs: mtimeNs.toString() };
	}

	/** Host space in use. A block device's is its size: the host doesn't tell more. */
	async allocatedBytes(): Promise<ByteCount> {
		if (this.kind === "block-device") return this.size;
		const { blocks } = await this.#file.stat();
		// st_blocks counts 512-byte units whatever the file system's own unit is (stat(2)).
		return byteCount(blocks * 512);
	}

	/**
	 * The unit in which the host gives this file's space back, in bytes.
	 */
	async hostBlock(): Promise<ByteCount> {
		const { blksize } = await this.#file.stat();
		// Network file systems report their transfer size here; half of an image would then be too small to be punched.
		const usual = 4096;
		const known = this.kind === "file" && isPowerOfTwo(blksize) && blksize >= 512 && blksize <= 64 * 1024;
		return byteCount(known ? blksize : usual);
	}

	/** The parts of `[from, to)` that take host space, data or not, in order. Finish one walk before the next begins. */
	allocated(from: number, to: number): Iterable<DataRun> {
		if (this.kind === "block-device") return from < to ? [{ start: from, end: to }] : [];
		this.#allocated ??= new AllocatedRuns(this.fd);
		return this.#allocated.within(from, to);
	}

	/** The parts of `[from, to)` that hold data; what lies between reads as zeros. */
	data(from: number, to: number): Iterable<DataRun> {
		return dataRuns(this.fd, from, to);
	}

	async close(): Promise<void> {
		await this.#file.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	#check(at: number, length: number): void {
		this.#checkUsable();
		checkRange(this.size, at, length, this.path);
	}

	#checkUsable(): void {
		if (this.#flushFailed)
			throw new VmsweepError(
				"IO",
				`${this.path}: an earlier flush failed, so what it holds is unknown. Check the host's storage, then the image.`,
			);
	}
}
