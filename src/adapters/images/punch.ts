// Punching: giving a range of an image's file back to the host. Two promises, for two kinds of callers.
//
//   Puncher        reads as zeros, on every kind of host    hole ─▶ device: let the kernel zero it ─▶ write zeros
//   SpaceReturner  takes less space, or stays as it is       hole ─▶ device: discard ─▶ nothing
//
// What the host's file systems can do is found out by doing it: the first refusal moves on to the next way, for good.

import type { FileHandle } from "node:fs/promises";
import { deviceAbilities } from "../os/device-abilities.ts";
import {
	EOPNOTSUPP,
	FALLOC_FL_KEEP_SIZE,
	FALLOC_FL_PUNCH_HOLE,
	fadviseAsync,
	fallocate,
	fallocateAsync,
	hostError,
	ioctlAsync,
	POSIX_FADV_DONTNEED,
} from "../os/syscalls.ts";
import { callWithWords } from "./kernel-words.ts";
import type { SecondImageKind } from "./second-image.ts";
import { writeRun } from "./write-run.ts";

/** Longest piece of zeros that is written where nothing else helps. In bytes. */
const ZEROS_BYTES = 1024 * 1024;
/** Up to this length a hole is punched at once: to hand it to another thread takes about as long. In bytes. */
const SHORT_BYTES = 1024 * 1024;
const BLKZEROOUT = 0x127f;
const BLKDISCARD = 0x1277;
/** EINVAL, ENOTTY, ENODEV, ENOSYS, EOPNOTSUPP: the host or its storage has no such operation. */
const cantPunch: ReadonlySet<number> = new Set([22, 25, 19, 38, EOPNOTSUPP]);

/** Punches one open file, so that it reads as zeros whatever the host can do. */
export class Puncher {
	#method: "hole" | "device" | "write" = "hole";
	readonly #file: FileHandle;
	readonly #path: string;
	readonly #kind: SecondImageKind;

	/** `path` is for messages. The file stays the caller's to close. */
	constructor(file: FileHandle, path: string, kind: SecondImageKind) {
		this.#file = file;
		this.#path = path;
		this.#kind = kind;
	}

	/** The range, which lies inside the file, reads as zeros afterwards. Throws NO_SPACE or IO. */
	async punch(at: number, length: number): Promise<void> {
		if (length === 0) return;
		const { fd } = this.#file;
		if (this.#method === "hole") {
			const call = length <= SHORT_BYTES ? fallocate : fallocateAsync;
			const result = await call(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length);
			if (result >= 0) return;
			if (!cantPunch.has(-result))
				throw hostError(result, `${this.#path}: freeing ${length} bytes at byte ${at} failed`);
			this.#method = this.#kind === "block-device" ? "device" : "write";
		}
		if (this.#method === "device") {
			// BLKDISCARD gives more space back but doesn't promise zeros; BLKZEROOUT does.
			const result = await callWithWords([at, length], (address) => ioctlAsync(fd, BLKZEROOUT, address));
			if (result >= 0) return;
			if (!cantPunch.has(-result))
				throw hostError(result, `${this.#path}: zeroing ${length} bytes at byte ${at} failed`);
			this.#method = "write";
		}
		const zeros = new Uint8Array(Math.min(length, ZEROS_BYTES));
		for (let done = 0; done < length; done += zeros.length) {
			const piece = zeros.subarray(0, Math.min(zeros.length, length - done));
			await writeRun(this.#file, this.#path, at + done, [piece]);
		}
	}
}

/** Gives space of one open file back, and never takes any: a sweep of sparse storage must not fill it with zeros. */
export class SpaceReturner {
	#method: "hole" | "discard" | "none";
	readonly #file: FileHandle;
	readonly #path: string;
	/** Ends when the last punch that was asked for has. */
	#turn: Promise<unknown> = Promise.resolve();

	private constructor(file: FileHandle, path: string, method: "hole" | "discard" | "none") {
		this.#file = file;
		this.#path = path;
		this.#method = method;
	}

	/** `path` is for messages. The file stays the caller's to close. */
	static async of(file: FileHandle, path: string, kind: SecondImageKind): Promise<SpaceReturner> {
		if (kind === "file") return new SpaceReturner(file, path, "hole");
		// Thin pools can't zero without writing, for one: a hole would be refused there.
		const { zeroes, discards } = await deviceAbilities((await file.stat()).rdev);
		return new SpaceReturner(file, path, zeroes ? "hole" : discards ? "discard" : "none");
	}

	/** False where the host has no way to give space back; known for sure once it was asked. */
	get can(): boolean {
		return this.#method !== "none";
	}

	/** True where what was given back reads as zeros. */
	get zeroes(): boolean {
		return this.#method === "hole";
	}

	/** Does nothing where the host can't. Throws IO. */
	async giveBack(at: number, length: number): Promise<void> {
		if (length === 0 || this.#method === "none") return;
		const result = await (this.#method === "hole" ? this.#punchHole(at, length) : this.#discard(at, length));
		if (result >= 0) return;
		if (!cantPunch.has(-result)) throw hostError(result, `${this.#path}: freeing ${length} bytes at byte ${at} failed`);
		this.#method = "none";
	}

	/**
	 * The kernel punches one hole of a file at a time, and waits for the device meanwhile. So a range's pages in the page
	 * cache, which cost as much to forget, are forgotten while the holes before it are punched.
	 */
	async #punchHole(at: number, length: number): Promise<number> {
		const { fd } = this.#file;
		const isShort = length <= SHORT_BYTES;
		const forgotten = isShort ? undefined : fadviseAsync(fd, at, length, POSIX_FADV_DONTNEED);
		const call = isShort ? fallocate : fallocateAsync;
		const punched = this.#turn.then(async () => {
			await forgotten;
			return await call(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length);
		});
		this.#turn = punched;
		return await punched;
	}

	async #discard(at: number, length: number): Promise<number> {
		return await callWithWords([at, length], (address) => ioctlAsync(this.#file.fd, BLKDISCARD, address));
	}
}
