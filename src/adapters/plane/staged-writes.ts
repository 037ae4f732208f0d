// Staged writes: the writes, zeros and trims of a round, on their way into the log.
//
//   parse ─► room? ─► stage ─► stage ─► … ─► commit: one append for all ─► answers
//             └── none: an error, or the client waits (room.ts)
//
// Invariants
//  - items get their log positions in the order in which they were staged; none is answered before it is appended
//  - each item knows whose answer it is: where the append fails, that answer becomes an error
//  - a part of a block is merged with what the block holds once all that was staged before is in the log, and only where
//    those bytes match their checksum
//  - a write to watched metadata is appended at once, so that a view shows the disk right after it
//
// Items point at their bytes in the clients' input, which nothing moves before the commit.

import type { FirstImage } from "../../core/log/first-image.ts";
import type { PinnedBytes } from "../../core/log/host-file.ts";
import { errno } from "../../core/nbd/protocol.ts";
import { errorTable, VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";
import type { Connection, RequestSink, ZeroMode } from "./connection.ts";
import type { PlaneCounters } from "./counters.ts";
import type { DiskReader } from "./disk-reader.ts";
import type { Room } from "./room.ts";
import type { ViewPoints } from "./view-points.ts";

interface StagedWritesParts {
	readonly log: FirstImage;
	/** Reads the disk. */
	readonly reader: DiskReader;
	readonly room: Room;
	readonly viewPoints: ViewPoints;
	readonly counters: PlaneCounters;
	/** Called when the log can't be written any more. */
	readonly onPoisoned: (reason: string) => void;
	/** Called with a block that doesn't match its checksum. */
	readonly onRotten: (block: number) => void;
}

export class StagedWrites implements RequestSink {
	readonly #log: FirstImage;
	readonly #reader: DiskReader;
	readonly #room: Room;
	readonly #viewPoints: ViewPoints;
	readonly #counters: PlaneCounters;
	readonly #onPoisoned: (reason: string) => void;
	readonly #onRotten: (block: number) => void;
	readonly #zeros: Pinned = sys.pin(256 * 1024);
	/** Two blocks that are merged from parts, used in turn. */
	readonly #scratch: Pinned = sys.pin(2 * BLOCK_SIZE);
	#scratchNext = 0;
	/** Owner of each item, as parallel arrays: a client, and the index of its pending answer (see `RequestSink`). */
	readonly #client: Connection[] = [];
	readonly #owner: number[] = [];
	#blocks = 0;

	constructor({ log, reader, room, viewPoints, counters, onPoisoned, onRotten }: StagedWritesParts) {
		this.#log = log;
		this.#reader = reader;
		this.#room = room;
		this.#viewPoints = viewPoints;
		this.#counters = counters;
		this.#onPoisoned = onPoisoned;
		this.#onRotten = onRotten;
	}

	get diskSize(): number {
		return this.#log.diskBytes;
	}

	stageWrite(client: Connection, at: number, length: number, from: number, owner: number): boolean {
		if (!this.#room.has(this.#blocks + Math.ceil(length / BLOCK_SIZE) + 2)) return this.#refuse(client, owner);
		this.#counters.writes++;
		this.#counters.writtenBytes += length;
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
		if (!whole) this.#viewPoints.lose();
		else if (this.#viewPoints.isWatching) this.#noteWrite(at, length, source, from);
		return true;
	}

	stageZeroes(client: Connection, at: number, length: number, how: ZeroMode, owner: number): boolean {
		const blocks = how === "allocate" ? Math.ceil(length / BLOCK_SIZE) + 2 : 4;
		if (!this.#room.has(this.#blocks + blocks)) return this.#refuse(client, owner);
		this.#counters.zeroedBytes += length;
		const headEnd = Math.min(at + length, Math.ceil(at / BLOCK_SIZE) * BLOCK_SIZE);
		const tailStart = Math.max(headEnd, Math.floor((at + length) / BLOCK_SIZE) * BLOCK_SIZE);
		if (headEnd > at && how !== "trim") this.#stagePart(client, at, headEnd - at, this.#zeros, 0, owner);
		for (let start = headEnd; start < tailStart; ) {
			const piece = how === "allocate" ? Math.min(tailStart - start, this.#zeros.bytes.length) : tailStart - start;
			if (how === "allocate") this.#stageBlocks(client, start, piece, this.#zeros, 0, owner);
			else {
				// An entry takes no slot, but room in a segment all the same.
				this.#own(client, owner, 1);
				this.#log.stageZero(start / BLOCK_SIZE, piece / BLOCK_SIZE, "zero");
			}
			start += piece;
		}
		if (at + length > tailStart && how !== "trim")
			this.#stagePart(client, tailStart, at + length - tailStart, this.#zeros, 0, owner);
		if (this.#viewPoints.isWatching && length > 0) {
			if (!this.commit()) this.#viewPoints.lose();
			this.#viewPoints.note(at, length, undefined, 0, this.#log.position, this.#log.position);
		}
		return true;
	}

	/** Appends what is staged; the answers of what could not be appended become errors, and the result is false. */
	commit(): boolean {
		const count = this.#client.length;
		if (count === 0) return true;
		const done = this.#log.commit();
		if (done < count) this.#failFrom(done, count);
		this.#client.length = 0;
		this.#owner.length = 0;
		this.#blocks = 0;
		return done === count;
	}

	/** Stages whole blocks. */
	#stageBlocks(client: Connection, at: number, length: number, source: PinnedBytes, from: number, owner: number): void {
		this.#own(client, owner, length / BLOCK_SIZE);
		this.#log.stageData(at / BLOCK_SIZE, length / BLOCK_SIZE, source, from);
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
		this.commit();
		const block = Math.floor(at / BLOCK_SIZE);
		const scratch = this.#scratchNext;
		this.#scratchNext = BLOCK_SIZE - scratch;
		try {
			this.#reader.plan(block * BLOCK_SIZE, BLOCK_SIZE);
			this.#reader.readBlocking(this.#scratch, scratch);
			// Rotten bytes must not get a new, matching checksum.
			const rotten = this.#reader.verify(this.#scratch.bytes, scratch);
			if (rotten >= 0) {
				this.#onRotten(rotten);
				throw new VmsweepError("IO", `block ${rotten} is rotten`);
			}
		} catch {
			this.#fail(client, owner, errno.EIO);
			return false;
		}
		this.#scratch.bytes.set(source.bytes.subarray(from, from + length), scratch + at - block * BLOCK_SIZE);
		this.#own(client, owner, 1);
		this.#log.stageData(block, 1, this.#scratch, scratch);
		return true;
	}

	/** Notes a write to watched metadata; where it is an asked-for view point, the view is taken exactly here. */
	#noteWrite(at: number, length: number, source: PinnedBytes, from: number): void {
		const points = this.#viewPoints;
		points.touchVolumes(at, length, this.#log.position + this.#blocks);
		if (!points.mayTouch(at, length)) return;
		if (!this.commit()) {
			points.lose();
			return;
		}
		const first = this.#log.get(Math.floor(at / BLOCK_SIZE));
		points.note(at, length, source.bytes, from, this.#log.positionOfSlot(first), this.#log.position);
	}

	#own(client: Connection, owner: number, blocks: number): void {
		this.#client.push(client);
		this.#owner.push(owner);
		this.#blocks += blocks;
	}

	/** No room: true where the request is answered with an error, false where its client waits for the cleaner. */
	#refuse(client: Connection, owner: number): boolean {
		const error = this.#room.refuse();
		if (error === 0) return false;
		this.#fail(client, owner, error);
		return true;
	}

	#failFrom(done: number, count: number): void {
		const cause = this.#log.commitError;
		for (let i = done; i < count; i++) this.#fail(this.#client[i]!, this.#owner[i]!, nbdErrno(cause));
		if (this.#log.poisoned) this.#onPoisoned(cause?.message ?? "the first image can't be written");
	}

	#fail(client: Connection, owner: number, error: number): void {
		this.#counters.errors++;
		// The request of the item being parsed has its pending answer pushed only after staging.
		if (owner >= 0 && owner < client.pending.count) client.pending.fail(owner, error);
		else client.failCurrent(error);
	}
}

const nbdErrno = (cause: VmsweepError | undefined): number =>
	cause === undefined ? errno.EIO : errno[errorTable[cause.code].nbd];
