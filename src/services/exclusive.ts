// Exclusive: work on one disk's images, one piece after another, in the order in which it was asked for.

export class Exclusive {
	#last: Promise<unknown> = Promise.resolve();
	#waiting = 0;
	readonly #onWaiting: () => void;

	/** @param onWaiting somebody waits from now on, perhaps for work that could be cut short */
	constructor(onWaiting: () => void) {
		this.#onWaiting = onWaiting;
	}

	/** Somebody waits for the end of the work that goes on. */
	get isWanted(): boolean {
		return this.#waiting > 0;
	}

	/** Resolves when all work is done that was asked for before this. */
	async done(): Promise<void> {
		await this.#last;
	}

	/** Does `work` once no other goes on. Returns and throws what it does. */
	async run<T>(work: () => Promise<T>): Promise<T> {
		const before = this.#last;
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#last = promise;
		this.#waiting++;
		this.#onWaiting();
		await before;
		this.#waiting--;
		try {
			return await work();
		} finally {
			resolve();
		}
	}
}
