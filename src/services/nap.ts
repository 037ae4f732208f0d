// Nap: a sleep that others may end early. One sleeper at a time; however often it sleeps, nothing is left behind.

export class Nap {
	#end: ((isOver: boolean) => void) | undefined;

	/** True once the time, in milliseconds, is over; false where it was woken. Infinity: only by being woken. */
	sleep(milliseconds: number): Promise<boolean> {
		return new Promise((resolve) => {
			const timer = Number.isFinite(milliseconds) ? setTimeout(() => this.#finish(true), milliseconds) : undefined;
			this.#end = (isOver) => {
				clearTimeout(timer);
				resolve(isOver);
			};
		});
	}

	/** Ends the sleep that is going on, if there is one. */
	wake(): void {
		this.#finish(false);
	}

	#finish(isOver: boolean): void {
		const end = this.#end;
		this.#end = undefined;
		end?.(isOver);
	}
}
