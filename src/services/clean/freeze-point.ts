// Freeze points: the disk at a moment at which the guest's agent says that its file systems are frozen.
//
//   asked ─▶ (the guest's agent freezes) ─▶ begin: counts ─▶ views ─▶ end: counts ─▶ (thaw) ─▶ judged
//
// A volume's moment counts only where its counts at both ends are the same and no request was under way: then no write came
// in the whole window, and the view was taken within it. Nothing is read while the guest is frozen.

import { setTimeout as delay } from "node:timers/promises";
import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import type { WriteCounts } from "../../adapters/plane/watch.ts";
import type { FrozenMoment } from "../../core/filesystems/live.ts";
import type { LogPosition } from "../../foundations/units.ts";

/** How long the counts are asked for again where a request, which may be but a read, is under way. In milliseconds. */
const RECEIVING_MS = 20;

export class FreezePoint {
	readonly #plane: PlanePort;
	readonly #asked: LogPosition;
	#begin: WriteCounts | undefined;
	#end: WriteCounts | undefined;
	/** One per volume of the watch plan, equal where the point is good. */
	views: readonly ViewHandle[] = [];

	/** @param asked where the log is before the freeze is asked for */
	constructor(plane: PlanePort, asked: LogPosition) {
		this.#plane = plane;
		this.#asked = asked;
	}

	/** The agent has just said that all is frozen. */
	async begin(): Promise<void> {
		this.#begin = await this.#counts();
	}

	async take(): Promise<void> {
		const views: ViewHandle[] = [];
		for (const _ of this.#begin?.writes ?? []) views.push(await this.#plane.ask("takeView"));
		this.views = views;
	}

	/** The agent has said it once more, after the views were taken. */
	async end(): Promise<void> {
		this.#end = await this.#counts();
	}

	/** What is known of a volume, by its index in the watch plan; undefined where it was, or may have been, written in the window. */
	momentOf(index: number): FrozenMoment | undefined {
		const [begin, end] = [this.#begin, this.#end];
		if (begin === undefined || end === undefined || begin.isReceiving || end.isReceiving) return undefined;
		if (begin.writes[index] !== end.writes[index]) return undefined;
		const lastWrite = end.lastWrite[index] ?? -1;
		return { asked: this.#asked, lastWrite: lastWrite < 0 ? null : (lastWrite as LogPosition) };
	}

	async release(): Promise<void> {
		for (const { id } of this.views) await this.#plane.ask("releaseView", id);
		this.views = [];
	}

	async #counts(): Promise<WriteCounts> {
		const until = performance.now() + RECEIVING_MS;
		for (;;) {
			const counts = await this.#plane.ask("writeCounts");
			if (!counts.isReceiving || performance.now() > until) return counts;
			await delay(1);
		}
	}
}
