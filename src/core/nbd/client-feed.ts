// Feed: lets a parser be written as if it could wait for bytes.
//
//   function* parser(): Generator<Uint8Array, Result, void> {
//   	const header = new Uint8Array(16);
//   	yield header;                        // filled when this returns
//
// Whatever portions the network delivers, the parser sees whole records, and large data goes straight to its place.

/** A parser: yields arrays, gets them back filled. */
export type Parser<T> = Generator<Uint8Array, T, void>;

/** Runs one parser over what comes in. */
export class Feed<T> {
	readonly #parser: Parser<T>;
	#target: Uint8Array = new Uint8Array(0);
	#filled = 0;
	#result: { readonly value: T } | undefined;

	/** Runs the parser up to its first wish, so that it may send something first. */
	constructor(parser: Parser<T>) {
		this.#parser = parser;
		this.#advance();
	}

	/** What the parser returned, once it has. */
	get result(): { readonly value: T } | undefined {
		return this.#result;
	}

	/** Takes bytes; returns how many of them were used: all, unless the parser came to its end. Throws what it throws. */
	push(bytes: Uint8Array): number {
		let used = 0;
		while (used < bytes.length && this.#result === undefined) {
			const count = Math.min(this.#target.length - this.#filled, bytes.length - used);
			this.#target.set(bytes.subarray(used, used + count), this.#filled);
			this.#filled += count;
			used += count;
			if (this.#filled === this.#target.length) this.#advance();
		}
		return used;
	}

	#advance(): void {
		do {
			const step = this.#parser.next();
			if (step.done === true) {
				this.#result = { value: step.value };
				return;
			}
			this.#target = step.value;
			this.#filled = 0;
		} while (this.#target.length === 0);
	}
}
