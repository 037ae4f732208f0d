import assert from "node:assert/strict";
import { test } from "node:test";
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
		...more,
	}) as PlaneStatus;

/** After a second in which the guest wrote so much. */
function paceAt(mibPerSecond: number): Pace {
	const pace = new Pace(0, 0);
	pace.measure(statusOf(0, 0, { position: (mibPerSecond * MIB) / BLOCK_SIZE } as Partial<PlaneStatus>), 1000);
	return pace;
}

/** Rest after a segment that took 10 ms. */
const restOf = (pace: Pace, used: number, requests = 1): number =>
	pace.restAfter(SEGMENT, 10, statusOf(used, 0), statusOf(used, requests));

test("an idle guest is not rested for; nor is one that waits for room, or is about to", () => {
	assert.equal(restOf(paceAt(0), 600, 0), 0);
	assert.equal(restOf(paceAt(0), 960), 0);
	const waiting = statusOf(600, 1, { stalled: 1 });
	assert.equal(paceAt(0).restAfter(SEGMENT, 10, statusOf(600, 0), waiting), 0);
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

test("a guest that writes little is quiet, and free segments stay for what it writes", () => {
	assert.ok(paceAt(10).isQuiet && !paceAt(100).isQuiet);
	assert.equal(paceAt(10).warmBytes, 50 * MIB);
	const pace = paceAt(100);
	pace.measure(statusOf(0, 0, { position: (100 * MIB) / BLOCK_SIZE } as Partial<PlaneStatus>), 1200);
	assert.ok(!pace.isQuiet, "too soon to tell");
	pace.measure(statusOf(0, 0, { position: (100 * MIB) / BLOCK_SIZE } as Partial<PlaneStatus>), 2000);
	assert.ok(pace.isQuiet);
});
