// Slow reads: what the page cache could not answer. Each becomes one job per run (jobs.ts); its
// answer is sent when the last run is there, in whatever order the devices deliver.
//
// A run may lie in the first image, whose segments are reused, or in a cluster of the second that is given to other
// content. So after the last job the runs are looked up again: where they are still the same places, what was read is what
// the guest wrote; otherwise the read starts over. Then it is compared with its checksums.
//
// Whole blocks are read, whatever a client asked for, since checksums are of whole blocks.

import type { ReplyTo } from "../../core/nbd/replies.ts";
import { BLOCK_SIZE, roundDown, roundUp } from "../../foundations/units.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import type { Connection } from "./connection.ts";
import { JOB_READ, type JobQueue } from "./jobs.ts";

/** Bytes that slow reads may hold in memory; past it a read waits in the data plane's own thread. */
const SLOW_BYTES_MAX = 64 * 1024 * 1024;
/** Longest read whose memory is used again, in bytes, and how many of each length are kept. */
const SPARE_BYTES_MAX = 16 * 1024;
const SPARE_MAX = 64;
/** Times that a read is started over because its blocks moved; then it is read in the data plane's own thread. */
const ATTEMPTS_MAX = 3;
/** What `DiskReader.verify` says of a read that is right. */
const NONE_ROTTEN = -1;
/** The checksums themselves can't be read. */
const SUMS_UNREADABLE = -2;

/** One read that waits for a device. */
export interface SlowRead {
	readonly client: Connection;
	readonly to: ReplyTo;
	readonly offset: number;
	readonly length: number;
	/** Byte of the disk at which `buffer` begins. */
	readonly start: number;
	/** The blocks that hold what was asked for. */
	readonly buffer: Pinned;
	runs: { fd: number; fileAt: number; position: number }[];
	/** Of the second image's map when the runs were planned. */
	generation: number;
	outstanding: number;
	/** 0, or the negated errno of a run that failed. */
	result: number;
	/** Byte of the disk from which on it failed, where that is known; else -1. */
	failedAt: number;
	attempts: number;
}

export class SlowReads {
	readonly #jobs: JobQueue;
	readonly #onRotten: (block: number) => void;
	/** The read that a job is part of, and the byte of the disk at which the job's run begins. */
	readonly #byJob = new Map<number, { readonly read: SlowRead; readonly start: number }>();
	#bytes = 0;
	/** Memory of small reads that ended, by its blocks: new memory for each costs as much as the read. */
	readonly #spare = new Map<number, Pinned[]>();

	/** @param onRotten told of a block that doesn't match its checksum */
	constructor(jobs: JobQueue, onRotten: (block: number) => void) {
		this.#jobs = jobs;
		this.#onRotten = onRotten;
	}

	/** Starts a read; undefined where it is under way. With no job or memory to spare it is waited for here, and returned. */
	start(client: Connection, to: ReplyTo, offset: number, length: number): SlowRead | undefined {
		const read = this.#newRead(client, to, offset, length);
		if (this.#bytes + length > SLOW_BYTES_MAX) {
			this.#readHere(read);
			return read;
		}
		if (!this.#submit(read)) return read;
		this.#bytes += length;
		client.inFlight++;
		return undefined;
	}

	#newRead(client: Connection, to: ReplyTo, offset: number, length: number): SlowRead {
		const start = roundDown(offset, BLOCK_SIZE);
		const bytes = roundUp(offset + length, BLOCK_SIZE) - start;
		const buffer = this.#spare.get(bytes)?.pop() ?? sys.pin(bytes);
		const under = { runs: [], generation: 0, outstanding: 0, result: 0, failedAt: -1, attempts: 0 };
		// The caller's object is the next answer's soon.
		return { client, to: { ...to }, offset, length, start, buffer, ...under };
	}

	/** A read that was returned is answered: its memory is another's from now on. */
	release({ buffer }: SlowRead): void {
		const { length } = buffer.bytes;
		if (length > SPARE_BYTES_MAX) return;
		const spare = this.#spare.get(length);
		if (spare === undefined) this.#spare.set(length, [buffer]);
		else if (spare.length < SPARE_MAX) spare.push(buffer);
	}

	/** Takes a finished job; returns its read once all of it is there and right (or failed). */
	finish(job: number, result: number): SlowRead | undefined {
		const part = this.#byJob.get(job);
		if (part === undefined) return undefined;
		this.#byJob.delete(job);
		const { read, start } = part;
		if (result < 0) {
			read.result = result;
			read.failedAt = start;
		}
		if (--read.outstanding > 0) return undefined;
		// A failure counts only where the blocks didn't move: a place that was given up may be cut off the file.
		if (!this.#stillThere(read)) {
			if (++read.attempts < ATTEMPTS_MAX) {
				if (this.#submit(read)) return undefined;
			} else this.#readHere(read);
		} else if (read.result === 0 && this.#rottenBlock(read) !== NONE_ROTTEN) {
			// Its blocks may have been overwritten meanwhile and moved to the same places: then their checksums are newer than
			// what the jobs read. Both are looked at once more, with nothing in between.
			this.#readHere(read);
		}
		this.#bytes -= read.length;
		read.client.inFlight--;
		return read;
	}

	/**
	 * Plans afresh and queues a job per stored run; runs that find no free job are read here. False where that are all of
	 * them: then the read is finished, and compared.
	 */
	#submit(read: SlowRead): boolean {
		const { reader } = read.client;
		reader.plan(read.start, read.buffer.bytes.length);
		reader.readAheadSums();
		read.runs = [];
		read.generation = reader.generation;
		read.result = 0;
		read.failedAt = -1;
		let to = 0;
		for (let run = 0; run < reader.count; run++) {
			const [fd, fileAt, length] = [reader.fd[run]!, reader.fileAt[run]!, reader.length[run]!];
			read.runs.push({ fd, fileAt, position: reader.position[run]! });
			const address = read.buffer.address + to;
			const job = fd >= 0 && this.#jobs.hasSpare ? this.#jobs.queue(JOB_READ, fd, address, length, fileAt) : -1;
			if (job >= 0) {
				this.#byJob.set(job, { read, start: read.start + to });
				read.outstanding++;
			} else read.result = Math.min(read.result, reader.readRun(run, read.buffer, to));
			to += length;
		}
		if (read.outstanding > 0) return true;
		if (read.result === 0) this.#compare(read);
		return false;
	}

	/** Leaves the reader's plan as that of this read. */
	#stillThere(read: SlowRead): boolean {
		const { reader } = read.client;
		reader.plan(read.start, read.buffer.bytes.length);
		return (
			reader.generation === read.generation &&
			reader.count === read.runs.length &&
			read.runs.every(
				(run, i) => run.fd === reader.fd[i] && run.fileAt === reader.fileAt[i] && run.position === reader.position[i],
			)
		);
	}

	/** Plans afresh and reads all of it in this thread. */
	#readHere(read: SlowRead): void {
		const { reader } = read.client;
		reader.plan(read.start, read.buffer.bytes.length);
		read.result = -sys.EIO;
		read.failedAt = -1;
		try {
			reader.readBlocking(read.buffer, 0);
		} catch {
			return;
		}
		this.#compare(read);
	}

	/** Fails what doesn't match its checksums. The reader's plan is still that by which all of it was read just now. */
	#compare(read: SlowRead): void {
		const rotten = this.#rottenBlock(read);
		read.result = rotten === NONE_ROTTEN ? 0 : -sys.EIO;
		if (rotten < 0) return;
		read.failedAt = rotten * BLOCK_SIZE;
		this.#onRotten(rotten);
	}

	/** First block that isn't what the reader's plan says was written, or one of the constants above. */
	#rottenBlock(read: SlowRead): number {
		try {
			return read.client.reader.verify(read.buffer.bytes, 0);
		} catch {
			return SUMS_UNREADABLE;
		}
	}
}
