// Idle memory: a disk that rests after work gives back what the allocator kept of that. Once per rest, and only after work worth
// it: giving back takes some milliseconds, and so does taking it again.

/** Looks for work in a row that found none: two seconds. */
const IDLE_LOOKS = 4;
const WORTH_ROUNDS = 1000;

export class IdleMemory {
	readonly #giveBack: () => void;
	/** Opening a disk is such work, too. */
	#busyRounds = WORTH_ROUNDS;
	#idleLooks = 0;

	constructor(giveBack: () => void) {
		this.#giveBack = giveBack;
	}

	/** To be told of each round: had it anything to do? */
	note(wasBusy: boolean): void {
		if (wasBusy) {
			this.#busyRounds++;
			this.#idleLooks = 0;
			return;
		}
		if (++this.#idleLooks < IDLE_LOOKS || this.#busyRounds < WORTH_ROUNDS) return;
		this.#busyRounds = 0;
		this.#giveBack();
	}
}
