// Disk server: a few disks offered over NBD on a Unix socket by this process itself, a request at a time. For what is used once
// and by one client, such as a view that a checker looks at; a VM's disk has a data plane of its own (adapters/plane).
//
//   listener (handshake) ─► Socket ─► request ─► disk.read | write | flush ─► reply ─► the next request
//
// Invariants
//  - requests of one client are carried out in their order, so a disk needs no locks of its own
//  - a wrong request is answered with an error; what can't be told apart any more ends the connection

import { Socket } from "node:net";
import { diskTransmissionFlags } from "../../core/nbd/handshake.ts";
import {
	command,
	commandFlag,
	EXTENDED_REQUEST_MAGIC,
	ExtendedRequest,
	errno,
	PAYLOAD_BYTES_MAX,
	REQUEST_MAGIC,
	Request,
	transmissionFlag,
} from "../../core/nbd/protocol.ts";
import { BARE_REPLY_BYTES, READ_HEADER_BYTES, type ReplyTo, ReplyWriter } from "../../core/nbd/replies.ts";
import { errorTable, isVmsweepError } from "../../foundations/errors.ts";
import { viewOf } from "../../foundations/struct.ts";
import { BLOCK_SIZE, type ByteCount, type ByteOffset, byteOffset } from "../../foundations/units.ts";
import { listenNbd, type NbdClient, type NbdListener } from "./listener.ts";

/** A disk that clients may read and write. Errors that it throws reach the client as NBD's. */
export interface OfferedDisk {
	readonly size: ByteCount;
	/** Fills all of `into`. */
	read(at: ByteOffset, into: Uint8Array): Promise<void>;
	write(at: ByteOffset, from: Uint8Array): Promise<void>;
}

/** Offers disks by their names on a Unix socket at `path`; until disposed, which also ends the clients. */
export async function offerDisks(path: string, disks: ReadonlyMap<string, OfferedDisk>): Promise<AsyncDisposable> {
	const clients = new Set<Socket>();
	const { SEND_FLUSH, HAS_FLAGS } = transmissionFlag;
	const listener: NbdListener = await listenNbd({
		address: { kind: "unix", path },
		exports: () =>
			[...disks].map(([name, { size }]) => ({
				name,
				description: "",
				size,
				readOnly: false,
				transmissionFlags: diskTransmissionFlags & (SEND_FLUSH | HAS_FLAGS),
				blockSize: { minimum: 1, preferred: BLOCK_SIZE, maximumPayload: PAYLOAD_BYTES_MAX },
				contexts: [],
			})),
		onClient: async (client) => {
			const socket = new Socket({ fd: client.fd, readable: true, writable: true });
			socket.on("error", () => {}); // it ends the reading below
			clients.add(socket);
			try {
				await serveClient(client, socket, disks.get(client.exportName)!);
			} finally {
				clients.delete(socket);
				socket.destroy();
			}
		},
	});
	return {
		[Symbol.asyncDispose]: async () => {
			for (const socket of clients) socket.destroy();
			await listener.close();
		},
	};
}

/** Answers one client's requests until it leaves. */
async function serveClient({ headers, leftover }: NbdClient, socket: Socket, disk: OfferedDisk): Promise<void> {
	const isExtended = headers === "extended";
	const replies = new ReplyWriter(headers);
	const input = new Incoming(socket, leftover);
	for (;;) {
		const header = await input.take(isExtended ? ExtendedRequest.size : Request.size);
		if (header === undefined) return;
		const view = viewOf(header);
		if (Request.read.magic(view, 0) !== (isExtended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) return;
		const type = Request.read.type(view, 0);
		const length = isExtended ? ExtendedRequest.read.length(view, 0) : Request.read.length(view, 0);
		const hasPayload = type === command.WRITE || (Request.read.flags(view, 0) & commandFlag.PAYLOAD_LEN) !== 0;
		if (type === command.DISC || (hasPayload && length > PAYLOAD_BYTES_MAX)) return;
		const payload = hasPayload ? await input.take(length) : new Uint8Array(0);
		if (payload === undefined) return;
		const reply = await answer(disk, replies, replyTo(view), { type, at: offsetIn(view), length, payload });
		if (!socket.write(reply)) await drained(socket);
	}
}

interface Asked {
	readonly type: number;
	/** Beyond every disk where it has more than 53 bits. */
	readonly at: number;
	readonly length: number;
	readonly payload: Uint8Array;
}

async function answer(disk: OfferedDisk, replies: ReplyWriter, to: ReplyTo, asked: Asked): Promise<Uint8Array> {
	const { type, at, length, payload } = asked;
	const isInside = at + length <= disk.size;
	try {
		if (type === command.READ && isInside && length <= PAYLOAD_BYTES_MAX) {
			const reply = new Uint8Array(READ_HEADER_BYTES + length);
			const header = replies.putReadHeader(viewOf(reply), 0, to, at, length);
			await disk.read(byteOffset(at), reply.subarray(header, header + length));
			return reply.subarray(0, header + length);
		}
		if (type === command.WRITE && isInside) await disk.write(byteOffset(at), payload);
		else if (type !== command.FLUSH) return failure(replies, to, errno.EINVAL);
		const reply = new Uint8Array(BARE_REPLY_BYTES);
		return reply.subarray(0, replies.putDone(viewOf(reply), 0, to));
	} catch (error) {
		return failure(replies, to, isVmsweepError(error) ? errno[errorTable[error.code].nbd] : errno.EIO);
	}
}

function failure(replies: ReplyWriter, to: ReplyTo, error: number): Uint8Array {
	const reply = new Uint8Array(BARE_REPLY_BYTES);
	return reply.subarray(0, replies.putError(viewOf(reply), 0, to, error));
}

const offsetIn = (view: DataView): number =>
	view.getUint32(Request.offset.offset) * 0x1_0000_0000 + view.getUint32(Request.offset.offset + 4);

const replyTo = (view: DataView): ReplyTo => ({
	cookieHigh: view.getUint32(Request.offset.cookie),
	cookieLow: view.getUint32(Request.offset.cookie + 4),
	offsetHigh: view.getUint32(Request.offset.offset),
	offsetLow: view.getUint32(Request.offset.offset + 4),
});

/** Resolves once the client has taken what was sent, or is gone. */
function drained(socket: Socket): Promise<void> {
	return new Promise((resolve) => {
		const go = (): void => {
			socket.off("drain", go);
			socket.off("close", go);
			resolve();
		};
		socket.once("drain", go);
		socket.once("close", go);
		if (socket.destroyed) go();
	});
}

/** What a client sends, in pieces of the size that is wanted. */
class Incoming {
	readonly #chunks: AsyncIterator<Buffer>;
	#rest: Uint8Array;

	constructor(socket: Socket, leftover: Uint8Array) {
		this.#chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
		this.#rest = leftover;
	}

	/** The next `length` bytes; undefined where the client left before. */
	async take(length: number): Promise<Uint8Array | undefined> {
		const pieces = [this.#rest];
		let there = this.#rest.length;
		while (there < length) {
			const next = await this.#chunks.next().catch(() => undefined); // a broken connection is one that left
			if (next === undefined || next.done === true) return undefined;
			pieces.push(next.value);
			there += next.value.length;
		}
		const all = pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
		this.#rest = all.subarray(length);
		return all.subarray(0, length);
	}
}
