// Staging: what one batch of requests asks to be written, in order, until commit appends it. Parallel arrays
// that are reused, so that staging a write allocates nothing.

import type { PinnedBytes } from "./host-file.ts";

export class Staging {
	count = 0;
	/** The item that comes next, and how many of its blocks are in the log already. */
	cursor = 0;
	cursorBlocks = 0;
	#capacity = 64;
	/** KIND_DATA, KIND_ZERO or KIND_DROP. */
	kinds = new Uint8Array(this.#capacity);
	blocks = new Float64Array(this.#capacity);
	counts = new Float64Array(this.#capacity);
	/** Where the data of a KIND_DATA item starts in its source, in bytes; for a KIND_DROP item DROPPED_IN_…. */
	offsets = new Float64Array(this.#capacity);
	readonly sources: (PinnedBytes | undefined)[] = [];

	add(kind: number, block: number, count: number, source: PinnedBytes | undefined, offset: number): void {
		if (this.count === this.#capacity) this.#grow();
		const at = this.count++;
		this.kinds[at] = kind;
		this.blocks[at] = block;
		this.counts[at] = count;
		this.offsets[at] = offset;
		this.sources[at] = source;
	}

	get finished(): boolean {
		return this.cursor === this.count;
	}

	clear(): void {
		this.count = 0;
		this.cursor = 0;
		this.cursorBlocks = 0;
	}

	#grow(): void {
		this.#capacity *= 2;
		const kinds = new Uint8Array(this.#capacity);
		kinds.set(this.kinds);
		this.kinds = kinds;
		this.blocks = grown(this.blocks);
		this.counts = grown(this.counts);
		this.offsets = grown(this.offsets);
	}
}

function grown(array: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
	const larger = new Float64Array(array.length * 2);
	larger.set(array);
	return larger;
}
