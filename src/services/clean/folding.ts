// Folding: when the second image is made complete, and at which instant of the guest (fold.ts does it).
//
//   a verdict ─► its view is kept: a commit point of the guest ┐
//   a guest that writes nothing ─► the disk as it is           ┴► durable ─► folded ─► noted beside the second image
//
// Now and then only, while the guest is quiet and little is left in the first image. A view is worth nothing any more once
// the second image holds something newer: older content would come over it.

import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import type { BlockRun } from "../../core/cleaner/runs.ts";
import { assert } from "../../foundations/errors.ts";
import { BLOCK_SIZE, type ByteCount } from "../../foundations/units.ts";
import type { CleanerCounters } from "./counters.ts";
import type { Dropper } from "./dropper.ts";
import type { Fold } from "./fold.ts";
import { makeDurable } from "./make-durable.ts";
import { isUrgent, type Pace, SETTLE_MS } from "./pace.ts";
import type { Rests } from "./rests.ts";
import type { ServedVolume, Verdict } from "./volumes.ts";
import type { WaitingBlocks } from "./waiting-blocks.ts";

/** The second image is made complete at most this often: each time costs two durable records. */
const FOLD_MS = 30_000;
/** Only when so little is left that ordinary rounds have moved the rest, in bytes: what is deleted soon isn't copied. */
const FOLD_BYTES_MAX = 32 * 1024 * 1024;

export interface FoldingParts {
	readonly plane: PlanePort;
	readonly second: { readonly size: ByteCount };
	readonly fold: Fold;
	readonly dropper: Dropper;
	readonly waiting: WaitingBlocks;
	readonly pace: Pace;
	readonly rests: Rests;
	readonly counters: CleanerCounters;
	/** See `CleanerDisk`. */
	readonly closing: AbortSignal;
	readonly onFolded: (view: ViewHandle) => Promise<void>;
}

/** Since when the guest has written nothing, in the cleaner's milliseconds; and the log's guest entries then. */
export interface Silence {
	readonly guestEntries: number;
	readonly since: number;
}

export class Folding {
	readonly #parts: FoldingParts;
	/** The newest verdict's volume, and the view in which it was reached. */
	#point: { readonly volume: ServedVolume; readonly view: ViewHandle } | undefined;
	#foldedTime = Number.NEGATIVE_INFINITY;
	/** In guest entries. */
	#foldedAt = -1;
	#movedThrough = 0;

	constructor(parts: FoldingParts) {
		this.#parts = parts;
	}

	/** The second image may hold what the guest wrote up to this entry of the log, or have given it up. */
	noteChanged(guestEntries: number): void {
		this.#movedThrough = Math.max(this.#movedThrough, guestEntries);
	}

	/** Keeps the view of the newest verdict: a commit point of the guest, worth folding. */
	async keepPoint({ volume, view, state }: Verdict): Promise<void> {
		const old = state.kind === "ready" ? this.#point?.view : view;
		if (state.kind === "ready") this.#point = { volume, view };
		if (old !== undefined) await this.#parts.plane.ask("releaseView", old.id);
	}

	/**
	 * Now and then, while the guest is quiet, makes the second image complete: at the newest commit point that a verdict
	 * was reached at, or as the disk is once the guest has rested for a while.
	 */
	async foldSettled(now: number, silence: Silence): Promise<void> {
		const { plane, pace, rests, onFolded } = this.#parts;
		const isDue = pace.isQuiet && now - this.#foldedTime >= FOLD_MS;
		// A view holds segments: it's let go of unless it is folded now.
		if (!isDue || isUrgent(await plane.ask("status")) || (await this.#liveBytes()) > FOLD_BYTES_MAX)
			return await this.#forgetPoint();
		const target = await this.#target(now, silence);
		if (target === undefined) return;
		const { view, unused } = target;
		rests.beGentle();
		try {
			await makeDurable(plane, view);
			if ((await this.foldView(view, unused)) === undefined) return;
			this.#foldedTime = now;
			this.#foldedAt = view.guestEntries;
			await onFolded(view);
		} finally {
			await plane.ask("releaseView", view.id);
		}
	}

	/**
	 * Makes the second image equal a view, which must be durable, but for blocks that nothing in it uses. Returns the bytes moved,
	 * undefined where the disk is being closed.
	 */
	async foldView(view: ViewHandle, unused: readonly BlockRun[] = []): Promise<number | undefined> {
		assert(view.guestEntries >= this.#changedThrough, "a view is folded over newer content");
		const { second, fold, closing, counters } = this.#parts;
		// From the first block on: a fold that fails halfway leaves the second image newer than any older view.
		this.noteChanged(view.guestEntries);
		const moved = await fold.run(view, second.size / BLOCK_SIZE, { unused, signal: closing });
		counters.movedBytes += moved ?? 0;
		return moved;
	}

	/** In guest entries: the second image holds nothing newer, and nothing was given up on account of anything newer. */
	get #changedThrough(): number {
		return Math.max(this.#movedThrough, this.#parts.dropper.forgottenThrough);
	}

	/** What is worth folding now, and which of its blocks nothing uses; the view is the caller's to release. */
	async #target(now: number, silence: Silence): Promise<{ view: ViewHandle; unused: readonly BlockRun[] } | undefined> {
		const isWorthIt = ({ guestEntries }: ViewHandle): boolean =>
			guestEntries >= this.#changedThrough && guestEntries > this.#foldedAt;
		const point = this.#point;
		if (point !== undefined && isWorthIt(point.view)) {
			this.#point = undefined;
			return { view: point.view, unused: this.#parts.waiting.of(point.volume) };
		}
		await this.#forgetPoint();
		if (now - silence.since < SETTLE_MS || silence.guestEntries <= this.#foldedAt) return undefined;
		return { view: await this.#parts.plane.ask("takeView"), unused: [] };
	}

	/** Lets go of the newest commit point's view, which holds segments. */
	async #forgetPoint(): Promise<void> {
		const point = this.#point;
		this.#point = undefined;
		if (point !== undefined) await this.#parts.plane.ask("releaseView", point.view.id);
	}

	/** What of the guest's data is in the first image. */
	async #liveBytes(): Promise<number> {
		const segments = await this.#parts.plane.ask("segments");
		return segments.reduce((bytes, { liveSlots }) => bytes + liveSlots * BLOCK_SIZE, 0);
	}
}
