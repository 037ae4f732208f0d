// Used bitmap: one bit per allocation unit of a volume, 1 = in use. It starts with everything in use, and readers
// clear what is proved free, so whatever was never looked at stays in use.
//
//   units   0 ………… 32767 │ 32768 ……… 65535 │ 65536 ………
//   pages   all used      │ own 4 KiB of bits │ all free        within a page: lowest bit of the lowest byte first
//
// Large volumes are mostly empty or mostly full in long stretches. A page that is all one thing takes no memory of its
// own and is passed over in one step, so a new volume of a tebibyte costs kilobytes, not 32 MiB.
//
// Invariants
//  - the two shared pages are never written to: a page is copied before its first change
//  - bits past `length` are always 1

import { assert } from "../../foundations/errors.ts";

const WORD = 32;
/** Units in a page: what one ext4 group of 4 KiB blocks has. */
const PAGE_UNITS = 32768;

/** Bits set in a 32-bit word. */
function countBits(word: number): number {
	let v = word - ((word >>> 1) & 0x55555555);
	v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
	return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

export class UsedBitmap {
	/** How many units the volume has. */
	readonly length: number;
	readonly #pageUnits: number;
	readonly #allUsed: Int32Array;
	readonly #allFree: Int32Array;
	readonly #pages: Int32Array[];

	/** `pageUnits` is a multiple of 32; another one than the default is for tests. */
	constructor(length: number, pageUnits: number = PAGE_UNITS) {
		this.length = length;
		this.#pageUnits = pageUnits;
		this.#allUsed = new Int32Array(pageUnits / WORD).fill(-1);
		this.#allFree = new Int32Array(pageUnits / WORD);
		this.#pages = Array.from({ length: Math.ceil(length / pageUnits) }, () => this.#allUsed);
	}

	isUsed(unit: number): boolean {
		if (unit < 0 || unit >= this.length) return true;
		const at = unit % this.#pageUnits;
		return (this.#pages[Math.floor(unit / this.#pageUnits)]![at >>> 5]! & (1 << (at & 31))) !== 0;
	}

	/** Marks `[from, to)` as in use; parts outside the volume are ignored. */
	markUsed(from: number, to: number): void {
		this.#mark(Math.max(0, from), Math.min(to, this.length), true);
	}

	/** Marks `[from, from + count)` free. */
	markFree(from: number, count: number): void {
		assert(from >= 0 && from + count <= this.length, `bitmap part ${from}+${count} of ${this.length}`);
		this.#mark(from, from + count, false);
	}

	/** Takes the bits of units `[from, from + count)` from an on-disk bitmap; `from` must be a multiple of 8. */
	copyFrom(from: number, count: number, source: Uint8Array): void {
		assert(from % 8 === 0 && from + count <= this.length, `bitmap part ${from}+${count} of ${this.length}`);
		for (let done = 0; done < count; ) {
			const unit = from + done;
			const index = Math.floor(unit / this.#pageUnits);
			const at = unit % this.#pageUnits;
			const part = Math.min(count - done, this.#pageUnits - at);
			const words = this.#own(index);
			const bytes = new Uint8Array(words.buffer);
			const whole = part >>> 3;
			bytes.set(source.subarray(done / 8, done / 8 + whole), at / 8);
			const rest = part % 8;
			if (rest !== 0) {
				const mask = (1 << rest) - 1;
				const byte = at / 8 + whole;
				bytes[byte] = (bytes[byte]! & ~mask) | (source[done / 8 + whole]! & mask);
			}
			this.#share(index, words);
			done += part;
		}
	}

	/** Free units in `[from, to)`. */
	countFree(from = 0, to = this.length): number {
		let free = 0;
		const end = Math.min(to, this.length);
		for (let unit = Math.max(0, from); unit < end; ) {
			const index = Math.floor(unit / this.#pageUnits);
			const start = index * this.#pageUnits;
			const stop = Math.min(end, start + this.#pageUnits);
			const words = this.#pages[index]!;
			if (words === this.#allFree) free += stop - unit;
			else if (words !== this.#allUsed) free += countZeros(words, unit - start, stop - start);
			unit = stop;
		}
		return free;
	}

	/** The first unit at or after `from` that is in use (`used`) or free; `to` where there is none before it. */
	next(used: boolean, from: number, to: number): number {
		const skipPage = used ? this.#allFree : this.#allUsed;
		const skipWord = used ? 0 : -1;
		for (let unit = from; unit < to; ) {
			const index = Math.floor(unit / this.#pageUnits);
			const start = index * this.#pageUnits;
			const stop = Math.min(to, start + this.#pageUnits);
			const words = this.#pages[index]!;
			if (words !== skipPage)
				for (let at = unit - start; at < stop - start; ) {
					const word = words[at >>> 5]!;
					if (word === skipWord) {
						at = (at | 31) + 1;
						continue;
					}
					if (((word & (1 << (at & 31))) !== 0) === used) return start + at;
					at++;
				}
			unit = stop;
		}
		return to;
	}

	/** Maximal runs of free units in `[from, to)`, in order. */
	*freeRuns(from = 0, to = this.length): Generator<{ start: number; end: number }> {
		const limit = Math.min(to, this.length);
		let unit = Math.max(0, from);
		while (unit < limit) {
			const start = this.next(false, unit, limit);
			if (start >= limit) return;
			unit = this.next(true, start, limit);
			yield { start, end: unit };
		}
	}

	#mark(from: number, to: number, used: boolean): void {
		for (let unit = from; unit < to; ) {
			const index = Math.floor(unit / this.#pageUnits);
			const start = index * this.#pageUnits;
			const stop = Math.min(to, start + this.#pageUnits);
			const wanted = used ? this.#allUsed : this.#allFree;
			// Bits behind the volume's end stay 1, so only a page that is whole may become the free one.
			if (unit === start && stop === start + this.#pageUnits) this.#pages[index] = wanted;
			else if (this.#pages[index] !== wanted) setBits(this.#own(index), unit - start, stop - start, used);
			unit = stop;
		}
	}

	/** The page's bits for writing. */
	#own(index: number): Int32Array {
		const page = this.#pages[index]!;
		if (page !== this.#allUsed && page !== this.#allFree) return page;
		const own = page.slice();
		this.#pages[index] = own;
		return own;
	}

	/** Gives a page's memory back where it has become all one thing. */
	#share(index: number, words: Int32Array): void {
		const first = words[0]!;
		if ((first === 0 || first === -1) && words.every((word) => word === first))
			this.#pages[index] = first === 0 ? this.#allFree : this.#allUsed;
	}
}

/** Sets or clears the bits `[from, to)`. */
function setBits(words: Int32Array, from: number, to: number, set: boolean): void {
	for (let at = from; at < to; ) {
		const word = at >>> 5;
		const stop = Math.min(to, (word + 1) * WORD);
		const count = stop - at;
		const mask = (count === WORD ? -1 : (1 << count) - 1) << (at & 31);
		if (set) words[word]! |= mask;
		else words[word]! &= ~mask;
		at = stop;
	}
}

/** Clear bits in `[from, to)`. */
function countZeros(words: Int32Array, from: number, to: number): number {
	let zeros = 0;
	for (let at = from; at < to; ) {
		const word = at >>> 5;
		const stop = Math.min(to, (word + 1) * WORD);
		const count = stop - at;
		const mask = (count === WORD ? -1 : (1 << count) - 1) << (at & 31);
		zeros += countBits(~words[word]! & mask);
		at = stop;
	}
	return zeros;
}

/** Free (zero) bits among the first `count` bits of an on-disk bitmap. */
export function countZeroBits(bitmap: Uint8Array, count: number): number {
	let zeros = 0;
	let bit = 0;
	const view = new DataView(bitmap.buffer, bitmap.byteOffset, bitmap.length);
	for (; bit + 32 <= count; bit += 32) zeros += 32 - countBits(view.getInt32(bit / 8, true));
	for (; bit < count; bit++) if ((bitmap[bit >>> 3]! & (1 << (bit & 7))) === 0) zeros++;
	return zeros;
}
