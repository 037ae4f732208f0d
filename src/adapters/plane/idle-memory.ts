// Idle memory: a disk that rests after work has memory given back that only the work needed. Once per rest, and only after
// work worth it: giving back takes some milliseconds, and so does taking it again.

/** Looks for work in a row that found none: two seconds. */
const IDLE_LOOKS = 4;
const WORTH_ROUNDS = 1000;

export class IdleMemory {
	readonly #onRested: () => void;
	/** Opening a disk is such work, too. */
	#busyRounds = WORTH_ROUNDS;
	#idleLooks = 0;

	constructor(onRested: () => void) {
		this.#onRested = onRested;
	}

	/** To be told of each round: had clients anything to do for it, or else the control plane, which asks now and then at rest, too? */
	note(wasBusy: boolean, wasAsked = false): void {
		if (wasBusy) this.#idleLooks = 0;
		if (wasBusy || wasAsked) {
			this.#busyRounds++;
			return;
		}
		if (++this.#idleLooks < IDLE_LOOKS || this.#busyRounds < WORTH_ROUNDS) return;
		this.#busyRounds = 0;
		this.#onRested();
	}
}
