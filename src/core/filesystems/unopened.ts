// Unopened: a volume that can't be believed where it was found: damaged, or caught in the middle of mkfs. After writes it is
// tried again; once it opens, whoever follows the disk's volumes starts afresh.

import type { VmsweepError } from "../../foundations/errors.ts";
import type { VolumeState } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import type { LogPosition } from "../../foundations/units.ts";
import { isVolumeError, solutionOf } from "./kept-volume.ts";
import type { LiveState, LiveVolume, ViewPoints, WatchRange } from "./live.ts";

export class UnopenedVolume implements LiveVolume {
	readonly viewPoints: ViewPoints = "any";
	readonly readsAll = true;
	readonly uuid = null;
	readonly state: VolumeState = "unknown";
	readonly incarnation = 0;
	readonly commits = 0;
	readonly type: string;
	readonly #open: (view: ByteSource) => Promise<LiveVolume>;
	#why: VmsweepError;

	/**
	 * @param open throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED as long as it can't be followed
	 * @param why what it threw
	 */
	constructor(type: string, open: (view: ByteSource) => Promise<LiveVolume>, why: VmsweepError) {
		this.type = type;
		this.#open = open;
		this.#why = why;
	}

	get rule(): string {
		return `kept: ${this.#why.message}`;
	}

	watch(): readonly WatchRange[] {
		return [];
	}
	observe(): Promise<void> {
		return Promise.resolve();
	}
	freeRuns(): [] {
		return [];
	}

	async advance(view: ByteSource, at: LogPosition): Promise<LiveState> {
		try {
			await this.#open(view);
		} catch (error) {
			if (!isVolumeError(error)) throw error;
			this.#why = error;
			return this.keptAt(at);
		}
		const reason = "it can be read now, and is looked at anew";
		return { kind: "keep", position: at, reason, pending: true, metadataBytesRead: 0, watchChanged: true };
	}

	advanceClean(view: ByteSource, at: LogPosition): Promise<LiveState> {
		return this.advance(view, at);
	}

	/** What it is as long as it can't be opened. */
	keptAt(position: LogPosition): LiveState & { readonly kind: "keep" } {
		const waitsFor = solutionOf(this.#why);
		const { message: reason } = this.#why;
		return { kind: "keep", position, reason, pending: false, waitsFor, metadataBytesRead: 0, watchChanged: false };
	}
}
