// The recorder oracle (live-safety 9.1–9.3): no file may lose a byte by the rule; two rules that are known to be wrong
// must lose some on the same recordings, else this test could not see anything.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Ext4LiveVolume } from "../../src/core/filesystems/ext4/live.ts";
import { ext4 } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { judge, type OracleCase, recordRun } from "../support/oracle-run.ts";
import { requireTool } from "../support/requirements.ts";

const SIZE = "320M";
const short = ["--rounds", "2", "--seconds", "2"];

const cases: Readonly<Record<string, OracleCase>> = {
	"ext4 as mkfs makes it": { kind: ext4, mkfs: ["-b", "4096"], mountOptions: "commit=1", load: short },
	"ext4, cut off, fast_commit": {
		kind: ext4,
		mkfs: ["-b", "4096", "-O", "fast_commit"],
		mountOptions: "commit=1",
		load: [...short, "--shutdown"],
	},
	"ext4, 1 KiB blocks, data=writeback": {
		kind: ext4,
		mkfs: ["-b", "1024"],
		mountOptions: "commit=1,data=writeback",
		load: short,
		unit: 1024,
	},
};

describe("recorder oracle", () => {
	for (const [name, oracleCase] of Object.entries(cases))
		test(name, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, "dumpe2fs", "debugfs")) return;
			const recorded = await recordRun(t, SIZE, oracleCase);
			if (recorded === null) return;
			const rule = await judge(t, "the rule", recorded, { open: (view) => Ext4LiveVolume.open(view) });
			assert.equal(rule.damaged, 0);
			assert.ok(rule.judged >= 5 && rule.droppedBlocks > 500, "hardly anything was dropped: the test is blind");
		});

	test("wrong rules lose files: one commit only, transaction numbers", async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, "dumpe2fs", "debugfs")) return;
		const recorded = await recordRun(t, SIZE, {
			kind: ext4,
			mkfs: ["-b", "4096"],
			mountOptions: "commit=1,nodelalloc,data=ordered,dioread_lock",
			load: [...short, "--skip", "--no-fallocate"],
		});
		if (recorded === null) return;
		const rule = await judge(t, "the rule", recorded, { open: (view) => Ext4LiveVolume.open(view) });
		assert.equal(rule.damaged, 0);
		assert.equal(rule.lateBlocks, 0);
		const one = await judge(t, "one commit", recorded, {
			open: (view) => Ext4LiveVolume.open(view, { commitsRequired: 1 }),
		});
		assert.ok(one.damaged > 0, "a rule of one commit must lose files here");
		const tid = await judge(t, "transaction numbers", recorded, {
			open: (view) => Ext4LiveVolume.open(view, { countBy: "tid" }),
		});
		assert.ok(tid.damaged > 0, "a rule that computes with transaction numbers must lose files here");
	});
});
