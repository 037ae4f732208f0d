// The recorder oracle for XFS (live-safety 3, 9.1): no file may lose a byte by the rule, wherever it is asked; a rule
// that asks for less must lose some on the same recording, else this test could not see anything.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { xfs } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { type OracleCase, recordRun } from "../support/oracle-run.ts";
import { judgeXfs, withQuickLogWorker } from "../support/oracle-xfs.ts";
import { requireTool } from "../support/requirements.ts";

const SIZE = "400M";
const short = ["--rounds", "2", "--seconds", "2"];

const cases: Readonly<Record<string, OracleCase>> = {
	"as mkfs makes it": { kind: xfs, mkfs: [], mountOptions: "defaults", load: short, unit: 512 },
	"cut off, reverse map, long log buffers": {
		kind: xfs,
		mkfs: ["-m", "rmapbt=1,reflink=1", "-d", "agcount=5"],
		mountOptions: "logbsize=256k,logbufs=8",
		load: [...short, "--shutdown"],
		unit: 512,
	},
};

describe("recorder oracle, XFS", () => {
	for (const [name, oracleCase] of Object.entries(cases))
		test(name, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools)) return;
			await withQuickLogWorker(t);
			const recorded = await recordRun(t, SIZE, oracleCase);
			if (recorded === null) return;
			const { rule, now } = await judgeXfs(t, recorded);
			assert.equal(rule.damaged, 0);
			assert.ok(rule.judged >= 5 && rule.droppedBlocks > 500, "hardly anything was dropped: the test is blind");
			assert.ok(now.damaged > 0, "dropping all that is free now must lose files here");
		});
});
