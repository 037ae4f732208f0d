// An NBD client for tests: says what real clients never say, and sees every reply as it came.
//
// Requests are promises, many at once; replies are matched by cookie. `socket` is open to the test, so that it can
// send nonsense, stop reading, or vanish. Only what is needed of the protocol is understood, and strictly.

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type NetConnectOpts, type Socket } from "node:net";
import * as nbd from "../../src/core/nbd/protocol.ts";
import { viewOf } from "../../src/foundations/struct.ts";

export interface ClientOptions {
	readonly exportName?: string;
	/** Structured replies, and with them `base:allocation`. Default true. */
	readonly structured?: boolean;
}

/** What a request came to. */
export interface NbdReply {
	/** 0, or one of the protocol's error numbers. */
	readonly error: number;
	/** Of a read. */
	readonly data: Buffer;
	/** Of a block status: [length, flags]…. */
	readonly extents: readonly (readonly [length: number, flags: number])[];
}

/** One request. `length` is that of `payload` where there is one. */
export interface NbdRequest {
	readonly type: number;
	readonly flags?: number;
	readonly offset?: number | bigint;
	readonly length?: number;
	readonly payload?: Uint8Array;
}

interface Waiting {
	readonly type: number;
	readonly length: number;
	readonly resolve: (reply: NbdReply) => void;
	readonly reject: (error: Error) => void;
}

export class NbdClient implements AsyncDisposable {
	readonly socket: Socket;
	readonly size: number;
	readonly transmissionFlags: number;
	/** Resolves once the connection is gone, by whomever. */
	readonly closed: Promise<void>;
	readonly #structured: boolean;
	readonly #waiting = new Map<bigint, Waiting>();
	readonly #reader: ByteReader;
	#frozen: Promise<void> | undefined;
	#nextCookie = 0xfedc_ba98_0000_0000n;

	private constructor(reader: ByteReader, structured: boolean, size: number, transmissionFlags: number) {
		this.socket = reader.socket;
		this.size = size;
		this.transmissionFlags = transmissionFlags;
		this.#structured = structured;
		this.#reader = reader;
		this.closed = this.#readReplies();
	}

	/** Set where requests are written to the socket directly: replies that this client did not count are no error then. */
	sendsByHand = false;

	/** Connects and negotiates. */
	static async connect(where: NetConnectOpts, options: ClientOptions = {}): Promise<NbdClient> {
		const { exportName = "disk", structured = true } = options;
		const socket = connect(where);
		socket.on("error", () => {});
		const reader = new ByteReader(socket);
		const greeting = nbd.Greeting.at(viewOf(await reader.take(nbd.Greeting.size)), 0);
		assert.equal(greeting.magic, nbd.NBD_MAGIC);
		socket.write(Buffer.from([0, 0, 0, nbd.clientFlag.FIXED_NEWSTYLE | nbd.clientFlag.NO_ZEROES]));
		const name = Buffer.from(exportName);
		if (structured) {
			await ask(reader, nbd.option.STRUCTURED_REPLY, Buffer.alloc(0));
			const context = Buffer.from(nbd.BASE_ALLOCATION);
			await ask(
				reader,
				nbd.option.SET_META_CONTEXT,
				Buffer.concat([u32(name.length), name, u32(1), u32(context.length), context]),
			);
		}
		const infos = await ask(reader, nbd.option.GO, Buffer.concat([u32(name.length), name, Buffer.alloc(2)]));
		const info = infos.find((data) => data.readUInt16BE(0) === nbd.info.EXPORT);
		assert(info !== undefined, "no NBD_INFO_EXPORT");
		const { size, transmissionFlags } = nbd.InfoExport.at(viewOf(info), 0);
		return new NbdClient(reader, structured, size, transmissionFlags);
	}

	/** Sends one request. Rejects where the connection ends before the reply. */
	request(request: NbdRequest): Promise<NbdReply> {
		const { promise, resolve, reject } = Promise.withResolvers<NbdReply>();
		const cookie = this.#nextCookie++;
		const length = request.payload?.length ?? request.length ?? 0;
		if (this.socket.destroyed) reject(new Error("the connection is gone"));
		else this.#waiting.set(cookie, { type: request.type, length, resolve, reject });
		this.socket.write(requestHeader(request, cookie));
		if (request.payload !== undefined) this.socket.write(request.payload);
		return promise;
	}

	/** Requests that must succeed. */
	async read(offset: number, length: number): Promise<Buffer> {
		return (await this.#ok({ type: nbd.command.READ, offset, length })).data;
	}
	async write(offset: number, payload: Uint8Array, flags = 0): Promise<void> {
		await this.#ok({ type: nbd.command.WRITE, offset, payload, flags });
	}
	async zero(offset: number, length: number, flags = 0): Promise<void> {
		await this.#ok({ type: nbd.command.WRITE_ZEROES, offset, length, flags });
	}
	async trim(offset: number, length: number): Promise<void> {
		await this.#ok({ type: nbd.command.TRIM, offset, length });
	}
	async flush(): Promise<void> {
		await this.#ok({ type: nbd.command.FLUSH });
	}
	async status(offset: number, length: number, flags = 0): Promise<NbdReply["extents"]> {
		return (await this.#ok({ type: nbd.command.BLOCK_STATUS, offset, length, flags })).extents;
	}

	/** Reads no replies from the next one on, so that the server's output piles up, until the returned function is called. */
	freeze(): () => void {
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#frozen = promise;
		return resolve;
	}

	/** Says goodbye, and waits for the server to close. */
	async disconnect(): Promise<void> {
		this.socket.write(requestHeader({ type: nbd.command.DISC }, 0n));
		await this.closed;
	}

	/** Vanishes without a word. */
	async vanish(): Promise<void> {
		this.socket.destroy();
		await this.closed;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.vanish();
	}

	async #ok(request: NbdRequest): Promise<NbdReply> {
		const reply = await this.request(request);
		assert.equal(reply.error, 0, `request ${request.type} at ${request.offset}: error ${reply.error}`);
		return reply;
	}

	async #readReplies(): Promise<void> {
		try {
			for (;;) {
				await this.#frozen;
				await (this.#structured ? this.#readChunk() : this.#readSimple());
			}
		} catch (error) {
			this.socket.destroy();
			for (const { reject } of this.#waiting.values()) reject(new Error("the connection ended", { cause: error }));
			this.#waiting.clear();
			if (!(error instanceof ConnectionEnded) && !this.sendsByHand) throw error;
		}
	}

	async #readSimple(): Promise<void> {
		const header = nbd.SimpleReply.at(viewOf(await this.#reader.take(nbd.SimpleReply.size)), 0);
		assert.equal(header.magic, nbd.SIMPLE_REPLY_MAGIC);
		const asked = this.#waiting.get(header.cookie);
		const isData = asked?.type === nbd.command.READ && header.error === 0;
		const data = await this.#reader.take(isData ? asked.length : 0);
		this.#claim(header.cookie).resolve({ error: header.error, data, extents: [] });
	}

	async #readChunk(): Promise<void> {
		const header = nbd.StructuredReply.at(viewOf(await this.#reader.take(nbd.StructuredReply.size)), 0);
		assert.equal(header.magic, nbd.STRUCTURED_REPLY_MAGIC);
		assert.equal(header.flags, nbd.replyFlag.DONE, "one chunk answers a request");
		const payload = await this.#reader.take(header.length);
		const waiting = this.#claim(header.cookie);
		const reply = { error: 0, data: Buffer.alloc(0), extents: [] };
		if (header.type === nbd.chunk.NONE) {
			assert.equal(header.length, 0);
			waiting.resolve(reply);
		} else if (header.type === nbd.chunk.OFFSET_DATA) {
			assert.equal(waiting.type, nbd.command.READ);
			assert.equal(payload.length, 8 + waiting.length);
			assert(payload.length > 8, "a data chunk must not be empty");
			waiting.resolve({ ...reply, data: payload.subarray(8) });
		} else if (header.type === nbd.chunk.BLOCK_STATUS) {
			assert.equal(waiting.type, nbd.command.BLOCK_STATUS);
			const extents = Array.from({ length: (payload.length - 4) / 8 }, (_, i) => {
				return [payload.readUInt32BE(4 + i * 8), payload.readUInt32BE(8 + i * 8)] as const;
			});
			waiting.resolve({ ...reply, extents });
		} else {
			assert.equal(header.type, nbd.chunk.ERROR);
			assert.equal(payload.length, 6 + payload.readUInt16BE(4));
			assert.notEqual(payload.readUInt32BE(0), 0);
			waiting.resolve({ ...reply, error: payload.readUInt32BE(0) });
		}
	}

	#claim(cookie: bigint): Waiting {
		const waiting = this.#waiting.get(cookie);
		assert(waiting !== undefined, `a reply to ${cookie}, which was not asked`);
		this.#waiting.delete(cookie);
		return waiting;
	}
}

/** A request's 28 bytes. */
export function requestHeader(request: NbdRequest, cookie: bigint): Buffer {
	const header = Buffer.alloc(nbd.Request.size);
	header.writeUInt32BE(nbd.REQUEST_MAGIC, 0);
	header.writeUInt16BE(request.flags ?? 0, 4);
	header.writeUInt16BE(request.type, 6);
	header.writeBigUInt64BE(cookie, 8);
	header.writeBigUInt64BE(BigInt(request.offset ?? 0), 16);
	header.writeUInt32BE(request.payload?.length ?? request.length ?? 0, 24);
	return header;
}

/** Sends an option; returns the data of its replies before the ACK. */
async function ask(reader: ByteReader, option: number, data: Buffer): Promise<Buffer[]> {
	reader.socket.write(Buffer.concat([Buffer.from("IHAVEOPT"), u32(option), u32(data.length), data]));
	const replies: Buffer[] = [];
	for (;;) {
		const header = nbd.OptionReplyHeader.at(viewOf(await reader.take(nbd.OptionReplyHeader.size)), 0);
		const payload = await reader.take(header.length);
		if (header.type === nbd.optionReply.ACK) return replies;
		assert(header.type < 0x8000_0000, `option ${option}: error ${header.type.toString(16)} ${payload.toString()}`);
		replies.push(payload);
	}
}

const u32 = (value: number): Buffer => {
	const bytes = Buffer.alloc(4);
	bytes.writeUInt32BE(value);
	return bytes;
};

class ConnectionEnded extends Error {}

/** A socket's bytes, in portions that the caller chooses. */
class ByteReader {
	readonly socket: Socket;
	#parts: Buffer[] = [];
	#length = 0;

	constructor(socket: Socket) {
		this.socket = socket;
	}

	async take(count: number): Promise<Buffer> {
		while (this.#length < count) {
			const part = this.socket.read() as Buffer | null;
			if (part !== null) {
				this.#parts.push(part);
				this.#length += part.length;
				continue;
			}
			if (this.socket.destroyed || this.socket.readableEnded) throw new ConnectionEnded("the connection ended");
			const waiting = new AbortController();
			const { signal } = waiting;
			await Promise.race(["readable", "end", "close"].map((event) => once(this.socket, event, { signal }))).catch(
				() => {},
			);
			waiting.abort();
		}
		const all = this.#parts.length === 1 ? this.#parts[0]! : Buffer.concat(this.#parts);
		this.#parts = count < all.length ? [all.subarray(count)] : [];
		this.#length -= count;
		return all.subarray(0, count);
	}
}
