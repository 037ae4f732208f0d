// Flushes: who waits until what was written is durable, and the fdatasync that they wait for, carried out as a job.
//
//   wait ─► waiting ─ begin ─► flushing: one fdatasync ─► all of them are told
//              ▲                  │
//              └── whoever comes while it runs: it may not cover what they wrote
//
// Invariants
//  - whoever waits is told 0 only after an fdatasync that began after their writes were in the log
//  - one fdatasync of the log at a time; requests go on meanwhile
//  - once one has failed the log takes nothing more, and all are told EIO
//
// A flush may free segments (the log's flusher decides): then those who wait for room try again.

import type { FirstImage } from "../../core/log/first-image.ts";
import { errno } from "../../core/nbd/protocol.ts";
import { type LogPosition, logPosition } from "../../foundations/units.ts";
import * as sys from "../os/syscalls.ts";
import type { PlaneCounters } from "./counters.ts";
import { JOB_DATASYNC, type JobQueue } from "./jobs.ts";
import type { Room } from "./room.ts";

/** Is told 0 or an errno once everything written before it began to wait is durable. */
type FlushWaiter = (error: number) => void;

interface FlushesParts {
	readonly log: FirstImage;
	readonly logFd: number;
	readonly jobs: JobQueue;
	readonly room: Room;
	readonly counters: PlaneCounters;
	/** Called when the log can't be written any more. */
	readonly onPoisoned: (reason: string) => void;
}

export class Flushes {
	readonly #parts: FlushesParts;
	/** Wait for the next flush. A position would not do to tell whether the running one covers them: zeroing moves none. */
	#waiting: FlushWaiter[] = [];
	/** Wait for the flush that is running. */
	#flushing: FlushWaiter[] = [];
	/** A flush of the log is running: what it covers is set, and it hasn't ended. */
	#isRunning = false;
	#position: LogPosition = logPosition(0);
	/** Who is told of a file that is being made durable, by job. */
	readonly #byJob = new Map<number, (result: number) => void>();

	constructor(parts: FlushesParts) {
		this.#parts = parts;
	}

	/** Tells `done` (0 or an errno) once everything that is in the log now is durable. */
	wait(done: FlushWaiter): void {
		this.#waiting.push(done);
	}

	/** Makes a file of the disk durable, in this thread where there is no job left; tells `done` 0 or a negated errno. */
	datasync(fd: number, done: (result: number) => void): void {
		const job = this.#parts.jobs.queue(JOB_DATASYNC, fd, 0, 0, 0);
		if (job >= 0) this.#byJob.set(job, done);
		else done(sys.fdatasync(fd));
	}

	/** Begins a flush where somebody waits for one, or where it frees segments for clients that wait for room. */
	begin(): void {
		if (this.#isRunning) return;
		const { log, logFd, room, counters } = this.#parts;
		if (this.#waiting.length === 0 && !(room.isAwaited && log.needsFlush)) return;
		this.#flushing = this.#waiting;
		this.#waiting = [];
		if (log.poisoned) {
			this.#answer(errno.EIO);
			return;
		}
		this.#position = log.beginFlush();
		counters.datasyncs++;
		this.#isRunning = true;
		this.datasync(logFd, this.#end);
	}

	/** Takes a finished job; false where it is none of these. */
	finish(job: number, result: number): boolean {
		const done = this.#byJob.get(job);
		if (done === undefined) return false;
		this.#byJob.delete(job);
		done(result);
		return true;
	}

	readonly #end = (result: number): void => {
		this.#isRunning = false;
		const { log, room, onPoisoned } = this.#parts;
		const usedBefore = log.usedBytes;
		try {
			if (result < 0) {
				const error = sys.hostError(result, "flushing the first image");
				log.failFlush(error);
				throw error;
			}
			log.completeFlush(this.#position);
		} catch (error) {
			onPoisoned(error instanceof Error ? error.message : String(error));
			this.#answer(errno.EIO);
			return;
		}
		this.#answer(0);
		if (log.usedBytes < usedBefore) room.resume();
	};

	#answer(error: number): void {
		const waiters = this.#flushing;
		this.#flushing = [];
		for (const done of waiters) done(error);
	}
}
