// Sparse pages: leaves of the index map in which few blocks differ from all others. Without them, writes of single
// blocks all over a large disk would cost a full page of 1 KiB each.
//
//   word 0: how many are listed, and the value of the others │ listed blocks, a byte each │ their values, a word each
//
//   small   16 words   up to 12 listed
//   medium  64 words   up to 50 listed
//
// The list is in no order. A block whose value is that of the others is not listed. Pages are named by numbers from
// FIRST_SPARSE on: medium ones by those from FIRST_MEDIUM on.

/** Value of blocks that aren't listed: ABSENT or ZERO, whose numbers these are. */
type Others = number;

export const FIRST_SPARSE = 0x2000_0000;
const FIRST_MEDIUM = 0x4000_0000;
/** Blocks of a leaf. */
const LEAF_BLOCKS = 256;
const OTHERS_SHIFT = 16;
const COUNT_MASK = 0xffff;

/** Pages of one size. */
class Pool {
	readonly capacity: number;
	readonly words: number;
	/** Word of a page at which values start. */
	readonly valuesAt: number;
	readonly shift: number;
	readonly mask: number;
	readonly slabs: Uint32Array[] = [];
	/** The same memory, for the bytes that name blocks. */
	readonly bytes: Uint8Array[] = [];
	readonly births: Uint32Array[] = [];
	used = 0;
	#free = new Uint32Array(256);
	#freeCount = 0;

	constructor(words: number, capacity: number, shift: number) {
		this.words = words;
		this.capacity = capacity;
		this.valuesAt = words - capacity;
		this.shift = shift;
		this.mask = (1 << shift) - 1;
	}

	get pagesInUse(): number {
		return this.used - this.#freeCount;
	}

	allocate(epoch: number): number {
		const page = this.#freeCount > 0 ? this.#free[--this.#freeCount]! : this.used++;
		const slab = page >>> this.shift;
		if (slab === this.slabs.length) {
			const memory = new Uint32Array(this.words << this.shift);
			this.slabs.push(memory);
			this.bytes.push(new Uint8Array(memory.buffer));
			this.births.push(new Uint32Array(1 << this.shift));
		}
		this.births[slab]![page & this.mask] = epoch;
		return page;
	}

	free(page: number): void {
		if (this.#freeCount === this.#free.length) {
			const grown = new Uint32Array(this.#free.length * 2);
			grown.set(this.#free);
			this.#free = grown;
		}
		this.#free[this.#freeCount++] = page;
	}
}

export class SparsePages {
	readonly #small = new Pool(16, 12, 11);
	readonly #medium = new Pool(64, 50, 9);

	get pagesInUse(): number {
		return this.#small.pagesInUse + this.#medium.pagesInUse;
	}

	/** An empty page that can list `room` blocks, or 0 where none is so large. */
	allocate(room: number, others: Others, epoch: number): number {
		if (room > this.#medium.capacity) return 0;
		const isSmall = room <= this.#small.capacity;
		const pool = isSmall ? this.#small : this.#medium;
		const page = pool.allocate(epoch);
		pool.slabs[page >>> pool.shift]![(page & pool.mask) * pool.words] = others << OTHERS_SHIFT;
		return page + (isSmall ? FIRST_SPARSE : FIRST_MEDIUM);
	}

	free(page: number): void {
		this.#poolOf(page).free(this.#numberOf(page));
	}

	birth(page: number): number {
		const pool = this.#poolOf(page);
		const number = this.#numberOf(page);
		return pool.births[number >>> pool.shift]![number & pool.mask]!;
	}

	capacity(page: number): number {
		return this.#poolOf(page).capacity;
	}

	count(page: number): number {
		return this.#head(page) & COUNT_MASK;
	}

	others(page: number): Others {
		return this.#head(page) >>> OTHERS_SHIFT;
	}

	/** Value of the block `index` of the leaf. */
	get(page: number, index: number): number {
		const pool = page < FIRST_MEDIUM ? this.#small : this.#medium;
		const number = page & (FIRST_SPARSE - 1);
		const slab = number >>> pool.shift;
		const base = (number & pool.mask) * pool.words;
		const words = pool.slabs[slab]!;
		const bytes = pool.bytes[slab]!;
		const head = words[base]!;
		const count = head & COUNT_MASK;
		const keys = base * 4 + 4;
		for (let i = 0; i < count; i++) if (bytes[keys + i] === index) return words[base + pool.valuesAt + i]!;
		return head >>> OTHERS_SHIFT;
	}

	/** First listed block behind `index`, or the leaf's end; `index + 1` where `index` is listed itself. */
	next(page: number, index: number): number {
		const pool = this.#poolOf(page);
		const number = this.#numberOf(page);
		const base = (number & pool.mask) * pool.words;
		const bytes = pool.bytes[number >>> pool.shift]!;
		const count = pool.slabs[number >>> pool.shift]![base]! & COUNT_MASK;
		let next = LEAF_BLOCKS;
		for (let i = 0; i < count; i++) {
			const listed = bytes[base * 4 + 4 + i]!;
			if (listed === index) return index + 1;
			if (listed > index && listed < next) next = listed;
		}
		return next;
	}

	/** How many blocks the page would list at most, were `count` of them set from `index` on. */
	roomFor(page: number, index: number, count: number): number {
		const pool = this.#poolOf(page);
		const number = this.#numberOf(page);
		const base = (number & pool.mask) * pool.words;
		const bytes = pool.bytes[number >>> pool.shift]!;
		const listed = pool.slabs[number >>> pool.shift]![base]! & COUNT_MASK;
		let among = 0;
		for (let i = 0; i < listed; i++) {
			const block = bytes[base * 4 + 4 + i]!;
			if (block >= index && block < index + count) among++;
		}
		return listed + count - among;
	}

	/** Sets a block's value; there is room for it. Returns the value that it had. */
	set(page: number, index: number, value: number): number {
		const pool = this.#poolOf(page);
		const number = this.#numberOf(page);
		const slab = number >>> pool.shift;
		const base = (number & pool.mask) * pool.words;
		const words = pool.slabs[slab]!;
		const bytes = pool.bytes[slab]!;
		const head = words[base]!;
		const count = head & COUNT_MASK;
		const others = head >>> OTHERS_SHIFT;
		const keys = base * 4 + 4;
		const values = base + pool.valuesAt;
		let at = 0;
		while (at < count && bytes[keys + at] !== index) at++;
		if (at === count) {
			if (value !== others) {
				bytes[keys + at] = index;
				words[values + at] = value;
				words[base] = head + 1;
			}
			return others;
		}
		const old = words[values + at]!;
		if (value !== others) words[values + at] = value;
		else {
			// The last one of the list takes its place.
			bytes[keys + at] = bytes[keys + count - 1]!;
			words[values + at] = words[values + count - 1]!;
			words[base] = head - 1;
		}
		return old;
	}

	/** Lists in `to`, which is empty, what `from` lists. */
	copy(from: number, to: number): void {
		this.#forEach(from, (index, value) => void this.set(to, index, value));
	}

	/** Puts the listed values where a full page at `base` of `into` has them. */
	spread(page: number, into: Uint32Array, base: number): void {
		this.#forEach(page, (index, value) => {
			into[base + index] = value;
		});
	}

	#forEach(page: number, visit: (index: number, value: number) => void): void {
		const pool = this.#poolOf(page);
		const number = this.#numberOf(page);
		const words = pool.slabs[number >>> pool.shift]!;
		const bytes = pool.bytes[number >>> pool.shift]!;
		const base = (number & pool.mask) * pool.words;
		const count = words[base]! & COUNT_MASK;
		for (let i = 0; i < count; i++) visit(bytes[base * 4 + 4 + i]!, words[base + pool.valuesAt + i]!);
	}

	#head(page: number): number {
		const pool = this.#poolOf(page);
		const number = this.#numberOf(page);
		return pool.slabs[number >>> pool.shift]![(number & pool.mask) * pool.words]!;
	}

	#poolOf(page: number): Pool {
		return page < FIRST_MEDIUM ? this.#small : this.#medium;
	}

	#numberOf(page: number): number {
		return page & (FIRST_SPARSE - 1);
	}
}
