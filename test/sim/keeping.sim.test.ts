// Crash simulation of what the first image keeps: views over restarts, drops that can be undone, changing sizes.
//
//   VMSWEEP_SIM_RUNS=100000 VMSWEEP_SIM_SEED=1 node --test test/sim/keeping.sim.test.ts

import assert from "node:assert/strict";
import { test } from "node:test";
import type { KeepingTally } from "./keeping-history.ts";
import { KeepingHistory } from "./keeping-history.ts";

const runs = Number(process.env.VMSWEEP_SIM_RUNS ?? 1000);
const firstSeed = Number(process.env.VMSWEEP_SIM_SEED ?? 1);

test(`views, drops and sizes survive every power cut as promised (${runs} histories from seed ${firstSeed})`, (t) => {
	const counts: KeepingTally = { cuts: 0, viewsRetaken: 0, undoable: 0, undone: 0, shrunk: 0, grown: 0 };
	for (let seed = firstSeed; seed < firstSeed + runs; seed++)
		try {
			new KeepingHistory(seed, counts).run();
		} catch (error) {
			const replay = `VMSWEEP_SIM_RUNS=1 VMSWEEP_SIM_SEED=${seed} node --test test/sim/keeping.sim.test.ts`;
			throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}\nreplay: ${replay}`, {
				cause: error,
			});
		}
	t.diagnostic(JSON.stringify(counts));
	// The histories reach what they are meant to reach.
	if (runs >= 500)
		for (const [what, count] of Object.entries(counts)) assert.ok(count > 0, `no history reached: ${what}`);
});
