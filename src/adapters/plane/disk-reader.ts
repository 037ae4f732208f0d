// Disk reader: where each part of a read comes from, and how it is fetched without stopping the thread.
//
//   disk bytes ─ index ─► runs: first image | second image | zeros
//
// `readCached` answers from the page cache (RWF_NOWAIT) and says no where a device would have to be waited
// for; the caller then hands the runs to helper threads. `readBlocking` waits, for the rare partial block write.

import type { FirstImage } from "../../core/log/first-image.ts";
import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import { BLOCK_SIZE, type ByteCount } from "../../foundations/units.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";

/** No file: the run reads as zeros. */
export const ZERO_RUN = -1;

/** The runs of one read, as parallel arrays: valid until the next `plan`. */
export class DiskReader {
	readonly fd: number[] = [];
	readonly fileAt: number[] = [];
	readonly length: number[] = [];
	/** Log position of a run in the first image, which no other content ever has; -1 for other runs. */
	readonly position: number[] = [];
	count = 0;

	readonly #log: FirstImage;
	readonly #logFd: number;
	readonly #secondFd: number;
	readonly #secondSize: number;
	readonly #iovec: Pinned = sys.pin(16);
	readonly #iovecView: DataView;
	/** False once the host's file system turned out not to know RWF_NOWAIT. */
	#noWaitWorks = true;

	constructor(log: FirstImage, logFd: number, secondFd: number, secondSize: ByteCount) {
		this.#log = log;
		this.#logFd = logFd;
		this.#secondFd = secondFd;
		this.#secondSize = secondSize;
		this.#iovecView = new DataView(this.#iovec.bytes.buffer, this.#iovec.bytes.byteOffset, 16);
	}

	#planAt = 0;
	#planEnd = 0;
	readonly #visit = (value: number, start: number, count: number): void => {
		const from = Math.max(start * BLOCK_SIZE, this.#planAt);
		const to = Math.min((start + count) * BLOCK_SIZE, this.#planEnd);
		if (value === ZERO) this.#push(ZERO_RUN, 0, to - from, -1);
		else if (value !== ABSENT) {
			const slotAt = this.#log.offsetOfSlot(value);
			this.#push(this.#logFd, slotAt + (from - start * BLOCK_SIZE), to - from, this.#log.positionOfSlot(value));
		} else {
			const stored = Math.max(0, Math.min(to, this.#secondSize) - from);
			if (stored > 0) this.#push(this.#secondFd, from, stored, -1);
			if (stored < to - from) this.#push(ZERO_RUN, 0, to - from - stored, -1);
		}
	};

	/** Looks up where `length` bytes at `at` are now. */
	plan(at: number, length: number): void {
		this.count = 0;
		this.#planAt = at;
		this.#planEnd = at + length;
		const first = Math.floor(at / BLOCK_SIZE);
		const last = Math.floor((at + length - 1) / BLOCK_SIZE);
		this.#log.resolve(first, last - first + 1, this.#visit);
	}

	#push(fd: number, fileAt: number, length: number, position: number): void {
		this.fd[this.count] = fd;
		this.fileAt[this.count] = fileAt;
		this.length[this.count] = length;
		this.position[this.count] = position;
		this.count++;
	}

	/** Fetches the planned runs into `target` at `targetAt`; false where the page cache does not hold them all. */
	readCached(target: Pinned, targetAt: number): boolean {
		let to = targetAt;
		for (let run = 0; run < this.count; run++) {
			const length = this.length[run]!;
			if (this.fd[run] === ZERO_RUN) target.bytes.fill(0, to, to + length);
			else if (!this.#readRunCached(run, target.address + to)) return false;
			to += length;
		}
		return true;
	}

	#readRunCached(run: number, address: number): boolean {
		if (!this.#noWaitWorks) return this.#readRun(run, address) >= 0;
		const length = this.length[run]!;
		for (let done = 0; done < length; ) {
			sys.put64(this.#iovecView, 0, address + done);
			sys.put64(this.#iovecView, 8, length - done);
			const count = sys.preadvNoWait(this.fd[run]!, this.#iovec.address, 1, this.fileAt[run]! + done);
			if (count === -sys.EOPNOTSUPP) {
				this.#noWaitWorks = false;
				return this.#readRun(run, address) >= 0;
			}
			// A short count says where the cache ends, or only that the kernel was interrupted: the next call tells.
			if (count <= 0) return false;
			done += count;
		}
		return true;
	}

	/** Fetches the planned runs, waiting for devices. Throws IO. */
	readBlocking(target: Pinned, targetAt: number): void {
		let to = targetAt;
		for (let run = 0; run < this.count; run++) {
			if (this.fd[run] === ZERO_RUN) target.bytes.fill(0, to, to + this.length[run]!);
			else {
				const result = this.#readRun(run, target.address + to);
				if (result < 0) throw sys.hostError(result, "reading the disk's images");
			}
			to += this.length[run]!;
		}
	}

	/** Asks the host to bring the planned runs into its page cache; nobody waits. */
	readAhead(): void {
		for (let run = 0; run < this.count; run++)
			if (this.fd[run] !== ZERO_RUN)
				sys.fadvise(this.fd[run]!, this.fileAt[run]!, this.length[run]!, sys.POSIX_FADV_WILLNEED);
	}

	#readRun(run: number, address: number): number {
		return sys.preadAll(this.fd[run]!, address, this.length[run]!, this.fileAt[run]!);
	}
}
