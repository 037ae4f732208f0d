// Crash simulation of whole disks, from seeds that no run before had: at least 100,000 histories, and a third as many on
// storage that breaks its word. test/sim runs the same from fixed seeds. A failure names the command that replays it.
//
//   VMSWEEP_SOAK_SIM_RUNS=20000 VMSWEEP_SEED=5 node --test test/soak/simulation.soak.ts

import { test } from "node:test";
import { DiskHistory } from "../sim/disk-history.ts";
import { emptyDiskTally } from "../sim/disk-tally.ts";
import { testSeed } from "../support/randomness.ts";

const runs = Number(process.env.VMSWEEP_SOAK_SIM_RUNS ?? 100_000);
const firstSeed = testSeed() >>> 0;

const replay = (seed: number): string =>
	`replay: VMSWEEP_SIM_RUNS=1 VMSWEEP_SIM_SEED=${seed} node --test test/sim/disk.sim.test.ts`;

test(`${runs} histories from seed ${firstSeed}`, async (t) => {
	const tally = emptyDiskTally();
	for (let seed = firstSeed; seed < firstSeed + runs; seed++)
		await new DiskHistory(seed, { tally }).run().catch((error: unknown) => {
			throw new Error(`seed ${seed}: ${String(error)}\n${replay(seed)}`, { cause: error });
		});
	t.diagnostic(JSON.stringify(tally));
});

test(`${Math.ceil(runs / 3)} histories on bad storage from seed ${firstSeed}`, async () => {
	for (let seed = firstSeed; seed < firstSeed + runs / 3; seed++)
		await new DiskHistory(seed).runRotten().catch((error: unknown) => {
			throw new Error(`seed ${seed}: ${String(error)}\n${replay(seed)}`, { cause: error });
		});
});
