// io_uring: system calls that the kernel carries out while this thread goes on, without a thread of our own for each.
//
//   submission ring, mapped   entries that we write, taken by one io_uring_enter for many
//   completion ring, mapped   results that the kernel writes; an eventfd rings when there are some
//
// Layouts and numbers: <linux/io_uring.h>, io_uring_setup(2), io_uring_enter(2), io_uring_register(2). The rings are
// memory that the kernel reads and writes too, so their ends are loaded and stored with Atomics, which are fences.

import * as sys from "./syscalls.ts";

const OP_FSYNC = 3;
const OP_READ_FIXED = 4;
const OP_READ = 22;
const OP_WRITE = 23;
const FSYNC_DATASYNC = 1;

const OFFSET_SQ_RING = 0;
const OFFSET_CQ_RING = 0x800_0000;
const OFFSET_SQES = 0x1000_0000;
const PARAMS_BYTES = 120;
const SQE_BYTES = 64;
const CQE_BYTES = 16;

const REGISTER_BUFFERS = 0;
const REGISTER_EVENTFD = 4;
const ENTER_GETEVENTS = 1;

/** Set to anything, all is done without io_uring although the host has it. */
const NO_IO_URING = "VMSWEEP_NO_IO_URING";

/** Told of one finished call: what it was submitted with, and its result or negated errno. */
export type OnCompletion = (id: number, result: number) => void;

export class IoUring {
	readonly #fd: number;
	readonly #sqEntries: number;
	readonly #sqMask: number;
	readonly #sqHead: Int32Array;
	readonly #sqTail: Int32Array;
	readonly #sqes: DataView;
	readonly #cqMask: number;
	readonly #cqHead: Int32Array;
	readonly #cqTail: Int32Array;
	readonly #cqes: DataView;
	readonly #mappings: readonly sys.Mapping[];
	/** Submission entries written and not yet handed to the kernel. */
	#unsubmitted = 0;
	#tail = 0;

	/** Undefined where the host has no io_uring or forbids it, or the user does. `entries` is a power of two. */
	static open(entries: number): IoUring | undefined {
		if (process.env[NO_IO_URING] !== undefined) return undefined;
		const params = sys.pin(PARAMS_BYTES);
		const fd = sys.ioUringSetup(entries, params.address);
		if (fd < 0) return undefined;
		const ring = new IoUring(fd, new DataView(params.bytes.buffer, params.bytes.byteOffset, PARAMS_BYTES));
		// An old kernel has the rings but not all of the calls.
		if (ring.#probe()) return ring;
		ring.close();
		return undefined;
	}

	private constructor(fd: number, params: DataView) {
		this.#fd = fd;
		const u32 = (at: number): number => params.getUint32(at, true);
		this.#sqEntries = u32(0);
		const sq = { head: u32(40), tail: u32(44), mask: u32(48), array: u32(64) };
		const cq = { head: u32(80), tail: u32(84), mask: u32(88), cqes: u32(100) };
		const sqRing = sys.mapRing(fd, OFFSET_SQ_RING, sq.array + this.#sqEntries * 4);
		const cqRing = sys.mapRing(fd, OFFSET_CQ_RING, cq.cqes + u32(4) * CQE_BYTES);
		const sqes = sys.mapRing(fd, OFFSET_SQES, this.#sqEntries * SQE_BYTES);
		this.#mappings = [sqRing, cqRing, sqes];
		this.#sqHead = new Int32Array(sqRing.buffer, sq.head, 1);
		this.#sqTail = new Int32Array(sqRing.buffer, sq.tail, 1);
		this.#sqMask = new Int32Array(sqRing.buffer, sq.mask, 1)[0]!;
		this.#cqHead = new Int32Array(cqRing.buffer, cq.head, 1);
		this.#cqTail = new Int32Array(cqRing.buffer, cq.tail, 1);
		this.#cqMask = new Int32Array(cqRing.buffer, cq.mask, 1)[0]!;
		this.#cqes = new DataView(cqRing.buffer, cq.cqes);
		new Uint8Array(sqes.buffer).fill(0);
		this.#sqes = new DataView(sqes.buffer);
		// Entry i of the ring is always submission entry i.
		const order = new Int32Array(sqRing.buffer, sq.array, this.#sqEntries);
		for (let i = 0; i < this.#sqEntries; i++) order[i] = i;
		this.#tail = this.#sqTail[0]!;
	}

	/** Rings `eventfd` whenever a call has finished. Returns 0 or a negated errno. */
	ring(eventfd: number): number {
		const argument = sys.pin(4);
		new DataView(argument.bytes.buffer, argument.bytes.byteOffset).setInt32(0, eventfd, true);
		return sys.ioUringRegister(this.#fd, REGISTER_EVENTFD, argument.address, 1);
	}

	/** Registers one buffer, for `readFixed`. Returns 0 or a negated errno. */
	registerBuffer({ address, bytes }: sys.Pinned): number {
		const iovec = sys.pin(16);
		const view = new DataView(iovec.bytes.buffer, iovec.bytes.byteOffset, 16);
		sys.put64(view, 0, address);
		sys.put64(view, 8, bytes.length);
		return sys.ioUringRegister(this.#fd, REGISTER_BUFFERS, iovec.address, 1);
	}

	/** True where one more call can be queued before `submit`. */
	get hasRoom(): boolean {
		// Both wrap around at 32 bits.
		return ((this.#tail - Atomics.load(this.#sqHead, 0)) | 0) < this.#sqEntries;
	}

	/** Queues a read of `length` bytes at `at` of a file. The memory is the kernel's until it has finished. */
	read(id: number, fd: number, address: number, length: number, at: number): void {
		this.#queue(OP_READ, id, fd, address, length, at, 0);
	}

	/** The same, but fails with EAGAIN at once where a device would have to be waited for. */
	readCached(id: number, fd: number, address: number, length: number, at: number): void {
		this.#queue(OP_READ, id, fd, address, length, at, sys.RWF_NOWAIT);
	}

	/** The same into the registered buffer. */
	readFixed(id: number, fd: number, address: number, length: number, at: number): void {
		this.#queue(OP_READ_FIXED, id, fd, address, length, at, 0);
	}

	/** Queues a write. */
	write(id: number, fd: number, address: number, length: number, at: number): void {
		this.#queue(OP_WRITE, id, fd, address, length, at, 0);
	}

	/** Queues an fdatasync. It covers what was written before `submit`. */
	datasync(id: number, fd: number): void {
		this.#queue(OP_FSYNC, id, fd, 0, 0, 0, FSYNC_DATASYNC);
	}

	/** Hands all that is queued to the kernel, and waits for `minimum` calls to finish. Returns a negated errno or what was taken. */
	submit(minimum = 0): number {
		if (this.#unsubmitted === 0 && minimum === 0) return 0;
		Atomics.store(this.#sqTail, 0, this.#tail | 0);
		const taken = sys.ioUringEnter(this.#fd, this.#unsubmitted, minimum, minimum > 0 ? ENTER_GETEVENTS : 0);
		if (taken > 0) this.#unsubmitted -= taken;
		return taken;
	}

	/** As `submit`, waiting on a thread of Node's pool. Nothing else may be done with the ring meanwhile. */
	async submitAsync(minimum: number): Promise<number> {
		Atomics.store(this.#sqTail, 0, this.#tail | 0);
		const taken = await sys.ioUringEnterAsync(this.#fd, this.#unsubmitted, minimum, ENTER_GETEVENTS);
		if (taken > 0) this.#unsubmitted -= taken;
		return taken;
	}

	/** Calls that are queued and not yet handed to the kernel. */
	get unsubmitted(): number {
		return this.#unsubmitted;
	}

	/** Tells of all calls that have finished. Returns how many. */
	harvest(onCompletion: OnCompletion): number {
		let head = this.#cqHead[0]!;
		const tail = Atomics.load(this.#cqTail, 0);
		let count = 0;
		while (head !== tail) {
			const at = (head & this.#cqMask) * CQE_BYTES;
			const id = this.#cqes.getUint32(at, true);
			const result = this.#cqes.getInt32(at + 8, true);
			head = (head + 1) | 0;
			// Given back first: what the callee queues may finish at once.
			Atomics.store(this.#cqHead, 0, head);
			count++;
			onCompletion(id, result);
		}
		return count;
	}

	/** Nothing may be under way. */
	close(): void {
		for (const mapping of this.#mappings) sys.unmap(mapping);
		sys.close(this.#fd);
	}

	#queue(op: number, id: number, fd: number, address: number, length: number, at: number, flags: number): void {
		const entry = (this.#tail & this.#sqMask) * SQE_BYTES;
		const view = this.#sqes;
		// All fields that any call here sets: the others, flags and the buffer's index among them, are zero for all of them
		// and stay so, since nobody else writes entries.
		view.setUint8(entry, op);
		view.setInt32(entry + 4, fd, true);
		sys.put64(view, entry + 8, at);
		sys.put64(view, entry + 16, address);
		view.setUint32(entry + 24, length, true);
		view.setUint32(entry + 28, flags, true);
		view.setUint32(entry + 32, id, true);
		this.#tail = (this.#tail + 1) | 0;
		this.#unsubmitted++;
	}

	/** Does this kernel know plain reads (5.6)? A wrong descriptor is answered with EBADF, an unknown call with EINVAL. */
	#probe(): boolean {
		this.read(0, -1, 0, 0, 0);
		if (this.submit(1) < 0) return false;
		let answer = 0;
		this.harvest((_, result) => {
			answer = result;
		});
		return answer === -EBADF;
	}
}

const EBADF = 9;
