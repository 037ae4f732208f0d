// An NBD client for tests: says what real clients never say, and sees every reply as it came. It speaks extended headers
// too, which Debian's libnbd and QEMU don't yet, byte by byte as the protocol document has them.
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
	/** Structured replies, and with them contexts. Default true. */
	readonly structured?: boolean;
	/** Extended headers instead. Default false. */
	readonly extended?: boolean;
	/** Metadata contexts to select; `base:allocation` where not given. */
	readonly contexts?: readonly string[];
}

/** What a request came to. */
export interface NbdReply {
	/** 0, or one of the protocol's error numbers. */
	readonly error: number;
	/** Of a read. */
	readonly data: Buffer;
	/** Of a block status, for each context in the order of the chunks. */
	readonly statuses: readonly { readonly id: number; readonly extents: Extents }[];
	/** Types of the chunks, in order; none of a simple reply. */
	readonly chunks: readonly number[];
	/** Of an error: its message, and the byte that failed, or -1. */
	readonly message: string;
	readonly failedAt: number;
}

export type Extents = readonly (readonly [length: number, flags: number])[];

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
	readonly offset: number | bigint;
	readonly length: number;
	/** What the chunks so far have brought. */
	readonly partial: { -readonly [K in keyof NbdReply]: NbdReply[K] };
	readonly covered: [from: number, to: number][];
	readonly resolve: (reply: NbdReply) => void;
	readonly reject: (error: Error) => void;
}

export class NbdClient implements AsyncDisposable {
	readonly socket: Socket;
	readonly size: number;
	readonly transmissionFlags: number;
	/** Resolves once the connection is gone, by whomever. */
	readonly closed: Promise<void>;
	readonly #form: nbd.HeaderForm;
	readonly #waiting = new Map<bigint, Waiting>();
	readonly #reader: ByteReader;
	#frozen: Promise<void> | undefined;
	#nextCookie = 0xfedc_ba98_0000_0000n;

	/** Ids of the selected contexts, by name. */
	readonly contextIds: ReadonlyMap<string, number>;

	private constructor(
		reader: ByteReader,
		form: nbd.HeaderForm,
		size: number,
		transmissionFlags: number,
		contextIds: ReadonlyMap<string, number>,
	) {
		this.socket = reader.socket;
		this.size = size;
		this.transmissionFlags = transmissionFlags;
		this.#form = form;
		this.contextIds = contextIds;
		this.#reader = reader;
		this.closed = this.#readReplies();
	}

	/** Set where requests are written to the socket directly: replies that this client did not count are no error then. */
	sendsByHand = false;

	/** Connects and negotiates. */
	static async connect(where: NetConnectOpts, options: ClientOptions = {}): Promise<NbdClient> {
		const { exportName = "disk", structured = true, extended = false, contexts = [nbd.BASE_ALLOCATION] } = options;
		const socket = connect(where);
		socket.on("error", () => {});
		const reader = new ByteReader(socket);
		const greeting = nbd.Greeting.at(viewOf(await reader.take(nbd.Greeting.size)), 0);
		assert.equal(greeting.magic, nbd.NBD_MAGIC);
		socket.write(Buffer.from([0, 0, 0, nbd.clientFlag.FIXED_NEWSTYLE | nbd.clientFlag.NO_ZEROES]));
		const name = Buffer.from(exportName);
		const contextIds = new Map<string, number>();
		if (structured || extended) {
			await ask(reader, extended ? nbd.option.EXTENDED_HEADERS : nbd.option.STRUCTURED_REPLY, Buffer.alloc(0));
			const queries = contexts.flatMap((context) => [u32(Buffer.byteLength(context)), Buffer.from(context)]);
			const query = Buffer.concat([u32(name.length), name, u32(contexts.length), ...queries]);
			for (const reply of await ask(reader, nbd.option.SET_META_CONTEXT, query))
				contextIds.set(reply.toString("utf8", 4), reply.readUInt32BE(0));
		}
		const infos = await ask(reader, nbd.option.GO, Buffer.concat([u32(name.length), name, Buffer.alloc(2)]));
		const info = infos.find((data) => data.readUInt16BE(0) === nbd.info.EXPORT);
		assert(info !== undefined, "no NBD_INFO_EXPORT");
		const { size, transmissionFlags } = nbd.InfoExport.at(viewOf(info), 0);
		const form = extended ? "extended" : structured ? "structured" : "simple";
		return new NbdClient(reader, form, size, transmissionFlags, contextIds);
	}

	/** Sends one request. Rejects where the connection ends before the reply. */
	request(request: NbdRequest): Promise<NbdReply> {
		const { promise, resolve, reject } = Promise.withResolvers<NbdReply>();
		const cookie = this.#nextCookie++;
		const length = request.payload?.length ?? request.length ?? 0;
		const { type, offset = 0 } = request;
		const partial = {
			error: 0,
			data: Buffer.alloc(0),
			statuses: [],
			chunks: [],
			message: "",
			failedAt: -1,
		};
		if (this.socket.destroyed) reject(new Error("the connection is gone"));
		else this.#waiting.set(cookie, { type, offset, length, partial, covered: [], resolve, reject });
		this.socket.write(this.#form === "extended" ? extendedHeader(request, cookie) : requestHeader(request, cookie));
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
	/** What the first context says. */
	async status(offset: number, length: number, flags = 0): Promise<Extents> {
		return (await this.#ok({ type: nbd.command.BLOCK_STATUS, offset, length, flags })).statuses[0]?.extents ?? [];
	}

	/** Reads no replies from the next one on, so that the server's output piles up, until the returned function is called. */
	freeze(): () => void {
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#frozen = promise;
		return resolve;
	}

	/** Says goodbye, and waits for the server to close. */
	async disconnect(): Promise<void> {
		const goodbye = { type: nbd.command.DISC };
		this.socket.write(this.#form === "extended" ? extendedHeader(goodbye, 0n) : requestHeader(goodbye, 0n));
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
				await (this.#form === "simple" ? this.#readSimple() : this.#readChunk());
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
		const { partial, resolve } = this.#claim(header.cookie);
		resolve({ ...partial, error: header.error, data });
	}

	async #readChunk(): Promise<void> {
		const isExtended = this.#form === "extended";
		const Header = isExtended ? nbd.ExtendedReply : nbd.StructuredReply;
		const header = Header.at(viewOf(await this.#reader.take(Header.size)), 0);
		assert.equal(header.magic, isExtended ? nbd.EXTENDED_REPLY_MAGIC : nbd.STRUCTURED_REPLY_MAGIC);
		assert.equal(header.flags & ~nbd.replyFlag.DONE, 0);
		const payload = await this.#reader.take(header.length);
		const waiting = this.#waiting.get(header.cookie);
		assert(waiting !== undefined, `a reply to ${header.cookie}, which was not asked`);
		if ("offset" in header) assert.equal(header.offset, BigInt(waiting.offset), "a reply repeats the request's offset");
		this.#takeChunk(waiting, header.type, payload);
		if ((header.flags & nbd.replyFlag.DONE) === 0) return;
		const { partial, covered, length, type } = this.#claim(header.cookie);
		if (type === nbd.command.READ && partial.error === 0) {
			const bytes = covered.reduce((sum, [from, to]) => sum + to - from, 0);
			assert.equal(bytes, length, "chunks cover a read once");
		}
		waiting.resolve(partial);
	}

	#takeChunk(waiting: Waiting, type: number, payload: Buffer): void {
		const { partial, covered } = waiting;
		partial.chunks = [...partial.chunks, type];
		switch (type) {
			case nbd.chunk.NONE:
				assert.equal(payload.length, 0);
				return;
			case nbd.chunk.OFFSET_DATA:
			case nbd.chunk.OFFSET_HOLE: {
				assert.equal(waiting.type, nbd.command.READ);
				const isHole = type === nbd.chunk.OFFSET_HOLE;
				if (isHole) assert.equal(payload.length, 12);
				const length = isHole ? payload.readUInt32BE(8) : payload.length - 8;
				assert(length > 0, "a chunk must not be empty");
				const from = Number(payload.readBigUInt64BE(0)) - Number(waiting.offset);
				assert(from >= 0 && from + length <= waiting.length, "a chunk lies inside its request");
				assert(
					covered.every(([start, end]) => from + length <= start || from >= end),
					"chunks don't overlap",
				);
				if (partial.data.length === 0) partial.data = Buffer.alloc(waiting.length);
				if (!isHole) payload.copy(partial.data, from, 8);
				covered.push([from, from + length]);
				return;
			}
			case nbd.chunk.BLOCK_STATUS:
			case nbd.chunk.BLOCK_STATUS_EXT: {
				assert.equal(waiting.type, nbd.command.BLOCK_STATUS);
				assert.equal(type === nbd.chunk.BLOCK_STATUS_EXT, this.#form === "extended");
				const [head, size] = type === nbd.chunk.BLOCK_STATUS ? [4, 8] : [8, 16];
				const extents = Array.from({ length: (payload.length - head) / size }, (_, i) => {
					const at = head + i * size;
					return size === 8
						? ([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)] as const)
						: ([Number(payload.readBigUInt64BE(at)), Number(payload.readBigUInt64BE(at + 8))] as const);
				});
				if (head === 8) assert.equal(payload.readUInt32BE(4), extents.length);
				assert(extents.length > 0);
				partial.statuses = [...partial.statuses, { id: payload.readUInt32BE(0), extents }];
				return;
			}
			default: {
				const hasOffset = type === nbd.chunk.ERROR_OFFSET;
				if (!hasOffset) assert.equal(type, nbd.chunk.ERROR);
				const textEnd = 6 + payload.readUInt16BE(4);
				assert.equal(payload.length, textEnd + (hasOffset ? 8 : 0));
				partial.error = payload.readUInt32BE(0);
				assert.notEqual(partial.error, 0);
				partial.message = payload.toString("utf8", 6, textEnd);
				if (!hasOffset) return;
				partial.failedAt = Number(payload.readBigUInt64BE(textEnd));
				const within = partial.failedAt - Number(waiting.offset);
				assert(within >= 0 && within < waiting.length, "an error lies inside its request");
			}
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

/** The same with extended headers, 32 bytes: a payload has its flag set. `length` may have 64 bits. */
export function extendedHeader(
	request: Omit<NbdRequest, "length"> & { length?: number | bigint },
	cookie: bigint,
): Buffer {
	const { flags = 0, type, offset = 0, length = 0, payload } = request;
	const header = Buffer.alloc(nbd.ExtendedRequest.size);
	header.writeUInt32BE(nbd.EXTENDED_REQUEST_MAGIC, 0);
	header.writeUInt16BE(flags | (payload === undefined ? 0 : nbd.commandFlag.PAYLOAD_LEN), 4);
	header.writeUInt16BE(type, 6);
	header.writeBigUInt64BE(cookie, 8);
	header.writeBigUInt64BE(BigInt(offset), 16);
	header.writeBigUInt64BE(BigInt(payload?.length ?? length), 24);
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
