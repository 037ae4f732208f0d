// Overlaid disk: a view of a disk that a checker or a mount may write to, without anything reaching the disk itself.
//
//   read:   base ─► droppable blocks filled with a pattern, if wanted ─► what was written here
//   write:  a file that goes away with this process, of bounded size
//
// The pattern is no zeros: a file system that takes one of these blocks for its own finds rubbish, which no checksum, no magic number
// and no file content survives.

import type { FileHandle } from "node:fs/promises";
import type { OfferedDisk } from "../../adapters/nbd/disk-server.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { BLOCK_SIZE, type ByteCount, type ByteOffset, byteOffset, formatBytes } from "../../foundations/units.ts";

/** What a droppable block is filled with. */
export const PATTERN = new TextEncoder().encode("vmsweep verify!\n".repeat(BLOCK_SIZE / 16));

export class OverlaidDisk implements OfferedDisk {
	readonly size: ByteCount;
	readonly #base: ByteSource;
	/** Sorted pairs [block, count]…. */
	readonly #patterned: readonly number[];
	readonly #file: FileHandle;
	readonly #bytesMax: number;
	/** Where written blocks are in the file, by block. */
	readonly #written = new Map<number, number>();

	/**
	 * @param patterned blocks to be filled with the pattern, as sorted pairs [block, count]…
	 * @param file takes what is written, empty at first; the caller closes it
	 * @param bytesMax most that it may take
	 */
	constructor(base: ByteSource, patterned: readonly number[], file: FileHandle, bytesMax: number) {
		this.#base = base;
		this.size = base.size;
		this.#patterned = patterned;
		this.#file = file;
		this.#bytesMax = bytesMax;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#base.read(at, into);
		const end = at + into.length;
		const runs = this.#patterned;
		for (let i = this.#firstEndingBehind(at); i < runs.length && runs[i]! * BLOCK_SIZE < end; i += 2) {
			const from = Math.max(at, runs[i]! * BLOCK_SIZE);
			const to = Math.min(end, (runs[i]! + runs[i + 1]!) * BLOCK_SIZE);
			for (let byte = from; byte < to; ) {
				const inPattern = byte % BLOCK_SIZE;
				const length = Math.min(BLOCK_SIZE - inPattern, to - byte);
				into.set(PATTERN.subarray(inPattern, inPattern + length), byte - at);
				byte += length;
			}
		}
		if (this.#written.size === 0) return;
		for (let block = Math.floor(at / BLOCK_SIZE); block * BLOCK_SIZE < end; block++) {
			const place = this.#written.get(block);
			if (place === undefined) continue;
			const from = Math.max(at, block * BLOCK_SIZE);
			const to = Math.min(end, (block + 1) * BLOCK_SIZE);
			await this.#readFile(place + from - block * BLOCK_SIZE, into.subarray(from - at, to - at));
		}
	}

	/** Throws NO_SPACE where more is written than is allowed. */
	async write(at: ByteOffset, from: Uint8Array): Promise<void> {
		const end = at + from.length;
		for (let block = Math.floor(at / BLOCK_SIZE); block * BLOCK_SIZE < end; block++) {
			const start = Math.max(at, block * BLOCK_SIZE);
			const stop = Math.min(end, (block + 1) * BLOCK_SIZE);
			let bytes = from.subarray(start - at, stop - at);
			if (stop - start < BLOCK_SIZE) {
				const whole = new Uint8Array(BLOCK_SIZE);
				const length = Math.min(BLOCK_SIZE, this.size - block * BLOCK_SIZE);
				await this.read(byteOffset(block * BLOCK_SIZE), whole.subarray(0, length));
				whole.set(bytes, start - block * BLOCK_SIZE);
				bytes = whole;
			}
			const place = this.#written.get(block) ?? this.#written.size * BLOCK_SIZE;
			if (place + BLOCK_SIZE > this.#bytesMax)
				throw new VmsweepError(
					"NO_SPACE",
					`more than ${formatBytes(this.#bytesMax)} were written to a view that is only looked at`,
				);
			await this.#file.write(bytes, 0, BLOCK_SIZE, place);
			this.#written.set(block, place);
		}
	}

	async #readFile(at: number, into: Uint8Array): Promise<void> {
		const { bytesRead } = await this.#file.read(into, 0, into.length, at);
		if (bytesRead !== into.length)
			throw new VmsweepError("IO", "a temporary file ends early. Check the host's storage.");
	}

	/** Index of the first pair that reaches past a byte. */
	#firstEndingBehind(at: number): number {
		const runs = this.#patterned;
		let low = 0;
		let high = runs.length / 2;
		while (low < high) {
			const middle = (low + high) >>> 1;
			if ((runs[2 * middle]! + runs[2 * middle + 1]!) * BLOCK_SIZE <= at) low = middle + 1;
			else high = middle;
		}
		return 2 * low;
	}
}
