// Batch writes: many small writes to scattered places of one file, handed to the kernel in one call.
//
// A cleaned segment has up to two thousand blocks for as many places. A call per block on Node's pool costs more time
// than the kernel needs to write it; through io_uring a kernel thread does all of them, and one thread of the pool waits.

import { IoUring } from "./io-uring.ts";
import * as sys from "./syscalls.ts";

/** Writes under way at once. */
const ENTRIES = 256;

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
	#last: Promise<unknown> = Promise.resolve();

	/** Undefined where the host has no io_uring, or forbids it. */
	static open(): BatchWriter | undefined {
		const ring = IoUring.open(ENTRIES);
		return ring === undefined ? undefined : new BatchWriter(ring);
	}

	private constructor(ring: IoUring) {
		this.#ring = ring;
	}

	/** Writes all pieces. Returns 0 or the first negated errno; others may have been written then. `keep` holds their memory. */
	async write(fd: number, pieces: readonly PlacedBytes[], keep: readonly sys.Pinned[]): Promise<number> {
		const before = this.#last;
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#last = promise;
		await before;
		try {
			return await this.#writeAll(fd, pieces);
		} finally {
			// Nothing is under way any more.
			keep.at(0)?.bytes.at(0);
			resolve();
		}
	}

	async #writeAll(fd: number, pieces: readonly PlacedBytes[]): Promise<number> {
		let queue = [...pieces];
		let failed = 0;
		while (queue.length > 0 && failed === 0) {
			const batch = queue.slice(0, ENTRIES);
			const left: PlacedBytes[] = queue.slice(ENTRIES);
			for (const [id, { address, length, at }] of batch.entries()) this.#ring.write(id, fd, address, length, at);
			let finished = 0;
			while (finished < batch.length) {
				const entered = await this.#ring.submitAsync(batch.length - finished);
				finished += this.#ring.harvest((id, result) => {
					const piece = batch[id]!;
					if (result === -sys.EINTR || result === -sys.EAGAIN) left.unshift(piece);
					else if (result < 0) failed = failed === 0 ? result : failed;
					else if (result === 0) failed = failed === 0 ? -sys.EIO : failed;
					else if (result < piece.length)
						left.unshift({ at: piece.at + result, address: piece.address + result, length: piece.length - result });
				});
				// Whatever was taken is waited for, even where the call itself fails: the memory is the kernel's until then.
				if (entered < 0 && entered !== -sys.EINTR && entered !== -sys.EAGAIN && this.#ring.unsubmitted > 0)
					throw sys.hostError(entered, "handing writes to io_uring");
			}
			queue = left;
		}
		return failed;
	}
}
