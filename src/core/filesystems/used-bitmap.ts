// Used bitmap: one bit per allocation unit of a volume, 1 = in use. It starts with everything in use, and readers
// clear what is proved free, so whatever was never looked at stays in use.
//
//   byte 0: units 0–7, lowest bit first (as ext2's, NTFS's and exFAT's own bitmaps)
//
// Bits past `length` in the last byte are always 1.

import { assert } from "../../foundations/errors.ts";

/** Bits set in a 32-bit word. */
function countBits(word: number): number {
	let v = word - ((word >>> 1) & 0x55555555);
	v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
	return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

export class UsedBitmap {
	/** How many units the volume has. */
	readonly length: number;
	readonly #bytes: Uint8Array;
	/** The same bits as whole words, for the scans. */
	readonly #words: Int32Array;

	constructor(length: number) {
		this.length = length;
		this.#words = new Int32Array(Math.ceil(length / 32)).fill(-1);
		this.#bytes = new Uint8Array(this.#words.buffer);
	}

	isUsed(unit: number): boolean {
		return unit < 0 || unit >= this.length || (this.#bytes[Math.floor(unit / 8)]! & (1 << (unit % 8))) !== 0;
	}

	/** Marks `[from, to)` as in use; parts outside the volume are ignored. */
	markUsed(from: number, to: number): void {
		const end = Math.min(to, this.length);
		let unit = Math.max(0, from);
		for (; unit < end && unit % 8 !== 0; unit++) this.#bytes[Math.floor(unit / 8)]! |= 1 << (unit % 8);
		const wholeBytes = Math.floor((end - unit) / 8);
		if (wholeBytes > 0) {
			this.#bytes.fill(0xff, unit / 8, unit / 8 + wholeBytes);
			unit += wholeBytes * 8;
		}
		for (; unit < end; unit++) this.#bytes[Math.floor(unit / 8)]! |= 1 << (unit % 8);
	}

	/** Takes the bits of units `[from, from + count)` from an on-disk bitmap; `from` must be a multiple of 8. */
	copyFrom(from: number, count: number, source: Uint8Array): void {
		assert(from % 8 === 0 && from + count <= this.length, `bitmap part ${from}+${count} of ${this.length}`);
		const whole = Math.floor(count / 8);
		const at = from / 8;
		this.#bytes.set(source.subarray(0, whole), at);
		const rest = count % 8;
		if (rest !== 0) {
			const mask = (1 << rest) - 1;
			this.#bytes[at + whole] = (this.#bytes[at + whole]! & ~mask) | (source[whole]! & mask);
		}
	}

	/** Marks `[from, from + count)` free; `from` must be a multiple of 8. */
	markFree(from: number, count: number): void {
		assert(from % 8 === 0 && from + count <= this.length, `bitmap part ${from}+${count} of ${this.length}`);
		const end = (from + count - (count % 8)) / 8;
		this.#bytes.fill(0, from / 8, end);
		if (count % 8 !== 0) this.#bytes[end]! &= ~((1 << (count % 8)) - 1);
	}

	/** Free units in `[from, to)`. */
	countFree(from = 0, to = this.length): number {
		let free = 0;
		const end = Math.min(to, this.length);
		let unit = Math.max(0, from);
		for (; unit < end && unit % 32 !== 0; unit++) if (!this.isUsed(unit)) free++;
		for (; unit + 32 <= end; unit += 32) free += 32 - countBits(this.#words[unit / 32]!);
		for (; unit < end; unit++) if (!this.isUsed(unit)) free++;
		return free;
	}

	/** The first unit at or after `from` that is in use (`used`) or free; `to` where there is none before it. */
	next(used: boolean, from: number, to: number): number {
		const skipWord = used ? 0 : -1;
		let unit = from;
		while (unit < to) {
			if (unit % 32 === 0) {
				let word = unit / 32;
				const lastWord = Math.floor(to / 32);
				while (word < lastWord && this.#words[word] === skipWord) word++;
				unit = word * 32;
				if (unit >= to) return to;
			}
			const stop = Math.min(to, unit - (unit % 32) + 32);
			for (; unit < stop; unit++) if (this.isUsed(unit) === used) return unit;
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
