// View points: the data plane's half of "tell me what metadata was written, and show me the disk as it was
// exactly at the newest commit record".
//
// The control plane sets a watch plan, then collects: notices, and per volume the view that was taken right after
// the newest candidate commit record since the last collection. A view handed over stays until it is released.

import type { FirstImage, View } from "../../core/log/first-image.ts";
import type { LogPosition } from "../../foundations/units.ts";
import type { Collected, KeptView, WatchPlan, WriteCounts } from "./watch.ts";
import { WatchSet } from "./watch.ts";

export class ViewPoints {
	readonly #log: FirstImage;
	readonly #views = new Map<number, View>();
	#nextId = 1;
	#watches: WatchSet | undefined;
	/** Per volume, the newest view point not yet collected. */
	#points: (View | undefined)[] = [];
	/** Per volume, its last write when it was last collected. */
	#collected: readonly number[] = [];
	#lost = false;

	constructor(log: FirstImage) {
		this.#log = log;
	}

	get isWatching(): boolean {
		return this.#watches !== undefined;
	}

	/** Replaces what is watched; everything not collected is forgotten. */
	setPlan(plan: WatchPlan | undefined): void {
		this.#forgetPoints();
		this.#watches = plan === undefined ? undefined : new WatchSet(plan, this.#log.diskBytes);
		this.#points = plan?.volumes.map(() => undefined) ?? [];
		this.#collected = plan?.volumes.map(() => -1) ?? [];
	}

	mayTouch(at: number, length: number): boolean {
		return this.#watches?.mayTouch(at, length) ?? false;
	}

	touchVolumes(at: number, length: number, end: number): void {
		this.#watches?.touchVolumes(at, length, end);
	}

	/** Notes a write that is in the log, and takes a view where it ends in a commit record. */
	note(
		at: number,
		length: number,
		source: Uint8Array | undefined,
		from: number,
		position: LogPosition,
		end: LogPosition,
	): void {
		const watches = this.#watches;
		if (watches === undefined) return;
		watches.note(at, length, source, from, position, end);
		if (source === undefined) {
			watches.touchVolumes(at, length, end);
			return;
		}
		const volume = watches.viewPointOf(at, length, source, from);
		if (volume < 0) return;
		this.#points[volume]?.release();
		this.#points[volume] = this.#log.takeView();
	}

	/** A watched write could not be noted: nothing may be concluded until the next plan. */
	lose(): void {
		this.#lost = true;
	}

	/** Hands over what came since the last collection. */
	collect(): Collected {
		const watches = this.#watches;
		if (watches === undefined) return { notices: [], lost: true, identityTouched: false, lastWrite: [], views: [] };
		const { notices, lost, identityTouched } = watches.collect();
		const lastWrite = [...watches.lastWrite];
		for (const [index, { viewWhenCollected }] of watches.plan.volumes.entries())
			if (viewWhenCollected === true && lastWrite[index] !== this.#collected[index])
				this.#points[index] = this.#log.takeView();
		this.#collected = lastWrite;
		const views = this.#points.map((view) => view && this.keep(view));
		this.#points = this.#points.map(() => undefined);
		const collected = { notices, lost: lost || this.#lost, identityTouched, lastWrite, views };
		this.#lost = false;
		return collected;
	}

	/** What was written since the plan was set; nothing without one. */
	counts(): Omit<WriteCounts, "isReceiving"> {
		const { lastWrite = [], writeCounts = [] } = this.#watches ?? {};
		return { lastWrite: [...lastWrite], writes: [...writeCounts] };
	}

	/** Takes a view of now; it lives until `release`. */
	take(): KeptView {
		return this.keep(this.#log.takeView());
	}

	/**
	 * Takes a view of now, unless the volume was written after `lastWrite`, or what tells how the disk is divided was since
	 * the last collection: then what was collected is not all that this view shows.
	 */
	takeAtRest(volume: number, lastWrite: number): KeptView | undefined {
		const watches = this.#watches;
		const isAtRest = watches !== undefined && watches.lastWrite[volume] === lastWrite && !watches.identityTouched;
		return isAtRest ? this.take() : undefined;
	}

	/** Gives a view a number; it lives until `release`. */
	keep(view: View): KeptView {
		const id = this.#nextId++;
		this.#views.set(id, view);
		return { id, position: view.position, entry: view.entry, guestEntries: view.guestEntries };
	}

	/** A view that was handed out. Throws where it was released. */
	view(id: number): View {
		const view = this.#views.get(id);
		if (view === undefined) throw new RangeError(`view ${id} was released`);
		return view;
	}

	release(id: number): void {
		this.#views.get(id)?.release();
		this.#views.delete(id);
	}

	#forgetPoints(): void {
		for (const view of this.#points) view?.release();
		this.#points = [];
	}
}
