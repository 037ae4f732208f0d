// Seeded random numbers for the simulation: the same seed replays the same history.

export class Random {
	#state: number;
	constructor(seed: number) {
		this.#state = seed >>> 0;
	}

	/** 32 random bits (mulberry32). */
	bits(): number {
		this.#state = (this.#state + 0x6d2b79f5) >>> 0;
		let mixed = this.#state;
		mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
		mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
		return (mixed ^ (mixed >>> 14)) >>> 0;
	}

	/** An integer from 0 to `limit - 1`. */
	below(limit: number): number {
		return this.bits() % limit;
	}

	/** True in `percent` of 100 cases. */
	chance(percent: number): boolean {
		return this.bits() % 10_000 < percent * 100;
	}

	pick<T>(items: readonly T[]): T {
		return items[this.below(items.length)]!;
	}
}
