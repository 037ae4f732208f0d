// Socket buffers of one client: pinned memory that recv fills and send drains.
//
//   input:   | consumed | start … received, not yet parsed … end | free |
//   output:  | sent     | start … replies, not yet sent …    end | free |
//
// Both start again at zero whenever they run empty, so that a busy connection keeps using the same warm
// cache lines. Nothing here allocates once a connection is up, but for reads larger than the output buffer.

import { viewOf } from "../../foundations/struct.ts";
import type { Pinned } from "../os/syscalls.ts";
import * as sys from "../os/syscalls.ts";

/** Bytes that one recv may bring: some hundred 4 KiB writes; larger payloads pass through in pieces. */
const INPUT_BYTES = 1024 * 1024;
/** Room that a recv should have: more than a socket usually holds. */
const RECEIVE_BYTES_MIN = 512 * 1024;
/** Replies that wait for the socket before the connection's requests wait too. */
const OUTPUT_BYTES = 2 * 1024 * 1024 + 64 * 1024;

/** What a socket call brought. */
export type SocketState = "progress" | "wait" | "closed";

export class InputBuffer {
	readonly memory: Pinned = sys.pin(INPUT_BYTES);
	readonly view: DataView = viewOf(this.memory.bytes);
	start = 0;
	end = 0;
	/** Bytes that ever came from the socket. */
	received = 0;

	get length(): number {
		return this.end - this.start;
	}
	get isFull(): boolean {
		return this.start === 0 && this.end === INPUT_BYTES;
	}

	/** Takes bytes that came before the data plane had the socket (at most INPUT_BYTES). */
	preload(bytes: Uint8Array): void {
		this.memory.bytes.set(bytes, this.end);
		this.end += bytes.length;
	}

	consume(count: number): void {
		this.start += count;
		if (this.start === this.end) this.start = this.end = 0;
	}

	/** Receives what fits. Where little does, the part of a request that is already there moves to the front first. */
	receive(fd: number): SocketState {
		if (this.start > 0 && INPUT_BYTES - this.end < RECEIVE_BYTES_MIN) {
			this.memory.bytes.copyWithin(0, this.start, this.end);
			this.end -= this.start;
			this.start = 0;
		}
		if (this.end === INPUT_BYTES) return "progress";
		const count = sys.recv(fd, this.memory.address + this.end, INPUT_BYTES - this.end);
		if (count > 0) {
			this.end += count;
			this.received += count;
			return "progress";
		}
		return count === -sys.EAGAIN || count === -sys.EINTR ? "wait" : "closed";
	}
}

export class OutputBuffer {
	memory: Pinned = sys.pin(OUTPUT_BYTES);
	view: DataView = viewOf(this.memory.bytes);
	start = 0;
	end = 0;
	/** Bytes that the socket ever took. */
	sent = 0;

	get isEmpty(): boolean {
		return this.start === this.end;
	}
	get length(): number {
		return this.end - this.start;
	}
	get free(): number {
		return this.memory.bytes.length - this.end;
	}

	/** True once `count` more bytes fit: sent bytes are dropped, and an empty buffer grows to hold one large reply. */
	reserve(count: number): boolean {
		if (count <= this.free) return true;
		if (this.start > 0 && count <= this.free + this.start) {
			this.memory.bytes.copyWithin(0, this.start, this.end);
			this.end -= this.start;
			this.start = 0;
			return true;
		}
		if (!this.isEmpty) return false;
		this.#replace(sys.pin(count));
		return true;
	}

	/** Makes room for `count` more bytes behind what still waits, in a larger buffer. */
	grow(count: number): void {
		const waiting = this.memory.bytes.slice(this.start, this.end);
		this.#replace(sys.pin(waiting.length + 2 * count));
		this.memory.bytes.set(waiting);
		this.end = waiting.length;
	}

	/** Sends what the socket takes. */
	send(fd: number): SocketState {
		while (this.start < this.end) {
			const count = sys.send(fd, this.memory.address + this.start, this.end - this.start);
			if (count === -sys.EINTR) continue;
			if (count === -sys.EAGAIN) return "wait";
			if (count <= 0) return "closed";
			this.start += count;
			this.sent += count;
		}
		this.start = this.end = 0;
		if (this.memory.bytes.length > OUTPUT_BYTES) this.#replace(sys.pin(OUTPUT_BYTES));
		return "progress";
	}

	#replace(memory: Pinned): void {
		this.memory = memory;
		this.view = viewOf(memory.bytes);
		this.start = this.end = 0;
	}
}
