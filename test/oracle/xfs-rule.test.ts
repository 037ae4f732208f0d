// The recorder oracle for XFS (live-safety 3, 9.1): no file may lose a byte by the rule, wherever it is asked; a rule
// that asks for less must lose some on the same recording, else this test could not see anything.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import type { LiveVolume } from "../../src/core/filesystems/live.ts";
import { readXfs } from "../../src/core/filesystems/xfs/index.ts";
import { XfsLiveVolume } from "../../src/core/filesystems/xfs/live.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { xfs } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { memory, type RuleOptions } from "../support/oracle-rule.ts";
import { judge, type OracleCase, recordLoad } from "../support/oracle-run.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const SIZE = "400M";
const short = ["--rounds", "3", "--seconds", "2"];

const cases: Readonly<Record<string, OracleCase>> = {
	"as mkfs makes it": { kind: xfs, mkfs: [], mountOptions: "defaults", load: short, unit: 512 },
	"cut off, reverse map, long log buffers": {
		kind: xfs,
		mkfs: ["-m", "rmapbt=1,reflink=1", "-d", "agcount=5"],
		mountOptions: "logbsize=256k,logbufs=8",
		load: [...short, "--shutdown"],
		unit: 512,
	},
	"1 KiB blocks, short log buffers": {
		kind: xfs,
		mkfs: ["-b", "size=1024", "-m", "finobt=0", "-i", "sparse=0"],
		mountOptions: "logbsize=32k,logbufs=2",
		load: short,
		unit: 512,
	},
};

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
async function withQuickLogWorker(t: TestContext): Promise<void> {
	const path = "/proc/sys/fs/xfs/xfssyncd_centisecs";
	const before = await readFile(path, "utf8").catch(() => null);
	if (before === null) return;
	await writeFile(path, "100");
	t.after(() => writeFile(path, before));
}

describe("recorder oracle, XFS", () => {
	for (const [name, oracleCase] of Object.entries(cases))
		test(name, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools)) return;
			await withQuickLogWorker(t);
			const recorded = await recordLoad(t, SIZE, oracleCase);
			if (recorded === null) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			const rule = await judge(t, "the rule", recorded, theRule(seededRandom(seed)));
			assert.equal(rule.damaged, 0);
			assert.ok(rule.judged >= 5 && rule.droppedBlocks > 500, "hardly anything was dropped: the test is blind");
			const now = await judge(t, "what is free now", recorded, {
				...theRule(seededRandom(seed)),
				open: (view) => XfsLiveVolume.open(view, { evidence: { records: 0, commits: 0 } }),
			});
			assert.ok(now.damaged > 0, "dropping all that is free now must lose files here");
		});
});
