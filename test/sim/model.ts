// The promise, written down: what a disk may look like after a history of guest writes and a power cut.
//
// A guest's writes are events: one block gets one value (0: zeros), in the order in which they were committed. A recovered
// disk is right if some number k of events, at least all that were flushed, explains every block: the block has
// the value of its last event among the first k. Exceptions, none of which a flush or another block depends on:
//  - a write that failed may have happened or not
//  - a dropped block may have any content until it is written again: the guest doesn't use it

interface Event {
	readonly block: number;
	readonly value: number;
	/** The write failed. */
	readonly maybe: boolean;
	/** Its block was dropped after it. */
	dropped: boolean;
}

/** Value of a block whose content is no whole write. */
export const GARBAGE = -1;

export class Model {
	readonly blocks: number;
	#initial: Event[];
	#events: Event[] = [];
	/** Events of each block. */
	#byBlock: Event[][];
	/** Events that are certainly durable. */
	#flushed = 0;

	constructor(initial: readonly number[]) {
		this.blocks = initial.length;
		this.#initial = initial.map((value, block) => ({ block, value, maybe: false, dropped: false }));
		this.#byBlock = initial.map(() => []);
	}

	get eventCount(): number {
		return this.#events.length;
	}

	write(block: number, value: number, maybe: boolean): void {
		const event = { block, value, maybe, dropped: false };
		this.#events.push(event);
		this.#byBlock[block]!.push(event);
	}

	/** The block's content is given up. */
	drop(block: number): void {
		for (const event of this.#byBlock[block]!) event.dropped = true;
		this.#initial[block]!.dropped = true;
	}

	/** The first `events` events survive any cut from now on. */
	flushed(events: number): void {
		this.#flushed = Math.max(this.#flushed, events);
	}

	/** May `block` read as `value` now? */
	allowsNow(block: number, value: number): boolean {
		return this.#explains(block, this.#byBlock[block]!.length, value);
	}

	/** The number of events that explains the recovered disk, or why none does. */
	explain(disk: readonly number[]): { events: number } | { problem: string } {
		const seen = Array.from({ length: this.blocks }, () => 0);
		const wrong = new Set<number>();
		for (let block = 0; block < this.blocks; block++) if (!this.#explains(block, 0, disk[block]!)) wrong.add(block);
		let best: { events: number; wrong: number[] } | undefined;
		for (let k = 0; ; k++) {
			if (k >= this.#flushed) {
				if (wrong.size === 0) return { events: k };
				if (!best || wrong.size < best.wrong.length) best = { events: k, wrong: [...wrong] };
			}
			const event = this.#events[k];
			if (!event) break;
			const { block } = event;
			seen[block]!++;
			if (this.#explains(block, seen[block]!, disk[block]!)) wrong.delete(block);
			else wrong.add(block);
		}
		const shown = best!.wrong.slice(0, 4).map((block) => {
			const history = this.#byBlock[block]!.map((event) => `${this.#events.indexOf(event)}:${event.value}`).join(" ");
			return `block ${block} is ${disk[block]}, was ${this.#initial[block]!.value}, written ${history || "never"}`;
		});
		return {
			problem: `no prefix of ${this.#events.length} events (${this.#flushed} flushed) explains the disk; nearest ${best!.events}: ${shown.join("; ")}`,
		};
	}

	/** The last of the first `count` events of a block, or one of the failed ones after it, left `value`. */
	#explains(block: number, count: number, value: number): boolean {
		const events = this.#byBlock[block]!;
		for (let i = count - 1; i >= -1; i--) {
			const event = i >= 0 ? events[i]! : this.#initial[block]!;
			if (event.dropped || event.value === value) return true;
			if (!event.maybe) return false;
		}
		return false;
	}
}
