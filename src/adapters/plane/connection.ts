// Connection: one NBD client in its transmission phase. Turns received bytes into work for the disk and
// keeps, in order, what has to be answered once that work is done (pending-answers.ts).
//
//   socket ─ recv ─► input ─ parse ─► disk: stage writes and zeroes    (many requests, one append)
//                                └──► pending: what to answer           (after the append)
//   socket ◄─ send ─ output ◄─ answer ◄─┘
//
// A payload larger than PIECE_BYTES goes to the log in pieces as it arrives, so that memory stays bounded
// whatever the request's length; so do zeros and trims, in far larger ones. A wrong request is answered with an error
// number and its payload skipped; only a wrong magic, or with extended headers a payload larger than any request may
// have, ends the connection, since what follows can't be told apart any more. Other clients never notice.

import type { ContextKind } from "../../core/nbd/meta-contexts.ts";
import {
	command,
	commandFlag,
	EXTENDED_REQUEST_MAGIC,
	ExtendedRequest,
	errno,
	type HeaderForm,
	PAYLOAD_BYTES_MAX,
	REQUEST_MAGIC,
	Request,
} from "../../core/nbd/protocol.ts";
import { type ReplyTo, ReplyWriter } from "../../core/nbd/replies.ts";
import { BLOCK_SIZE, roundDown, roundUp } from "../../foundations/units.ts";
import { InputBuffer, OutputBuffer } from "./buffers.ts";
import type { DiskReader } from "./disk-reader.ts";
import {
	ALL_CONTEXTS,
	PENDING_DONE,
	PENDING_ERROR,
	PENDING_FLUSH,
	PENDING_READ,
	PENDING_STATUS,
	PendingAnswers,
} from "./pending-answers.ts";

/** A write payload that is not complete is staged in pieces of at least this many bytes. */
const PIECE_BYTES = 256 * 1024;
/** Zeros that are written out for one client in one round, at most. */
const ZERO_PIECE_BYTES = 4 * 1024 * 1024;
/** Bytes that one client marks as zeros in one round, at most: that costs the index some time per GiB that holds data. */
const MARK_PIECE_BYTES = 4 * 1024 * 1024 * 1024;
/** Requests answered in one round, at most: bounds the work and the replies between two polls. */
const ROUND_REQUESTS_MAX = 256;
/** Read bytes answered in one round, at most, but for a first larger one; other requests count by what they cost. */
const ROUND_READ_BYTES_MAX = 1024 * 1024;
/** Bytes of block status, and of zeros or trim, that cost as much as one byte that is read; about. */
const STATUS_BYTES_PER_READ = 256;
const MARK_BYTES_PER_READ = 4096;

/** A metadata context that a client selected, with what the data plane needs to answer for it. */
export interface ClientContext {
	/** As it stands in replies. */
	readonly id: number;
	readonly context: ContextKind;
	/** For `liveness` only. */
	readonly liveness?: Liveness;
}

/** What is proven about the disk's blocks. */
export interface Liveness {
	/**
	 * Triples [block, count, writtenBefore], sorted; what lies in none of them is unknown. The blocks are proven unused
	 * where their last write is older than that log position, and in use where it is LIVE.
	 */
	readonly runs: Float64Array;
}
export const NOTHING_PROVEN: Liveness = { runs: new Float64Array(0) };
/** In place of a position: the guest uses these blocks. */
export const LIVE = -1;

/** A client as the handshake hands it over. */
export interface ClientSetup {
	readonly fd: number;
	readonly headers: HeaderForm;
	/** None without structured replies. */
	readonly contexts: readonly ClientContext[];
	/** The start of the first requests, where the client was quick. */
	readonly leftover: Uint8Array;
	readonly readOnly: boolean;
	/** Name of the snapshot that it reads; undefined for the disk itself. */
	readonly snapshot?: string;
	/** Silence in the middle of a request, or with replies not taken, after which the client is closed; none if not given. */
	readonly requestTimeoutMs?: number;
	/** Silence between requests after which it is closed; none if not given. */
	readonly idleTimeoutMs?: number;
	/** Clients that the disk may have with this one; as many as the data plane can have if not given. */
	readonly clientsMax?: number;
}

/** Parts of a block status request's payload. */
const FILTER_LENGTH_BYTES = 8;
const FILTER_ID_BYTES = 4;

/** A request's header, taken apart; one per connection, used for each request anew. */
class RequestHeader implements ReplyTo {
	flags = 0;
	type = 0;
	cookieHigh = 0;
	cookieLow = 0;
	offsetHigh = 0;
	offsetLow = 0;
	/** The offset's two halves; past 2^53 inexact, which is beyond any disk. */
	offset = 0;
	/** Of the effect, or of the payload. */
	length = 0;

	copy(from: RequestHeader): void {
		this.flags = from.flags;
		this.type = from.type;
		this.cookieHigh = from.cookieHigh;
		this.cookieLow = from.cookieLow;
		this.offsetHigh = from.offsetHigh;
		this.offsetLow = from.offsetLow;
		this.offset = from.offset;
		this.length = from.length;
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
}

export type ZeroMode = "trim" | "zero" | "allocate";

/** A write whose payload is still coming in, a payload that is skipped, or zeros that are made piece by piece. */
interface IncomingWrite {
	how: "payload" | ZeroMode;
	offset: number;
	remaining: number;
	/** The request, for its answer. */
	readonly header: RequestHeader;
}

export class Connection {
	readonly fd: number;
	readonly readOnly: boolean;
	readonly setup: ClientSetup;
	readonly input = new InputBuffer();
	readonly output = new OutputBuffer();
	readonly pending = new PendingAnswers();
	readonly replies: ReplyWriter;
	/** Reads what this client sees: the disk, or a snapshot of it. */
	readonly reader: DiskReader;
	readonly snapshot: string | undefined;
	/** Reads and flushes that are under way elsewhere and will be answered later. */
	inFlight = 0;
	/** The log has no room for this client's next write. */
	stalled = false;
	/** The client said goodbye: close once everything owed is sent. */
	leaving = false;
	/** Nothing more can be exchanged: close now. */
	broken = false;
	/** See `Silence`. */
	bytesSeen = 0;
	quietSince = 0;
	/** Received requests remain that the last round had no time for. */
	hasMore = false;
	/** The round in which this connection was last put on the plane's list of work. */
	round = 0;
	#write: IncomingWrite | undefined;
	/** Why the request that is being parsed can't be done; 0 for none. */
	#currentError = 0;
	readonly #writeRecord: IncomingWrite = { how: "payload", offset: 0, remaining: 0, header: new RequestHeader() };
	readonly #header = new RequestHeader();
	readonly #isExtended: boolean;
	readonly #headerBytes: number;

	constructor(setup: ClientSetup, reader: DiskReader) {
		this.fd = setup.fd;
		this.reader = reader;
		this.snapshot = setup.snapshot;
		this.readOnly = setup.readOnly;
		this.setup = setup;
		this.replies = new ReplyWriter(setup.headers);
		this.#isExtended = setup.headers === "extended";
		this.#headerBytes = this.#isExtended ? ExtendedRequest.size : Request.size;
		this.input.preload(setup.leftover);
	}

	/** A payload has begun that isn't there completely. */
	get isInsidePayload(): boolean {
		return this.#write?.how === "payload";
	}

	/** A request has begun and isn't there completely. */
	get isInsideRequest(): boolean {
		return this.input.length > 0 || this.isInsidePayload;
	}

	/** Marks the request that is being parsed (a write may take several rounds) as failed. */
	failCurrent(error: number): void {
		if (this.#currentError === 0) this.#currentError = error;
	}

	/** Sends what the socket takes of the replies. */
	send(): void {
		if (this.broken || this.output.isEmpty) return;
		if (this.output.send(this.fd) === "closed") this.broken = true;
		// What was received and could not be answered for lack of output space goes on now.
		else if (this.output.isEmpty && this.input.length > 0 && !this.stalled) this.hasMore = true;
	}

	/** Turns received bytes into staged work and pending answers, until bytes, room or the round's limits run out. */
	parse(sink: RequestSink): void {
		this.stalled = false;
		this.hasMore = false;
		let readBytes = 0;
		while (!this.leaving && !this.broken) {
			if (this.#write !== undefined) {
				const { how } = this.#write;
				if (!(how === "payload" ? this.#receivePayload(sink) : this.#zeroPiece(sink, how))) return;
				continue;
			}
			if (this.pending.count >= ROUND_REQUESTS_MAX || readBytes >= ROUND_READ_BYTES_MAX) {
				this.hasMore = this.input.length >= this.#headerBytes;
				return;
			}
			if (this.input.length < this.#headerBytes) return;
			const taken = this.#takeRequest(sink);
			if (taken < 0) return;
			readBytes += taken;
		}
	}

	/** Takes one request off the input. Returns what its answer costs, in bytes that are read, or -1 where it must wait. */
	#takeRequest(sink: RequestSink): number {
		const header = this.#header;
		if (!this.#readHeader(header)) {
			this.broken = true;
			return -1;
		}
		const { type, flags, offset, length } = header;
		const pending = this.pending;
		if (this.#isExtended && ((flags & commandFlag.PAYLOAD_LEN) !== 0 || type === command.WRITE))
			return this.#takePayload(sink, header);

		if (type === command.WRITE) return this.#beginPayload(sink, header, length > PAYLOAD_BYTES_MAX ? errno.EINVAL : 0);
		if (type === command.TRIM || type === command.WRITE_ZEROES) {
			const error = this.#zeroError(sink, type, flags, offset, length);
			const how = flags & commandFlag.NO_HOLE ? "allocate" : type === command.TRIM ? "trim" : "zero";
			if (error !== 0) pending.push(PENDING_ERROR, header, error);
			else if (how === "allocate" || length > MARK_PIECE_BYTES) {
				this.#begin(how, header, length);
				return 0;
			} else {
				if (!sink.stageZeroes(this, offset, length, how, pending.count)) {
					this.stalled = true;
					return -1;
				}
				this.#pushWritten(header);
			}
			this.input.consume(this.#headerBytes);
			return error === 0 ? length / MARK_BYTES_PER_READ : 0;
		}
		this.input.consume(this.#headerBytes);
		switch (type) {
			case command.READ: {
				const error =
					rangeError(sink, flags, commandFlag.DF, offset, length) || (length > PAYLOAD_BYTES_MAX ? errno.EINVAL : 0);
				if (error !== 0) pending.push(PENDING_ERROR, header, error);
				// A data chunk must not be empty ("Structured reply types").
				else pending.push(length > 0 ? PENDING_READ : PENDING_DONE, header, length);
				return error === 0 ? length : 0;
			}
			case command.FLUSH:
				// The document reserves offset and length; some clients send them all the same.
				if (flags & ~commandFlag.FUA) pending.push(PENDING_ERROR, header, errno.EINVAL);
				else pending.push(PENDING_FLUSH, header, 0);
				return 0;
			case command.CACHE: {
				const error = rangeError(sink, flags, 0, offset, length);
				if (error === 0) this.#readAhead(offset, length);
				pending.push(error === 0 ? PENDING_DONE : PENDING_ERROR, header, error);
				return 0;
			}
			case command.BLOCK_STATUS:
				return this.#pushStatus(sink, header, length, ALL_CONTEXTS);
			case command.DISC:
				this.leaving = true;
				return 0;
			default:
				pending.push(PENDING_ERROR, header, errno.EINVAL);
				return 0;
		}
	}

	/** Reads the header at the input's start, which is there completely; false where it is none. */
	#readHeader(header: RequestHeader): boolean {
		const { view, start } = this.input;
		const isExtended = this.#isExtended;
		// Both forms are alike up to the length.
		if (Request.read.magic(view, start) !== (isExtended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) return false;
		header.flags = Request.read.flags(view, start);
		header.type = Request.read.type(view, start);
		const cookieAt = start + Request.offset.cookie;
		header.cookieHigh = view.getUint32(cookieAt);
		header.cookieLow = view.getUint32(cookieAt + 4);
		const offsetAt = start + Request.offset.offset;
		header.offsetHigh = view.getUint32(offsetAt);
		header.offsetLow = view.getUint32(offsetAt + 4);
		header.offset = header.offsetHigh * 0x1_0000_0000 + header.offsetLow;
		header.length = isExtended ? ExtendedRequest.read.length(view, start) : Request.read.length(view, start);
		return true;
	}

	/** An extended request with a payload: writes have one even without the flag, since QEMU's client (10.0) forgets it. */
	#takePayload(sink: RequestSink, header: RequestHeader): number {
		// "A server SHOULD initiate hard disconnect": it is more than any request may carry.
		if (header.length > PAYLOAD_BYTES_MAX) {
			this.broken = true;
			return -1;
		}
		header.flags &= ~commandFlag.PAYLOAD_LEN;
		if (header.type === command.WRITE) return this.#beginPayload(sink, header, header.length === 0 ? errno.EINVAL : 0);
		if (header.type === command.BLOCK_STATUS && this.#isStatusFilter(header.length))
			return this.#takeStatusFilter(sink, header);
		this.#begin("payload", header, header.length);
		this.failCurrent(errno.EINVAL);
		return 0;
	}

	#isStatusFilter(length: number): boolean {
		const ids = (length - FILTER_LENGTH_BYTES) / FILTER_ID_BYTES;
		return Number.isInteger(ids) && ids >= 1 && ids <= this.setup.contexts.length;
	}

	/** Block status of some of the contexts: | effect length, 64 bits | id, 32 bits | … | */
	#takeStatusFilter(sink: RequestSink, header: RequestHeader): number {
		const { view, start, length } = this.input;
		const bytes = this.#headerBytes + header.length;
		if (length < bytes) return -1;
		const payload = start + this.#headerBytes;
		const effectLength = view.getUint32(payload) * 0x1_0000_0000 + view.getUint32(payload + 4);
		let filter = 0;
		let isValid = true;
		for (let at = payload + FILTER_LENGTH_BYTES; at < start + bytes; at += FILTER_ID_BYTES) {
			const id = view.getUint32(at);
			const place = this.setup.contexts.findIndex((context) => context.id === id);
			// Unknown, or named twice.
			if (place < 0 || (filter & (1 << place)) !== 0) isValid = false;
			else filter |= 1 << place;
		}
		this.input.consume(bytes);
		if (isValid) return this.#pushStatus(sink, header, effectLength, filter);
		this.pending.push(PENDING_ERROR, header, errno.EINVAL);
		return 0;
	}

	/** Returns what the answer costs, in read bytes. */
	#pushStatus(sink: RequestSink, header: RequestHeader, length: number, contexts: number): number {
		const isKnown = this.setup.contexts.length > 0 && length > 0;
		const error = isKnown ? rangeError(sink, header.flags, commandFlag.REQ_ONE, header.offset, length) : errno.EINVAL;
		if (error !== 0) this.pending.push(PENDING_ERROR, header, error);
		else this.pending.push(PENDING_STATUS, header, length, contexts);
		return error === 0 ? (length * this.setup.contexts.length) / STATUS_BYTES_PER_READ : 0;
	}

	/** Begins a write, whose payload follows; with an error it is skipped. */
	#beginPayload(sink: RequestSink, header: RequestHeader, error: number): number {
		const { flags, offset, length } = header;
		this.#begin("payload", header, length);
		this.#currentError = this.#writeError(sink, flags, 0, offset, length) || error;
		return 0;
	}

	/** Takes a header off the input: what follows is its payload, or zeros to be made up. */
	#begin(how: IncomingWrite["how"], header: RequestHeader, length: number): void {
		const write = this.#writeRecord;
		write.how = how;
		write.offset = header.offset;
		write.remaining = length;
		write.header.copy(header);
		this.#write = write;
		this.input.consume(this.#headerBytes);
	}

	/** Stages a part of a zeroing or trim; false where the rest waits for the next round, or for room. */
	#zeroPiece(sink: RequestSink, how: ZeroMode): boolean {
		const write = this.#write!;
		let piece = Math.min(write.remaining, how === "allocate" ? ZERO_PIECE_BYTES : MARK_PIECE_BYTES);
		const complete = piece === write.remaining || this.#currentError !== 0;
		if (!complete) piece -= (write.offset + piece) % BLOCK_SIZE;
		if (
			this.#currentError === 0 &&
			!sink.stageZeroes(this, write.offset, piece, how, complete ? this.pending.count : -1)
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

	/** The client will read this soon. Advice only: what is more than one read could take is not worth the time of others. */
	#readAhead(at: number, length: number): void {
		if (length === 0) return;
		const start = roundDown(at, BLOCK_SIZE);
		this.reader.plan(start, roundUp(at + Math.min(length, PAYLOAD_BYTES_MAX), BLOCK_SIZE) - start);
		this.reader.readAhead();
	}

	#endWrite(write: IncomingWrite): void {
		this.#pushWritten(write.header);
		this.#write = undefined;
	}

	/** Owes the answer of a write or zeroing: staged, or failed already. */
	#pushWritten(header: RequestHeader): void {
		const error = this.#currentError;
		this.#currentError = 0;
		const kind = error !== 0 ? PENDING_ERROR : header.flags & commandFlag.FUA ? PENDING_FLUSH : PENDING_DONE;
		this.pending.push(kind, header, error);
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
