// Plane: the data plane of one disk. One thread, no locks, no waiting but for work.
//
//   clients ─► parse ─► staged writes ─► one append to the first image ─► answers ─► send
//     ▲                     room                                            flushes
//     └── bell: a flush or a slow read that was carried out elsewhere has finished (jobs.ts); the control plane has a message
//
// This file is the round, and what the control plane may call between two of them. Each part keeps one thing to itself:
//
//   clients.ts         who is connected; poll, receive, close
//   staged-writes.ts   writes and zeros until they are in the log
//   room.ts            who waits where the log is full
//   answers.ts         what clients are owed, in order
//   flushes.ts         who waits until all is durable
//
// Order
//  - a write is acknowledged when the append that holds it is done; its log position is fixed by then
//  - writes of one round are appended in the order in which they were parsed; reads of a round see all of them,
//    which the protocol allows, since none of these requests was answered before another was sent
//  - a flush is answered by an fdatasync that began after it was received; one fdatasync serves all that wait,
//    and requests go on meanwhile

import type { FirstImage } from "../../core/log/first-image.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteCount } from "../../foundations/units.ts";
import type { TableUpdate } from "../images/second-layout.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import { Answers } from "./answers.ts";
import { Clients } from "./clients.ts";
import type { ClientSetup } from "./connection.ts";
import { newCounters, type PlaneCounters } from "./counters.ts";
import { type BlockSums, DiskReader, type LogFile } from "./disk-reader.ts";
import { Flushes } from "./flushes.ts";
import { IdleMemory } from "./idle-memory.ts";
import type { JobQueue } from "./jobs.ts";
import { Latencies } from "./latencies.ts";
import { PollSet } from "./poll-set.ts";
import type { ReadBatch } from "./read-batch.ts";
import { Room } from "./room.ts";
import type { SecondReader } from "./second-reader.ts";
import type { Snapshots } from "./snapshots.ts";
import { StagedWrites } from "./staged-writes.ts";
import { ViewPoints } from "./view-points.ts";
import { WriteAges } from "./write-ages.ts";

/** What the plane is made of; the worker opens it. */
export interface PlaneParts {
	readonly log: FirstImage;
	readonly logFd: number;
	readonly second: SecondReader;
	readonly sums: BlockSums;
	readonly snapshots: Snapshots;
	/** Closed at the end of `run`. */
	readonly jobs: JobQueue;
	/** Fetches small reads together; undefined on hosts without io_uring. Closed at the end of `run`. */
	readonly batch: ReadBatch | undefined;
	readonly bell: number;
	/** Called in the plane's thread when the bell rang for a message. */
	readonly onBell: () => void;
	/** Called once whenever clients begin to wait for room in the log. */
	readonly onStalled: () => void;
	/** Called when the log can't be written any more. */
	readonly onPoisoned: (reason: string) => void;
	/** Called with a block that doesn't match its checksum; whoever wanted to read it got an error. */
	readonly onRotten: (block: number) => void;
	/** Called when clients rest after work that took memory. */
	readonly onRested: () => void;
}

/** Blocks in the second image, or in slots of the first one's file. */
export interface WholeRun {
	readonly block: number;
	readonly count: number;
	readonly slot?: number;
	/** Byte of the first slot in the file. */
	readonly at?: number;
}

export class Plane {
	readonly log: FirstImage;
	readonly viewPoints: ViewPoints;
	readonly ages: WriteAges;
	readonly counters: PlaneCounters = newCounters();
	readonly latencies = new Latencies();

	readonly #parts: PlaneParts;
	/** Reads the disk itself; clients of a snapshot have one of their own. */
	readonly #reader: DiskReader;
	readonly #clients: Clients;
	readonly #room: Room;
	readonly #writes: StagedWrites;
	readonly #flushes: Flushes;
	readonly #answers: Answers;
	readonly #idleMemory: IdleMemory;
	readonly #bellCount: Pinned = sys.pin(8);
	/** Who waits for the guest to write something, and since which guest entry. */
	#awaitsWrites: { readonly since: number; readonly done: () => void }[] = [];
	/** When work was last looked for, in milliseconds. */
	#lookedAt = performance.now();
	#stopped = false;
	#poisonReported = false;

	constructor(parts: PlaneParts) {
		const { log, logFd, jobs } = parts;
		const logs: readonly LogFile[] = [{ log, fd: logFd }];
		this.#parts = parts;
		this.log = log;
		this.viewPoints = new ViewPoints(log);
		this.ages = new WriteAges(log);
		this.#reader = new DiskReader(() => logs, parts.second, parts.sums);
		this.#clients = new Clients(parts.bell, parts.snapshots);
		this.#room = new Room(log, this.#clients, parts.onStalled);
		const { counters, viewPoints, ages } = this;
		const onPoisoned = (reason: string): void => this.#reportPoison(reason);
		const onRotten = (block: number): void => {
			counters.rottenReads++;
			parts.onRotten(block);
		};
		this.#idleMemory = new IdleMemory(parts.onRested);
		const common = { log, counters, room: this.#room, onPoisoned, onRotten };
		this.#writes = new StagedWrites({ ...common, reader: this.#reader, viewPoints });
		this.#flushes = new Flushes({ ...common, logFd, jobs });
		this.#answers = new Answers({ ...common, ages, jobs, flushes: this.#flushes, batch: parts.batch });
	}

	/** Serves until `stop`. */
	run(): void {
		try {
			while (!this.#stopped) this.#serveRound();
		} finally {
			this.#awaitJobs();
			this.#answers.close();
			this.#clients.close();
		}
	}

	#serveRound(): void {
		const { jobs } = this.#parts;
		const { work } = this.#clients;
		const rang = this.#clients.waitForWork(jobs.busy);
		const now = performance.now();
		const since = this.#clients.waited ? now : this.#lookedAt;
		this.#lookedAt = now;
		if (rang) this.#hearBell();
		// The log is closed: nothing may be written any more.
		if (this.#stopped) return;
		let requests = 0;
		for (const client of work) client.parse(this.#writes);
		this.#writes.commit();
		for (const client of work) {
			requests += client.pending.count;
			this.#answers.answer(client);
		}
		this.#flushes.begin();
		this.#answers.sendFinished();
		jobs.submit();
		this.#idleMemory.note(work.length > 0, rang);
		this.#clients.endRound();
		if (requests > 0) this.latencies.add(requests, performance.now() - since);
		if (this.#awaitsWrites.length > 0) this.#tellOfWrites();
	}

	#tellOfWrites(): void {
		const { guestEntries } = this.log;
		const told = this.#awaitsWrites.filter(({ since }) => since !== guestEntries);
		if (told.length === 0) return;
		this.#awaitsWrites = this.#awaitsWrites.filter(({ since }) => since === guestEntries);
		for (const { done } of told) done();
	}

	#hearBell(): void {
		const { bell, jobs, onBell } = this.#parts;
		sys.read(bell, this.#bellCount.address, 8);
		if (jobs.busy > 0) {
			jobs.collect(this.#onJob);
			this.#answers.sendFinished();
		}
		onBell();
	}

	readonly #onJob = (job: number, result: number): void => {
		if (!this.#flushes.finish(job, result)) this.#answers.finish(job, result);
	};

	/** Says once that the log takes no writes any more; clients that wait for room get their errors. */
	#reportPoison(reason: string): void {
		if (this.#poisonReported) return;
		this.#poisonReported = true;
		this.#parts.onPoisoned(reason);
		this.#room.resume();
	}

	/** Waits for the jobs: they read into this thread's memory, which ends with it. */
	#awaitJobs(): void {
		const { bell, jobs } = this.#parts;
		const polled = new PollSet(1);
		polled.add(bell, sys.POLLIN);
		jobs.submit();
		while (jobs.busy > 0) {
			polled.wait(-1);
			sys.read(bell, this.#bellCount.address, 8);
			jobs.collect(() => {});
		}
		jobs.close();
	}

	// ---- Between two rounds: what the control plane calls ---------------------------------------------------

	get clientCount(): number {
		return this.#clients.count;
	}

	/** Clients that wait for room in the log. */
	get stalledCount(): number {
		return this.#clients.stalledCount;
	}

	/** A client's request is under way: not there completely, not parsed yet, or it waits for room. */
	get isReceiving(): boolean {
		return this.#clients.isReceiving;
	}

	/** True: clients that find no room, or wait for some, get ENOSPC now instead of waiting for the cleaner. */
	refuseWhenFull(refuse: boolean): void {
		this.#room.refuseWhenFull = refuse;
		this.#room.resume();
	}

	/** Takes over a connected client. Throws what `Clients.attach` throws; the socket stays the caller's then. */
	attach(setup: ClientSetup): void {
		const { snapshot } = setup;
		const { snapshots, second, sums } = this.#parts;
		const reader =
			snapshot === undefined ? this.#reader : new DiskReader(() => snapshots.logsOf(snapshot), second, sums);
		this.#clients.attach(setup, reader);
	}

	/** Calls `done` once the log has other guest entries than `since`. */
	awaitWrites(since: number, done: () => void): void {
		this.#awaitsWrites.push({ since, done });
		this.#tellOfWrites();
	}

	/** Tells `done` (0 or an errno) once all that is written now is durable; one fdatasync serves many. */
	flush(done: (error: number) => void): void {
		this.#writes.commit();
		this.#flushes.wait(done);
	}

	/** Makes another file of the disk durable, as a job; tells `done` 0 or a negated errno. */
	readonly datasync = (fd: number, done: (result: number) => void): void => this.#flushes.datasync(fd, done);

	/** Writes tables of the second image. Throws IO or NO_SPACE. */
	writeSecondTables(update: TableUpdate): void {
		this.#parts.second.writeTables(update);
	}

	/** The disk has `size` bytes from now on. Clients learn it when they connect again. Throws what the log's resize throws. */
	resize(size: number): void {
		this.#writes.commit();
		const before = this.log.diskBytes;
		this.log.resize(byteCount(size));
		this.#parts.second.resized(size);
		// What is cut off and comes back later reads as zeros then.
		const first = Math.floor(Math.min(size, before) / BLOCK_SIZE);
		this.ages.changed(first, Math.ceil(Math.max(size, before) / BLOCK_SIZE) - first);
	}

	/**
	 * Reads blocks of the second image, or those of a run of slots, and compares them with their checksums, waiting for the
	 * devices. Throws IO.
	 */
	readWhole(run: WholeRun): Pinned {
		const { block, count, slot, at } = run;
		const bytes = sys.pin(count * BLOCK_SIZE);
		const { second, sums, logFd } = this.#parts;
		if (slot === undefined) {
			const reader = new DiskReader(() => [], second, sums);
			reader.plan(block * BLOCK_SIZE, count * BLOCK_SIZE);
			reader.readBlocking(bytes, 0);
			if (reader.verify(bytes.bytes, 0) < 0) return bytes;
		} else {
			const result = sys.preadAll(logFd, bytes.address, count * BLOCK_SIZE, at!);
			if (result < 0) throw sys.hostError(result, "reading the first image");
			if (this.log.matches(slot, count, bytes.bytes)) return bytes;
		}
		throw new VmsweepError("IO", `a block of ${count} from block ${block} on doesn't match its checksum`);
	}

	/** See `Clients.drain`. Writes that find no room are refused: nobody will make any. */
	readonly drain = (limitMs: number, done: () => void): void => {
		this.refuseWhenFull(true);
		this.#clients.drain(limitMs, done);
	};

	/** Ends `run` after the present round. */
	stop(): void {
		this.#stopped = true;
	}
}
