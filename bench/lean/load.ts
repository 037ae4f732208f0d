// Load: what is asked of the server, request after request. Pure: the same numbers in, the same requests out.

import { command } from "../../src/core/nbd/protocol.ts";

export interface LoadPlan {
	readonly order: "random" | "sequential";
	/** Share of reads in percent; the rest are writes. */
	readonly readPercent: number;
	readonly blockBytes: number;
	/** Bytes of the disk to use, from its start; a multiple of `blockBytes`. */
	readonly rangeBytes: number;
	/** A flush after this many writes; 0: none. */
	readonly flushEvery: number;
	readonly seed: number;
}

export class Load {
	/** Of the request that `next` chose. A flush has neither offset nor length. */
	type: number = command.READ;
	offset = 0;
	readonly #plan: LoadPlan;
	readonly #blocks: number;
	#block = 0;
	#random: number;
	#writesSinceFlush = 0;

	constructor(plan: LoadPlan) {
		this.#plan = plan;
		this.#blocks = Math.floor(plan.rangeBytes / plan.blockBytes);
		this.#random = plan.seed | 1;
	}

	/** Chooses the next request. */
	next(): void {
		const { order, readPercent, blockBytes, flushEvery } = this.#plan;
		if (flushEvery > 0 && this.#writesSinceFlush === flushEvery) {
			this.#writesSinceFlush = 0;
			this.type = command.FLUSH;
			this.offset = 0;
			return;
		}
		const reads = readPercent === 100 || (readPercent > 0 && this.#below(100) < readPercent);
		this.type = reads ? command.READ : command.WRITE;
		if (!reads) this.#writesSinceFlush++;
		const block = order === "random" ? this.#below(this.#blocks) : this.#block++ % this.#blocks;
		this.offset = block * blockBytes;
	}

	/** Uniform below `limit` (Marsaglia's xorshift with 32 bits). */
	#below(limit: number): number {
		let x = this.#random;
		x ^= x << 13;
		x ^= x >>> 17;
		x ^= x << 5;
		this.#random = x;
		return Math.floor(((x >>> 0) / 0x1_0000_0000) * limit);
	}
}
