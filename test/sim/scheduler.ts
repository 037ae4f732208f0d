// Scheduler: who goes on next. Everything that waits in the simulation (a message on its way, a host call that takes its
// time, a flush) waits for a turn here, and the seed decides whose turn it is. So one seed replays one interleaving,
// and flushes complete late, out of order with everything else.
//
// After a power cut, or the end of the process, nobody gets another turn: whoever waits is simply forgotten.

/** Decides between possibilities: seeded for breadth, enumerated for small histories. */
export interface Chooser {
	/** An integer from 0 to `limit - 1`. */
	below(limit: number): number;
}

export class Scheduler {
	readonly #chooser: Chooser;
	#waiting: (() => void)[] = [];
	#failure: { readonly error: unknown } | undefined;
	/** In the enumeration of small histories, every wait is a choice; else some don't wait at all. */
	everyTurn = false;

	readonly #isExpected: (error: unknown) => boolean;

	/** @param isExpected says of failures where nobody waits that they are a part of the history */
	constructor(chooser: Chooser, isExpected: (error: unknown) => boolean) {
		this.#chooser = chooser;
		this.#isExpected = isExpected;
	}

	get waiting(): number {
		return this.#waiting.length;
	}

	/** Resolves when it is the caller's turn. */
	turn(): Promise<void> {
		if (!this.everyTurn && this.#chooser.below(2) === 0) return Promise.resolve();
		return this.later();
	}

	/** As `turn`, but never at once. */
	later(): Promise<void> {
		return new Promise((resolve) => this.#waiting.push(resolve));
	}

	/** Lets one of those who wait go on, until it and whoever it wakes wait again. */
	async next(who?: number): Promise<void> {
		if (this.#waiting.length === 0) return;
		const [resume] = this.#waiting.splice(who ?? this.#chooser.below(this.#waiting.length), 1);
		resume!();
		await this.drain();
	}

	/** Waits until everybody waits for a turn. Throws what was reported by `fail`. */
	async drain(): Promise<void> {
		// Promises settle before the next turn of Node's own loop; no timer and no I/O is ever under way.
		await new Promise(setImmediate);
		if (this.#failure !== undefined) throw this.#failure.error;
	}

	/** Something failed where nobody waits for it. */
	fail(error: unknown): void {
		this.#failure ??= { error };
	}

	/** Runs something that nobody waits for. */
	spawn(work: () => Promise<void>): void {
		work().catch((error: unknown) => {
			if (!this.#isExpected(error)) this.fail(error);
		});
	}
}
