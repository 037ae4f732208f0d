// Socket: one connection to a Unix socket by system calls, with no event loop between.
//
// Node's own sockets cost several microseconds per message, which is more than a server needs for a small request.

import { createRequire } from "node:module";
import type * as Koffi from "koffi";
import * as sys from "../../src/adapters/os/syscalls.ts";
import {
	clientFlag,
	command,
	Greeting,
	InfoExport,
	info,
	OPTION_MAGIC,
	OptionHeader,
	OptionReplyHeader,
	option,
	optionReply,
	REQUEST_MAGIC,
	Request,
} from "../../src/core/nbd/protocol.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";
import { viewOf } from "../../src/foundations/struct.ts";

const koffi = createRequire(import.meta.url)("koffi") as typeof Koffi;
const libc = koffi.load(null);
const connect = libc.func("int connect(int fd, uintptr_t address, uint length)") as (...words: number[]) => number;
const recvWaiting = libc.func("int64_t recv(int fd, uintptr_t into, size_t length, int flags)") as (
	...words: number[]
) => number;

const AF_UNIX = 1;
/** struct sockaddr_un: the family in 16 bits, then the path with a zero byte behind. */
const ADDRESS_BYTES = 110;

/** Waits for bytes. Returns how many came; throws IO where the server is gone. */
export function receive(fd: number, into: number, length: number): number {
	for (;;) {
		const count = recvWaiting(fd, into, length, 0);
		if (count > 0) return count;
		if (count < 0 && koffi.errno() === sys.EINTR) continue;
		throw new VmsweepError("IO", "the server closed the connection");
	}
}

/** Connects, and negotiates structured replies and the default export. Returns the descriptor and the export's size. */
export function connectTo(path: string): { readonly fd: number; readonly sizeBytes: number } {
	const address = sys.pin(ADDRESS_BYTES);
	const name = Buffer.from(path);
	if (name.length > ADDRESS_BYTES - 3) throw new VmsweepError("USAGE", `${path} is too long for a Unix socket.`);
	viewOf(address.bytes).setUint16(0, AF_UNIX, true);
	address.bytes.set(name, 2);
	const fd = sys.socket(AF_UNIX, sys.SOCK_STREAM | sys.SOCK_CLOEXEC, 0);
	if (fd < 0) throw sys.hostError(fd, `${path}: connecting`);
	if (connect(fd, address.address, ADDRESS_BYTES) < 0) throw sys.hostError(-koffi.errno(), `${path}: connecting`);
	return { fd, sizeBytes: negotiate(fd) };
}

/** Says goodbye and closes. */
export function disconnect(fd: number): void {
	const goodbye = new Uint8Array(Request.size);
	Request.put(viewOf(goodbye), 0, {
		magic: REQUEST_MAGIC,
		flags: 0,
		type: command.DISC,
		cookie: 0n,
		offset: 0,
		length: 0,
	});
	sendAll(fd, goodbye);
	sys.close(fd);
}

function negotiate(fd: number): number {
	receiveAll(fd, Greeting.size);
	const flags = new Uint8Array(4);
	viewOf(flags).setUint32(0, clientFlag.FIXED_NEWSTYLE | clientFlag.NO_ZEROES);
	sendAll(fd, flags);
	ask(fd, option.STRUCTURED_REPLY, new Uint8Array(0));
	// An empty name (four zero bytes) and no wishes (two).
	const size = ask(fd, option.GO, new Uint8Array(6));
	if (size === undefined) throw new VmsweepError("NBD_PROTOCOL", "the server has no default export");
	return size;
}

/** One option; returns the export's size where a reply tells it. A refused option is no failure. */
function ask(fd: number, code: number, data: Uint8Array): number | undefined {
	const bytes = new Uint8Array(OptionHeader.size + data.length);
	OptionHeader.put(viewOf(bytes), 0, { magic: OPTION_MAGIC, option: code, length: data.length });
	bytes.set(data, OptionHeader.size);
	sendAll(fd, bytes);
	let size: number | undefined;
	for (;;) {
		const { type, length } = OptionReplyHeader.at(viewOf(receiveAll(fd, OptionReplyHeader.size)));
		const view = viewOf(receiveAll(fd, length));
		if (type === optionReply.ACK || type >= optionReply.ERR_UNSUP) return size;
		if (type === optionReply.INFO && view.getUint16(0) === info.EXPORT) size = InfoExport.read.size(view, 0);
	}
}

function receiveAll(fd: number, length: number): Uint8Array {
	const { bytes, address } = sys.pin(length);
	for (let done = 0; done < length; ) done += receive(fd, address + done, length - done);
	return bytes;
}

/** Sends a few bytes at the start or end of a connection, when the socket's buffer has room for them. */
function sendAll(fd: number, bytes: Uint8Array): void {
	const copy = sys.pin(bytes.length);
	copy.bytes.set(bytes);
	const sent = sys.send(fd, copy.address, bytes.length);
	if (sent !== bytes.length) throw new VmsweepError("IO", "the server closed the connection");
}
