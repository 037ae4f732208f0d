import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type LogPosition, logPosition } from "../../../foundations/units.ts";
import { LogEvidence } from "./evidence.ts";

test("eight records, then seventeen commits in those behind them", () => {
	const evidence = new LogEvidence();
	evidence.addView(logPosition(100));
	for (let i = 0; i < 8; i++) evidence.addRecord(5);
	evidence.addView(logPosition(200));
	assert.equal(evidence.settled, null, "commits in records that may have been under way prove nothing");
	assert.deepEqual(evidence.missing, { records: 0, commits: 17 });
	evidence.addRecord(16);
	evidence.addView(logPosition(300));
	assert.equal(evidence.settled, null);
	assert.deepEqual(evidence.missing, { records: 0, commits: 1 });
	assert.deepEqual(
		[99, 100, 199, 200, 300].map((position) => evidence.commitsFor(logPosition(position))),
		[16, 0, 0, 0, 0],
	);
	evidence.addRecord(1);
	evidence.addView(logPosition(400));
	assert.equal(evidence.settled, 100);
});

test("many commits in one record are not enough without the records", () => {
	const evidence = new LogEvidence();
	evidence.addView(logPosition(1));
	for (let i = 0; i < 8; i++) {
		evidence.addRecord(22);
		evidence.addView(logPosition(10 + i));
		assert.equal(evidence.settled, null);
	}
	evidence.addRecord(22);
	evidence.addView(logPosition(99));
	assert.equal(evidence.settled, 1);
});

test("while the log stands still, later views are as good as the first", () => {
	const evidence = new LogEvidence({ records: 1, commits: 1 });
	evidence.addView(logPosition(5));
	evidence.addView(logPosition(50));
	evidence.addRecord(1);
	evidence.addRecord(1);
	evidence.addView(logPosition(60));
	assert.equal(evidence.settled, 50);
});

test("a log without commits doesn't make it grow for ever", () => {
	const evidence = new LogEvidence();
	evidence.addView(logPosition(1));
	for (let i = 0; i < 200_000; i++) {
		evidence.addRecord(0);
		if (i % 100 === 0) evidence.addView(logPosition(2 + i));
	}
	for (let i = 0; i < 9; i++) evidence.addRecord(9);
	evidence.addView(logPosition(300_000));
	for (let i = 0; i < 10; i++) evidence.addRecord(9);
	evidence.addView(logPosition(300_001));
	assert.equal(evidence.settled, 300_000);
});

test("is what the rule says, however records, commits and views follow each other", () => {
	const step = fc.oneof(fc.record({ commits: fc.nat(3) }), fc.constant("view" as const));
	fc.assert(
		fc.property(fc.array(step, { maxLength: 300 }), fc.nat(4), fc.nat(6), (steps, records, commits) => {
			const evidence = new LogEvidence({ records, commits });
			const log: number[] = [];
			const views: { position: LogPosition; records: number }[] = [];
			for (const [at, step] of steps.entries()) {
				if (step !== "view") {
					evidence.addRecord(step.commits);
					log.push(step.commits);
					continue;
				}
				const position = logPosition(at);
				evidence.addView(position);
				views.push({ position, records: log.length });
				const enough = views.filter((view) => {
					const behind = log.slice(view.records + records);
					return log.length >= view.records + records && behind.reduce((a, b) => a + b, 0) >= commits;
				});
				assert.equal(evidence.settled, enough.at(-1)?.position ?? null);
			}
		}),
	);
});
