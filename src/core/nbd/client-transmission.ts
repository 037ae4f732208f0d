// Transmission of a client: requests go out, any number at once; replies come back in any order and any portions.
//
//   read, blockStatus ─▶ request ─▶ server ─▶ simple reply, or chunks ─▶ straight into the reader's buffer
//
// Invariants, whatever the server sends
//  - a byte of a reader's buffer is written only while its request is open, and only inside it
//  - a read succeeds only where its chunks cover it exactly, each byte once
//  - memory per request is bounded; what breaks the protocol ends the connection, and fails all that is open
//
// Source: NBD protocol document, "Transmission phase".

import { VmsweepError } from "../../foundations/errors.ts";
import { viewOf } from "../../foundations/struct.ts";
import { Feed, type Parser } from "./client-feed.ts";
import type { Negotiated } from "./client-handshake.ts";
import {
	BlockStatusDescriptor,
	BlockStatusHeader,
	chunk,
	command,
	ErrorChunk,
	OffsetData,
	REQUEST_MAGIC,
	Request,
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";

/** A run of an export as the server describes it; `flags` of the context `base:allocation`. */
export interface StatusExtent {
	readonly length: number;
	readonly flags: number;
}

interface Open {
	readonly offset: number;
	readonly length: number;
	/** Where a read's bytes go; null for a block status. */
	readonly into: Uint8Array | null;
	/** Bytes of the read that chunks brought, from its start. */
	readonly covered: { readonly start: number; readonly end: number }[];
	readonly extents: StatusExtent[];
	/** The first error that the server reported. */
	error: number;
	readonly resolve: () => void;
	readonly reject: (error: Error) => void;
}

/** Chunks of one read, and extents of one block status, that are taken. */
const CHUNKS_MAX = 64 * 1024;
const EXTENTS_MAX = 128 * 1024;
/** An error's message has a length of 16 bits. */
const ERROR_BYTES_MAX = 64 * 1024 + 64;

/** One connection after its handshake. `send` takes whole requests; `what` names the server in messages. */
export class ClientTransmission {
	readonly #what: string;
	readonly #negotiated: Negotiated;
	readonly #send: (bytes: Uint8Array) => void;
	readonly #open = new Map<bigint, Open>();
	readonly #replies: Feed<never>;
	#nextCookie = 1n;
	#failure: Error | undefined;

	constructor(negotiated: Negotiated, what: string, send: (bytes: Uint8Array) => void) {
		this.#negotiated = negotiated;
		this.#what = what;
		this.#send = send;
		this.#replies = new Feed(this.#parseReplies());
	}

	/** Requests without an answer yet. */
	get openCount(): number {
		return this.#open.size;
	}

	/** Fills `into`. Rejects with IO (the server's error, a lost connection) or NBD_PROTOCOL. */
	async read(offset: number, into: Uint8Array): Promise<void> {
		await this.#request(command.READ, offset, into.length, into, []);
	}

	/** Extents from `offset` on, at least one; they may end before or after `length`. */
	async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
		const extents: StatusExtent[] = [];
		await this.#request(command.BLOCK_STATUS, offset, length, null, extents);
		return extents;
	}

	/** Says goodbye; nothing may be asked afterwards. */
	disconnect(): void {
		if (this.#failure === undefined) this.#send(requestBytes(command.DISC, 0n, 0, 0));
		this.fail(new VmsweepError("IO", `${this.#what}: the connection was closed.`));
	}

	/** Takes bytes from the server. Throws NBD_PROTOCOL; the connection is of no use then. */
	receive(bytes: Uint8Array): void {
		this.#replies.push(bytes);
	}

	/** The connection is gone: all that is open fails, and all that is asked later. */
	fail(error: Error): void {
		this.#failure ??= error;
		for (const { reject } of this.#open.values()) reject(this.#failure);
		this.#open.clear();
	}

	async #request(
		type: number,
		offset: number,
		length: number,
		into: Uint8Array | null,
		extents: StatusExtent[],
	): Promise<void> {
		if (this.#failure !== undefined) throw this.#failure;
		const { promise, resolve, reject } = Promise.withResolvers<void>();
		const cookie = this.#nextCookie++;
		this.#open.set(cookie, { offset, length, into, covered: [], extents, error: 0, resolve, reject });
		this.#send(requestBytes(type, cookie, offset, length));
		await promise;
	}

	*#parseReplies(): Parser<never> {
		const header = new Uint8Array(StructuredReply.size);
		const view = viewOf(header);
		for (;;) {
			yield header.subarray(0, 4);
			switch (view.getUint32(0)) {
				case SIMPLE_REPLY_MAGIC:
					yield header.subarray(4, SimpleReply.size);
					yield* this.#simpleReply(SimpleReply.read.cookie(view, 0), SimpleReply.read.error(view, 0));
					break;
				case STRUCTURED_REPLY_MAGIC:
					yield header.subarray(4);
					yield* this.#chunk(StructuredReply.at(view));
					break;
				default:
					throw this.#broken("it sent no reply where one begins");
			}
		}
	}

	*#simpleReply(cookie: bigint, error: number): Parser<void> {
		const request = this.#find(cookie);
		request.error = error;
		if (error === 0) {
			// With structured replies negotiated, data comes in chunks only; a block status never comes any other way.
			if (request.into === null || this.#negotiated.structuredReplies)
				throw this.#broken("it sent a simple reply where a structured one is due");
			yield request.into;
			request.covered.push({ start: 0, end: request.length });
		}
		this.#finish(cookie, request);
	}

	*#chunk({ cookie, flags, type, length }: ReturnType<typeof StructuredReply.at>): Parser<void> {
		if (!this.#negotiated.structuredReplies) throw this.#broken("it sent a structured reply, which was not negotiated");
		const request = this.#find(cookie);
		const isLast = (flags & replyFlag.DONE) !== 0;
		if (type === chunk.NONE) {
			if (length !== 0 || !isLast) throw this.#broken("it sent an empty chunk that isn't the last one");
		} else if (type === chunk.OFFSET_DATA) yield* this.#data(request, length);
		else if (type === chunk.OFFSET_HOLE) yield* this.#hole(request, length);
		else if (type === chunk.BLOCK_STATUS) yield* this.#status(request, length);
		else if ((type & 0x8000) !== 0) yield* this.#error(request, length);
		else throw this.#broken(`it sent a chunk of type ${type}`);
		if (isLast) this.#finish(cookie, request);
	}

	*#data(request: Open, length: number): Parser<void> {
		if (length <= OffsetData.size) throw this.#broken("it sent a data chunk without data");
		const head = yield* take(OffsetData.size);
		const offset = OffsetData.read.offset(viewOf(head), 0);
		yield this.#cover(request, offset, length - OffsetData.size);
	}

	*#hole(request: Open, length: number): Parser<void> {
		const size = OffsetData.size + 4;
		if (length !== size) throw this.#broken("it sent a hole of a wrong form");
		const view = viewOf(yield* take(size));
		this.#cover(request, OffsetData.read.offset(view, 0), view.getUint32(OffsetData.size)).fill(0);
	}

	/** The part of a reader's buffer that a chunk brings. */
	#cover(request: Open, offset: number, length: number): Uint8Array {
		const start = offset - request.offset;
		if (request.into === null || length === 0 || !(start >= 0 && start + length <= request.length))
			throw this.#broken("it sent data that was not asked for");
		if (request.covered.length === CHUNKS_MAX) throw this.#broken("it cut a read into too many chunks");
		request.covered.push({ start, end: start + length });
		return request.into.subarray(start, start + length);
	}

	*#status(request: Open, length: number): Parser<void> {
		const count = (length - BlockStatusHeader.size) / BlockStatusDescriptor.size;
		if (request.into !== null || !Number.isInteger(count) || count < 1 || count > EXTENTS_MAX)
			throw this.#broken("it sent a block status of a wrong form");
		const view = viewOf(yield* take(length));
		if (BlockStatusHeader.read.contextId(view, 0) !== this.#negotiated.allocationContext || request.extents.length > 0)
			throw this.#broken("it sent a block status that was not asked for");
		for (let index = 0; index < count; index++) {
			const base = BlockStatusHeader.size + index * BlockStatusDescriptor.size;
			const extent = {
				length: BlockStatusDescriptor.read.length(view, base),
				flags: BlockStatusDescriptor.read.status(view, base),
			};
			if (extent.length === 0) throw this.#broken("it sent an empty extent");
			request.extents.push(extent);
		}
	}

	*#error(request: Open, length: number): Parser<void> {
		if (length < ErrorChunk.size || length > ERROR_BYTES_MAX) throw this.#broken("it sent an error of a wrong form");
		const view = viewOf(yield* take(length));
		// An error chunk that says "no error" is a failure all the same.
		request.error ||= ErrorChunk.read.error(view, 0) || EIO;
	}

	#finish(cookie: bigint, request: Open): void {
		if (request.error === 0) this.#checkComplete(request);
		this.#open.delete(cookie);
		const { offset, length, error, resolve, reject } = request;
		if (error === 0) {
			resolve();
			return;
		}
		const asked = request.into === null ? "saying what is allocated" : "reading";
		reject(
			new VmsweepError(
				"IO",
				`${this.#what}: ${asked} from byte ${offset} on (${length} bytes) failed with error ${error}. Check the server.`,
			),
		);
	}

	#checkComplete({ into, covered, length, extents }: Open): void {
		if (into === null) {
			if (extents.length === 0) throw this.#broken("it didn't say what is allocated");
			return;
		}
		let end = 0;
		for (const each of covered.toSorted((a, b) => a.start - b.start)) {
			if (each.start !== end) throw this.#broken("its chunks leave a gap or overlap");
			end = each.end;
		}
		if (end !== length) throw this.#broken("it sent less than was asked for");
	}

	#find(cookie: bigint): Open {
		const request = this.#open.get(cookie);
		if (request === undefined) throw this.#broken("it answered what was not asked");
		return request;
	}

	#broken(why: string): VmsweepError {
		return new VmsweepError("NBD_PROTOCOL", `${this.#what}: ${why}. Check the server.`);
	}
}

const EIO = 5;

function* take(length: number): Parser<Uint8Array> {
	const bytes = new Uint8Array(length);
	yield bytes;
	return bytes;
}

function requestBytes(type: number, cookie: bigint, offset: number, length: number): Uint8Array {
	const bytes = new Uint8Array(Request.size);
	Request.put(viewOf(bytes), 0, { magic: REQUEST_MAGIC, flags: 0, type, cookie, offset, length });
	return bytes;
}
