// Pace: how fast the cleaner goes, by how full the log is, what the guest does, and what it feels of the cleaner.
//
//   idle guest      as fast as it can
//   quiet guest     segments are moved once they have been closed for SETTLE_MS, piece by piece with rests in between
//   busy guest      the log is left to absorb: much of it will be overwritten or deleted, and needs no copy
//   EAGER_SHARE     of the limit used: segments are moved whatever their age, as fast as the guest fills new ones and
//                   faster the fuller the log is, with rests as long as that allows
//   URGENT_SHARE    used, or clients wait for room: no rests, and blocks that only wait to be dropped are moved
//                   like used ones, since moving is always right
//
// A rest comes after each piece of copying: a batch of copies beside the guest's requests delays those, rests let the others
// through. How long requests take is counted by the data plane (plane/latencies.ts), apart for work and rest:
//
//   p99 of all : p99 while it rests   above P99_RATIO_MAX ─► shorter pieces, longer rests     below P99_RATIO_GOOD ─► back again
//
// Free segments of which the guest will soon need some stay allocated: writing into them is several times faster.

import { type LatencyCounts, percentileOf } from "../../adapters/plane/latencies.ts";
import type { PlaneStatus } from "../../adapters/plane/messages.ts";
import type { BatchLimits } from "../../core/cleaner/runs.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";

/** A segment is moved once it has been closed for this long: what is deleted soon is never copied. */
export const SETTLE_MS = 5_000;
/** Above this share of the log's limit segments are moved whatever their age. */
export const EAGER_SHARE = 0.5;
const URGENT_SHARE = 0.95;
/** Shortest rest of an active guest's cleaner, as a multiple of the work before it, as long as the log isn't filling. */
const REST_MIN = 4;
const REST_MS_MAX = 1_000;
/** How much faster than the guest fills segments they are emptied where the log is nearly full: more would be felt for nothing. */
const FULL_HASTE = 0.25;
/** What has settled is moved within about this time, and no slower than at this rate; unless the guest suffers. */
const DRAIN_SECONDS = 120;
const SLOWEST_BYTES_PER_SECOND = 8 * 1024 * 1024;
/** A guest that appends less than this per second is quiet. */
const QUIET_BYTES_PER_SECOND = 16 * 1024 * 1024;
const MEASURE_SECONDS = 0.5;
/** A guest that asked nothing for this long is idle. */
const IDLE_MS = 100;
/** Free segments stay allocated for what the guest writes in this time. */
const WARM_SECONDS = 5;
/** Blocks copied between two rests: 1 MiB of neighbours, or this many runs. */
const PIECE = { blocks: 256, runs: 128 };
/** How far rests are stretched and pieces shortened at most, for a guest that suffers. */
const STRETCH_MAX = 8;
const P99_RATIO_MAX = 1.25;
const P99_RATIO_GOOD = 1.1;
/** Requests while the cleaner rested, and while it worked, before their latencies are compared: of fewer, p99 is mostly chance. */
const RESTING_REQUESTS = 5_000;
const WORKING_REQUESTS = 300;

/** What goes on between two looks at a disk. */
export type Phase = "work" | "rest";

export class Pace {
	#measured: { at: number; position: number };
	/** What the guest appends to the log, in bytes per second. */
	#rate = 0;
	/** When the guest's requests were last seen to become more, and how many there were. */
	#activity = { at: Number.NEGATIVE_INFINITY, requests: 0 };
	#seen: LatencyCounts | undefined;
	readonly #latencies: Readonly<Record<Phase, Float64Array>> = {
		work: new Float64Array(32),
		rest: new Float64Array(32),
	};
	#stretch = 1;

	/** `now` is a time in milliseconds, and `position` the log's at that time. */
	constructor(now: number, position: number) {
		this.#measured = { at: now, position };
	}

	/** Takes note of what the guest has done by `now`, in milliseconds, and of what it met since the last look: work of the cleaner's, or rest. */
	look(status: PlaneStatus, now: number, phase: Phase): void {
		const requests = requestsOf(status);
		if (requests !== this.#activity.requests) this.#activity = { at: now, requests };
		this.#compare(status.latencies, phase);
		const seconds = (now - this.#measured.at) / 1000;
		if (seconds < MEASURE_SECONDS) return;
		this.#rate = ((status.position - this.#measured.position) * BLOCK_SIZE) / seconds;
		this.#measured = { at: now, position: status.position };
	}

	get isQuiet(): boolean {
		return this.#rate < QUIET_BYTES_PER_SECOND;
	}

	/** Bytes of free segments that the guest is about to need. */
	get warmBytes(): number {
		return this.#rate * WARM_SECONDS;
	}

	/** How much longer rests are than for a guest that feels nothing of them: 1 or more. */
	get stretch(): number {
		return this.#stretch;
	}

	/** What is copied between two rests; all at once for a guest that is idle at `now`. */
	pieceAt(now: number): BatchLimits {
		if (this.#isIdleAt(now)) return { blocks: Number.POSITIVE_INFINITY };
		const part = (most: number): number => Math.ceil(most / this.#stretch);
		return { blocks: part(PIECE.blocks), runs: part(PIECE.runs) };
	}

	/** Milliseconds of rest at `now` after `bytes` of the log were emptied in `milliseconds`. */
	restAfter(bytes: number, milliseconds: number, status: PlaneStatus, now: number): number {
		if (this.#isIdleAt(now) || isUrgent(status)) return 0;
		const { usedBytes, limitBytes } = status;
		const fill = Math.max(0, (usedBytes / limitBytes - EAGER_SHARE) / (URGENT_SHARE - EAGER_SHARE));
		// The fuller the log, the less can be done for the guest's latencies.
		const stretch = 1 + (this.#stretch - 1) * Math.max(0, 1 - fill);
		const bytesPerSecond = Math.max(
			this.#rate * (1 + FULL_HASTE * fill),
			usedBytes / DRAIN_SECONDS,
			SLOWEST_BYTES_PER_SECOND,
		);
		const affordable = (bytes / bytesPerSecond) * 1000 * stretch - milliseconds;
		const longest = REST_MS_MAX * Math.min(stretch, 2);
		return Math.min(longest, Math.max(affordable, milliseconds * REST_MIN * stretch * (1 - fill)));
	}

	#isIdleAt(now: number): boolean {
		return now - this.#activity.at >= IDLE_MS;
	}

	#compare(counts: LatencyCounts, phase: Phase): void {
		const before = this.#seen;
		this.#seen = counts;
		if (before === undefined) return;
		const { work, rest } = this.#latencies;
		const into = phase === "work" ? work : rest;
		for (const [bucket, count] of counts.entries()) into[bucket]! += count - before[bucket]!;
		if (sumOf(rest) < RESTING_REQUESTS || sumOf(work) < WORKING_REQUESTS) return;
		const all = rest.map((count, bucket) => count + work[bucket]!);
		const ratio = percentileOf(all, 0.99) / percentileOf(rest, 0.99);
		if (ratio > P99_RATIO_MAX) this.#stretch = Math.min(STRETCH_MAX, this.#stretch * 1.5);
		else if (ratio < P99_RATIO_GOOD) this.#stretch = Math.max(1, this.#stretch / 1.25);
		// What was long ago counts less and less.
		for (const both of [work, rest]) for (const bucket of both.keys()) both[bucket]! /= 2;
	}
}

export const isUrgent = ({ stalled, usedBytes, limitBytes }: PlaneStatus): boolean =>
	stalled > 0 || usedBytes > URGENT_SHARE * limitBytes;

const requestsOf = ({ counters }: PlaneStatus): number => counters.reads + counters.writes;

const sumOf = (counts: Float64Array): number => counts.reduce((sum, count) => sum + count, 0);
