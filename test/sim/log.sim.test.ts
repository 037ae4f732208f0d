// Crash simulation of the first image: many seeded histories, and broken variants that must be caught.
//
//   VMSWEEP_SIM_RUNS=100000 VMSWEEP_SIM_SEED=1 node --test test/sim/log.sim.test.ts

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Safeguards } from "../../src/core/log/state.ts";
import { ALL_SAFEGUARDS } from "../../src/core/log/state.ts";
import { emptyTally, History } from "./history.ts";
import type { Tally } from "./history.ts";

const runs = Number(process.env["VMSWEEP_SIM_RUNS"] ?? 3000);
const firstSeed = Number(process.env["VMSWEEP_SIM_SEED"] ?? 1);

/** Runs one history; returns what broke, with the command that replays it. */
function runHistory(seed: number, safeguards: Safeguards, tally: Tally): Error | undefined {
	try {
		new History(seed, safeguards, tally).run();
		return undefined;
	} catch (error) {
		return new Error(
			`seed ${seed}: ${error instanceof Error ? error.message : error}\n` +
				`replay: VMSWEEP_SIM_RUNS=1 VMSWEEP_SIM_SEED=${seed} node --test test/sim/log.sim.test.ts`,
			{ cause: error },
		);
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
	if (runs >= 1000) for (const [what, count] of Object.entries(tally)) assert.ok(count > 0, `no history reached: ${what}`);
});

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
		for (let seed = 1; seed <= 50_000; seed++) {
			const broken = runHistory(seed, safeguards, emptyTally());
			if (!broken) continue;
			t.diagnostic(`caught by seed ${seed}: ${broken.message.split("\n")[0]}`);
			return;
		}
		assert.fail("50000 histories found nothing wrong");
	});
