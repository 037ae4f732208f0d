// Slow reads: what the page cache could not answer. Each becomes one job per run for the helper threads; its
// answer is sent when the last run is there, in whatever order the devices deliver.
//
// A run may lie in the first image, whose segments are reused. So after the last job the runs are looked up
// again: where they are still the same places, what was read is what the guest wrote; otherwise the read starts over.

import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import type { Connection } from "./connection.ts";
import type { DiskReader } from "./disk-reader.ts";
import { ZERO_RUN } from "./disk-reader.ts";
import type { HelperPool } from "./helpers.ts";
import { JOB_READ } from "./helpers.ts";

/** Bytes that slow reads may hold in memory; past it a read waits in the data plane's own thread. */
const SLOW_BYTES_MAX = 64 * 1024 * 1024;
/** Times that a read is started over because its blocks moved; then it is read in the data plane's own thread. */
const ATTEMPTS_MAX = 3;

/** One read that waits for a device. */
export interface SlowRead {
	readonly client: Connection;
	readonly cookieHigh: number;
	readonly cookieLow: number;
	readonly offset: number;
	readonly length: number;
	readonly buffer: Pinned;
	runs: { fd: number; fileAt: number; position: number }[];
	outstanding: number;
	/** 0, or the negated errno of a run that failed. */
	result: number;
	attempts: number;
}

export class SlowReads {
	readonly #reader: DiskReader;
	readonly #helpers: HelperPool;
	readonly #byJob = new Map<number, SlowRead>();
	#bytes = 0;

	constructor(reader: DiskReader, helpers: HelperPool) {
		this.#reader = reader;
		this.#helpers = helpers;
	}

	get count(): number {
		return this.#byJob.size;
	}

	/** Starts a read; false where there is no room for one more: the caller then waits for it itself. */
	start(client: Connection, cookieHigh: number, cookieLow: number, offset: number, length: number): boolean {
		if (this.#bytes + length > SLOW_BYTES_MAX) return false;
		const read: SlowRead = {
			client,
			cookieHigh,
			cookieLow,
			offset,
			length,
			buffer: sys.pin(length),
			runs: [],
			outstanding: 0,
			result: 0,
			attempts: 0,
		};
		this.#submit(read);
		if (read.outstanding === 0) return false;
		this.#bytes += length;
		client.inFlight++;
		return true;
	}

	/** Takes a finished job; returns its read once all of it is there (or failed). */
	finish(job: number, result: number): SlowRead | undefined {
		const read = this.#byJob.get(job);
		if (read === undefined) return undefined;
		this.#byJob.delete(job);
		if (result < 0) read.result = result;
		if (--read.outstanding > 0) return undefined;
		// A failure counts only where the blocks didn't move: a place that was given up may be cut off the file.
		if (!this.#stillThere(read)) {
			if (++read.attempts < ATTEMPTS_MAX) {
				this.#submit(read);
				if (read.outstanding > 0) return undefined;
			} else this.#readHere(read);
		}
		this.#bytes -= read.length;
		read.client.inFlight--;
		return read;
	}

	/** Plans afresh and queues a job per stored run; runs that find no free job are read here. */
	#submit(read: SlowRead): void {
		const reader = this.#reader;
		reader.plan(read.offset, read.length);
		read.runs = [];
		read.result = 0;
		let to = 0;
		for (let run = 0; run < reader.count; run++) {
			const [fd, fileAt, length] = [reader.fd[run]!, reader.fileAt[run]!, reader.length[run]!];
			read.runs.push({ fd, fileAt, position: reader.position[run]! });
			if (fd === ZERO_RUN) read.buffer.bytes.fill(0, to, to + length);
			else {
				const address = read.buffer.address + to;
				const job = this.#helpers.hasSpare ? this.#helpers.queue(JOB_READ, fd, address, length, fileAt) : -1;
				if (job >= 0) {
					this.#byJob.set(job, read);
					read.outstanding++;
				} else read.result = Math.min(read.result, sys.preadAll(fd, address, length, fileAt));
			}
			to += length;
		}
	}

	#stillThere(read: SlowRead): boolean {
		const reader = this.#reader;
		reader.plan(read.offset, read.length);
		return (
			reader.count === read.runs.length &&
			read.runs.every((run, i) => run.fileAt === reader.fileAt[i] && run.position === reader.position[i])
		);
	}

	#readHere(read: SlowRead): void {
		this.#reader.plan(read.offset, read.length);
		read.result = 0;
		try {
			this.#reader.readBlocking(read.buffer, 0);
		} catch {
			read.result = -sys.EIO;
		}
	}
}
