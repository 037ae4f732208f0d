// Connection of the lean client: keeps a number of requests under way until it is told to stop.
//
//   recv ─► scan replies ─► a new request for each answer ─► one send for all of them
//
// Payloads of writes are whatever the output buffer holds, random bytes at first: nothing is copied. The buffer begins
// at its start whenever all of it was sent.

import { randomFillSync } from "node:crypto";
import * as sys from "../../src/adapters/os/syscalls.ts";
import { command, REQUEST_MAGIC, Request } from "../../src/core/nbd/protocol.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import type { LatencyHistogram } from "./histogram.ts";
import { Load, type LoadPlan } from "./load.ts";
import { ReplyScanner } from "./replies.ts";
import { connectTo, disconnect, receive } from "./socket.ts";

const INPUT_BYTES = 256 * 1024;
const SEND_BUFFER_BYTES = 4 * 1024 * 1024;

export class LeanConnection {
	readonly fd: number;
	/** Completed reads and writes; flushes are not counted. */
	operations = 0;
	/** Requests without an answer yet. */
	inFlight = 0;
	readonly #blockBytes: number;
	readonly #load: Load;
	readonly #histogram: LatencyHistogram;
	readonly #free: number[];
	readonly #sentAt: Float64Array;
	readonly #types: Uint8Array;
	readonly #scanner: ReplyScanner;
	readonly #input = sys.pin(INPUT_BYTES);
	readonly #inputView = viewOf(this.#input.bytes);
	readonly #output: sys.Pinned;
	readonly #outputView: DataView;
	#inputEnd = 0;
	#outputStart = 0;
	#outputEnd = 0;

	constructor(path: string, depth: number, plan: LoadPlan, histogram: LatencyHistogram) {
		const { fd, sizeBytes } = connectTo(path);
		if (plan.rangeBytes > sizeBytes) throw new VmsweepError("USAGE", `${path} serves ${sizeBytes} bytes only.`);
		sys.setSendBuffer(fd, SEND_BUFFER_BYTES);
		this.fd = fd;
		this.#blockBytes = plan.blockBytes;
		this.#load = new Load(plan);
		this.#histogram = histogram;
		this.#free = Array.from({ length: depth }, (_, slot) => slot);
		this.#sentAt = new Float64Array(depth);
		this.#types = new Uint8Array(depth);
		this.#scanner = new ReplyScanner((slot) => (this.#types[slot] === command.READ ? plan.blockBytes : 0));
		this.#output = sys.pin(2 * depth * (Request.size + plan.blockBytes));
		this.#outputView = viewOf(this.#output.bytes);
		randomFillSync(this.#output.bytes);
	}

	/** Something waits to be sent. */
	get wantsToSend(): boolean {
		return this.#outputEnd > this.#outputStart;
	}

	/** Fills up to the depth, and sends what the socket takes. */
	ask(now: number): void {
		while (this.#free.length > 0) this.#put(this.#free.pop()!, now);
		this.send();
	}

	/** Waits for answers, and counts what came. */
	hear(): void {
		this.#inputEnd += receive(this.fd, this.#input.address + this.#inputEnd, INPUT_BYTES - this.#inputEnd);
		const rest = this.#scanner.scan(this.#inputView, this.#inputEnd);
		this.#input.bytes.copyWithin(0, rest, this.#inputEnd);
		this.#inputEnd -= rest;
		const now = performance.now();
		for (let i = 0; i < this.#scanner.finishedCount; i++) this.#finish(this.#scanner.finished[i]!, now);
	}

	send(): void {
		if (!this.wantsToSend) return;
		const sent = sys.send(this.fd, this.#output.address + this.#outputStart, this.#outputEnd - this.#outputStart);
		if (sent === -sys.EAGAIN || sent === -sys.EINTR) return;
		if (sent < 0) throw sys.hostError(sent, "sending to the server");
		this.#outputStart += sent;
		if (this.wantsToSend) return;
		this.#outputStart = 0;
		this.#outputEnd = 0;
	}

	close(): void {
		disconnect(this.fd);
	}

	#finish(slot: number, now: number): void {
		this.inFlight--;
		this.#free.push(slot);
		if (this.#types[slot] === command.FLUSH) return;
		this.operations++;
		this.#histogram.add(now - this.#sentAt[slot]!);
	}

	#put(slot: number, now: number): void {
		const load = this.#load;
		load.next();
		const { type, offset } = load;
		const isWrite = type === command.WRITE;
		const needed = Request.size + (isWrite ? this.#blockBytes : 0);
		if (this.#outputEnd + needed > this.#output.bytes.length) this.#makeRoom();
		const view = this.#outputView;
		const at = this.#outputEnd;
		view.setUint32(at, REQUEST_MAGIC);
		view.setUint32(at + 4, type); // flags 0, type
		view.setUint32(at + 8, 0);
		view.setUint32(at + 12, slot);
		Request.write.offset(view, at, offset);
		view.setUint32(at + 24, type === command.FLUSH ? 0 : this.#blockBytes);
		this.#outputEnd += needed;
		this.#types[slot] = type;
		this.#sentAt[slot] = now;
		this.inFlight++;
	}

	/** What is not sent yet belongs to requests under way, so it takes at most half of the buffer. */
	#makeRoom(): void {
		this.#output.bytes.copyWithin(0, this.#outputStart, this.#outputEnd);
		this.#outputEnd -= this.#outputStart;
		this.#outputStart = 0;
	}
}
