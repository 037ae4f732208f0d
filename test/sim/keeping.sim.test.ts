// Crash simulation of what the first image keeps: views over restarts, drops that can be undone, changing sizes.
//
//   VMSWEEP_SIM_RUNS=100000 VMSWEEP_SIM_SEED=1 node --test test/sim/keeping.sim.test.ts

import { test } from "node:test";
import type { KeepingTally } from "./keeping-history.ts";
import { KeepingHistory } from "./keeping-history.ts";
import { assertReached, withReplay } from "./replay.ts";

const runs = Number(process.env.VMSWEEP_SIM_RUNS ?? 1000);
const firstSeed = Number(process.env.VMSWEEP_SIM_SEED ?? 1);

test(`views, drops and sizes survive every power cut as promised (${runs} histories from seed ${firstSeed})`, (t) => {
	const counts: KeepingTally = { cuts: 0, viewsRetaken: 0, undoable: 0, undone: 0, shrunk: 0, grown: 0 };
	for (let seed = firstSeed; seed < firstSeed + runs; seed++)
		try {
			new KeepingHistory(seed, counts).run();
		} catch (error) {
			throw withReplay(error, "keeping.sim.test.ts", seed);
		}
	t.diagnostic(JSON.stringify(counts));
	// The histories reach what they are meant to reach.
	if (runs >= 500) assertReached(counts);
});
