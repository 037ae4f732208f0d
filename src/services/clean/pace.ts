// Pace: how fast the cleaner goes, by how full the log is and what the guest does.
//
//   idle guest      as fast as it can
//   quiet guest     segments are moved once they have been closed for SETTLE_MS, with rests in between
//   busy guest      the log is left to absorb: much of it will be overwritten or deleted, and needs no copy
//   EAGER_SHARE     of the limit used: segments are moved whatever their age, as fast as the guest fills new ones and
//                   faster the fuller the log is, with rests as long as that allows
//   URGENT_SHARE    used, or clients wait for room: no rests, and blocks that only wait to be dropped are moved
//                   like used ones, since moving is always right
//
// A rest comes after each segment: a batch of copies beside the guest's requests delays those, rests let the others through.
// Free segments of which the guest will soon need some stay allocated: writing into them is several times faster.

import type { PlaneStatus } from "../../adapters/plane/messages.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";

/** A segment is moved once it has been closed for this long: what is deleted soon is never copied. */
export const SETTLE_MS = 5_000;
/** Above this share of the log's limit segments are moved whatever their age. */
export const EAGER_SHARE = 0.5;
const URGENT_SHARE = 0.95;
/** Shortest rest of an active guest's cleaner, as a multiple of the work before it, as long as the log isn't filling. */
const REST_MIN = 4;
const REST_MS_MAX = 1_000;
/** What has settled is moved within about this time, and no slower than at this rate. */
const DRAIN_SECONDS = 120;
const SLOWEST_BYTES_PER_SECOND = 8 * 1024 * 1024;
/** A guest that appends less than this per second is quiet. */
const QUIET_BYTES_PER_SECOND = 16 * 1024 * 1024;
const MEASURE_SECONDS = 0.5;
/** Free segments stay allocated for what the guest writes in this time. */
const WARM_SECONDS = 5;

export class Pace {
	#measured: { at: number; position: number };
	/** What the guest appends to the log, in bytes per second. */
	#rate = 0;

	/** `now` is a time in milliseconds, and `position` the log's at that time. */
	constructor(now: number, position: number) {
		this.#measured = { at: now, position };
	}

	/** Takes note of how much the guest has written by `now`, in milliseconds. */
	measure({ position }: PlaneStatus, now: number): void {
		const seconds = (now - this.#measured.at) / 1000;
		if (seconds < MEASURE_SECONDS) return;
		this.#rate = ((position - this.#measured.position) * BLOCK_SIZE) / seconds;
		this.#measured = { at: now, position };
	}

	get isQuiet(): boolean {
		return this.#rate < QUIET_BYTES_PER_SECOND;
	}

	/** Bytes of free segments that the guest is about to need. */
	get warmBytes(): number {
		return this.#rate * WARM_SECONDS;
	}

	/**
	 * Milliseconds of rest after `bytes` of the log were emptied in `milliseconds`; `before` is the status then, `after` the one now.
	 */
	restAfter(bytes: number, milliseconds: number, before: PlaneStatus, after: PlaneStatus): number {
		if (activityOf(before) === activityOf(after) || isUrgent(after)) return 0;
		const { usedBytes, limitBytes } = after;
		const fill = Math.max(0, (usedBytes / limitBytes - EAGER_SHARE) / (URGENT_SHARE - EAGER_SHARE));
		const bytesPerSecond = Math.max(this.#rate * (1 + fill), usedBytes / DRAIN_SECONDS, SLOWEST_BYTES_PER_SECOND);
		const affordable = (bytes / bytesPerSecond) * 1000 - milliseconds;
		return Math.min(REST_MS_MAX, Math.max(affordable, milliseconds * REST_MIN * (1 - fill)));
	}
}

export const isUrgent = ({ stalled, usedBytes, limitBytes }: PlaneStatus): boolean =>
	stalled > 0 || usedBytes > URGENT_SHARE * limitBytes;

const activityOf = ({ counters }: PlaneStatus): number => counters.reads + counters.writes;
