import assert from "node:assert/strict";
import { test } from "node:test";
import { CleaningTurns, nextOf, type Outlook, type Turn, type Waiting } from "./turns.ts";

const MIB = 2 ** 20;

/** A round that gives back and copies so many MiB. */
const round = (back: number, moved: number, more: Partial<Outlook> = {}): Outlook => ({
	isUrgent: false,
	fill: 0.3,
	backBytes: back * MIB,
	movedBytes: moved * MIB,
	...more,
});
const waiting = (since: number, outlook: Outlook): Waiting => ({ ...outlook, since });

test("the most bytes back per byte copied go first, urgent disks before all others, and nobody waits for ever", () => {
	const mostlyDead = waiting(100, round(28, 4));
	const mostlyLive = waiting(0, round(8, 24));
	assert.equal(nextOf([mostlyLive, mostlyDead], 200), mostlyDead);
	const fuller = waiting(100, round(8, 24, { fill: 0.8 }));
	assert.equal(nextOf([mostlyLive, fuller], 200), fuller);
	const urgent = waiting(150, round(0, 32, { isUrgent: true, fill: 0.96 }));
	const moreUrgent = waiting(180, round(0, 32, { isUrgent: true, fill: 0.99 }));
	assert.equal(nextOf([mostlyDead, urgent, moreUrgent, mostlyLive], 200), moreUrgent);
	assert.equal(nextOf([mostlyDead, mostlyLive], 10_050), mostlyLive, "it has waited for too long");
	assert.equal(nextOf([mostlyDead, urgent, mostlyLive], 10_050), urgent);
	assert.equal(nextOf([waiting(7, round(0, 0)), waiting(5, round(0, 0))], 10)?.since, 5);
	assert.equal(nextOf([], 0), undefined);
});

test("so many clean at once as there are places, and an urgent one beside", () => {
	const turns = new CleaningTurns(2, () => 0);
	const taken = Array.from({ length: 5 }, (_, i) => turns.take(round(i, 1)));
	const granted = (): number[] => taken.flatMap((turn, i) => (turn.isGranted ? [i] : []));
	assert.deepEqual(granted(), [0, 1]);
	assert.ok(!turns.isFree);
	taken[2]!.hurry();
	assert.deepEqual(granted(), [0, 1, 2], "it became urgent");
	const more = turns.take(round(0, 1, { isUrgent: true }));
	assert.ok(!more.isGranted, "one beside, not two");
	more.end();
	for (const ended of [0, 0]) taken[ended]!.end();
	assert.deepEqual(granted(), [0, 1, 2], "the two that work have both places");
	taken[2]!.end();
	assert.deepEqual(granted(), [0, 1, 2, 4], "the one with the greater gain");
	taken[3]!.end();
	for (const turn of taken) turn.end();
	assert.ok(turns.isFree);
});

test("with more disks than places all of them get turns, whatever their gains", () => {
	let now = 0;
	const turns = new CleaningTurns(1, () => now);
	const rounds = Array.from({ length: 24 }, () => 0);
	const live = rounds.map((_, i): Turn => turns.take(round(i, 1)));
	for (let i = 0; i < 2400; i++) {
		const working = live.findIndex(({ isGranted }) => isGranted);
		rounds[working]!++;
		now += 100;
		live[working]!.end();
		live[working] = turns.take(round(working, 1));
	}
	assert.ok(Math.min(...rounds) >= 20, `rounds: ${rounds.join()}`);
});
