// Rate limit: work that may move so many bytes in a second. Who does it says afterwards what it moved, and is told how
// long to wait before more:
//
//   bytes ─► paid for at the rate ─► what isn't paid yet is what to wait for
//
// Nothing is saved up: work that rested for an hour may not make up for it in a burst. Several may share one limit; each waits
// for what all of them have moved.

export class RateLimit {
	readonly #bytesPerSecond: number;
	readonly #now: () => number;
	/** When all that was moved is paid for. */
	#paidAt: number;

	/** @param now milliseconds from some start; only grows */
	constructor(bytesPerSecond: number, now: () => number = () => performance.now()) {
		this.#bytesPerSecond = bytesPerSecond;
		this.#now = now;
		this.#paidAt = now();
	}

	/** Bytes that take so many milliseconds. */
	bytesIn(milliseconds: number): number {
		return (this.#bytesPerSecond * milliseconds) / 1000;
	}

	/** So many bytes were moved just now. */
	spend(bytes: number): void {
		this.#paidAt = Math.max(this.#paidAt, this.#now()) + (bytes / this.#bytesPerSecond) * 1000;
	}

	/** Milliseconds until more may be moved; 0 for now. */
	get waitMs(): number {
		return Math.max(0, this.#paidAt - this.#now());
	}
}
