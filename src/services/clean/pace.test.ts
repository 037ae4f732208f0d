import assert from "node:assert/strict";
import { test } from "node:test";
import { Latencies } from "../../adapters/plane/latencies.ts";
import type { PlaneStatus } from "../../adapters/plane/messages.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import { isUrgent, Pace } from "./pace.ts";

const MIB = 2 ** 20;
const SEGMENT = 8 * MIB;

/** A log of 1000 MiB, filled to `used` MiB, of a guest that has done so many requests. */
const statusOf = (used: number, requests: number, more: Partial<PlaneStatus> = {}): PlaneStatus =>
	({
		usedBytes: used * MIB,
		limitBytes: 1000 * MIB,
		stalled: 0,
		position: 0,
		counters: { reads: requests, writes: 0 },
		latencies: new Latencies().counts(),
		...more,
	}) as PlaneStatus;

const positionAfter = (mib: number): Partial<PlaneStatus> =>
	({ position: (mib * MIB) / BLOCK_SIZE }) as Partial<PlaneStatus>;

/** At 1000 ms, after a second in which the guest wrote so much and asked for more. */
function paceAt(mibPerSecond: number): Pace {
	const pace = new Pace(0, 0);
	pace.look(statusOf(0, 1, positionAfter(mibPerSecond)), 1000, "rest");
	return pace;
}

/** Rest after a segment that took 10 ms. */
const restOf = (pace: Pace, used: number, now = 1010): number => pace.restAfter(SEGMENT, 10, statusOf(used, 1), now);

test("an idle guest is not rested for; nor is one that waits for room, or is about to", () => {
	assert.ok(restOf(paceAt(0), 600) > 0);
	assert.equal(restOf(paceAt(0), 600, 2000), 0);
	assert.equal(restOf(paceAt(0), 960), 0);
	const waiting = statusOf(600, 1, { stalled: 1 });
	assert.equal(paceAt(0).restAfter(SEGMENT, 10, waiting, 1010), 0);
	assert.ok(isUrgent(waiting) && isUrgent(statusOf(960, 0)) && !isUrgent(statusOf(940, 0)));
});

test("the fuller the log and the faster it fills, the shorter the rests; segments go at least as fast as they come", () => {
	for (const rate of [1, 10, 50, 200]) {
		const pace = paceAt(rate);
		let before = Number.POSITIVE_INFINITY;
		for (let used = 100; used < 950; used += 50) {
			const rest = restOf(pace, used);
			assert.ok(rest <= before, `${rest} ms at ${used} MiB`);
			before = rest;
			if (used >= 900) assert.ok(rest + 10 <= (SEGMENT / (rate * MIB)) * 1000, `${rest} ms at ${rate} MiB/s`);
		}
		assert.ok(restOf(pace, 100) >= 40, "with room left, four fifths of the time are the guest's");
	}
	assert.ok(restOf(paceAt(100), 700) < restOf(paceAt(10), 700));
	assert.ok(restOf(paceAt(0), 100) <= 1000, "whatever has settled goes on");
});

/** When `feel` is over, at the latest. */
const END = 2410;

/** A guest whose requests take so many milliseconds while the cleaner rests, and one in ten so many while it works. */
function feel(pace: Pace, latencies: Latencies, resting: number, working: number): void {
	let now = 2000;
	const look = (phase: "work" | "rest"): void =>
		pace.look(statusOf(100, now, { latencies: latencies.counts() }), now++, phase);
	look("rest");
	for (let i = 0; i < 200; i++) {
		latencies.add(900, resting);
		look("rest");
		latencies.add(100, working);
		look("work");
	}
}

test("a guest that feels the cleaner gets longer rests and shorter pieces, and as much as before once it feels nothing", () => {
	const pace = paceAt(1);
	const piece = pace.pieceAt(1010);
	assert.equal(pace.pieceAt(2000).blocks, Number.POSITIVE_INFINITY, "nobody minds");
	const usual = restOf(pace, 100);
	const latencies = new Latencies();
	feel(pace, latencies, 0.05, 0.05);
	assert.equal(pace.stretch, 1);
	feel(pace, latencies, 0.05, 2);
	assert.equal(pace.stretch, 8);
	const shorter = pace.pieceAt(END);
	assert.ok(shorter.blocks <= piece.blocks / 8 && shorter.runs! >= 1);
	// As the guest did something a moment before.
	const stretched = pace.restAfter(SEGMENT, 10, statusOf(100, 1), END);
	assert.equal(stretched, 2000, `${stretched} ms instead of ${usual}`);
	const shortRest = (all: Pace, now: number): number => all.restAfter(SEGMENT / 16, 1, statusOf(100, 1), now);
	assert.ok(shortRest(pace, END) > 7 * shortRest(paceAt(1), 1010));
	assert.ok(restOf(pace, 949, END) < 1.05 * usual, "the log comes first");
	feel(pace, latencies, 0.05, 0.05);
	assert.equal(pace.stretch, 1);
});

test("a guest that writes little is quiet, and free segments stay for what it writes", () => {
	assert.ok(paceAt(10).isQuiet && !paceAt(100).isQuiet);
	assert.equal(paceAt(10).warmBytes, 50 * MIB);
	const pace = paceAt(100);
	pace.look(statusOf(0, 0, positionAfter(100)), 1200, "rest");
	assert.ok(!pace.isQuiet, "too soon to tell");
	pace.look(statusOf(0, 0, positionAfter(100)), 2000, "rest");
	assert.ok(pace.isQuiet);
});
