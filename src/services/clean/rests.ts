// Rests: where a round in the background lets the guest through, and keeps to the limit on what cleaning reads and writes.
//
//   a piece of work ─► a rest, as long as the pace or the limit asks for ─► the next piece
//
// Only while the round is gentle: where room is short, or somebody waits for the round's end, it goes on without.

import type { PlanePort } from "../../adapters/plane/messages.ts";
import type { BatchLimits } from "../../core/cleaner/runs.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { RateLimit } from "../rate-limit.ts";
import { isUrgent, type Pace } from "./pace.ts";

/** With a limit on bytes, what it allows in this time is copied at once. */
const PAID_AT_ONCE_MS = 250;

export interface RestsParts {
	readonly plane: PlanePort;
	readonly pace: Pace;
	/** Milliseconds from some start; only grows. */
	readonly now: () => number;
	/** See `CleanerDisk`. */
	readonly rest: (milliseconds: number) => Promise<boolean>;
	readonly limit: RateLimit | undefined;
	/** Copied between two rests, in place of what the pace says. */
	readonly piece: (() => BatchLimits) | undefined;
}

export class Rests {
	readonly #parts: RestsParts;
	#inBackground = false;
	#isGentle = false;
	#pieceBegan = 0;

	constructor(parts: RestsParts) {
		this.#parts = parts;
	}

	/** A round begins, which nobody waits for if it is `inBackground`. It is not gentle yet. */
	beginRound(inBackground: boolean): void {
		this.#inBackground = inBackground;
	}

	endRound(): void {
		this.#inBackground = false;
		this.#isGentle = false;
	}

	/** The round gives way to the guest and the limit now. */
	get isGentle(): boolean {
		return this.#isGentle;
	}

	/** A piece of work begins now; from here on, a round in the background gives way. */
	beGentle(): void {
		this.#isGentle = this.#inBackground;
		this.#pieceBegan = this.#parts.now();
	}

	/** What is copied before the guest, and the limit, have their turn. */
	piece(): BatchLimits {
		if (!this.#isGentle) return { blocks: Number.POSITIVE_INFINITY };
		const { piece, pace, now, limit } = this.#parts;
		const { blocks, ...rest } = piece?.() ?? pace.pieceAt(now());
		const paidBytes = limit?.bytesIn(PAID_AT_ONCE_MS) ?? Number.POSITIVE_INFINITY;
		return { blocks: Math.min(blocks, Math.max(1, Math.floor(paidBytes / 2 / BLOCK_SIZE))), ...rest };
	}

	/** After a piece of that many bytes was copied. */
	async copied(bytes: number): Promise<void> {
		if (!this.#isGentle) return;
		// Read and written.
		this.#parts.limit?.spend(2 * bytes);
		await this.breathe(bytes);
	}

	/** What was read otherwise counts for the limit, too; the next rest pays for it. */
	spend(bytes: number): void {
		if (this.#isGentle) this.#parts.limit?.spend(bytes);
	}

	/** After a piece of work that emptied so many bytes of the log: rests, for the guest and for the limit. True where it rested. */
	async breathe(bytes: number): Promise<boolean> {
		const { plane, pace, limit, rest, now } = this.#parts;
		const status = await plane.ask("status");
		const time = now();
		pace.look(status, time, "work");
		if (isUrgent(status)) this.#isGentle = false;
		if (!this.#isGentle) return false;
		const milliseconds = pace.restAfter(bytes, time - this.#pieceBegan, status, time);
		const wait = Math.max(milliseconds, limit?.waitMs ?? 0);
		if (wait > 0) {
			if (!(await rest(wait))) this.#isGentle = false;
			pace.look(await plane.ask("status"), now(), "rest");
		}
		this.#pieceBegan = now();
		return wait > 0;
	}
}
