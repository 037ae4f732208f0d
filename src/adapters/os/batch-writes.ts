// Batch writes: many small writes to scattered places of one file, handed to the kernel in one call.
//
// A cleaned segment has up to two thousand blocks for as many places. A call per block on Node's pool costs more time
// than the kernel needs to write it; through io_uring a kernel thread does all of them, and one thread of the pool waits.
//
// Once the kernel refuses the ring, nobody knows what another call would hand it: it's never used again.

import { setTimeout } from "node:timers/promises";
import { IoUring } from "./io-uring.ts";
import * as sys from "./syscalls.ts";

/** Writes under way at once. */
const ENTRIES = 256;
/** Between two looks at a refused ring: what was taken before is still under way. */
const LOOK_AGAIN_MS = 1;

/** Bytes for a place of the file. */
export interface PlacedBytes {
	readonly at: number;
	/** Off the JavaScript heap: a part of what `sys.pin` gave. */
	readonly address: number;
	readonly length: number;
}

/** Writes to files through one ring. Calls wait for one another. */
export class BatchWriter {
	readonly #ring: IoUring;
	#isRefused = false;
	#last: Promise<unknown> = Promise.resolve();

	/** Undefined where the host has no io_uring, or forbids it. */
	static open(): BatchWriter | undefined {
		const ring = IoUring.open(ENTRIES);
		return ring === undefined ? undefined : new BatchWriter(ring);
	}

	private constructor(ring: IoUring) {
		this.#ring = ring;
	}

	/**
	 * Writes all pieces, parts of `memory`. Returns 0 or the first negated errno; others may have been written then.
	 * Undefined where the kernel refuses the ring, now and from then on: write all pieces in another way.
	 */
	async write(fd: number, pieces: readonly PlacedBytes[], memory: sys.Pinned): Promise<number | undefined> {
		const before = this.#last;
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#last = promise;
		await before;
		try {
			return await this.#writeAll(fd, pieces);
		} finally {
			// Referenced until here, where nothing is under way any more.
			memory.bytes.at(0);
			resolve();
		}
	}

	async #writeAll(fd: number, pieces: readonly PlacedBytes[]): Promise<number | undefined> {
		let queue = [...pieces];
		let failed = 0;
		while (queue.length > 0 && failed === 0) {
			if (this.#isRefused) return undefined;
			const batch = queue.slice(0, ENTRIES);
			const left: PlacedBytes[] = queue.slice(ENTRIES);
			for (const [id, { address, length, at }] of batch.entries()) this.#ring.write(id, fd, address, length, at);
			let finished = 0;
			while (finished < batch.length - (this.#isRefused ? this.#ring.unsubmitted : 0)) {
				// Whatever was taken is waited for, even where the call itself fails: the memory is the kernel's until then.
				if (this.#isRefused) await setTimeout(LOOK_AGAIN_MS);
				else this.#isRefused = !mayGoOn(await this.#ring.submitAsync(batch.length - finished));
				finished += this.#ring.harvest((id, result) => {
					const piece = batch[id]!;
					if (result === -sys.EINTR || result === -sys.EAGAIN) left.unshift(piece);
					else if (result < 0) failed = failed === 0 ? result : failed;
					else if (result === 0) failed = failed === 0 ? -sys.EIO : failed;
					else if (result < piece.length)
						left.unshift({ at: piece.at + result, address: piece.address + result, length: piece.length - result });
				});
			}
			queue = left;
		}
		return this.#isRefused ? undefined : failed;
	}
}

/** False where a call that hands over entries or waits for them can't be made again. */
const mayGoOn = (entered: number): boolean => entered >= 0 || entered === -sys.EINTR || entered === -sys.EAGAIN;
