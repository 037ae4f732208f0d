// The first image's file over system calls: what the log's contract asks for, with nothing between it and the kernel.

import type { GatherList, HostFile } from "../../core/log/host-file.ts";
import type { ByteOffset } from "../../foundations/units.ts";
import type { Pinned } from "./syscalls.ts";
import * as sys from "./syscalls.ts";

/** Most pieces that one pwritev takes (IOV_MAX). */
const PIECES_MAX = 1024;
/** Small reads and writes pass through a pinned buffer of this size. */
const BOUNCE_BYTES = 1024 * 1024;
const SEEK_END = 2;

export class OsHostFile implements HostFile {
	readonly fd: number;
	readonly #what: string;
	readonly #iovecs: Pinned = sys.pin(PIECES_MAX * 16);
	readonly #iovecWords: Uint32Array;
	#bounce: Pinned | undefined;

	/** `what` names the file in messages. The descriptor stays the caller's to close. */
	constructor(fd: number, what: string) {
		this.fd = fd;
		this.#what = what;
		this.#iovecWords = new Uint32Array(this.#iovecs.bytes.buffer, this.#iovecs.bytes.byteOffset, PIECES_MAX * 4);
	}

	size(): number {
		return this.#check(sys.lseek(this.fd, 0, SEEK_END), "size");
	}

	writeGather(list: GatherList, at: ByteOffset): void {
		const { lengths, offsets, pinned } = list;
		let piece = 0;
		let skip = 0;
		let target: number = at;
		while (piece < list.count) {
			const count = Math.min(list.count - piece, PIECES_MAX);
			for (let i = 0; i < count; i++) {
				const cut = i === 0 ? skip : 0;
				const address = pinned[piece + i]!.address + offsets[piece + i]! + cut;
				const word = i * 4;
				this.#iovecWords[word] = address;
				this.#iovecWords[word + 1] = address / 0x1_0000_0000;
				this.#iovecWords[word + 2] = lengths[piece + i]! - cut;
				this.#iovecWords[word + 3] = 0;
			}
			let written = sys.pwritev(this.fd, this.#iovecs.address, count, target);
			if (written === -sys.EINTR) continue;
			if (written <= 0) throw this.#failed(written, "writing");
			target += written;
			// A short write (a nearly full host, a signal) is carried on where it stopped.
			while (written > 0 && written >= lengths[piece]! - skip) {
				written -= lengths[piece]! - skip;
				piece++;
				skip = 0;
			}
			skip += written;
		}
	}

	write(from: Uint8Array, at: ByteOffset): void {
		const bounce = this.#bounceBuffer();
		for (let done = 0; done < from.length; ) {
			const length = Math.min(from.length - done, BOUNCE_BYTES);
			bounce.bytes.set(from.subarray(done, done + length));
			const written = sys.pwrite(this.fd, bounce.address, length, at + done);
			if (written === -sys.EINTR) continue;
			if (written <= 0) throw this.#failed(written, "writing");
			done += written;
		}
	}

	read(at: ByteOffset, into: Uint8Array): void {
		const bounce = this.#bounceBuffer();
		for (let done = 0; done < into.length; ) {
			const count = sys.pread(this.fd, bounce.address, Math.min(into.length - done, BOUNCE_BYTES), at + done);
			if (count === -sys.EINTR) continue;
			if (count < 0) throw this.#failed(count, "reading");
			if (count === 0) {
				into.fill(0, done);
				return;
			}
			into.set(bounce.bytes.subarray(0, count), done);
			done += count;
		}
	}

	willNeed(at: ByteOffset, length: number): void {
		sys.fadvise(this.fd, at, length, sys.POSIX_FADV_WILLNEED);
	}

	datasync(): void {
		this.#check(sys.fdatasync(this.fd), "flushing");
	}

	punch(at: ByteOffset, length: number): void {
		const mode = sys.FALLOC_FL_PUNCH_HOLE | sys.FALLOC_FL_KEEP_SIZE;
		this.#check(sys.fallocate(this.fd, mode, at, length), "punching");
	}

	allocate(at: ByteOffset, length: number): void {
		const result = sys.fallocate(this.fd, 0, at, length);
		// Where the host's file system can't preallocate, growing the file is all there is.
		if (result === -sys.EOPNOTSUPP) {
			if (this.size() < at + length) this.truncate(at + length);
		} else this.#check(result, "allocating");
	}

	truncate(size: number): void {
		this.#check(sys.ftruncate(this.fd, size), "resizing");
	}

	#check(result: number, doing: string): number {
		if (result < 0) throw this.#failed(result, doing);
		return result;
	}

	#failed(result: number, doing: string): Error {
		return sys.hostError(result === 0 ? -sys.EIO : result, `${doing} ${this.#what}`);
	}

	#bounceBuffer(): Pinned {
		this.#bounce ??= sys.pin(BOUNCE_BYTES);
		return this.#bounce;
	}
}
