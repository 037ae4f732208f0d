// Plane: the data plane of one disk. One thread, no locks, no waiting but for work.
//
//   poll ─► receive and parse every ready client ─► one append to the first image ─► answers ─► send
//     ▲                                                                       │
//     └── bell: a flush or a slow read that was carried out elsewhere has finished (jobs.ts); the control plane has a message
//
// Order
//  - a write is acknowledged when the append that holds it is done; its log position is fixed by then
//  - writes of one round are appended in the order in which they were parsed; reads of a round see all of them,
//    which the protocol allows, since none of these requests was answered before another was sent
//  - a flush is answered by an fdatasync that began after it was received; one fdatasync serves all that wait,
//    and requests go on meanwhile

import type { FirstImage } from "../../core/log/first-image.ts";
import type { PinnedBytes } from "../../core/log/host-file.ts";
import { blockStatusBytesMax, encodeBlockStatus, type StatusRun } from "../../core/nbd/block-status.ts";
import { commandFlag, errno, PAYLOAD_BYTES_MAX } from "../../core/nbd/protocol.ts";
import { BARE_REPLY_BYTES, HOLE_BYTES, READ_HEADER_BYTES, type ReplyTo } from "../../core/nbd/replies.ts";
import { errorTable, VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteCount, type LogPosition, logPosition, roundDown, roundUp } from "../../foundations/units.ts";
import type { TableUpdate } from "../images/second-layout.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import { allocationRuns, changedRuns, livenessRuns } from "./allocation.ts";
import type { SocketState } from "./buffers.ts";
import type { ClientContext, ClientSetup, Liveness, RequestSink, ZeroMode } from "./connection.ts";
import { Connection, PENDING_DONE, PENDING_ERROR, PENDING_FLUSH, PENDING_READ, PENDING_STATUS } from "./connection.ts";
import { type BlockSums, DiskReader, type LogFile, ZERO_RUN } from "./disk-reader.ts";
import { JOB_DATASYNC, type JobQueue } from "./jobs.ts";
import { Patience } from "./patience.ts";
import type { SecondReader } from "./second-reader.ts";
import { Silence } from "./silence.ts";
import type { SlowRead } from "./slow-reads.ts";
import { SlowReads } from "./slow-reads.ts";
import type { Snapshots } from "./snapshots.ts";
import { ViewPoints } from "./view-points.ts";
import { WriteAges } from "./write-ages.ts";

/** Extents in one block status answer; a client asks again for the rest. */
const STATUS_EXTENTS_MAX = 1024;
/** Segments that clients must leave free: room for the cleaner's own entries and for half-filled segments. */
const ROOM_MARGIN_SEGMENTS = 3;
/** Flushes and slow reads that a client may have under way before its next requests wait. */
const IN_FLIGHT_MAX = 1024;
const POLLFD_BYTES = 8;
/** Rounds in which only the one busy client is asked for more. */
const DIRECT_ROUNDS_MAX = 16;
/** Clients at once. Each reserves some MiB of buffers, of which only what it uses takes memory. */
const CLIENTS_MAX = 256;
/** An idle thread looks up this often: the process can only end its threads while they are not in a system call. */
const IDLE_MS = 500;
/** Busy rounds between two looks at the clock for clients that are silent. */
const LOOK_ROUNDS = 256;
/** Reads that don't start or end at a block and have more bytes than this become jobs. */
const ALIGNED_BYTES = 128 * 1024;
/** Zeros inside a read that are worth a chunk of their own: it costs the client a header more. */
const HOLE_BYTES_MIN = 32 * 1024;
/** Answers that wait together for the end of a round, at most. */
const SEND_EARLY_BYTES = 128 * 1024;
/** Kernel's send buffer per client: a large read's answer then leaves in few pieces. */
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;

/** What the plane is made of; the worker opens it. */
export interface PlaneParts {
	readonly log: FirstImage;
	readonly logFd: number;
	readonly second: SecondReader;
	readonly sums: BlockSums;
	readonly snapshots: Snapshots;
	/** Closed at the end of `run`. */
	readonly jobs: JobQueue;
	readonly bell: number;
	/** Called in the plane's thread when the bell rang for a message. */
	readonly onBell: () => void;
	/** Called once whenever clients begin to wait for room in the log. */
	readonly onStalled: () => void;
	/** Called when the log can't be written any more. */
	readonly onPoisoned: (reason: string) => void;
	/** Called with a block that doesn't match its checksum; whoever wanted to read it got an error. */
	readonly onRotten: (block: number) => void;
}

/** Counters since the start; bytes as the guest sees them. */
export interface PlaneCounters {
	reads: number;
	readBytes: number;
	writes: number;
	writtenBytes: number;
	zeroedBytes: number;
	flushes: number;
	datasyncs: number;
	slowReads: number;
	errors: number;
	/** Reads that met a block that doesn't match its checksum. */
	rottenReads: number;
}

/** Blocks in the second image, or in slots of the first one's file. */
export interface WholeRun {
	readonly block: number;
	readonly count: number;
	readonly slot?: number;
	/** Byte of the first slot in the file. */
	readonly at?: number;
}

/** No more requests are taken, until a moment of `performance.now()`. */
interface Draining {
	readonly until: number;
	readonly done: () => void;
}

/** Is told 0 or an errno once everything written before it began to wait is durable. */
type FlushWaiter = (error: number) => void;

export class Plane implements RequestSink {
	readonly log: FirstImage;
	/** In bytes; changed by `resize` only. */
	diskSize: number;
	readonly viewPoints: ViewPoints;
	readonly ages: WriteAges;
	readonly counters: PlaneCounters = {
		reads: 0,
		readBytes: 0,
		writes: 0,
		writtenBytes: 0,
		zeroedBytes: 0,
		flushes: 0,
		datasyncs: 0,
		slowReads: 0,
		errors: 0,
		rottenReads: 0,
	};
	/** True: clients that find no room get ENOSPC now instead of waiting for the cleaner. */
	refuseWhenFull = false;

	readonly #parts: PlaneParts;
	readonly #reader: DiskReader;
	readonly #jobs: JobQueue;
	readonly #slowReads: SlowReads;
	readonly #clients = new Map<number, Connection>();
	readonly #work: Connection[] = [];
	readonly #scratch: Pinned = sys.pin(2 * BLOCK_SIZE);
	/** Where the blocks of small reads that aren't aligned to blocks are read to. */
	readonly #aligned: Pinned = sys.pin(ALIGNED_BYTES);
	readonly #zeros: Pinned = sys.pin(256 * 1024);
	readonly #bellCount: Pinned = sys.pin(8);
	#scratchNext = 0;
	#pollMemory: Pinned = sys.pin(64 * POLLFD_BYTES);
	#pollFds: number[] = [];
	readonly #patience = new Patience();
	#wasBusy = false;
	/** The only client of which the last round took something. */
	#busyAlone: Connection | undefined;
	/** Rounds since all clients were last looked at. */
	#directRounds = 0;
	readonly #silence = new Silence();
	#draining: Draining | undefined;
	#round = 0;
	#stopped = false;
	#poisonReported = false;
	#stallReported = false;

	/** Owner of each staged item: whose answer turns into an error where the append fails. */
	readonly #stagedClient: Connection[] = [];
	readonly #stagedOwner: number[] = [];
	#stagedBlocks = 0;

	/** Wait for the next flush. A position would not do to tell whether the running one covers them: zeroing moves none. */
	#flushWaiters: FlushWaiter[] = [];
	/** Wait for the flush that is running. */
	#flushing: FlushWaiter[] = [];
	#flushJob = -1;
	/** Other files that are being made durable, by job. */
	readonly #syncs = new Map<number, (result: number) => void>();
	#flushPosition: LogPosition = logPosition(0);

	constructor(parts: PlaneParts) {
		this.#parts = parts;
		this.log = parts.log;
		this.diskSize = parts.log.diskBytes;
		this.viewPoints = new ViewPoints(parts.log);
		this.ages = new WriteAges(parts.log);
		const logs: readonly LogFile[] = [{ log: parts.log, fd: parts.logFd }];
		this.#reader = new DiskReader(() => logs, parts.second, parts.sums);
		this.#jobs = parts.jobs;
		this.#slowReads = new SlowReads(this.#jobs, (block) => this.#reportRotten(block));
	}

	get clientCount(): number {
		return this.#clients.size;
	}

	/** Serves until `stop`. */
	run(): void {
		try {
			while (!this.#stopped) this.#serveRound();
		} finally {
			this.#drainJobs();
			for (const client of this.#clients.values()) sys.close(client.fd);
		}
	}

	/** Waits for the jobs: they read into this thread's memory, which ends with it. */
	#drainJobs(): void {
		const view = this.#pollView(1);
		this.#jobs.submit();
		while (this.#jobs.busy > 0) {
			putPollFd(view, 0, this.#parts.bell, sys.POLLIN);
			sys.poll(this.#pollMemory.address, 1, -1);
			sys.read(this.#parts.bell, this.#bellCount.address, 8);
			this.#jobs.collect(() => {});
		}
		this.#jobs.close();
	}

	/** Ends `run` after the present round. */
	stop(): void {
		this.#stopped = true;
	}

	/**
	 * Takes no more requests: those that came are answered, their clients closed, and then `done` is called; after
	 * `limitMs` whoever is left is closed in the middle of what it does.
	 */
	readonly drain = (limitMs: number, done: () => void): void => {
		this.#draining = { until: performance.now() + limitMs, done };
		// Nobody will make room any more.
		this.refuseWhenFull = true;
		this.resumeStalled();
		// What has been sent by now counts as having come.
		for (const client of this.#clients.values())
			if (client.output.isEmpty && client.input.receive(client.fd) === "progress") client.hasMore = true;
	};

	/** Takes over a connected client. Throws NBD_PROTOCOL where there are too many; the socket stays the caller's. */
	attach(setup: ClientSetup): void {
		const { clientsMax = CLIENTS_MAX } = setup;
		if (this.#clients.size >= Math.min(clientsMax, CLIENTS_MAX))
			throw new VmsweepError("NBD_PROTOCOL", `${this.#clients.size} clients use the disk already; disconnect one`);
		if (this.#draining !== undefined) throw new VmsweepError("DISK_STOPPED", "the disk is being closed");
		const { snapshot } = setup;
		const { snapshots, second, sums } = this.#parts;
		const reader =
			snapshot === undefined ? this.#reader : new DiskReader(() => snapshots.logsOf(snapshot), second, sums);
		if (snapshot !== undefined) snapshots.countReader(snapshot, 1);
		sys.setSendBuffer(setup.fd, SEND_BUFFER_BYTES);
		const client = new Connection(setup, reader);
		this.#clients.set(setup.fd, client);
		client.hasMore = setup.leftover.length > 0;
		client.quietSince = performance.now();
	}

	/** Tells `done` (0 or an errno) once all that is written now is durable; one fdatasync serves many. */
	flush(done: (error: number) => void): void {
		this.commitStaged();
		this.#flushWaiters.push(done);
	}

	/** Makes another file of the disk durable, as a job; tells `done` 0 or a negated errno. */
	readonly datasync = (fd: number, done: (result: number) => void): void => {
		const job = this.#jobs.queue(JOB_DATASYNC, fd, 0, 0, 0);
		if (job >= 0) this.#syncs.set(job, done);
		else done(sys.fdatasync(fd));
	};

	/** Writes tables of the second image, between two rounds of requests. Throws IO or NO_SPACE. */
	writeSecondTables(update: TableUpdate): void {
		this.#parts.second.writeTables(update);
	}

	/** The disk has `size` bytes from now on. Clients learn it when they connect again. Throws what the log's resize throws. */
	resize(size: number): void {
		this.commitStaged();
		this.log.resize(byteCount(size));
		this.#parts.second.resized(size);
		// What is cut off and comes back later reads as zeros then.
		const first = Math.floor(Math.min(size, this.diskSize) / BLOCK_SIZE);
		this.ages.changed(first, Math.ceil(Math.max(size, this.diskSize) / BLOCK_SIZE) - first);
		this.diskSize = size;
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

	// ---- One round ----------------------------------------------------------------------------------------

	#serveRound(): void {
		this.#round++;
		this.#waitForWork();
		// The log is closed: nothing may be written any more.
		if (this.#stopped) return;
		this.#busyAlone = this.#work.length === 1 ? this.#work[0] : undefined;
		for (const client of this.#work) client.parse(this);
		this.commitStaged();
		for (const client of this.#work) this.#answer(client);
		this.#work.length = 0;
		this.#startFlush();
		this.#jobs.submit();
		if (!this.#wasBusy || this.#round % LOOK_ROUNDS === 0)
			this.#silence.look(this.#clients.values(), performance.now());
		this.#reapClients();
		if (this.#draining !== undefined) this.#continueDrain(this.#draining);
	}

	#continueDrain({ until, done }: Draining): void {
		const isLate = performance.now() >= until;
		for (const client of this.#clients.values()) {
			const isOwed = client.inFlight > 0 || !client.output.isEmpty || client.pending.count > 0;
			if (isLate) client.broken = true;
			else if (!isOwed && !client.hasMore && !client.isInsidePayload) client.leaving = true;
		}
		this.#reapClients();
		if (this.#clients.size > 0) return;
		this.#draining = undefined;
		done();
	}

	/** Sleeps until a client or the bell is ready; receives; leaves every client with something to parse in `#work`. */
	#waitForWork(): void {
		if (this.#receiveDirectly()) return;
		let ready = false;
		const fds = this.#pollFds;
		fds.length = 0;
		const view = this.#pollView(1 + this.#clients.size);
		fds.push(this.#parts.bell);
		putPollFd(view, 0, this.#parts.bell, sys.POLLIN);
		for (const client of this.#clients.values()) {
			const mayParse = client.output.isEmpty && client.inFlight < IN_FLIGHT_MAX;
			if (client.hasMore && mayParse) {
				ready = true;
				this.#enlist(client);
			}
			const isExpected = this.#draining === undefined || client.isInsidePayload;
			const wantsInput = mayParse && isExpected && !client.stalled && !client.leaving && !client.input.isFull;
			const events = (wantsInput ? sys.POLLIN : 0) | (client.output.isEmpty ? 0 : sys.POLLOUT);
			putPollFd(view, fds.length, client.fd, events);
			fds.push(client.fd);
		}
		const ask = (): number => sys.poll(this.#pollMemory.address, fds.length, 0);
		let count = ask();
		// Only who was busy a moment ago is worth being waited for awake.
		if (count === 0 && !ready && this.#wasBusy) count = this.#patience.wait(ask);
		if (count === 0 && !ready) count = sys.poll(this.#pollMemory.address, fds.length, IDLE_MS);
		this.#wasBusy = count > 0;
		if (count <= 0) return;
		for (let i = 1; i < fds.length; i++) {
			const events = view.getUint16(i * POLLFD_BYTES + 6, true);
			if (events === 0) continue;
			const client = this.#clients.get(fds[i]!)!;
			if (events & sys.POLLOUT) this.#send(client);
			if (events & sys.POLLIN) {
				if (client.input.receive(client.fd) === "closed") client.broken = true;
				else this.#enlist(client);
			} else if (events & (sys.POLLERR | sys.POLLHUP)) client.broken = true;
		}
		if (view.getUint16(6, true) !== 0) this.#hearBell();
	}

	/**
	 * Where only one client was busy a moment ago, asks its socket alone: a recv costs less than a poll and a recv. All
	 * others and the bell are looked at again after some rounds. True where something was received.
	 */
	#receiveDirectly(): boolean {
		const client = this.#busyAlone;
		if (client === undefined || ++this.#directRounds > DIRECT_ROUNDS_MAX || this.#jobs.busy > 0) {
			this.#directRounds = 0;
			return false;
		}
		const { input } = client;
		const wantsInput = client.output.isEmpty && !client.stalled && !client.leaving && !client.broken && !input.isFull;
		if (!wantsInput || client.hasMore || client.inFlight > 0 || this.#draining !== undefined) return false;
		let state = "wait" as SocketState;
		this.#patience.wait(() => {
			state = input.receive(client.fd);
			return state === "wait" ? 0 : 1;
		});
		this.#wasBusy = state !== "wait";
		if (state === "closed") client.broken = true;
		else if (state === "progress") this.#enlist(client);
		return this.#wasBusy;
	}

	#hearBell(): void {
		sys.read(this.#parts.bell, this.#bellCount.address, 8);
		if (this.#jobs.busy > 0) this.#jobs.collect(this.#onJob);
		this.#parts.onBell();
	}

	readonly #onJob = (job: number, result: number): void => {
		if (job === this.#flushJob) {
			this.#flushJob = -1;
			this.#finishFlush(result);
			return;
		}
		const done = this.#syncs.get(job);
		if (done !== undefined) {
			this.#syncs.delete(job);
			done(result);
			return;
		}
		const read = this.#slowReads.finish(job, result);
		if (read !== undefined) this.#answerSlow(read);
	};

	#enlist(client: Connection): void {
		if (client.round === this.#round) return;
		client.round = this.#round;
		this.#work.push(client);
	}

	#pollView(count: number): DataView {
		if (this.#pollMemory.bytes.length < count * POLLFD_BYTES) this.#pollMemory = sys.pin(2 * count * POLLFD_BYTES);
		return new DataView(
			this.#pollMemory.bytes.buffer,
			this.#pollMemory.bytes.byteOffset,
			this.#pollMemory.bytes.length,
		);
	}

	#reapClients(): void {
		for (const client of this.#clients.values()) {
			const finished = client.leaving && client.inFlight === 0 && client.output.isEmpty && client.pending.count === 0;
			if (!client.broken && !finished) continue;
			this.#clients.delete(client.fd);
			if (client === this.#busyAlone) this.#busyAlone = undefined;
			if (client.snapshot !== undefined) this.#parts.snapshots.countReader(client.snapshot, -1);
			sys.close(client.fd);
		}
	}

	#reportRotten(block: number): void {
		this.counters.rottenReads++;
		this.#parts.onRotten(block);
	}

	// ---- Writing ------------------------------------------------------------------------------------------

	stageWrite(client: Connection, at: number, length: number, from: number, owner: number): boolean {
		if (!this.#hasRoom(Math.ceil(length / BLOCK_SIZE) + 2)) {
			if (!this.#refuse(client, owner)) return false;
			return true;
		}
		this.counters.writes++;
		this.counters.writtenBytes += length;
		const source = client.input.memory;
		const headEnd = Math.min(at + length, Math.ceil(at / BLOCK_SIZE) * BLOCK_SIZE);
		const tailStart = Math.max(headEnd, Math.floor((at + length) / BLOCK_SIZE) * BLOCK_SIZE);
		let whole = true;
		if (headEnd > at) whole = this.#stagePart(client, at, headEnd - at, source, from, owner);
		if (tailStart > headEnd)
			this.#stageBlocks(client, headEnd, tailStart - headEnd, source, from + headEnd - at, owner);
		if (at + length > tailStart)
			whole =
				this.#stagePart(client, tailStart, at + length - tailStart, source, from + tailStart - at, owner) && whole;
		if (!whole) this.viewPoints.lose();
		else if (this.viewPoints.isWatching) this.#noteWrite(at, length, source, from);
		return true;
	}

	stageZeroes(client: Connection, at: number, length: number, how: ZeroMode, owner: number): boolean {
		const blocks = Math.ceil(length / BLOCK_SIZE) + 2;
		if (!this.#hasRoom(how === "allocate" ? blocks : 4)) return this.#refuse(client, owner);
		this.counters.zeroedBytes += length;
		const headEnd = Math.min(at + length, Math.ceil(at / BLOCK_SIZE) * BLOCK_SIZE);
		const tailStart = Math.max(headEnd, Math.floor((at + length) / BLOCK_SIZE) * BLOCK_SIZE);
		if (headEnd > at && how !== "trim") this.#stagePart(client, at, headEnd - at, this.#zeros, 0, owner);
		for (let start = headEnd; start < tailStart; ) {
			const piece = how === "allocate" ? Math.min(tailStart - start, this.#zeros.bytes.length) : tailStart - start;
			if (how === "allocate") this.#stageBlocks(client, start, piece, this.#zeros, 0, owner);
			else {
				// An entry takes no slot, but room in a segment all the same.
				this.#own(client, owner, 1);
				this.log.stageZero(start / BLOCK_SIZE, piece / BLOCK_SIZE, "zero");
			}
			start += piece;
		}
		if (at + length > tailStart && how !== "trim")
			this.#stagePart(client, tailStart, at + length - tailStart, this.#zeros, 0, owner);
		if (this.viewPoints.isWatching && length > 0) {
			if (!this.commitStaged()) this.viewPoints.lose();
			this.viewPoints.note(at, length, undefined, 0, this.log.position, this.log.position);
		}
		return true;
	}

	/** Stages whole blocks. */
	#stageBlocks(client: Connection, at: number, length: number, source: PinnedBytes, from: number, owner: number): void {
		this.#own(client, owner, length / BLOCK_SIZE);
		this.log.stageData(at / BLOCK_SIZE, length / BLOCK_SIZE, source, from);
	}

	/** Stages a part of one block, merged with what the block holds now; false where that can't be read. */
	#stagePart(
		client: Connection,
		at: number,
		length: number,
		source: PinnedBytes,
		from: number,
		owner: number,
	): boolean {
		this.commitStaged();
		const block = Math.floor(at / BLOCK_SIZE);
		const scratch = this.#scratchNext;
		this.#scratchNext = BLOCK_SIZE - scratch;
		try {
			this.#reader.plan(block * BLOCK_SIZE, BLOCK_SIZE);
			this.#reader.readBlocking(this.#scratch, scratch);
			// Rotten bytes must not get a new, matching checksum.
			const rotten = this.#reader.verify(this.#scratch.bytes, scratch);
			if (rotten >= 0) {
				this.#reportRotten(rotten);
				throw new VmsweepError("IO", `block ${rotten} is rotten`);
			}
		} catch {
			this.#failOwner(client, owner, errno.EIO);
			return false;
		}
		this.#scratch.bytes.set(source.bytes.subarray(from, from + length), scratch + at - block * BLOCK_SIZE);
		this.#own(client, owner, 1);
		this.log.stageData(block, 1, this.#scratch, scratch);
		return true;
	}

	#own(client: Connection, owner: number, blocks: number): void {
		this.#stagedClient.push(client);
		this.#stagedOwner.push(owner);
		this.#stagedBlocks += blocks;
	}

	/** Appends what is staged; the answers of what could not be appended become errors, and the result is false. */
	commitStaged(): boolean {
		const count = this.#stagedClient.length;
		if (count === 0) return true;
		const done = this.log.commit();
		if (done < count) this.#failStaged(done, count);
		this.#stagedClient.length = 0;
		this.#stagedOwner.length = 0;
		this.#stagedBlocks = 0;
		return done === count;
	}

	#failStaged(done: number, count: number): void {
		const cause = this.log.commitError;
		for (let i = done; i < count; i++) this.#failOwner(this.#stagedClient[i]!, this.#stagedOwner[i]!, nbdErrno(cause));
		if (this.log.poisoned) this.#reportPoison(cause?.message ?? "the first image can't be written");
	}

	/** Says once that the log takes no writes any more; clients that wait for room get their errors. */
	#reportPoison(reason: string): void {
		if (this.#poisonReported) return;
		this.#poisonReported = true;
		this.#parts.onPoisoned(reason);
		this.resumeStalled();
	}

	#failOwner(client: Connection, owner: number, error: number): void {
		this.counters.errors++;
		// The request of the item being parsed has its pending answer pushed only after staging.
		if (owner >= 0 && owner < client.pending.count) client.pending.fail(owner, error);
		else client.failCurrent(error);
	}

	/** Notes a write to watched metadata; where it is an asked-for view point, the view is taken exactly here. */
	#noteWrite(at: number, length: number, source: PinnedBytes, from: number): void {
		const points = this.viewPoints;
		points.touchVolumes(at, length, this.log.position + this.#stagedBlocks);
		if (!points.mayTouch(at, length)) return;
		if (!this.commitStaged()) {
			points.lose();
			return;
		}
		const first = this.log.get(Math.floor(at / BLOCK_SIZE));
		points.note(at, length, source.bytes, from, this.log.positionOfSlot(first), this.log.position);
	}

	// ---- Room ---------------------------------------------------------------------------------------------

	#hasRoom(blocks: number): boolean {
		const { limitBytes, usedBytes, segmentBytes } = this.log;
		return limitBytes - usedBytes >= (this.#stagedBlocks + blocks) * BLOCK_SIZE + ROOM_MARGIN_SEGMENTS * segmentBytes;
	}

	/** No room: true where the request is answered with ENOSPC, false where its client waits for the cleaner. */
	#refuse(client: Connection, owner: number): boolean {
		if (this.refuseWhenFull || this.log.poisoned) {
			this.#failOwner(client, owner, this.log.poisoned ? errno.EIO : errno.ENOSPC);
			return true;
		}
		if (!this.#stallReported) {
			this.#stallReported = true;
			this.#parts.onStalled();
		}
		return false;
	}

	/** Lets stalled clients try again: after segments became free, or when waiting makes no sense any more. */
	resumeStalled(): void {
		this.#stallReported = false;
		for (const client of this.#clients.values()) if (client.stalled) client.hasMore = true;
	}

	get stalledCount(): number {
		let count = 0;
		for (const client of this.#clients.values()) if (client.stalled) count++;
		return count;
	}

	// ---- Flushing -----------------------------------------------------------------------------------------

	/** Begins a flush where somebody waits for one, or where it frees segments for clients that wait for room. */
	#startFlush(): void {
		if (this.#flushJob >= 0) return;
		if (this.#flushWaiters.length === 0 && !(this.#stallReported && this.log.needsFlush)) return;
		this.#flushing = this.#flushWaiters;
		this.#flushWaiters = [];
		if (this.log.poisoned) {
			this.#answerFlushed(errno.EIO);
			return;
		}
		this.#flushPosition = this.log.beginFlush();
		this.counters.datasyncs++;
		this.#flushJob = this.#jobs.queue(JOB_DATASYNC, this.#parts.logFd, 0, 0, 0);
		if (this.#flushJob < 0) this.#finishFlush(sys.fdatasync(this.#parts.logFd));
	}

	#finishFlush(result: number): void {
		const usedBefore = this.log.usedBytes;
		try {
			if (result < 0) {
				const error = sys.hostError(result, "flushing the first image");
				this.log.failFlush(error);
				throw error;
			}
			this.log.completeFlush(this.#flushPosition);
		} catch (error) {
			this.#reportPoison(error instanceof Error ? error.message : String(error));
			this.#answerFlushed(errno.EIO);
			return;
		}
		this.#answerFlushed(0);
		if (this.log.usedBytes < usedBefore) this.resumeStalled();
	}

	#answerFlushed(error: number): void {
		const waiters = this.#flushing;
		this.#flushing = [];
		for (const done of waiters) done(error);
	}

	// ---- Answers ------------------------------------------------------------------------------------------

	/** Whom the answer that is being made goes to; the same object for each. */
	readonly #to = { cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0 };

	/** Answers what a client's parsed requests are owed, in order, and sends. */
	#answer(client: Connection): void {
		const { pending } = client;
		const to = this.#to;
		for (let i = 0; i < pending.count; i++) {
			to.cookieHigh = pending.cookieHigh[i]!;
			to.cookieLow = pending.cookieLow[i]!;
			to.offsetHigh = pending.offsetHigh[i]!;
			to.offsetLow = pending.offsetLow[i]!;
			const offset = to.offsetHigh * 0x1_0000_0000 + to.offsetLow;
			switch (pending.kind[i]!) {
				case PENDING_DONE:
					this.#putDone(client, to);
					break;
				case PENDING_READ:
					this.#answerRead(client, to, offset, pending.length[i]!, pending.flags[i]!);
					// What is sent at once is still in the processor's cache, and the client can begin with it.
					if (client.output.length >= SEND_EARLY_BYTES) this.#send(client);
					break;
				case PENDING_STATUS:
					this.#answerStatus(client, to, offset, pending.length[i]!, pending.flags[i]!, pending.contexts[i]!);
					break;
				case PENDING_ERROR:
					this.#putError(client, to, pending.length[i]!);
					break;
				case PENDING_FLUSH:
					this.#awaitFlush(client, { ...to });
					break;
			}
		}
		pending.count = 0;
		this.#send(client);
	}

	#awaitFlush(client: Connection, to: ReplyTo): void {
		this.counters.flushes++;
		client.inFlight++;
		this.#flushWaiters.push((error) => {
			client.inFlight--;
			if (client.broken) return;
			if (error === 0) this.#putDone(client, to);
			else this.#putError(client, to, error);
			this.#send(client);
		});
	}

	#answerRead(client: Connection, to: ReplyTo, offset: number, length: number, flags: number): void {
		this.counters.reads++;
		this.counters.readBytes += length;
		const isAligned = ((offset | length) & (BLOCK_SIZE - 1)) === 0;
		if (isAligned || length <= ALIGNED_BYTES - 2 * BLOCK_SIZE) {
			const outcome = isAligned
				? this.#answerFromCache(client, to, offset, length, flags)
				: this.#answerPart(client, to, offset, length);
			if (outcome) return;
		}
		this.counters.slowReads++;
		if (this.#slowReads.start(client, to.cookieHigh, to.cookieLow, offset, length)) return;
		// No job and no memory to spare: wait here, as a thread per request would.
		this.#answerSlow(this.#slowReads.readNow(client, to.cookieHigh, to.cookieLow, offset, length));
	}

	/** Answers a read of whole blocks that the page cache holds, without a copy; false where it doesn't hold them. */
	#answerFromCache(client: Connection, to: ReplyTo, offset: number, length: number, flags: number): boolean {
		const { output, reader, replies } = client;
		if (!this.#makeRoom(client, READ_HEADER_BYTES + length)) return false;
		reader.plan(offset, length);
		if (replies.form !== "simple" && (flags & commandFlag.DF) === 0 && hasHole(reader))
			return this.#answerWithHoles(client, to, offset);
		const header = replies.readHeaderBytes;
		if (!reader.readCached(output.memory, output.end + header)) return false;
		const failedAt = this.#verifyRead(reader, output.memory.bytes, output.end + header, offset);
		if (failedAt >= 0) {
			this.#putError(client, to, errno.EIO, failedAt);
			return true;
		}
		replies.putReadHeader(output.view, output.end, to, offset, length);
		output.end += header + length;
		return true;
	}

	/** The reader's plan as chunks: data, and zeros that are only named. */
	#answerWithHoles(client: Connection, to: ReplyTo, offset: number): boolean {
		const { output, reader, replies } = client;
		const parts = partsOf(reader, offset);
		const bytes = parts.reduce((sum, part) => sum + (part.isHole ? HOLE_BYTES : READ_HEADER_BYTES + part.length), 0);
		if (!this.#makeRoom(client, bytes)) return false;
		// Nothing counts before the last part is there.
		let end = output.end;
		for (const [i, part] of parts.entries()) {
			const last = i === parts.length - 1;
			if (part.isHole) {
				end += replies.putHole(output.view, end, to, part.at, part.length, last);
				continue;
			}
			end += replies.putReadHeader(output.view, end, to, part.at, part.length, last);
			reader.plan(part.at, part.length);
			if (!reader.readCached(output.memory, end)) return false;
			const failedAt = this.#verifyRead(reader, output.memory.bytes, end, part.at);
			if (failedAt >= 0) {
				this.#putError(client, to, errno.EIO, failedAt);
				return true;
			}
			end += part.length;
		}
		output.end = end;
		return true;
	}

	/** The same for a read that doesn't start or end at a block: whole blocks are read and compared, a part is sent. */
	#answerPart(client: Connection, to: ReplyTo, offset: number, length: number): boolean {
		const { output, reader } = client;
		if (!this.#makeRoom(client, READ_HEADER_BYTES + length)) return false;
		const start = roundDown(offset, BLOCK_SIZE);
		reader.plan(start, roundUp(offset + length, BLOCK_SIZE) - start);
		if (!reader.readCached(this.#aligned, 0)) return false;
		const failedAt = this.#verifyRead(reader, this.#aligned.bytes, 0, offset);
		if (failedAt >= 0) {
			this.#putError(client, to, errno.EIO, failedAt);
			return true;
		}
		output.end += client.replies.putReadHeader(output.view, output.end, to, offset, length);
		output.memory.bytes.set(this.#aligned.bytes.subarray(offset - start, offset - start + length), output.end);
		output.end += length;
		return true;
	}

	/** -1 where what was read by the reader's plan is what was once written, else the first wrong byte at or after `offset`. */
	#verifyRead(reader: DiskReader, bytes: Uint8Array, at: number, offset: number): number {
		try {
			const rotten = reader.verify(bytes, at);
			if (rotten < 0) return -1;
			this.#reportRotten(rotten);
			return Math.max(offset, rotten * BLOCK_SIZE);
		} catch {
			// The checksums themselves can't be read.
			return offset;
		}
	}

	#answerSlow(read: SlowRead): void {
		const { client, cookieHigh, cookieLow, offset, length } = read;
		if (client.broken) return;
		const to = { cookieHigh, cookieLow, offsetHigh: Math.floor(offset / 0x1_0000_0000), offsetLow: offset >>> 0 };
		if (read.result < 0) this.#putError(client, to, errno.EIO, Math.max(offset, read.failedAt));
		else {
			const output = client.output;
			if (!this.#makeRoom(client, READ_HEADER_BYTES + length)) output.grow(READ_HEADER_BYTES + length);
			output.end += client.replies.putReadHeader(output.view, output.end, to, offset, length);
			output.memory.bytes.set(
				read.buffer.bytes.subarray(offset - read.start, offset - read.start + length),
				output.end,
			);
			output.end += length;
		}
		this.#send(client);
	}

	/** One chunk per context that is asked about. */
	#answerStatus(
		client: Connection,
		to: ReplyTo,
		offset: number,
		length: number,
		flags: number,
		contexts: number,
	): void {
		const { output, replies, setup } = client;
		const asked = setup.contexts.filter((_, place) => (contexts & (1 << place)) !== 0);
		const room = blockStatusBytesMax(STATUS_EXTENTS_MAX);
		const request = { offset, length, onlyOne: (flags & commandFlag.REQ_ONE) !== 0 };
		for (const [i, context] of asked.entries()) {
			if (!this.#makeRoom(client, room)) output.grow(room);
			const part = { id: context.id, last: i === asked.length - 1 };
			const runs = this.#statusRuns(client, context, offset, length);
			output.end += encodeBlockStatus(replies, to, request, part, runs, output.view, output.end, STATUS_EXTENTS_MAX);
		}
	}

	#statusRuns(
		client: Connection,
		{ context, liveness }: ClientContext,
		offset: number,
		length: number,
	): Iterable<StatusRun> {
		switch (context.kind) {
			case "allocation":
				return allocationRuns(client.reader, offset, length);
			case "liveness":
				return livenessRuns(this.ages, liveness ?? NOTHING_PROVEN, offset, length);
			case "since":
				return changedRuns(this.ages, this.log.position, context.position, offset, length);
			default:
				return context satisfies never;
		}
	}

	#putDone(client: Connection, to: ReplyTo): void {
		const output = client.output;
		if (!this.#makeRoom(client, BARE_REPLY_BYTES)) output.grow(BARE_REPLY_BYTES);
		output.end += client.replies.putDone(output.view, output.end, to);
	}

	/** `failedAt`: the disk's byte that failed, or -1. */
	#putError(client: Connection, to: ReplyTo, error: number, failedAt = -1): void {
		const output = client.output;
		if (!this.#makeRoom(client, BARE_REPLY_BYTES)) output.grow(BARE_REPLY_BYTES);
		output.end += client.replies.putError(output.view, output.end, to, error, failedAt);
	}

	/** Makes room for a reply, sending what waits where that helps. */
	#makeRoom(client: Connection, bytes: number): boolean {
		if (client.output.reserve(bytes)) return true;
		this.#send(client);
		return client.output.reserve(bytes);
	}

	#send(client: Connection): void {
		if (client.broken || client.output.isEmpty) return;
		if (client.output.send(client.fd) === "closed") client.broken = true;
		// What was received and could not be answered for lack of output space goes on now.
		else if (client.output.isEmpty && client.input.length > 0 && !client.stalled) client.hasMore = true;
	}

	willNeed(client: Connection, at: number, length: number): void {
		if (length === 0) return;
		// Advice only: what is more than one read could take is not worth the time of others.
		const start = roundDown(at, BLOCK_SIZE);
		client.reader.plan(start, roundUp(at + Math.min(length, PAYLOAD_BYTES_MAX), BLOCK_SIZE) - start);
		client.reader.readAhead();
	}
}

const NOTHING_PROVEN: Liveness = { runs: new Float64Array(0) };

/** Are there zeros in the reader's plan that are worth a chunk of their own? */
function hasHole(reader: DiskReader): boolean {
	if (reader.count === 1) return reader.fd[0] === ZERO_RUN;
	for (let run = 0; run < reader.count; run++)
		if (reader.fd[run] === ZERO_RUN && reader.length[run]! >= HOLE_BYTES_MIN) return true;
	return false;
}

/** A part of a read that becomes one chunk; in bytes of the disk. */
interface ReadPart {
	readonly at: number;
	length: number;
	readonly isHole: boolean;
}

/** The reader's plan, which begins at `offset`, with small zeros taken for data. */
function partsOf(reader: DiskReader, offset: number): ReadPart[] {
	const parts: ReadPart[] = [];
	let at = offset;
	for (let run = 0; run < reader.count; run++) {
		const length = reader.length[run]!;
		const isHole = reader.fd[run] === ZERO_RUN && (length >= HOLE_BYTES_MIN || reader.count === 1);
		const last = parts.at(-1);
		if (last?.isHole === isHole) last.length += length;
		else parts.push({ at, length, isHole });
		at += length;
	}
	return parts;
}

function putPollFd(view: DataView, index: number, fd: number, events: number): void {
	view.setInt32(index * POLLFD_BYTES, fd, true);
	view.setUint32(index * POLLFD_BYTES + 4, events, true);
}

const nbdErrno = (cause: VmsweepError | undefined): number =>
	cause === undefined ? errno.EIO : errno[errorTable[cause.code].nbd];
