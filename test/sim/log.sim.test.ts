// Crash simulation of the first image: many seeded histories, and broken variants that must be caught.
//
//   VMSWEEP_SIM_RUNS=100000 VMSWEEP_SIM_SEED=1 node --test test/sim/log.sim.test.ts

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Safeguards } from "../../src/core/log/state.ts";
import { ALL_SAFEGUARDS } from "../../src/core/log/state.ts";
import type { Tally } from "./history.ts";
import { emptyTally, History } from "./history.ts";
import { assertReached, withReplay } from "./replay.ts";
import { unitsOf } from "./sim-file.ts";

const runs = Number(process.env.VMSWEEP_SIM_RUNS ?? 1500);
const firstSeed = Number(process.env.VMSWEEP_SIM_SEED ?? 1);

/** Runs one history; returns what broke, with the command that replays it. */
function runHistory(seed: number, safeguards: Safeguards, tally: Tally): Error | undefined {
	try {
		new History(seed, safeguards, tally).run();
		return undefined;
	} catch (error) {
		return withReplay(error, "log.sim.test.ts", seed);
	}
}

test(`no power cut, failing call or restart breaks the promise (${runs} histories from seed ${firstSeed})`, (t) => {
	const tally = emptyTally();
	for (let seed = firstSeed; seed < firstSeed + runs; seed++) {
		const broken = runHistory(seed, ALL_SAFEGUARDS, tally);
		if (broken) throw broken;
	}
	t.diagnostic(JSON.stringify(tally));
	// The histories reach what they are meant to reach.
	if (runs >= 1000) assertReached(tally);
});

test("small histories survive every cut with every subset of unflushed sectors", (t) => {
	let checked = 0;
	for (let seed = 1; seed <= Math.ceil(runs / 750); seed++)
		for (let cut = 1; ; cut++) {
			const history = new History(seed, ALL_SAFEGUARDS, emptyTally(), 4);
			history.world.wholeCalls = true;
			history.world.cutAt = history.world.calls + cut;
			history.steps(12);
			if (!history.world.isCut) break;
			history.world.powerOn();
			checked += checkEverySubset(history, `seed ${seed}, cut at call ${cut}`);
		}
	t.diagnostic(`${checked} crash states`);
});

/** Recovers from every subset of unflushed units: the first sector of each 4 KiB, and its other seven. */
function checkEverySubset(history: History, where: string): number {
	const { first, second } = history;
	const units = unitsOf(first.dirtySectors());
	// Past seven units, each seventh shares its fate.
	const subsets = 2 ** Math.min(units.length, 7);
	for (let subset = 0; subset < subsets; subset++) {
		const kept = units.filter((_, unit) => (subset >> (unit % 7)) & 1).flat();
		history.first = first.clone(history.world);
		history.second = second.clone(history.world);
		history.first.cutKeeping(new Set(kept), subset % 2 === 0);
		history.second.cutKeeping(new Set(subset % 3 === 0 ? second.dirtySectors() : []), true);
		history.open();
		const explained = history.model.explain(history.readDisk());
		if ("problem" in explained)
			assert.fail(`${where}, subset ${subset} of ${units.length} units: ${explained.problem}`);
	}
	return subsets;
}

const variants: { name: string; off: keyof Safeguards }[] = [
	{ name: "entry checksums", off: "entryChecksums" },
	{ name: "data checksums", off: "dataChecksums" },
	{ name: "freeing only after superseding entries are durable", off: "supersededDurably" },
	{ name: "a durable tail before reuse", off: "tailDurably" },
	{ name: "a new epoch per recovery", off: "epochs" },
];

for (const { name, off } of variants)
	test(`the simulation notices a log without ${name}`, (t) => {
		const safeguards = { ...ALL_SAFEGUARDS, [off]: false };
		for (let seed = 1; seed <= 5000; seed++) {
			const broken = runHistory(seed, safeguards, emptyTally());
			if (!broken) continue;
			t.diagnostic(`caught by seed ${seed}: ${broken.message.split("\n")[0]}`);
			return;
		}
		assert.fail("5000 histories found nothing wrong");
	});
