// Patience: how long the data plane keeps asking for work before it sleeps.
//
// Waking a sleeping thread costs more than answering a small request, most of all inside a VM. A client that sends
// its next request soon after an answer is therefore waited for awake, for some microseconds; where nobody comes
// in time the wait is halved, down to none, and tried again now and then. An idle disk sleeps.

const LONGEST_MS = 0.25;
const SHORTEST_MS = 0.06;
/** Sleeps without a wait before one is tried again. */
const SLEEPS_BETWEEN_TRIALS = 64;

export class Patience {
	#allowanceMs = SHORTEST_MS;
	#sleeps = 0;

	/** Asks `ready` until it says something other than 0 or patience ends. Returns its last answer. */
	wait(ready: () => number): number {
		if (this.#allowanceMs === 0) {
			if (++this.#sleeps < SLEEPS_BETWEEN_TRIALS) return 0;
			this.#sleeps = 0;
			this.#allowanceMs = SHORTEST_MS;
		}
		const until = performance.now() + this.#allowanceMs;
		let answer = 0;
		do answer = ready();
		while (answer === 0 && performance.now() < until);
		if (answer !== 0) this.#allowanceMs = Math.min(LONGEST_MS, this.#allowanceMs * 2);
		else this.#allowanceMs = this.#allowanceMs / 2 < SHORTEST_MS ? 0 : this.#allowanceMs / 2;
		return answer;
	}
}
