// The recorder oracle's part for XFS: the rule asked at random places, and rules that ask for less.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import type { TestContext } from "node:test";
import type { LiveVolume } from "../../src/core/filesystems/live.ts";
import type { EvidenceWanted } from "../../src/core/filesystems/xfs/evidence.ts";
import { readXfs } from "../../src/core/filesystems/xfs/index.ts";
import { XfsLiveVolume } from "../../src/core/filesystems/xfs/live.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { memory, type RuleOptions } from "./oracle-rule.ts";
import { type Judgement, judge, type RecordedRun } from "./oracle-run.ts";
import { type Random, seededRandom, testSeed } from "./randomness.ts";

/** The rule, asked behind every few writes; now and then compared with what a reader of the whole view says. */
function theRule(random: Random): Omit<RuleOptions, "from" | "metadata"> {
	return {
		open: (view) => XfsLiveVolume.open(view),
		judgeNow: () => random.chance(1 / 150),
		onJudged: async (disk, volume) => {
			if (random.chance(1 / 10)) assert.deepEqual(freeOf(volume, disk), await freeByReader(disk));
		},
	};
}

type Runs = readonly (readonly [start: number, length: number])[];

const freeOf = (volume: LiveVolume, disk: Uint8Array): Runs =>
	[...volume.freeRuns(byteOffset(0), byteOffset(disk.length))].map(({ start, length }) => [start, length]);

async function freeByReader(disk: Uint8Array): Promise<Runs> {
	const map = await readXfs(memory(disk), { vmOff: false });
	assert.equal(map?.kept, null);
	return [...map!.freeRuns(byteOffset(0), byteOffset(disk.length))].map(({ start, length }) => [start, length]);
}

/** The kernel's log worker comes once a second, not every 30: more commits, more races. Host-wide, put back at the end. */
export async function withQuickLogWorker(t: TestContext): Promise<void> {
	const path = "/proc/sys/fs/xfs/xfssyncd_centisecs";
	const before = await readFile(path, "utf8").catch(() => null);
	if (before === null) return;
	await writeFile(path, "100");
	t.after(() => writeFile(path, before));
}

/** Judges a recording by the rule, and by the wrong one that drops what is free now, at the same places. */
export async function judgeXfs(t: TestContext, recorded: RecordedRun): Promise<{ rule: Judgement; now: Judgement }> {
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	const rule = await judge(t, "the rule", recorded, theRule(seededRandom(seed)));
	return { rule, now: await judgeWith(t, "what is free now", recorded, { records: 0, commits: 0 }, seed) };
}

/** Judges a recording by other numbers than the rule's. */
export const judgeWith = (
	t: TestContext,
	name: string,
	recorded: RecordedRun,
	evidence: EvidenceWanted,
	seed = testSeed(),
): Promise<Judgement> =>
	judge(t, name, recorded, {
		...theRule(seededRandom(seed)),
		open: (view) => XfsLiveVolume.open(view, { evidence }),
	});
