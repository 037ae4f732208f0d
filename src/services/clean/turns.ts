// Turns: which of a process's disks clean at once. Each asks for a turn before a round, and gives it back while it rests.
//
//   disk ─ take(outlook) ─► waiting ─► nextOf: urgent, then who waits too long, then who gives most back ─► its turn
//                                                                                       end, rest ─► the next one's
//
// As many clean at once as there are places: each takes up to a processor that the guests' disks need, too. An urgent disk
// waits for nobody's round: there is one place more for those.

/** What a disk's next round may bring. Sizes in bytes. */
export interface Outlook {
	/** The first image is nearly full, or clients wait for room in it. */
	readonly isUrgent: boolean;
	/** Share of the first image's limit that is in use. */
	readonly fill: number;
	/** What the host gets back, and what has to be copied for it. */
	readonly backBytes: number;
	readonly movedBytes: number;
}

/** Whoever waits for longer than this goes before all that aren't urgent, in milliseconds. */
const PATIENCE_MS = 10_000;
/** What a round costs that copies nothing, as bytes copied: so that tiny gains don't look like great ones. */
const ROUND_COST_BYTES = 1024 * 1024;

/** A disk that waits. */
export interface Waiting extends Outlook {
	/** In milliseconds of any clock. */
	readonly since: number;
}

/** Who is to go next; undefined for nobody. */
export function nextOf<W extends Waiting>(waiting: readonly W[], now: number): W | undefined {
	let first: W | undefined;
	for (const each of waiting) if (first === undefined || goesBefore(each, first, now)) first = each;
	return first;
}

function goesBefore(one: Waiting, other: Waiting, now: number): boolean {
	if (one.isUrgent !== other.isUrgent) return one.isUrgent;
	if (one.isUrgent && one.fill !== other.fill) return one.fill > other.fill;
	const [oneStarves, otherStarves] = [one, other].map(({ since }) => now - since > PATIENCE_MS);
	if (oneStarves !== otherStarves) return oneStarves === true;
	const [gain, otherGain] = [gainOf(one), gainOf(other)];
	if (!oneStarves && gain !== otherGain) return gain > otherGain;
	return one.since < other.since;
}

/** Bytes back per byte copied; the fuller a log is, the more its space is worth. */
const gainOf = ({ backBytes, movedBytes, fill }: Outlook): number =>
	(backBytes / (movedBytes + ROUND_COST_BYTES)) * (1 + fill);

/** A disk's place, or its wait for one. */
export class Turn implements Waiting {
	readonly since: number;
	isUrgent: boolean;
	readonly fill: number;
	readonly backBytes: number;
	readonly movedBytes: number;
	readonly #turns: CleaningTurns;
	readonly #granted = Promise.withResolvers<void>();
	/** Has a place. */
	isGranted = false;

	constructor(turns: CleaningTurns, outlook: Outlook, since: number) {
		const { isUrgent, fill, backBytes, movedBytes } = outlook;
		this.#turns = turns;
		this.since = since;
		this.isUrgent = isUrgent;
		this.fill = fill;
		this.backBytes = backBytes;
		this.movedBytes = movedBytes;
	}

	/** Resolves when the disk may clean, or doesn't want to any more. */
	get granted(): Promise<void> {
		return this.#granted.promise;
	}

	/** For `CleaningTurns`. */
	grant(): void {
		this.isGranted = true;
		this.#granted.resolve();
	}

	/** The disk has become urgent meanwhile. */
	hurry(): void {
		this.isUrgent = true;
		this.#turns.grantNext();
	}

	/** Gives the place to another disk, or waits for none any more. More than once is as good as once. */
	end(): void {
		this.#turns.remove(this);
		this.#granted.resolve();
	}
}

export class CleaningTurns {
	readonly #places: number;
	readonly #now: () => number;
	readonly #working = new Set<Turn>();
	readonly #waiting = new Set<Turn>();

	/** @param places disks that clean at once */
	constructor(places: number, now: () => number = () => performance.now()) {
		this.#places = places;
		this.#now = now;
	}

	/** Nobody would have to wait now: what a round may bring needn't be asked. */
	get isFree(): boolean {
		return this.#working.size < this.#places;
	}

	take(outlook: Outlook): Turn {
		const turn = new Turn(this, outlook, this.#now());
		this.#waiting.add(turn);
		this.grantNext();
		return turn;
	}

	remove(turn: Turn): void {
		this.#waiting.delete(turn);
		if (this.#working.delete(turn)) this.grantNext();
	}

	grantNext(): void {
		for (;;) {
			const next = nextOf([...this.#waiting], this.#now());
			const places = this.#places + (next?.isUrgent ? 1 : 0);
			if (next === undefined || this.#working.size >= places) return;
			this.#waiting.delete(next);
			this.#working.add(next);
			next.grant();
		}
	}
}
