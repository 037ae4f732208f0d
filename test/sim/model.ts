// The promise, written down: what a disk may look like after a history of guest writes and a power cut.
//
// A guest's writes are events: one block gets one value (0: zeros), in the order in which they were committed. A recovered
// disk is right if some number k of events, at least all that were flushed, explains every block: the block has
// the value of its last event among the first k. Exceptions, none of which a flush or another block depends on:
//  - a write that failed may have happened or not
//  - a dropped block may have any content until it is written again: the guest doesn't use it. Where the guest's own
//    metadata on the recovered disk says that it does use it (`inUse`), there is no exception

interface Event {
	/** Its place among all events; -1: before them. */
	readonly index: number;
	readonly block: number;
	readonly value: number;
	/** The write failed. */
	readonly maybe: boolean;
	/** Its block was dropped after it. */
	dropped: boolean;
}

export class Model {
	readonly blocks: number;
	#initial: Event[];
	#events: Event[] = [];
	/** Events of each block. */
	#byBlock: Event[][];
	/** Events that are certainly durable. */
	#flushed = 0;

	/** @param unsettled blocks that may show anything until they are written */
	constructor(initial: readonly number[], unsettled: ReadonlySet<number> = new Set()) {
		this.blocks = initial.length;
		this.#initial = initial.map((value, block) => ({
			index: -1,
			block,
			value,
			maybe: false,
			dropped: unsettled.has(block),
		}));
		this.#byBlock = initial.map(() => []);
	}

	get eventCount(): number {
		return this.#events.length;
	}

	write(block: number, value: number, maybe: boolean): void {
		const event = { index: this.#events.length, block, value, maybe, dropped: false };
		this.#events.push(event);
		this.#byBlock[block]!.push(event);
	}

	/** The block's content is given up. */
	drop(block: number): void {
		for (const event of this.#byBlock[block]!) event.dropped = true;
		this.#initial[block]!.dropped = true;
	}

	/** Did `block` ever hold `value`? A dropped one may show anything. */
	everHeld(block: number, value: number): boolean {
		const all = [this.#initial[block]!, ...this.#byBlock[block]!];
		return all.some((event) => event.dropped || event.value === value);
	}

	/** What `block` holds now, where that is certain. */
	latest(block: number): number | undefined {
		const event = this.#byBlock[block]!.at(-1) ?? this.#initial[block]!;
		return event.maybe || event.dropped ? undefined : event.value;
	}

	/** Blocks that may show anything after the first `events` events, as far as the guest doesn't use them. */
	unsettled(events = this.#events.length): Set<number> {
		const isUnsettled = (block: number): boolean => {
			const last = this.#byBlock[block]!.findLastIndex(({ index }) => index < events);
			return this.#possible(block, last + 1).some(({ dropped }) => dropped);
		};
		return new Set(Array.from({ length: this.blocks }, (_, block) => block).filter(isUnsettled));
	}

	/** The first `events` events survive any cut from now on. */
	flushed(events: number): void {
		this.#flushed = Math.max(this.#flushed, events);
	}

	/** May `block`, which the guest uses or not, read as `value` now? */
	allowsNow(block: number, value: number, inUse = false): boolean {
		return this.#explains(block, this.#byBlock[block]!.length, value, inUse);
	}

	/**
	 * The number of events that explains the recovered disk, on which the guest uses some blocks, or why none does. Blocks
	 * of `unknown` show anything.
	 */
	explain(
		disk: readonly number[],
		inUse?: ReadonlySet<number>,
		unknown?: ReadonlySet<number>,
	): { events: number } | { problem: string } {
		const explains = (block: number, count: number): boolean =>
			unknown?.has(block) === true || this.#explains(block, count, disk[block]!, inUse?.has(block) ?? false);
		const seen = Array.from({ length: this.blocks }, () => 0);
		const wrong = new Set<number>();
		for (let block = 0; block < this.blocks; block++) if (!explains(block, 0)) wrong.add(block);
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
			if (explains(block, seen[block]!)) wrong.delete(block);
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

	/** One of the events that the first `count` of a block's end with left `value`. */
	#explains(block: number, count: number, value: number, inUse: boolean): boolean {
		return this.#possible(block, count).some((event) => (event.dropped && !inUse) || event.value === value);
	}

	/** What a block may hold after its first `count` events, newest first: the last that did not fail, or a failed one after it. */
	#possible(block: number, count: number): Event[] {
		const events = this.#byBlock[block]!;
		const possible: Event[] = [];
		for (let i = count - 1; i >= -1; i--) {
			const event = i >= 0 ? events[i]! : this.#initial[block]!;
			possible.push(event);
			if (!event.maybe) break;
		}
		return possible;
	}
}
