// Quarantine: keeps dropped blocks recoverable for a while. What was dropped at a log position stays whole as long as the
// log is held from there on: its segments aren't freed, and its place in the second image isn't punched.
//
//   time ─► marks (when, position) ─► hold the log from the newest mark that is older than the window
//
// Space goes first: where the log or the host fills up, nothing is held. After a restart nobody knows when the log's content was
// written, so the window begins anew.

import type { PlanePort } from "../../adapters/plane/messages.ts";
import { type LogPosition, logPosition } from "../../foundations/units.ts";

/** Time between two marks: the window is that exact. In milliseconds. */
const MARK_MS = 1_000;

export class Quarantine {
	readonly #plane: PlanePort;
	readonly #windowMs: number;
	readonly #now: () => number;
	readonly #marks: { readonly at: number; readonly position: LogPosition }[];
	#held: LogPosition | null | undefined;
	#isInTheWay = false;

	/** @param windowMs 0 for no quarantine */
	constructor(plane: PlanePort, windowMs: number, now: () => number) {
		this.#plane = plane;
		this.#windowMs = windowMs;
		this.#now = now;
		this.#marks = [{ at: now(), position: logPosition(0) }];
	}

	/** The host had no space for what the cleaner wanted to write: nothing is held the next time. */
	giveWay(): void {
		this.#isInTheWay = true;
	}

	/** Holds what is inside the window, or nothing where the log is fuller than `share` of its limit, or the host is full. */
	async hold(share: number): Promise<void> {
		if (this.#windowMs === 0) return;
		const { position, usedBytes, limitBytes, hostIsFull } = await this.#plane.ask("status");
		const now = this.#now();
		if (now - this.#marks.at(-1)!.at >= MARK_MS) this.#marks.push({ at: now, position });
		// The first mark is always the newest that is older than the window, or the start.
		while (this.#marks.length > 1 && now - this.#marks[1]!.at >= this.#windowMs) this.#marks.shift();
		const from = this.#marks[0]!.position;
		const mustYield = hostIsFull || this.#isInTheWay || usedBytes > share * limitBytes;
		this.#isInTheWay = false;
		const wanted = mustYield ? null : from;
		if (wanted === this.#held) return;
		await this.#plane.ask("hold", wanted);
		this.#held = wanted;
	}
}
