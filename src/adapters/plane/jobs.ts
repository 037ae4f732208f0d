// Jobs: system calls that would stop the data plane's thread (an fdatasync, a read that misses the page cache), carried
// out elsewhere. The data plane's bell rings when some have finished.
//
//   by the kernel     io_uring: nothing of ours waits, and a deep queue of reads stays deep
//   by helper threads where the host forbids io_uring (helpers.ts): each costs some megabytes

import { IoUring } from "../os/io-uring.ts";
import * as sys from "../os/syscalls.ts";

export const JOB_DATASYNC = 1;
export const JOB_READ = 2;

/** Told of one finished job: its number, and the call's result or negated errno. A read is complete or failed. */
export type OnJob = (job: number, result: number) => void;

/** Takes calls and tells when they have finished. A job's memory must stay referenced until then. */
export interface JobQueue {
	/** Jobs that are under way, or finished and not yet collected. */
	readonly busy: number;
	/** True where one more job leaves another place free: what can wait leaves the last one to flushes. */
	readonly hasSpare: boolean;
	/** Takes a call; returns the job's number, or -1 where all places are taken. */
	queue(op: number, fd: number, address: number, length: number, at: number): number;
	/** Has everything queued begin, before the thread sleeps; the bell rings where some of it has to be handed over again. */
	submit(): void;
	/** Tells of every finished job and frees its place. */
	collect(done: OnJob): void;
	/** No job may be under way. */
	close(): void;
}

/** Jobs at once; most are reads of one client with a deep queue. */
const URING_JOBS = 256;

/** Jobs by io_uring. */
export class UringJobs implements JobQueue {
	busy = 0;
	readonly #ring: IoUring;
	readonly #bell: number;
	/** What is written to the bell. */
	readonly #one = sys.pin(8);
	readonly #free: number[] = [];
	/** Of reads: what is still to be read. Parallel arrays by job. */
	readonly #fd = new Int32Array(URING_JOBS);
	readonly #address = new Float64Array(URING_JOBS);
	readonly #length = new Float64Array(URING_JOBS);
	readonly #at = new Float64Array(URING_JOBS);
	/** Bytes of the whole read, or 0 for a flush. */
	readonly #whole = new Float64Array(URING_JOBS);

	/** Undefined where this host can't or may not. */
	static open(bell: number): UringJobs | undefined {
		const ring = IoUring.open(URING_JOBS);
		if (ring === undefined) return undefined;
		if (ring.ring(bell) === 0) return new UringJobs(ring, bell);
		ring.close();
		return undefined;
	}

	private constructor(ring: IoUring, bell: number) {
		this.#ring = ring;
		this.#bell = bell;
		new BigUint64Array(this.#one.bytes.buffer, this.#one.bytes.byteOffset, 1)[0] = 1n;
		for (let job = URING_JOBS - 1; job >= 0; job--) this.#free.push(job);
	}

	get hasSpare(): boolean {
		return this.#free.length > 1;
	}

	queue(op: number, fd: number, address: number, length: number, at: number): number {
		const job = this.#free.pop();
		if (job === undefined) return -1;
		this.#fd[job] = fd;
		this.#address[job] = address;
		this.#length[job] = length;
		this.#at[job] = at;
		this.#whole[job] = op === JOB_READ ? length : 0;
		this.busy++;
		this.#begin(job);
		return job;
	}

	submit(): void {
		this.#ring.submit();
		// The kernel takes nothing while it is short of memory, and then no job's end would wake the thread to try again.
		if (this.#ring.unsubmitted > 0) sys.write(this.#bell, this.#one.address, 8);
	}

	collect(done: OnJob): void {
		this.#ring.harvest((job, result) => {
			const whole = this.#whole[job]!;
			if (whole > 0 && result > 0 && result < this.#length[job]!) {
				// Short, by a signal or at the end of what was cached: the rest goes on.
				this.#address[job]! += result;
				this.#at[job]! += result;
				this.#length[job]! -= result;
				this.#begin(job);
				return;
			}
			if (result === -sys.EINTR || result === -sys.EAGAIN) {
				// Nothing was done. A flush that begins later covers no less.
				this.#begin(job);
				return;
			}
			this.busy--;
			this.#free.push(job);
			// The end of the file is an error: what must be there is not.
			done(job, whole === 0 || result < 0 ? result : result === 0 ? -sys.EIO : whole);
		});
		this.submit();
	}

	close(): void {
		this.#ring.close();
	}

	#begin(job: number): void {
		// As many entries as jobs: there is room once the kernel has taken what was queued before.
		if (!this.#ring.hasRoom) this.#ring.submit();
		if (this.#whole[job] === 0) this.#ring.datasync(job, this.#fd[job]!);
		else this.#ring.read(job, this.#fd[job]!, this.#address[job]!, this.#length[job]!, this.#at[job]!);
	}
}
