// What the log asks of the host: one file, and memory that the host can gather from without a copy.
//
// The product implements this over system calls, the crash simulator over an array with torn sectors,
// so that exactly the same log code runs under simulated power cuts. Everything is synchronous.

import type { ByteOffset } from "../../foundations/units.ts";

/** Memory whose address never changes, so system calls can gather from it. `address` is 0 in the simulator. */
export interface PinnedBytes {
	readonly bytes: Uint8Array;
	readonly address: number;
}

/**
 * A reusable list of pieces of pinned memory, in the order in which they are to be written. Parallel
 * arrays rather than objects: filling it on the write path allocates nothing once it has grown.
 */
export class GatherList {
	/** Number of valid pieces; entries past it are left over from earlier use. */
	count = 0;
	/** Sum of all pieces in bytes. */
	totalBytes = 0;
	readonly pinned: PinnedBytes[] = [];
	/** First byte of each piece in its `pinned` memory. */
	offsets = new Float64Array(64);
	/** Length of each piece in bytes. */
	lengths = new Float64Array(64);

	push(pinned: PinnedBytes, offset: number, length: number): void {
		if (this.count === this.offsets.length) this.#grow();
		this.pinned[this.count] = pinned;
		this.offsets[this.count] = offset;
		this.lengths[this.count] = length;
		this.count++;
		this.totalBytes += length;
	}

	clear(): void {
		this.count = 0;
		this.totalBytes = 0;
	}

	#grow(): void {
		const offsets = new Float64Array(this.offsets.length * 2);
		offsets.set(this.offsets);
		this.offsets = offsets;
		const lengths = new Float64Array(this.lengths.length * 2);
		lengths.set(this.lengths);
		this.lengths = lengths;
	}
}

/**
 * The file that holds the first image. Every call is done when it returns, or throws a VmsweepError:
 * NO_SPACE where the host is full, IO for anything else. After a write that threw, each sector of its
 * range holds what it held or what was to be written; bytes outside the range are untouched.
 */
export interface HostFile {
	/** Length of the file in bytes. */
	size(): number;
	/** Writes all pieces one after another at `at`. Splits where the system allows only so many pieces. */
	writeGather(list: GatherList, at: ByteOffset): void;
	write(from: Uint8Array, at: ByteOffset): void;
	/** Fills all of `into`. Bytes past the end of the file read as zeros. */
	read(at: ByteOffset, into: Uint8Array): void;
	/** Says that a range will be read soon, so that it may be fetched ahead. Optional; never fails. */
	willNeed?(at: ByteOffset, length: number): void;
	/** Returns once everything written before the call would survive a power cut. */
	datasync(): void;
	/** Gives the host space of a range back; it reads as zeros afterwards. */
	punch(at: ByteOffset, length: number): void;
	/** Makes sure that the host has space for a range, growing the file where needed; keeps what it holds. */
	allocate(at: ByteOffset, length: number): void;
	truncate(size: number): void;
}
