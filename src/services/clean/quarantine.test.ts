import assert from "node:assert/strict";
import { test } from "node:test";
import type { PlanePort, PlaneStatus } from "../../adapters/plane/messages.ts";
import { Quarantine } from "./quarantine.ts";

/** A plane of which the quarantine asks nothing but this. */
class Plane {
	status = { position: 5, usedBytes: 50, limitBytes: 100, hostIsFull: false };
	held: unknown;

	ask(kind: string, input?: unknown): Promise<unknown> {
		if (kind === "hold") this.held = input;
		return Promise.resolve(this.status as unknown as PlaneStatus);
	}
}

const open = (plane: Plane, windowMs = 60_000): { quarantine: Quarantine; clock: { now: number } } => {
	const clock = { now: 0 };
	return { quarantine: new Quarantine(plane as unknown as PlanePort, windowMs, () => clock.now), clock };
};

test("what is inside the window is held", async () => {
	const plane = new Plane();
	const { quarantine, clock } = open(plane);
	await quarantine.hold(0.5);
	assert.equal(plane.held, 0);
	clock.now = 30_000;
	plane.status.position = 8;
	await quarantine.hold(0.5);
	clock.now = 89_000;
	await quarantine.hold(0.5);
	assert.equal(plane.held, 0);
	clock.now = 90_000;
	await quarantine.hold(0.5);
	assert.equal(plane.held, 8);
});

test("nothing is held where the log or the host is full, whatever the log's limit", async () => {
	const plane = new Plane();
	const { quarantine } = open(plane);
	plane.status.usedBytes = 51;
	await quarantine.hold(0.5);
	assert.equal(plane.held, null);
	plane.status.limitBytes = Number.POSITIVE_INFINITY;
	await quarantine.hold(0.5);
	assert.equal(plane.held, 0);
	plane.status.hostIsFull = true;
	await quarantine.hold(0.5);
	assert.equal(plane.held, null);
	plane.status.hostIsFull = false;
	await quarantine.hold(0.5);
	assert.equal(plane.held, 0);
	quarantine.giveWay();
	await quarantine.hold(0.5);
	assert.equal(plane.held, null);
	await quarantine.hold(0.5);
	assert.equal(plane.held, 0, "once there is space again");
});
