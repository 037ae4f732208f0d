// System calls: the one place where vmsweep calls the kernel past Node's own modules.
//
// Node has no fallocate, poll, pwritev, preadv2 or copy_file_range, and its file calls allocate per
// call. The data-plane thread needs calls that take numbers and return numbers. Pointers are plain
// numbers here (user-space addresses are below 2^47): see `pin()` for memory whose address is stable.
//
// Every call returns the kernel's result, or the negated errno: never -1, never throws.

import { createRequire } from "node:module";
import type * as Koffi from "koffi";
import type { ErrorCode } from "../../foundations/errors.ts";
import { VmsweepError } from "../../foundations/errors.ts";

// koffi's ES module entry loads every platform's binding name; its CommonJS entry loads one.
const koffi = createRequire(import.meta.url)("koffi") as typeof Koffi;
const libc = koffi.load(null);

type Call = (...args: (number | string)[]) => number;

function call(definition: string): Call {
	const raw = libc.func(definition) as unknown as Call;
	return (...args) => {
		const result = raw(...args);
		return result === -1 ? -koffi.errno() : result;
	};
}

/** The same call run on a thread of Node's pool: for the control plane, which must not block. */
function callAsync(definition: string): (...args: number[]) => Promise<number> {
	const raw = libc.func(definition) as unknown as { async: (...args: unknown[]) => void };
	return (...args) =>
		new Promise((resolve, reject) => {
			raw.async(...args, (error: Error | null, result: number) => {
				if (error) reject(error);
				// koffi keeps errno per call: it is still the pool thread's when the callback runs.
				else resolve(result === -1 ? -koffi.errno() : result);
			});
		});
}

/** A call of glibc's own, which other C libraries may lack: undefined there. */
export function glibcCall(definition: string): Call | undefined {
	try {
		return call(definition);
	} catch {
		return undefined;
	}
}

// The hot calls are spelled out, so that each stays one direct call without argument spreading.
const rawPoll = libc.func("int poll(uintptr_t fds, ulong count, int timeoutMs)") as unknown as Call;
const rawRecv = libc.func("int64_t recv(int fd, uintptr_t into, size_t length, int flags)") as unknown as Call;
const rawSend = libc.func("int64_t send(int fd, uintptr_t from, size_t length, int flags)") as unknown as Call;
const rawPread = libc.func("int64_t pread(int fd, uintptr_t into, size_t length, int64_t at)") as unknown as Call;
const rawPwrite = libc.func("int64_t pwrite(int fd, uintptr_t from, size_t length, int64_t at)") as unknown as Call;
const rawPwritev = libc.func("int64_t pwritev(int fd, uintptr_t list, int count, int64_t at)") as unknown as Call;
const rawPreadv2 = libc.func(
	"int64_t preadv2(int fd, uintptr_t list, int count, int64_t at, int flags)",
) as unknown as Call;

const rawSyscall = libc.func(
	"long syscall(long number, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f)",
) as unknown as Call;
const rawMmap = libc.func(
	"void *mmap(uintptr_t at, size_t length, int protection, int flags, int fd, int64_t offset)",
) as unknown as (...args: number[]) => unknown;
const rawMunmap = libc.func("int munmap(uintptr_t at, size_t length)") as unknown as Call;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_POPULATE = 0x8000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

const checked = (result: number): number => (result === -1 ? -koffi.errno() : result);

export const poll = (fds: number, count: number, timeoutMs: number): number => checked(rawPoll(fds, count, timeoutMs));
export const recv = (fd: number, into: number, length: number): number =>
	checked(rawRecv(fd, into, length, MSG_DONTWAIT));
export const send = (fd: number, from: number, length: number): number =>
	checked(rawSend(fd, from, length, MSG_DONTWAIT | MSG_NOSIGNAL));
export const pread = (fd: number, into: number, length: number, at: number): number =>
	checked(rawPread(fd, into, length, at));
export const pwrite = (fd: number, from: number, length: number, at: number): number =>
	checked(rawPwrite(fd, from, length, at));
export const pwritev = (fd: number, list: number, count: number, at: number): number =>
	checked(rawPwritev(fd, list, count, at));
/** preadv2 with RWF_NOWAIT: what the page cache holds, or -EAGAIN. */
export const preadvNoWait = (fd: number, list: number, count: number, at: number): number =>
	checked(rawPreadv2(fd, list, count, at, RWF_NOWAIT));

export const write = call("int64_t write(int fd, uintptr_t from, size_t length)");
export const read = call("int64_t read(int fd, uintptr_t into, size_t length)");
export const close = call("int close(int fd)");
export const fdatasync = call("int fdatasync(int fd)");
export const fallocate = call("int fallocate(int fd, int mode, int64_t at, int64_t length)");
export const ftruncate = call("int ftruncate(int fd, int64_t size)");
export const eventfd = call("int eventfd(uint initial, int flags)");
export const fcntl = call("int fcntl(int fd, int command, uintptr_t argument)");
export const ioctl = call("int ioctl(int fd, ulong request, uintptr_t argument)");
const setsockopt = call("int setsockopt(int fd, int level, int name, uintptr_t value, uint length)");
export const lseek = call("int64_t lseek(int fd, int64_t at, int whence)");

export const socket = call("int socket(int domain, int type, int protocol)");
export const bind = call("int bind(int fd, uintptr_t address, uint length)");
export const listen = call("int listen(int fd, int backlog)");
const getsockname = call("int getsockname(int fd, uintptr_t address, uintptr_t length)");
const getpeername = call("int getpeername(int fd, uintptr_t address, uintptr_t length)");

/** Size of a struct sockaddr_vm. */
export const VSOCK_ADDRESS_BYTES = 16;

/** Fills a struct sockaddr_vm. */
export function putVsockAddress(into: Uint8Array, cid: number, port: number): void {
	const view = new DataView(into.buffer, into.byteOffset, into.length);
	view.setUint16(0, AF_VSOCK, true);
	view.setUint32(4, port, true);
	view.setUint32(8, cid, true);
}

/** Where a socket's own or other end is, for the kinds that Node knows nothing of. */
export type SocketAddress =
	| { readonly kind: "vsock"; readonly cid: number; readonly port: number }
	| { readonly kind: "unix" /** Empty for none. */; readonly path: string };

/** Undefined for other sockets, and for what is none. */
export function socketAddress(fd: number, end: "own" | "peer"): SocketAddress | undefined {
	const address = pin(128);
	const length = pin(4);
	const lengthView = new DataView(length.bytes.buffer, length.bytes.byteOffset);
	lengthView.setUint32(0, address.bytes.length, true);
	if ((end === "own" ? getsockname : getpeername)(fd, address.address, length.address) < 0) return undefined;
	const view = new DataView(address.bytes.buffer, address.bytes.byteOffset);
	const family = view.getUint16(0, true);
	if (family === AF_VSOCK) return { kind: "vsock", cid: view.getUint32(8, true), port: view.getUint32(4, true) };
	if (family !== AF_UNIX) return undefined;
	const path = address.bytes.subarray(2, lengthView.getUint32(0, true));
	const stop = path.indexOf(0);
	return { kind: "unix", path: new TextDecoder().decode(stop < 0 ? path : path.subarray(0, stop)) };
}

const rawSocketpair = call("int socketpair(int domain, int type, int protocol, uintptr_t pair)");
/** Two connected stream sockets, non-blocking and closed on exec; a negated errno where there are none. */
export function socketPair(): readonly [number, number] | number {
	const pair = pin(8);
	const result = rawSocketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair.address);
	if (result < 0) return result;
	const view = new DataView(pair.bytes.buffer, pair.bytes.byteOffset);
	return [view.getInt32(0, true), view.getInt32(4, true)];
}

/** Reads all of `length` bytes: returns `length`, or a negated errno. The end of the file is EIO: what must be there is not. */
export function preadAll(fd: number, into: number, length: number, at: number): number {
	for (let done = 0; done < length; ) {
		const count = pread(fd, into + done, length - done, at + done);
		if (count === -EINTR) continue;
		if (count <= 0) return count === 0 ? -EIO : count;
		done += count;
	}
	return length;
}

export const madvise = call("int madvise(uintptr_t at, size_t length, int advice)");
export const MADV_DONTNEED = 4;

/** Returns the error itself, as posix_fadvise does; advice that the host can't take is no failure. */
export const fadvise = call("int posix_fadvise(int fd, int64_t at, int64_t length, int advice)");

export const copyFileRangeAsync = callAsync(
	"int64_t copy_file_range(int from, uintptr_t fromAt, int to, uintptr_t toAt, size_t length, uint flags)",
);
export const fallocateAsync = callAsync("int fallocate(int fd, int mode, int64_t at, int64_t length)");
/** Returns an error's number where it fails, not its negative. */
export const fadviseAsync = callAsync("int posix_fadvise(int fd, int64_t at, int64_t length, int advice)");
export const POSIX_FADV_DONTNEED = 4;
const syscallAsync = callAsync(
	"long syscall(long number, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f)",
);
export const ioctlAsync = callAsync("int ioctl(int fd, ulong request, uintptr_t argument)");

export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const RWF_NOWAIT = 0x8;
export const POLLIN = 0x1;
export const POLLOUT = 0x4;
export const POLLERR = 0x8;
export const POLLHUP = 0x10;
export const EFD_NONBLOCK = 0o4000;
export const EFD_CLOEXEC = 0o2000000;
export const FALLOC_FL_KEEP_SIZE = 0x1;
export const FALLOC_FL_PUNCH_HOLE = 0x2;
const AF_UNIX = 1;
export const AF_VSOCK = 40;
export const SOCK_STREAM = 1;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_SNDBUFFORCE = 32;

export const POSIX_FADV_WILLNEED = 3;
export const EIO = 5;
export const ENXIO = 6;
export const EINTR = 4;
export const EAGAIN = 11;
export const ENOSPC = 28;
export const EOPNOTSUPP = 95;
export const EDQUOT = 122;

/** Bytes at an address that stays: system calls take the address, JavaScript the array. */
export interface Pinned {
	readonly bytes: Uint8Array;
	/** Address of the first byte; valid as long as `bytes` is referenced. */
	readonly address: number;
}

/** Kernel memory that this process sees at an address. */
export interface Mapping {
	readonly buffer: ArrayBuffer;
	readonly address: bigint;
}

/** Maps a ring of io_uring. Throws IO. */
export function mapRing(fd: number, offset: number, length: number): Mapping {
	const pointer = rawMmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
	const address = BigInt(koffi.address(pointer));
	if (address === MAP_FAILED) throw hostError(-koffi.errno(), "mapping an io_uring");
	return { buffer: koffi.view(pointer, length), address };
}

/** Takes a mapping away; its buffer must not be used afterwards. */
export function unmap({ address, buffer }: Mapping): void {
	rawMunmap(Number(address), buffer.byteLength);
}

const NR_IO_URING_SETUP = 425;
const NR_IO_URING_ENTER = 426;
const NR_IO_URING_REGISTER = 427;

/** io_uring_setup(2): a descriptor or a negated errno; fills the parameters at `params`. The numbers are the same on all architectures. */
export const ioUringSetup = (entries: number, params: number): number =>
	checked(rawSyscall(NR_IO_URING_SETUP, entries, params, 0, 0, 0, 0));
export const ioUringEnter = (fd: number, submit: number, minimum: number, flags: number): number =>
	checked(rawSyscall(NR_IO_URING_ENTER, fd, submit, minimum, flags, 0, 0));
export const ioUringEnterAsync = (fd: number, submit: number, minimum: number, flags: number): Promise<number> =>
	syscallAsync(NR_IO_URING_ENTER, fd, submit, minimum, flags, 0, 0);
export const ioUringRegister = (fd: number, what: number, argument: number, count: number): number =>
	checked(rawSyscall(NR_IO_URING_REGISTER, fd, what, argument, count, 0, 0));

/** Of the calling thread; `attribute` is a struct sched_attr. */
export const schedSetattr = (attribute: number): number =>
	checked(rawSyscall(process.arch === "x64" ? 314 : 274, 0, attribute, 0, 0, 0, 0));

/** Allocates `length` zeroed bytes outside of the JavaScript heap, where the collector never moves them. */
export function pin(length: number): Pinned {
	// A backing store under 64 bytes may live inside the heap object.
	return pinned(new Uint8Array(Math.max(length, 4096)).subarray(0, length));
}

/** The address of an array that is known to be off the heap (see `pin`), shared memory included. */
export function pinned(bytes: Uint8Array): Pinned {
	return { bytes, address: addressOf(bytes) };
}

/** Address of the first byte of an off-heap array of any element type. */
export function addressOf(array: ArrayBufferView): number {
	return Number(koffi.address(array));
}

/** Writes a pointer or size_t into a little-endian 64-bit field of a C structure. */
export function put64(view: DataView, at: number, value: number): void {
	view.setUint32(at, value % 0x1_0000_0000, true);
	view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
}

/** Asks for a send buffer of `length` bytes; without privileges the kernel's own limit applies. */
export function setSendBuffer(fd: number, length: number): void {
	const value = pin(4);
	new DataView(value.bytes.buffer, value.bytes.byteOffset).setInt32(0, length, true);
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, value.address, 4) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value.address, 4);
}

const errnoNames = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number, name]));
/** "ENOSPC" for 28: for messages. */
export const errnoName = (errno: number): string => errnoNames.get(errno) ?? `errno ${errno}`;

/** Turns a failed call (a negated errno) into the error that the rest of the product knows. */
export function hostError(result: number, what: string): VmsweepError {
	const errno = -result;
	const code: ErrorCode = errno === ENOSPC || errno === EDQUOT ? "NO_SPACE" : "IO";
	const advice = code === "NO_SPACE" ? "Free space on the host, then try again." : "Check the host's storage.";
	return new VmsweepError(code, `${what}: ${errnoName(errno)}. ${advice}`);
}
