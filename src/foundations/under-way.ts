// Work that is under way at once, up to a limit: whoever adds more waits for some of it to end.

export class UnderWay {
	readonly #max: number;
	readonly #works = new Set<Promise<void>>();
	#failure: { readonly error: unknown } | undefined;

	constructor(max: number) {
		this.#max = max;
	}

	/** Takes work that has begun. Resolves when there is room for more; throws what an earlier one failed with. */
	async add(work: Promise<void>): Promise<void> {
		const watched = work
			.catch((error: unknown) => {
				this.#failure ??= { error };
			})
			.finally(() => this.#works.delete(watched));
		this.#works.add(watched);
		if (this.#works.size >= this.#max) await Promise.race(this.#works);
		await this.#throwFailure();
	}

	/** Resolves when nothing is under way any more; throws what the first one failed with. */
	async settled(): Promise<void> {
		await Promise.all(this.#works);
		await this.#throwFailure();
	}

	async #throwFailure(): Promise<void> {
		if (this.#failure === undefined) return;
		const { error } = this.#failure;
		await Promise.all(this.#works);
		throw error as Error;
	}
}
