// Plane: the data plane of one disk. One thread, no locks, no waiting but for work.
//
//   poll ─► receive and parse every ready client ─► one append to the first image ─► answers ─► send
//     ▲                                                                       │
//     └── bell: helper threads finished a flush or a slow read; the control plane has a message
//
// Order
//  - a write is acknowledged when the append that holds it is done; its log position is fixed by then
//  - writes of one round are appended in the order in which they were parsed; reads of a round see all of them,
//    which the protocol allows, since none of these requests was answered before another was sent
//  - a flush is answered by an fdatasync that began after it was received; one fdatasync serves all that wait,
//    and requests go on meanwhile

import type { FirstImage } from "../../core/log/first-image.ts";
import type { PinnedBytes } from "../../core/log/host-file.ts";
import { blockStatusBytesMax, encodeBlockStatus } from "../../core/nbd/block-status.ts";
import { commandFlag, errno, PAYLOAD_BYTES_MAX } from "../../core/nbd/protocol.ts";
import { BARE_REPLY_BYTES, READ_HEADER_BYTES } from "../../core/nbd/replies.ts";
import { errorTable, VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, type ByteCount, type LogPosition, logPosition } from "../../foundations/units.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import { allocationRuns } from "./allocation.ts";
import type { ClientSetup, RequestSink, ZeroMode } from "./connection.ts";
import { Connection, PENDING_DONE, PENDING_ERROR, PENDING_FLUSH, PENDING_READ, PENDING_STATUS } from "./connection.ts";
import { DiskReader } from "./disk-reader.ts";
import { HelperPool, JOB_DATASYNC } from "./helpers.ts";
import { Patience } from "./patience.ts";
import type { SlowRead } from "./slow-reads.ts";
import { SlowReads } from "./slow-reads.ts";
import { ViewPoints } from "./view-points.ts";

/** Extents in one block status answer; a client asks again for the rest. */
const STATUS_EXTENTS_MAX = 1024;
/** Segments that clients must leave free: room for the cleaner's own entries and for half-filled segments. */
const ROOM_MARGIN_SEGMENTS = 3;
/** Flushes and slow reads that a client may have under way before its next requests wait. */
const IN_FLIGHT_MAX = 1024;
const POLLFD_BYTES = 8;
/** Clients at once. Each reserves some MiB of buffers, of which only what it uses takes memory. */
const CLIENTS_MAX = 256;
/** An idle thread looks up this often: the process can only end its threads while they are not in a system call. */
const IDLE_MS = 500;
/** Answers that wait together for the end of a round, at most. */
const SEND_EARLY_BYTES = 128 * 1024;
/** Kernel's send buffer per client: a large read's answer then leaves in few pieces. */
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;

/** What the plane is made of; the worker opens it. */
export interface PlaneParts {
	readonly log: FirstImage;
	readonly logFd: number;
	readonly secondFd: number;
	readonly secondSize: ByteCount;
	readonly diskSize: number;
	readonly helperMemory: SharedArrayBuffer;
	readonly bell: number;
	/** Called in the plane's thread when the bell rang for a message. */
	readonly onBell: () => void;
	/** Called once whenever clients begin to wait for room in the log. */
	readonly onStalled: () => void;
	/** Called when the log can't be written any more. */
	readonly onPoisoned: (reason: string) => void;
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
}

/** Is told 0 or an errno once everything written before it began to wait is durable. */
type FlushWaiter = (error: number) => void;

export class Plane implements RequestSink {
	readonly log: FirstImage;
	readonly diskSize: number;
	readonly viewPoints: ViewPoints;
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
	};
	/** True: clients that find no room get ENOSPC now instead of waiting for the cleaner. */
	refuseWhenFull = false;

	readonly #parts: PlaneParts;
	readonly #reader: DiskReader;
	readonly #helpers: HelperPool;
	readonly #slowReads: SlowReads;
	readonly #clients = new Map<number, Connection>();
	readonly #work: Connection[] = [];
	readonly #scratch: Pinned = sys.pin(2 * BLOCK_SIZE);
	readonly #zeros: Pinned = sys.pin(256 * 1024);
	readonly #bellCount: Pinned = sys.pin(8);
	#scratchNext = 0;
	#pollMemory: Pinned = sys.pin(64 * POLLFD_BYTES);
	#pollFds: number[] = [];
	readonly #patience = new Patience();
	#wasBusy = false;
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
	#flushPosition: LogPosition = logPosition(0);

	constructor(parts: PlaneParts) {
		this.#parts = parts;
		this.log = parts.log;
		this.diskSize = parts.diskSize;
		this.viewPoints = new ViewPoints(parts.log);
		this.#reader = new DiskReader(parts.log, parts.logFd, parts.secondFd, parts.secondSize);
		this.#helpers = new HelperPool(parts.helperMemory);
		this.#slowReads = new SlowReads(this.#reader, this.#helpers);
	}

	get clientCount(): number {
		return this.#clients.size;
	}

	/** Serves until `stop`. */
	run(): void {
		try {
			while (!this.#stopped) this.#serveRound();
		} finally {
			this.#drainHelpers();
			for (const client of this.#clients.values()) sys.close(client.fd);
		}
	}

	/** Waits for the helpers: they read into this thread's memory, which ends with it. */
	#drainHelpers(): void {
		const view = this.#pollView(1);
		while (this.#helpers.busy > 0) {
			putPollFd(view, 0, this.#parts.bell, sys.POLLIN);
			sys.poll(this.#pollMemory.address, 1, -1);
			sys.read(this.#parts.bell, this.#bellCount.address, 8);
			this.#helpers.collect(() => {});
		}
	}

	/** Ends `run` after the present round. */
	stop(): void {
		this.#stopped = true;
	}

	/** Takes over a connected client. Throws NBD_PROTOCOL where CLIENTS_MAX are connected; the socket stays the caller's. */
	attach(setup: ClientSetup): void {
		if (this.#clients.size >= CLIENTS_MAX)
			throw new VmsweepError("NBD_PROTOCOL", `${CLIENTS_MAX} clients use the disk already; disconnect one`);
		sys.setSendBuffer(setup.fd, SEND_BUFFER_BYTES);
		const client = new Connection(setup);
		this.#clients.set(setup.fd, client);
		client.hasMore = setup.leftover.length > 0;
	}

	/** Tells `done` (0 or an errno) once all that is written now is durable; one fdatasync serves many. */
	flush(done: (error: number) => void): void {
		this.commitStaged();
		this.#flushWaiters.push(done);
	}

	// ---- One round ----------------------------------------------------------------------------------------

	#serveRound(): void {
		this.#round++;
		this.#waitForWork();
		// The log is closed: nothing may be written any more.
		if (this.#stopped) return;
		for (const client of this.#work) client.parse(this);
		this.commitStaged();
		for (const client of this.#work) this.#answer(client);
		this.#work.length = 0;
		this.#startFlush();
		this.#reapClients();
	}

	/** Sleeps until a client or the bell is ready; receives; leaves every client with something to parse in `#work`. */
	#waitForWork(): void {
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
			const wantsInput = mayParse && !client.stalled && !client.leaving && !client.input.isFull;
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

	#hearBell(): void {
		sys.read(this.#parts.bell, this.#bellCount.address, 8);
		if (this.#helpers.busy > 0) this.#helpers.collect(this.#onJob);
		this.#parts.onBell();
	}

	readonly #onJob = (job: number, result: number): void => {
		if (job === this.#flushJob) {
			this.#flushJob = -1;
			this.#finishFlush(result);
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
			sys.close(client.fd);
		}
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
		this.#flushJob = this.#helpers.queue(JOB_DATASYNC, this.#parts.logFd, 0, 0, 0);
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

	/** Answers what a client's parsed requests are owed, in order, and sends. */
	#answer(client: Connection): void {
		const pending = client.pending;
		for (let i = 0; i < pending.count; i++) {
			const [high, low] = [pending.cookieHigh[i]!, pending.cookieLow[i]!];
			switch (pending.kind[i]!) {
				case PENDING_DONE:
					this.#putDone(client, high, low);
					break;
				case PENDING_READ:
					this.#answerRead(client, high, low, pending.offset[i]!, pending.length[i]!);
					// What is sent at once is still in the processor's cache, and the client can begin with it.
					if (client.output.length >= SEND_EARLY_BYTES) this.#send(client);
					break;
				case PENDING_STATUS:
					this.#answerStatus(client, high, low, pending.offset[i]!, pending.length[i]!, pending.flags[i]!);
					break;
				case PENDING_ERROR:
					this.#putError(client, high, low, pending.length[i]!);
					break;
				case PENDING_FLUSH:
					this.#awaitFlush(client, high, low);
					break;
			}
		}
		pending.count = 0;
		this.#send(client);
	}

	#awaitFlush(client: Connection, high: number, low: number): void {
		this.counters.flushes++;
		client.inFlight++;
		this.#flushWaiters.push((error) => {
			client.inFlight--;
			if (client.broken) return;
			if (error === 0) this.#putDone(client, high, low);
			else this.#putError(client, high, low, error);
			this.#send(client);
		});
	}

	#answerRead(client: Connection, high: number, low: number, offset: number, length: number): void {
		this.counters.reads++;
		this.counters.readBytes += length;
		const reader = this.#reader;
		reader.plan(offset, length);
		if (this.#makeRoom(client, READ_HEADER_BYTES + length)) {
			const output = client.output;
			const header = client.replies.readHeaderBytes;
			if (reader.readCached(output.memory, output.end + header)) {
				client.replies.putReadHeader(output.view, output.end, high, low, offset, length);
				output.end += header + length;
				return;
			}
		}
		this.counters.slowReads++;
		if (this.#slowReads.start(client, high, low, offset, length)) return;
		// No helper and no memory to spare: wait here, as a thread per request would.
		const buffer = sys.pin(length);
		let result = 0;
		try {
			reader.plan(offset, length);
			reader.readBlocking(buffer, 0);
		} catch {
			result = -sys.EIO;
		}
		this.#answerSlow({ client, cookieHigh: high, cookieLow: low, offset, length, buffer, result });
	}

	#answerSlow(
		read: Pick<SlowRead, "client" | "cookieHigh" | "cookieLow" | "offset" | "length" | "buffer" | "result">,
	): void {
		const { client, cookieHigh, cookieLow, offset, length } = read;
		if (client.broken) return;
		if (read.result < 0) this.#putError(client, cookieHigh, cookieLow, errno.EIO);
		else {
			const output = client.output;
			if (!this.#makeRoom(client, READ_HEADER_BYTES + length)) output.grow(READ_HEADER_BYTES + length);
			output.end += client.replies.putReadHeader(output.view, output.end, cookieHigh, cookieLow, offset, length);
			output.memory.bytes.set(read.buffer.bytes, output.end);
			output.end += length;
		}
		this.#send(client);
	}

	#answerStatus(client: Connection, high: number, low: number, offset: number, length: number, flags: number): void {
		const output = client.output;
		const room = blockStatusBytesMax(STATUS_EXTENTS_MAX);
		if (!this.#makeRoom(client, room)) output.grow(room);
		const cookie = (BigInt(high) << 32n) | BigInt(low);
		const onlyOne = (flags & commandFlag.REQ_ONE) !== 0;
		const runs = allocationRuns(this.#reader, this.#parts.secondFd, offset, length);
		const request = { cookie, offset, length, onlyOne, contextId: client.allocationContext };
		output.end += encodeBlockStatus(request, runs, output.view, output.end, STATUS_EXTENTS_MAX);
	}

	#putDone(client: Connection, high: number, low: number): void {
		const output = client.output;
		if (!this.#makeRoom(client, BARE_REPLY_BYTES)) output.grow(BARE_REPLY_BYTES);
		output.end += client.replies.putDone(output.view, output.end, high, low);
	}

	#putError(client: Connection, high: number, low: number, error: number): void {
		const output = client.output;
		if (!this.#makeRoom(client, BARE_REPLY_BYTES)) output.grow(BARE_REPLY_BYTES);
		output.end += client.replies.putError(output.view, output.end, high, low, error);
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

	willNeed(at: number, length: number): void {
		if (length === 0) return;
		// Advice only: what is more than one read could take is not worth the time of others.
		this.#reader.plan(at, Math.min(length, PAYLOAD_BYTES_MAX));
		this.#reader.readAhead();
	}
}

function putPollFd(view: DataView, index: number, fd: number, events: number): void {
	view.setInt32(index * POLLFD_BYTES, fd, true);
	view.setUint32(index * POLLFD_BYTES + 4, events, true);
}

const nbdErrno = (cause: VmsweepError | undefined): number =>
	cause === undefined ? errno.EIO : errno[errorTable[cause.code].nbd];
