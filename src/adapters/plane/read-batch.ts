// Read batch: small reads of one client's round, fetched from the page cache together by one call of io_uring.
//
//   requests ─► take: plan, a place in the output, an entry of the ring ─┐
//               take, take, …                                            ├─► complete: one call, all results at once
//                                                                        └─► headers; misses and rotten ones taken out
//
// A call per block costs a quarter more (docs/decisions/0016). Bytes land in the output where they will be sent from, so the
// output must not be sent, and not be moved, between `take` and `complete`.
//
// RWF_NOWAIT: what isn't cached comes back as a miss at once, and nothing is under way after `complete`.

import type { FirstImage } from "../../core/log/first-image.ts";
import type { ReplyTo } from "../../core/nbd/replies.ts";
import { IoUring } from "../os/io-uring.ts";
import * as sys from "../os/syscalls.ts";
import type { Connection } from "./connection.ts";

/** Reads in one batch. */
const READS_MAX = 64;
/** Larger reads gain nothing from company. */
export const BATCHED_BYTES_MAX = 16 * 1024;

/** What became of a read that could not be answered: rotten at a byte of the disk, or not in the page cache (-1). */
export type OnFailed = (to: ReplyTo, offset: number, length: number, failedAt: number) => void;

/** One read. The same objects for each batch. */
interface BatchedRead {
	to: { cookieHigh: number; cookieLow: number; offsetHigh: number; offsetLow: number };
	offset: number;
	length: number;
	/** Where its reply begins in the output, and how long the whole reply is. */
	at: number;
	bytes: number;
	/** What its bytes are compared with: slots of this log, or blocks of the second image. */
	log: FirstImage | undefined;
	slot: number;
	result: number;
	failedAt: number;
}

const emptyRead = (): BatchedRead => ({
	to: { cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0 },
	offset: 0,
	length: 0,
	at: 0,
	bytes: 0,
	log: undefined,
	slot: 0,
	result: 0,
	failedAt: -1,
});

export class ReadBatch {
	readonly #ring: IoUring;
	readonly #reads: readonly BatchedRead[] = Array.from({ length: READS_MAX }, emptyRead);
	#count = 0;
	/** The host's file system knows RWF_NOWAIT. */
	#works = true;

	/** Undefined where the host has no io_uring, or forbids it. */
	static open(): ReadBatch | undefined {
		const ring = IoUring.open(READS_MAX);
		return ring === undefined ? undefined : new ReadBatch(ring);
	}

	private constructor(ring: IoUring) {
		this.#ring = ring;
	}

	get isEmpty(): boolean {
		return this.#count === 0;
	}

	/** Takes a read of whole blocks that lie in one piece, if the output has room for it; else changes nothing. */
	take(client: Connection, to: ReplyTo, offset: number, length: number): boolean {
		const { output, reader, replies } = client;
		const header = replies.readHeaderBytes;
		if (!this.#works || this.#count === READS_MAX || header + length > output.free) return false;
		reader.plan(offset, length);
		if (!reader.isOnePiece) return false;
		const read = this.#reads[this.#count]!;
		Object.assign(read.to, to);
		read.offset = offset;
		read.length = length;
		read.at = output.end;
		read.bytes = header + length;
		read.log = reader.pieceLog;
		read.slot = reader.pieceSlot;
		read.result = -sys.EAGAIN;
		const target = output.memory.address + output.end + header;
		this.#ring.readCached(this.#count, reader.fd[0]!, target, length, reader.fileAt[0]!);
		this.#count++;
		output.end += read.bytes;
		return true;
	}

	/** Fetches all that was taken. The output then holds the replies of those that succeeded; `onFailed` is told the others. */
	complete(client: Connection, onFailed: OnFailed): void {
		const count = this.#count;
		this.#count = 0;
		this.#fetch(count);
		const { output, reader, replies } = client;
		let failed = 0;
		for (let i = 0; i < count; i++) {
			const read = this.#reads[i]!;
			const bytesAt = read.at + read.bytes - read.length;
			read.failedAt = -1;
			const isThere = read.result === read.length;
			if (isThere) read.failedAt = reader.verifyPiece(read, output.memory.bytes, bytesAt);
			if (isThere && read.failedAt < 0) replies.putReadHeader(output.view, read.at, read.to, read.offset, read.length);
			else {
				if (read.result === -sys.EOPNOTSUPP) this.#works = false;
				failed++;
				read.result = -1;
			}
		}
		if (failed > 0) this.#takeOut(client, count, onFailed);
	}

	close(): void {
		this.#ring.close();
	}

	/** All results are there on return: a read that would have to wait for a device fails instead. */
	#fetch(count: number): void {
		let finished = 0;
		while (finished < count) {
			const entered = this.#ring.submit(count - finished);
			finished += this.#ring.harvest((id, result) => {
				this.#reads[id]!.result = result;
			});
			if (entered < 0 && entered !== -sys.EINTR && entered !== -sys.EAGAIN)
				throw sys.hostError(entered, "reading the disk's images through io_uring");
		}
	}

	/** Closes the gaps that failed reads left in the output, and tells of them. */
	#takeOut({ output }: Connection, count: number, onFailed: OnFailed): void {
		const failed = this.#reads.slice(0, count).filter(({ result }) => result < 0);
		let to = failed[0]!.at;
		for (const [i, { at, bytes }] of failed.entries()) {
			const next = failed[i + 1]?.at ?? output.end;
			output.memory.bytes.copyWithin(to, at + bytes, next);
			to += next - (at + bytes);
		}
		output.end = to;
		for (const { to: whom, offset, length, failedAt } of failed) onFailed({ ...whom }, offset, length, failedAt);
	}
}
