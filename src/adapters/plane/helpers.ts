// Helper threads: where the data plane sends the system calls that would stop it, on hosts without io_uring.
//
// A call becomes a job in shared memory; a helper thread runs it and rings the data plane's eventfd.
//
//   job slot (64 bytes, shared):  | state i32 | op i32 | fd i32 | result i32 | address f64 | length f64 | at f64 |
//   state: FREE -> QUEUED (data plane) -> RUNNING (helper, by compare-and-swap) -> DONE (helper) -> FREE
//
// A job's memory belongs to the helper from QUEUED to DONE; who queued it keeps the buffer referenced.

import * as sys from "../os/syscalls.ts";
import { JOB_DATASYNC, type JobQueue } from "./jobs.ts";

const SLOT_BYTES = 64;
const STATE = 0;
const OP = 1;
const FD = 2;
const RESULT = 3;
const ADDRESS = 2;
const LENGTH = 3;
const AT = 4;

const FREE = 0;
const QUEUED = 1;
const RUNNING = 2;
const DONE = 3;

/** Word 0 of the shared header counts queued jobs (helpers sleep on it), word 1 tells them to stop. */
const HEADER_BYTES = 64;
const BELL = 0;
const STOP = 1;

/** How many jobs can wait or run at once; a caller that finds none free does the call itself. */
const JOB_COUNT = 64;

/** What a helper thread is started with. */
export interface HelperSetup {
	readonly memory: SharedArrayBuffer;
	/** The data plane's eventfd, rung once per finished job. */
	readonly bell: number;
}

export const helperMemory = (): SharedArrayBuffer => new SharedArrayBuffer(HEADER_BYTES + JOB_COUNT * SLOT_BYTES);

/** The data plane's end: queues jobs and collects results. */
export class HelperPool implements JobQueue {
	readonly #words: Int32Array;
	readonly #numbers: Float64Array;
	#busy = 0;

	constructor(memory: SharedArrayBuffer) {
		this.#words = new Int32Array(memory);
		this.#numbers = new Float64Array(memory);
	}

	/** True where one more job leaves another slot free: what can wait leaves the last one to flushes. */
	get hasSpare(): boolean {
		return this.#busy < JOB_COUNT - 1;
	}

	/** Jobs that are queued, running, or done and not yet collected. */
	get busy(): number {
		return this.#busy;
	}

	/** Queues a call; returns the job's number, or -1 when all slots are taken. */
	queue(op: number, fd: number, address: number, length: number, at: number): number {
		for (let job = 0; job < JOB_COUNT; job++) {
			const word = wordOf(job);
			if (this.#words[word + STATE] !== FREE) continue;
			const number = word / 2;
			this.#words[word + OP] = op;
			this.#words[word + FD] = fd;
			this.#numbers[number + ADDRESS] = address;
			this.#numbers[number + LENGTH] = length;
			this.#numbers[number + AT] = at;
			Atomics.store(this.#words, word + STATE, QUEUED);
			Atomics.add(this.#words, BELL, 1);
			Atomics.notify(this.#words, BELL, 1);
			this.#busy++;
			return job;
		}
		return -1;
	}

	/** They begin by themselves. */
	submit(): void {}

	/** The threads are ended by who started them. */
	close(): void {}

	/** Hands every finished job to `done` (its number; the call's result or negated errno) and frees its slot. */
	collect(done: (job: number, result: number) => void): void {
		for (let job = 0; job < JOB_COUNT && this.#busy > 0; job++) {
			const word = wordOf(job);
			if (Atomics.load(this.#words, word + STATE) !== DONE) continue;
			const result = this.#words[word + RESULT]!;
			this.#words[word + STATE] = FREE;
			this.#busy--;
			done(job, result);
		}
	}
}

/** Wakes all helpers for the last time; they end after the job they are running. */
export function stopHelpers(memory: SharedArrayBuffer): void {
	const words = new Int32Array(memory);
	Atomics.store(words, STOP, 1);
	Atomics.add(words, BELL, 1);
	Atomics.notify(words, BELL);
}

/** A helper thread's whole life: sleep, run what is queued, ring; until told to stop. */
export function runHelper({ memory, bell }: HelperSetup): void {
	const words = new Int32Array(memory);
	const numbers = new Float64Array(memory);
	const ring = sys.pin(8);
	ring.bytes[0] = 1;
	while (Atomics.load(words, STOP) === 0) {
		const heard = Atomics.load(words, BELL);
		let ran = 0;
		for (let job = 0; job < JOB_COUNT; job++) {
			const word = wordOf(job);
			if (Atomics.compareExchange(words, word + STATE, QUEUED, RUNNING) !== QUEUED) continue;
			words[word + RESULT] = runJob(words, numbers, word);
			Atomics.store(words, word + STATE, DONE);
			sys.write(bell, ring.address, 8);
			ran++;
		}
		if (ran === 0) Atomics.wait(words, BELL, heard);
	}
}

function runJob(words: Int32Array, numbers: Float64Array, word: number): number {
	const fd = words[word + FD]!;
	if (words[word + OP] === JOB_DATASYNC) return sys.fdatasync(fd);
	const number = word / 2;
	return sys.preadAll(fd, numbers[number + ADDRESS]!, numbers[number + LENGTH]!, numbers[number + AT]!);
}

const wordOf = (job: number): number => (HEADER_BYTES + job * SLOT_BYTES) / 4;
