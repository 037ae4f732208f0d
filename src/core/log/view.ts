// View: the disk at one instant, as the first image's index showed it. The cleaner decides on one, a backup reads one.

import type { LogPosition } from "../../foundations/units.ts";
import { logPosition } from "../../foundations/units.ts";
import type { IndexView, RunVisitor } from "./index-map.ts";
import type { Pin } from "./segments.ts";
import type { LogState } from "./state.ts";
import { headPosition } from "./state.ts";

/** The disk at one instant. Holds its segments against reuse until released; costs one small copy. */
export interface View {
	/** Data at positions below this one is in the view, none at or above it. */
	readonly position: LogPosition;
	/**
	 * Entries of the log that the view shows, counted over the disk's life: an exact instant, which `position` is not, as
	 * zeroing has no data. `OpenOptions.viewsAtEntries` takes the view again after a restart; note it only once it
	 * is `durable`, as entries that a power cut takes give their numbers to others.
	 */
	readonly entry: number;
	/**
	 * Writes and zeroings by the guest that it shows, counted since the log was opened, replayed ones included: two views
	 * with the same number show the same but for drops.
	 */
	readonly guestEntries: number;
	/** True once every entry (zeroing too) that the view shows is durable in the log. */
	readonly durable: boolean;
	readonly released: boolean;
	/** ABSENT, ZERO or a slot. */
	get(block: number): number;
	/** Visits `[block, block + count)` in order as merged runs. */
	runs(block: number, count: number, visit: RunVisitor): void;
	/** Idempotent. */
	release(): void;
}

export class LogView implements View, Pin {
	readonly position: LogPosition;
	readonly entry: number;
	readonly guestEntries: number;
	readonly epoch: number;
	readonly #state: LogState;
	readonly #index: IndexView;
	readonly #views: LogView[];

	constructor(state: LogState, index: IndexView, views: LogView[]) {
		this.position = logPosition(headPosition(state));
		this.epoch = index.epoch;
		this.entry = state.nextEntry;
		this.guestEntries = state.guestEntries;
		this.#state = state;
		this.#index = index;
		this.#views = views;
	}

	get durable(): boolean {
		return this.#state.durableEntries >= this.entry;
	}

	get released(): boolean {
		return this.#index.released;
	}

	get(block: number): number {
		return this.#index.get(block);
	}

	runs(block: number, count: number, visit: RunVisitor): void {
		this.#index.runs(block, count, visit);
	}

	release(): void {
		if (this.released) return;
		this.#state.index.release(this.#index);
		this.#views.splice(this.#views.indexOf(this), 1);
	}
}
