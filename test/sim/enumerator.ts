// Enumerator: every sequence of choices, one after another, by depth first. A history that is run again and again with
// it takes every one of its interleavings once.

import type { Chooser } from "./scheduler.ts";

export class Enumerator implements Chooser {
	#path: { choice: number; readonly limit: number }[] = [];
	#at = 0;

	/** The next choice of the present sequence; the first time it is met, the first possibility. */
	below(limit: number): number {
		if (this.#at === this.#path.length) this.#path.push({ choice: 0, limit });
		return this.#path[this.#at++]!.choice;
	}

	/** Begins the next sequence; false where all have been tried. */
	advance(): boolean {
		this.#path.length = this.#at;
		this.#at = 0;
		while (this.#path.length > 0) {
			const last = this.#path.at(-1)!;
			if (++last.choice < last.limit) return true;
			this.#path.pop();
		}
		return false;
	}
}
