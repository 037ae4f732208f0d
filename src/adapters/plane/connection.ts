// Connection: one NBD client in its transmission phase. Turns received bytes into work for the disk and
// keeps, in order, what has to be answered once that work is done.
//
//   socket ─ recv ─► input ─ parse ─► disk: stage writes and zeroes    (many requests, one append)
//                                └──► pending: what to answer           (after the append)
//   socket ◄─ send ─ output ◄─ answer ◄─┘
//
// A payload larger than PIECE_BYTES goes to the log in pieces as it arrives, so that memory stays bounded
// whatever the request's length. A wrong request is answered with an error number and its payload skipped; only
// a wrong magic ends the connection, since what follows can't be told apart any more. Other clients never notice.

import { command, commandFlag, errno, PAYLOAD_BYTES_MAX, REQUEST_MAGIC, Request } from "../../core/nbd/protocol.ts";
import { ReplyWriter } from "../../core/nbd/replies.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import { InputBuffer, OutputBuffer } from "./buffers.ts";

/** A write payload that is not complete is staged in pieces of at least this many bytes. */
const PIECE_BYTES = 256 * 1024;
/** Zeros that are written out for one client in one round, at most. */
const ZERO_PIECE_BYTES = 4 * 1024 * 1024;
/** Requests answered in one round, at most: bounds the work and the replies between two polls. */
const ROUND_REQUESTS_MAX = 256;
/** Read bytes answered in one round, at most, but for a first larger one. */
const ROUND_READ_BYTES_MAX = 1024 * 1024;

/** A client as the handshake hands it over. */
export interface ClientSetup {
	readonly fd: number;
	readonly structuredReplies: boolean;
	/** Id of the selected `base:allocation` context, or -1. */
	readonly allocationContext: number;
	/** The start of the first requests, where the client was quick. */
	readonly leftover: Uint8Array;
	readonly readOnly: boolean;
}

/** What a pending answer is about. */
export const PENDING_DONE = 0;
export const PENDING_READ = 1;
export const PENDING_STATUS = 2;
export const PENDING_ERROR = 3;
/** Answered once everything written so far is durable. */
export const PENDING_FLUSH = 4;

/** Answers owed to a client, as parallel arrays that are emptied, never thrown away. */
export class PendingAnswers {
	readonly kind: number[] = [];
	readonly cookieHigh: number[] = [];
	readonly cookieLow: number[] = [];
	readonly offset: number[] = [];
	/** Bytes of a read or status request; the error number of a PENDING_ERROR. */
	readonly length: number[] = [];
	readonly flags: number[] = [];
	count = 0;

	push(kind: number, cookieHigh: number, cookieLow: number, offset: number, length: number, flags: number): number {
		const index = this.count++;
		this.kind[index] = kind;
		this.cookieHigh[index] = cookieHigh;
		this.cookieLow[index] = cookieLow;
		this.offset[index] = offset;
		this.length[index] = length;
		this.flags[index] = flags;
		return index;
	}

	/** Turns an owed answer into an error, unless it is one already. */
	fail(index: number, error: number): void {
		if (this.kind[index] === PENDING_ERROR) return;
		this.kind[index] = PENDING_ERROR;
		this.length[index] = error;
	}
}

/** What a connection asks of the disk while it parses. */
export interface RequestSink {
	readonly diskSize: number;
	/**
	 * Stages `length` bytes of the connection's input at `from` as a write at `at`. False where the log has no room
	 * yet: nothing was staged, try again later. `owner` is the index of the pending answer, or -1 while the request
	 * is not complete: a failure of the append reaches it.
	 */
	stageWrite(client: Connection, at: number, length: number, from: number, owner: number): boolean;
	/** Stages zeros; `trim` leaves partial blocks at the ends as they are, `allocate` writes real zeros. */
	stageZeroes(client: Connection, at: number, length: number, how: ZeroMode, owner: number): boolean;
	/** The guest will read this soon. */
	willNeed(at: number, length: number): void;
}

export type ZeroMode = "trim" | "zero" | "allocate";

/** A write whose payload is still coming in, or zeros that are written out piece by piece. */
interface IncomingWrite {
	zeroes: boolean;
	offset: number;
	remaining: number;
	cookieHigh: number;
	cookieLow: number;
	flags: number;
}

export class Connection {
	readonly fd: number;
	readonly readOnly: boolean;
	readonly allocationContext: number;
	readonly structured: boolean;
	readonly input = new InputBuffer();
	readonly output = new OutputBuffer();
	readonly pending = new PendingAnswers();
	readonly replies: ReplyWriter;
	/** Reads and flushes that are under way elsewhere and will be answered later. */
	inFlight = 0;
	/** The log has no room for this client's next write. */
	stalled = false;
	/** The client said goodbye: close once everything owed is sent. */
	leaving = false;
	/** Nothing more can be exchanged: close now. */
	broken = false;
	/** Received requests remain that the last round had no time for. */
	hasMore = false;
	/** The round in which this connection was last put on the plane's list of work. */
	round = 0;
	#write: IncomingWrite | undefined;
	/** Why the request that is being parsed can't be done; 0 for none. */
	#currentError = 0;
	readonly #writeRecord: IncomingWrite = {
		zeroes: false,
		offset: 0,
		remaining: 0,
		cookieHigh: 0,
		cookieLow: 0,
		flags: 0,
	};

	constructor(setup: ClientSetup) {
		this.fd = setup.fd;
		this.readOnly = setup.readOnly;
		this.structured = setup.structuredReplies;
		this.allocationContext = setup.allocationContext;
		this.replies = new ReplyWriter(setup.structuredReplies);
		this.input.preload(setup.leftover);
	}

	/** Marks the request that is being parsed (a write may take several rounds) as failed. */
	failCurrent(error: number): void {
		if (this.#currentError === 0) this.#currentError = error;
	}

	/** Turns received bytes into staged work and pending answers, until bytes, room or the round's limits run out. */
	parse(sink: RequestSink): void {
		this.stalled = false;
		this.hasMore = false;
		let readBytes = 0;
		while (!this.leaving && !this.broken) {
			if (this.#write !== undefined) {
				if (!(this.#write.zeroes ? this.#writeZeroPiece(sink) : this.#receivePayload(sink))) return;
				continue;
			}
			if (this.pending.count >= ROUND_REQUESTS_MAX || readBytes >= ROUND_READ_BYTES_MAX) {
				this.hasMore = this.input.length >= Request.size;
				return;
			}
			if (this.input.length < Request.size) return;
			const taken = this.#takeRequest(sink);
			if (taken < 0) return;
			readBytes += taken;
		}
	}

	/** Takes one request header off the input. Returns the bytes that its answer will read, or -1 where it must wait. */
	#takeRequest(sink: RequestSink): number {
		const { view, start } = this.input;
		if (Request.read.magic(view, start) !== REQUEST_MAGIC) {
			this.broken = true;
			return -1;
		}
		const flags = Request.read.flags(view, start);
		const type = Request.read.type(view, start);
		const cookieAt = start + Request.offset.cookie;
		const cookieHigh = view.getUint32(cookieAt);
		const cookieLow = view.getUint32(cookieAt + 4);
		const offset = Request.read.offset(view, start);
		const length = Request.read.length(view, start);
		const pending = this.pending;

		if (type === command.WRITE) {
			this.#beginWrite(false, offset, length, cookieHigh, cookieLow, flags);
			this.#currentError = this.#writeError(sink, flags, 0, offset, length);
			if (length > PAYLOAD_BYTES_MAX) this.failCurrent(errno.EINVAL);
			return 0;
		}
		if (type === command.TRIM || type === command.WRITE_ZEROES) {
			const error = this.#zeroError(sink, type, flags, offset, length);
			if (error !== 0) pending.push(PENDING_ERROR, cookieHigh, cookieLow, offset, error, 0);
			else if (flags & commandFlag.NO_HOLE) {
				this.#beginWrite(true, offset, length, cookieHigh, cookieLow, flags);
				return 0;
			} else {
				if (!sink.stageZeroes(this, offset, length, type === command.TRIM ? "trim" : "zero", pending.count)) {
					this.stalled = true;
					return -1;
				}
				this.#pushWritten(cookieHigh, cookieLow, flags);
			}
			this.input.consume(Request.size);
			return 0;
		}
		this.input.consume(Request.size);
		switch (type) {
			case command.READ: {
				const error =
					rangeError(sink, flags, commandFlag.DF, offset, length) || (length > PAYLOAD_BYTES_MAX ? errno.EINVAL : 0);
				if (error !== 0) pending.push(PENDING_ERROR, cookieHigh, cookieLow, offset, error, 0);
				// A data chunk must not be empty ("Structured reply types").
				else pending.push(length > 0 ? PENDING_READ : PENDING_DONE, cookieHigh, cookieLow, offset, length, flags);
				return error === 0 ? length : 0;
			}
			case command.FLUSH:
				// The document reserves offset and length; some clients send them all the same.
				pending.push(
					flags & ~commandFlag.FUA ? PENDING_ERROR : PENDING_FLUSH,
					cookieHigh,
					cookieLow,
					0,
					errno.EINVAL,
					0,
				);
				return 0;
			case command.CACHE: {
				const error = rangeError(sink, flags, 0, offset, length);
				if (error === 0) sink.willNeed(offset, length);
				pending.push(error === 0 ? PENDING_DONE : PENDING_ERROR, cookieHigh, cookieLow, offset, error, 0);
				return 0;
			}
			case command.BLOCK_STATUS: {
				const known = this.allocationContext >= 0 && this.structured && length > 0;
				const error = known ? rangeError(sink, flags, commandFlag.REQ_ONE, offset, length) : errno.EINVAL;
				if (error !== 0) pending.push(PENDING_ERROR, cookieHigh, cookieLow, offset, error, 0);
				else pending.push(PENDING_STATUS, cookieHigh, cookieLow, offset, length, flags);
				return 0;
			}
			case command.DISC:
				this.leaving = true;
				return 0;
			default:
				pending.push(PENDING_ERROR, cookieHigh, cookieLow, offset, errno.EINVAL, 0);
				return 0;
		}
	}

	/** Takes a write's header off the input: what follows is its payload, or zeros to be made up. */
	#beginWrite(
		zeroes: boolean,
		offset: number,
		length: number,
		cookieHigh: number,
		cookieLow: number,
		flags: number,
	): void {
		const write = this.#writeRecord;
		write.zeroes = zeroes;
		write.offset = offset;
		write.remaining = length;
		write.cookieHigh = cookieHigh;
		write.cookieLow = cookieLow;
		write.flags = flags;
		this.#write = write;
		this.input.consume(Request.size);
	}

	/** Stages a part of zeros that must be allocated; false where the rest waits for the next round, or for room. */
	#writeZeroPiece(sink: RequestSink): boolean {
		const write = this.#write!;
		let piece = Math.min(write.remaining, ZERO_PIECE_BYTES);
		const complete = piece === write.remaining || this.#currentError !== 0;
		if (!complete) piece -= (write.offset + piece) % BLOCK_SIZE;
		if (
			this.#currentError === 0 &&
			!sink.stageZeroes(this, write.offset, piece, "allocate", complete ? this.pending.count : -1)
		) {
			this.stalled = true;
			return false;
		}
		write.offset += piece;
		write.remaining -= piece;
		this.hasMore = !complete;
		if (complete) this.#endWrite(write);
		return complete;
	}

	/** Stages what is there of the incoming write; false where more bytes or more room are needed. */
	#receivePayload(sink: RequestSink): boolean {
		const write = this.#write!;
		let piece = Math.min(write.remaining, this.input.length);
		const complete = piece === write.remaining;
		if (this.#currentError === 0 && piece > 0) {
			if (!complete) {
				if (piece < PIECE_BYTES) return false;
				piece -= (write.offset + piece) % BLOCK_SIZE;
			}
			const owner = complete ? this.pending.count : -1;
			if (!sink.stageWrite(this, write.offset, piece, this.input.start, owner)) {
				this.stalled = true;
				return false;
			}
		}
		this.input.consume(piece);
		write.offset += piece;
		write.remaining -= piece;
		if (!complete) return false;
		this.#endWrite(write);
		return true;
	}

	#endWrite(write: IncomingWrite): void {
		this.#pushWritten(write.cookieHigh, write.cookieLow, write.flags);
		this.#write = undefined;
	}

	/** Owes the answer of a write or zeroing: staged, or failed already. */
	#pushWritten(cookieHigh: number, cookieLow: number, flags: number): void {
		const error = this.#currentError;
		this.#currentError = 0;
		const kind = error !== 0 ? PENDING_ERROR : flags & commandFlag.FUA ? PENDING_FLUSH : PENDING_DONE;
		this.pending.push(kind, cookieHigh, cookieLow, 0, error, 0);
	}

	#zeroError(sink: RequestSink, type: number, flags: number, offset: number, length: number): number {
		const zeroes = type === command.WRITE_ZEROES;
		const allowed = zeroes ? commandFlag.NO_HOLE | commandFlag.FAST_ZERO : 0;
		const error = this.#writeError(sink, flags, allowed, offset, length);
		if (error !== 0) return error === errno.ENOSPC && !zeroes ? errno.EINVAL : error;
		// Zeros that must be allocated are written out: not faster than a write, as FAST_ZERO demands.
		const slow = commandFlag.FAST_ZERO | commandFlag.NO_HOLE;
		return (flags & slow) === slow ? errno.ENOTSUP : 0;
	}

	#writeError(sink: RequestSink, flags: number, allowed: number, offset: number, length: number): number {
		if (this.readOnly) return errno.EPERM;
		const error = rangeError(sink, flags, allowed, offset, length);
		return error === errno.EINVAL && offset + length > sink.diskSize ? errno.ENOSPC : error;
	}
}

/** EINVAL for unknown flags or a range outside the disk ("Error values"), else 0. FUA is valid for all commands. */
function rangeError(sink: RequestSink, flags: number, allowed: number, offset: number, length: number): number {
	if ((flags & ~(allowed | commandFlag.FUA)) !== 0) return errno.EINVAL;
	return offset + length > sink.diskSize ? errno.EINVAL : 0;
}
