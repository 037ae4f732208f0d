// An export as a virtual disk: reads of any place and length, as requests that the server takes.
//
// Long reads are cut into pieces, and several are under way at once, over all readers; ends that don't lie on the
// server's block size are read with what surrounds them. What the server says about allocation is asked for in long
// stretches, and the last answer is kept, since a caller who asks for one run asks for the next one soon.

import { type ByteSource, checkRange } from "../../foundations/source.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset, roundDown, roundUp } from "../../foundations/units.ts";
import type { DiskRun, VirtualDisk } from "../images/virtual-disk.ts";
import type { Negotiated } from "./client-handshake.ts";
import type { ClientTransmission } from "./client-transmission.ts";
import { allocation } from "./protocol.ts";

/** Requests under way at once. */
const REQUESTS_AT_ONCE = 16;
const READ_BYTES_MAX = 1 << 20;
const STATUS_BYTES_MAX = 1 << 30;

/** A run of the export, by the flags that the server gave it. */
export interface AllocatedRun {
	readonly start: number;
	readonly end: number;
	/** Does it read as zeros? */
	readonly zero: boolean;
	/** Does it take space where the server stores it? */
	readonly held: boolean;
}

export class RemoteDisk implements VirtualDisk, ByteSource {
	readonly size: ByteCount;
	readonly #what: string;
	readonly #negotiated: Negotiated;
	readonly #transmission: ClientTransmission;
	readonly #turns = new Turns(REQUESTS_AT_ONCE);
	/** Runs of the last answer, in order, without gap. */
	#status: readonly AllocatedRun[] = [];

	constructor(negotiated: Negotiated, transmission: ClientTransmission, what: string) {
		this.size = byteCount(negotiated.size);
		this.#negotiated = negotiated;
		this.#transmission = transmission;
		this.#what = what;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		checkRange(this.size, at, into.length, this.#what);
		const { blockSizeMin, payloadMax } = this.#negotiated;
		const step = roundDown(Math.min(READ_BYTES_MAX, payloadMax), blockSizeMin);
		const end = at + into.length;
		const pieces: Promise<void>[] = [];
		for (let start = roundDown(at, blockSizeMin); start < end; start += step) {
			const stop = Math.min(start + step, roundUp(end, blockSizeMin), this.size);
			pieces.push(this.#turns.take(() => this.#readPiece(start, stop, at, into)));
		}
		// Only when none is under way any more, so that nothing is written into the buffer after a failure.
		const failed = (await Promise.allSettled(pieces)).find((result) => result.status === "rejected");
		if (failed !== undefined) throw failed.reason;
	}

	async *runs(from: ByteOffset, to: ByteOffset): AsyncGenerator<DiskRun> {
		let pending: DiskRun | undefined;
		for await (const { start, end, zero } of this.allocated(from, to)) {
			const kind = zero ? "zero" : "data";
			if (pending?.kind === kind) {
				pending = { ...pending, length: byteCount(pending.length + end - start) };
				continue;
			}
			if (pending !== undefined) yield pending;
			pending = { start: byteOffset(start), length: byteCount(end - start), kind };
		}
		if (pending !== undefined) yield pending;
	}

	/** The runs of `[from, to)` as the server describes them; one run of data where it doesn't. */
	async *allocated(from: ByteOffset, to: ByteOffset): AsyncGenerator<AllocatedRun> {
		checkRange(this.size, from, to - from, this.#what);
		for (let at: number = from; at < to; ) {
			for (const run of await this.#statusAt(at)) {
				if (run.end <= at) continue;
				if (at >= to) break;
				const end = Math.min(run.end, to);
				yield { ...run, start: at, end };
				at = end;
			}
		}
	}

	async #readPiece(start: number, stop: number, at: number, into: Uint8Array): Promise<void> {
		const [from, to] = [Math.max(start, at), Math.min(stop, at + into.length)];
		const target = into.subarray(from - at, to - at);
		if (from === start && to === stop) {
			await this.#transmission.read(start, target);
			return;
		}
		const whole = new Uint8Array(stop - start);
		await this.#transmission.read(start, whole);
		target.set(whole.subarray(from - start, to - start));
	}

	/** Runs without gap, of which one holds `at`. */
	async #statusAt(at: number): Promise<readonly AllocatedRun[]> {
		const known = this.#status;
		if (known.length > 0 && at >= known[0]!.start && at < known.at(-1)!.end) return known;
		const { allocationContext, blockSizeMin } = this.#negotiated;
		if (allocationContext === null) return [{ start: 0, end: this.size, zero: false, held: true }];
		const first = roundDown(at, blockSizeMin);
		const length = Math.min(STATUS_BYTES_MAX, this.size - first);
		const runs: AllocatedRun[] = [];
		let start = first;
		for (const extent of await this.#turns.take(() => this.#transmission.blockStatus(first, length))) {
			const end = Math.min(start + extent.length, this.size);
			if (end === start) break;
			const zero = (extent.flags & allocation.ZERO) !== 0;
			runs.push({ start, end, zero, held: (extent.flags & allocation.HOLE) === 0 });
			start = end;
		}
		// An answer that ends before `at` (in the block that was asked for) is no answer; the block counts as data.
		if (start <= at) return [{ start: first, end: Math.min(first + blockSizeMin, this.size), zero: false, held: true }];
		this.#status = runs;
		return runs;
	}
}

/** Lets a number of calls run at once; the others wait for their turn. */
class Turns {
	#free: number;
	readonly #waiting: (() => void)[] = [];

	constructor(count: number) {
		this.#free = count;
	}

	async take<T>(work: () => Promise<T>): Promise<T> {
		if (this.#free > 0) this.#free--;
		else await new Promise<void>((resolve) => this.#waiting.push(resolve));
		try {
			return await work();
		} finally {
			const next = this.#waiting.shift();
			if (next === undefined) this.#free++;
			else next();
		}
	}
}
