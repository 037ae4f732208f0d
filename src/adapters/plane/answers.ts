// Answers: what clients are owed for their requests, in the order of the requests but for what has to wait elsewhere.
//
//   done, error    at once
//   read           the page cache has it: no copy of ours, zeros as holes where the client knows them; small ones of a
//                  round together (read-batch.ts)
//                  it hasn't: a job per run (slow-reads.ts), answered when the last is there
//   block status   one chunk per context
//   flush, FUA     when everything written so far is durable (flushes.ts)
//
// Invariants
//  - a round's writes were appended before its answers are made: reads see all of them
//  - bytes are compared with their checksum before they count as part of the output; rotten ones are an error
//  - a reply counts (`output.end`) only once it is complete, so a read that turns out slow leaves nothing behind
//
// A large answer leaves while the next is made; small ones leave together at the end.

import type { FirstImage } from "../../core/log/first-image.ts";
import { blockStatusBytesMax, encodeBlockStatus, type StatusRun } from "../../core/nbd/block-status.ts";
import { commandFlag, errno } from "../../core/nbd/protocol.ts";
import { BARE_REPLY_BYTES, HOLE_BYTES, READ_HEADER_BYTES, type ReplyTo } from "../../core/nbd/replies.ts";
import { BLOCK_SIZE, roundDown, roundUp } from "../../foundations/units.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import { allocationRuns, changedRuns, livenessRuns } from "./allocation.ts";
import { type ClientContext, type Connection, NOTHING_PROVEN } from "./connection.ts";
import type { PlaneCounters } from "./counters.ts";
import { type DiskReader, ZERO_RUN } from "./disk-reader.ts";
import type { Flushes } from "./flushes.ts";
import type { JobQueue } from "./jobs.ts";
import { PENDING_DONE, PENDING_ERROR, PENDING_FLUSH, PENDING_READ, PENDING_STATUS } from "./pending-answers.ts";
import { BATCHED_BYTES_MAX, type ReadBatch } from "./read-batch.ts";
import type { SlowRead } from "./slow-reads.ts";
import { SlowReads } from "./slow-reads.ts";
import type { WriteAges } from "./write-ages.ts";

/** Extents in one block status answer; a client asks again for the rest. */
const STATUS_EXTENTS_MAX = 1024;
/** Reads that don't start or end at a block and have more bytes than this become jobs. */
const ALIGNED_BYTES = 128 * 1024;
/** Zeros inside a read that are worth a chunk of their own: it costs the client a header more. */
const HOLE_BYTES_MIN = 32 * 1024;
/** Requests of a round from which on small reads are fetched together. */
const BATCH_MIN = 4;
/** Bytes that the output must have free for small answers between the reads of a batch. */
const ROOM_BESIDE_BATCH = 4096;
/** Answers that wait together for the end of a round, at most. */
const SEND_EARLY_BYTES = 128 * 1024;

interface AnswersParts {
	readonly log: FirstImage;
	readonly ages: WriteAges;
	readonly jobs: JobQueue;
	readonly flushes: Flushes;
	readonly counters: PlaneCounters;
	/** Called with a block that doesn't match its checksum. */
	readonly onRotten: (block: number) => void;
	/** Closed by {@link Answers.close}. */
	readonly batch: ReadBatch | undefined;
}

export class Answers {
	readonly #log: FirstImage;
	readonly #ages: WriteAges;
	readonly #flushes: Flushes;
	readonly #counters: PlaneCounters;
	readonly #onRotten: (block: number) => void;
	readonly #slowReads: SlowReads;
	/** Undefined on hosts without io_uring. */
	readonly #batch: ReadBatch | undefined;
	/** Where the blocks of small reads that aren't aligned to blocks are read to. */
	readonly #aligned: Pinned = sys.pin(ALIGNED_BYTES);
	/** Whom the answer that is being made goes to; the same object for each. */
	readonly #to = { cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0 };
	/** Clients whose slow reads or flushes were answered since the last `sendFinished`. */
	readonly #finished = new Set<Connection>();

	constructor({ log, ages, jobs, flushes, counters, onRotten, batch }: AnswersParts) {
		this.#batch = batch;
		this.#log = log;
		this.#ages = ages;
		this.#flushes = flushes;
		this.#counters = counters;
		this.#onRotten = onRotten;
		this.#slowReads = new SlowReads(jobs, onRotten);
	}

	/** Answers what a client's parsed requests are owed, in order, and sends. */
	answer(client: Connection): void {
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
					if (client.output.free < ROOM_BESIDE_BATCH) this.#completeBatch(client);
					putDone(client, to);
					break;
				case PENDING_READ:
					if (pending.count >= BATCH_MIN && this.#takeIntoBatch(client, to, offset, pending.length[i]!)) break;
					this.#answerRead(client, to, offset, pending.length[i]!, pending.flags[i]!);
					// What is sent at once is still in the processor's cache, and the client can begin with it.
					if (client.output.length >= SEND_EARLY_BYTES) client.send();
					break;
				case PENDING_STATUS:
					this.#completeBatch(client);
					this.#answerStatus(client, to, offset, pending.length[i]!, pending.flags[i]!, pending.contexts[i]!);
					break;
				case PENDING_ERROR:
					if (client.output.free < ROOM_BESIDE_BATCH) this.#completeBatch(client);
					putError(client, to, pending.length[i]!);
					break;
				case PENDING_FLUSH:
					this.#awaitFlush(client, { ...to });
					break;
			}
		}
		pending.count = 0;
		this.#completeBatch(client);
		client.send();
	}

	/** Nothing may be under way. */
	close(): void {
		this.#batch?.close();
	}

	/** True where a small read waits for others of its round. */
	#takeIntoBatch(client: Connection, to: ReplyTo, offset: number, length: number): boolean {
		const batch = this.#batch;
		const isSmall = ((offset | length) & (BLOCK_SIZE - 1)) === 0 && length <= BATCHED_BYTES_MAX;
		if (batch === undefined || !isSmall || !batch.take(client, to, offset, length)) {
			this.#completeBatch(client);
			return false;
		}
		this.#counters.reads++;
		this.#counters.readBytes += length;
		if (client.output.length < SEND_EARLY_BYTES) return true;
		this.#completeBatch(client);
		client.send();
		return true;
	}

	/** Until then nothing of the client's output may be sent. */
	#completeBatch(client: Connection): void {
		if (this.#batch === undefined || this.#batch.isEmpty) return;
		this.#batch.complete(client, (to, offset, length, failedAt) => {
			if (failedAt < 0) this.#readSlowly(client, to, offset, length);
			else {
				this.#onRotten(failedAt / BLOCK_SIZE);
				putError(client, to, errno.EIO, failedAt);
			}
		});
	}

	/** Takes a finished job: an answer may be ready now. It's sent by `sendFinished`, with others. */
	finish(job: number, result: number): void {
		const read = this.#slowReads.finish(job, result);
		if (read === undefined) return;
		this.#answerSlow(read);
		this.#finished.add(read.client);
		if (read.client.output.length >= SEND_EARLY_BYTES) read.client.send();
	}

	/** Sends what has become ready since the last call. */
	sendFinished(): void {
		for (const client of this.#finished) client.send();
		this.#finished.clear();
	}

	#awaitFlush(client: Connection, to: ReplyTo): void {
		this.#counters.flushes++;
		client.inFlight++;
		this.#flushes.wait((error) => {
			client.inFlight--;
			if (client.broken) return;
			if (error === 0) putDone(client, to);
			else putError(client, to, error);
			this.#finished.add(client);
		});
	}

	#answerRead(client: Connection, to: ReplyTo, offset: number, length: number, flags: number): void {
		this.#counters.reads++;
		this.#counters.readBytes += length;
		const isAligned = ((offset | length) & (BLOCK_SIZE - 1)) === 0;
		if (isAligned || length <= ALIGNED_BYTES - 2 * BLOCK_SIZE) {
			const outcome = isAligned
				? this.#answerFromCache(client, to, offset, length, flags)
				: this.#answerPart(client, to, offset, length);
			if (outcome) return;
		}
		this.#readSlowly(client, to, offset, length);
	}

	/** What the page cache doesn't hold. */
	#readSlowly(client: Connection, to: ReplyTo, offset: number, length: number): void {
		this.#counters.slowReads++;
		const read = this.#slowReads.start(client, to, offset, length);
		if (read !== undefined) this.#answerSlow(read);
	}

	/** Answers a read of whole blocks that the page cache holds, without a copy; false where it doesn't hold them. */
	#answerFromCache(client: Connection, to: ReplyTo, offset: number, length: number, flags: number): boolean {
		const { output, reader, replies } = client;
		reader.plan(offset, length);
		// Before room is made for bytes that holes won't need.
		if (replies.form !== "simple" && (flags & commandFlag.DF) === 0 && hasHole(reader))
			return this.#answerWithHoles(client, to, offset);
		if (!makeRoom(client, READ_HEADER_BYTES + length)) return false;
		const header = replies.readHeaderBytes;
		if (!reader.readCached(output.memory, output.end + header)) return false;
		const failedAt = this.#verifyRead(reader, output.memory.bytes, output.end + header, offset);
		if (failedAt >= 0) {
			putError(client, to, errno.EIO, failedAt);
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
		if (!makeRoom(client, bytes)) return false;
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
				putError(client, to, errno.EIO, failedAt);
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
		if (!makeRoom(client, READ_HEADER_BYTES + length)) return false;
		const start = roundDown(offset, BLOCK_SIZE);
		reader.plan(start, roundUp(offset + length, BLOCK_SIZE) - start);
		if (!reader.readCached(this.#aligned, 0)) return false;
		const failedAt = this.#verifyRead(reader, this.#aligned.bytes, 0, offset);
		if (failedAt >= 0) {
			putError(client, to, errno.EIO, failedAt);
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
			this.#onRotten(rotten);
			return Math.max(offset, rotten * BLOCK_SIZE);
		} catch {
			// The checksums themselves can't be read.
			return offset;
		}
	}

	#answerSlow(read: SlowRead): void {
		const { client, to, offset, length } = read;
		if (client.broken) return;
		if (read.result < 0) putError(client, to, errno.EIO, Math.max(offset, read.failedAt));
		else {
			const output = client.output;
			if (!makeRoom(client, READ_HEADER_BYTES + length)) output.grow(READ_HEADER_BYTES + length);
			output.end += client.replies.putReadHeader(output.view, output.end, to, offset, length);
			output.memory.bytes.set(
				read.buffer.bytes.subarray(offset - read.start, offset - read.start + length),
				output.end,
			);
			output.end += length;
		}
		this.#slowReads.release(read);
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
			if (!makeRoom(client, room)) output.grow(room);
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
				return livenessRuns(this.#ages, liveness ?? NOTHING_PROVEN, offset, length);
			case "since":
				return changedRuns(this.#ages, this.#log.position, context.position, offset, length);
			default:
				return context satisfies never;
		}
	}
}

function putDone(client: Connection, to: ReplyTo): void {
	const output = client.output;
	if (!makeRoom(client, BARE_REPLY_BYTES)) output.grow(BARE_REPLY_BYTES);
	output.end += client.replies.putDone(output.view, output.end, to);
}

/** `failedAt`: the disk's byte that failed, or -1. */
function putError(client: Connection, to: ReplyTo, error: number, failedAt = -1): void {
	const output = client.output;
	if (!makeRoom(client, BARE_REPLY_BYTES)) output.grow(BARE_REPLY_BYTES);
	output.end += client.replies.putError(output.view, output.end, to, error, failedAt);
}

/** Makes room for a reply, sending what waits where that helps. */
function makeRoom(client: Connection, bytes: number): boolean {
	if (client.output.reserve(bytes)) return true;
	client.send();
	return client.output.reserve(bytes);
}

/** Are there zeros in the reader's plan that are worth a chunk of their own? */
function hasHole(reader: DiskReader): boolean {
	for (let run = 0; run < reader.count; run++) if (isHole(reader, run)) return true;
	return false;
}

/** All of a read may be a hole, however small: that costs no chunk more. */
const isHole = (reader: DiskReader, run: number): boolean =>
	reader.fd[run] === ZERO_RUN && (reader.length[run]! >= HOLE_BYTES_MIN || reader.count === 1);

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
		const part = { at, length, isHole: isHole(reader, run) };
		const last = parts.at(-1);
		if (last?.isHole === part.isHole) last.length += length;
		else parts.push(part);
		at += length;
	}
	return parts;
}
