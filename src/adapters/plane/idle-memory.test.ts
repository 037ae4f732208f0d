import assert from "node:assert/strict";
import { test } from "node:test";
import { IdleMemory } from "./idle-memory.ts";

test("memory is given back once per rest, and only after work that was worth it", () => {
	let given = 0;
	const memory = new IdleMemory(() => given++);
	const rounds = (count: number, wasBusy: boolean): number => {
		for (let round = 0; round < count; round++) memory.note(wasBusy);
		return given;
	};
	assert.equal(rounds(3, false), 0, "too short a rest");
	assert.equal(rounds(1, false), 1, "what opening the disk took");
	rounds(999, true);
	assert.equal(rounds(10, false), 1, "too little work");
	rounds(1, true);
	assert.equal(rounds(3, false), 1, "too short a rest");
	assert.equal(rounds(1, false), 2);
	assert.equal(rounds(50, false), 2);
	for (let time = 0; time < 50; time++) {
		rounds(100, true);
		rounds(3, false);
	}
	assert.equal(given, 2, "never idle for long enough");
	assert.equal(rounds(10, false), 3);
	for (let round = 0; round < 1000; round++) memory.note(false, true);
	assert.equal(given, 3, "no rest yet");
	rounds(3, false);
	memory.note(false, true);
	assert.equal(rounds(1, false), 4, "the control plane's questions are work, but not the end of a rest");
});
