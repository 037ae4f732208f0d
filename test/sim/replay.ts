// What the crash simulations tell of many histories: how to replay the one that failed, and whether they reached what they
// are meant to reach.

import assert from "node:assert/strict";

/** What broke a history, with the command that replays it. `file`: the test's own; `about`: what else the seed chose. */
export function withReplay(error: unknown, file: string, seed: number, about?: string): Error {
	const name = about === undefined ? `seed ${seed}` : `seed ${seed} (${about})`;
	const message = error instanceof Error ? error.message : String(error);
	const replay = `VMSWEEP_SIM_RUNS=1 VMSWEEP_SIM_SEED=${seed} node --test test/sim/${file}`;
	return new Error(`${name}: ${message}\nreplay: ${replay}`, { cause: error });
}

/** A simulation that never reaches something says nothing about it. */
export function assertReached<Tally extends { readonly [Key in keyof Tally]: number }>(tally: Tally): void {
	for (const [what, count] of Object.entries<number>(tally)) assert.ok(count > 0, `no history reached: ${what}`);
}
