// vsock: sockets between a host and its VMs. Node has no address family for them, but its event loop serves any stream
// socket whose descriptor it is given as a pipe; only making and binding the socket is done here.

import { type Server, Socket } from "node:net";
import { assert } from "../../foundations/errors.ts";
import * as sys from "../os/syscalls.ts";

/** libuv's handle of a Unix socket. Node has no public way to make one for a descriptor that it can't guess the kind of. */
interface PipeHandle {
	open(fd: number): number;
}
type PipeClass = new (kind: number) => PipeHandle;
/** PipeConstants.SERVER. */
const PIPE_SERVER = 1;
const BACKLOG = 511;

/** Makes a listening socket; a negated errno where that fails. `port` 0 lets the kernel choose. */
export function openVsock(cid: number, port: number): number {
	const fd = sys.socket(sys.AF_VSOCK, sys.SOCK_STREAM | sys.SOCK_NONBLOCK | sys.SOCK_CLOEXEC, 0);
	if (fd < 0) return fd;
	const address = sys.pin(sys.VSOCK_ADDRESS_BYTES);
	sys.putVsockAddress(address.bytes, cid, port === 0 ? PORT_ANY : port);
	let result = sys.bind(fd, address.address, address.bytes.length);
	if (result >= 0) result = sys.listen(fd, BACKLOG);
	if (result >= 0) return fd;
	sys.close(fd);
	return result;
}

const PORT_ANY = 0xffff_ffff;

/** Has a server accept on a socket that listens already, of whatever family; the server owns the descriptor then. */
export function listenOnDescriptor(server: Server, fd: number): void {
	const handle = new (pipeClass())(PIPE_SERVER);
	const error = handle.open(fd);
	assert(error === 0, `descriptor ${fd} can't be given to the event loop: ${error}`);
	const inside = server as unknown as {
		_handle: PipeHandle;
		_listen2(address: null, port: number, family: number, backlog: number): void;
	};
	inside._handle = handle;
	inside._listen2(null, -1, -1, BACKLOG);
}

/** The class of such handles, from a socket that Node knows. */
function pipeClass(): PipeClass {
	const pair = sys.socketPair();
	if (typeof pair === "number") throw sys.hostError(pair, "making a socket pair");
	sys.close(pair[1]);
	const socket = new Socket({ fd: pair[0] });
	try {
		return (socket as unknown as { _handle: { constructor: PipeClass } })._handle.constructor;
	} finally {
		socket.destroy();
	}
}
