// Bounded cache: the parts of an image's tables that were read last, within a budget of bytes.
//
// Tables of a large image don't fit in memory, and a guest map asks for the same few again and again. What is being
// read counts as cached already, so that concurrent readers share one read.

/** What an entry takes besides, in bytes, roughly: a hostile image may have millions of tables of four bytes. */
const ENTRY_OVERHEAD = 400;

/** Keeps what was used last. Keys are the caller's: usually a position in a file. */
export class BoundedCache<T> {
	readonly #budget: number;
	readonly #entries = new Map<number, { readonly value: Promise<T>; readonly cost: number }>();
	#used = 0;

	/** `budget` in bytes, over all entries' costs. */
	constructor(budget: number) {
		this.#budget = budget;
	}

	/** The value under `key`; loads it where it isn't there. A failed load is tried again the next time. */
	get(key: number, cost: number, load: () => Promise<T>): Promise<T> {
		const found = this.#entries.get(key);
		if (found !== undefined) {
			// A map remembers the order of insertion: the entry that comes first was not used for longest.
			this.#entries.delete(key);
			this.#entries.set(key, found);
			return found.value;
		}
		const value = load();
		const whole = cost + ENTRY_OVERHEAD;
		this.#entries.set(key, { value, cost: whole });
		this.#used += whole;
		value.catch(() => this.#forget(key, value));
		for (const oldest of this.#entries.keys()) {
			if (this.#used <= this.#budget || oldest === key) break;
			this.#forget(oldest);
		}
		return value;
	}

	#forget(key: number, only?: Promise<T>): void {
		const entry = this.#entries.get(key);
		if (entry === undefined || (only !== undefined && entry.value !== only)) return;
		this.#entries.delete(key);
		this.#used -= entry.cost;
	}
}
