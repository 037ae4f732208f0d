// The recorder oracle for a long time, and for every way in which ext3, ext4 and XFS write (live-safety 2.5, 3, 9.1, 9.2).

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Ext4LiveVolume } from "../../src/core/filesystems/ext4/live.ts";
import { ext3, ext4, xfs } from "../support/file-system-kinds.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { judge, type OracleCase, recordRun } from "../support/oracle-run.ts";
import { judgeWith, judgeXfs, withQuickLogWorker } from "../support/oracle-xfs.ts";
import { requireTool } from "../support/requirements.ts";

const SIZE = "512M";
const long = ["--rounds", "6", "--seconds", "10"];
const exact = [...long, "--no-fallocate"];

/** `lateExact`: blocks that are free only until they are written, so that "late" blocks are errors (9.2). */
const cases: Readonly<Record<string, OracleCase & { readonly lateExact?: true }>> = {
	ordered: {
		kind: ext4,
		mkfs: [],
		mountOptions: "commit=1,dioread_lock,nodelalloc",
		load: exact,
		lateExact: true,
	},
	"ordered, delayed allocation": { kind: ext4, mkfs: [], mountOptions: "commit=1", load: long },
	"ordered, cut off": { kind: ext4, mkfs: [], mountOptions: "commit=1", load: [...long, "--shutdown"] },
	"second transactions": {
		kind: ext4,
		mkfs: [],
		mountOptions: "commit=1,nodelalloc",
		load: [...long, "--skip"],
	},
	"second transactions, cut off": {
		kind: ext4,
		mkfs: [],
		mountOptions: "commit=1,nodelalloc",
		load: [...long, "--skip", "--shutdown"],
	},
	writeback: { kind: ext4, mkfs: [], mountOptions: "commit=1,data=writeback", load: long },
	"data=journal": { kind: ext4, mkfs: [], mountOptions: "commit=1,data=journal", load: long },
	"data=journal, cut off": {
		kind: ext4,
		mkfs: [],
		mountOptions: "commit=1,data=journal",
		load: [...long, "--shutdown"],
	},
	fast_commit: { kind: ext4, mkfs: ["-O", "fast_commit"], mountOptions: "commit=1", load: long },
	"fast_commit, cut off": {
		kind: ext4,
		mkfs: ["-O", "fast_commit"],
		mountOptions: "commit=1",
		load: [...long, "--shutdown"],
	},
	bigalloc: { kind: ext4, mkfs: ["-O", "bigalloc", "-C", "16384"], mountOptions: "commit=1", load: long },
	"1 KiB blocks": { kind: ext4, mkfs: ["-b", "1024"], mountOptions: "commit=1", load: long, unit: 1024 },
	"1 KiB blocks, no checksums": {
		kind: ext4,
		mkfs: ["-b", "1024", "-O", "^metadata_csum,^uninit_bg"],
		mountOptions: "commit=1",
		load: long,
		unit: 1024,
	},
	"meta_bg, no flex_bg": {
		kind: ext4,
		mkfs: ["-O", "meta_bg,^resize_inode,^flex_bg"],
		mountOptions: "commit=1",
		load: long,
	},
	"barrier=0": { kind: ext4, mkfs: [], mountOptions: "commit=1,barrier=0", load: long },
	ext3: { kind: ext3, mkfs: [], mountOptions: "commit=1", load: long },
	"ext3, 1 KiB blocks": {
		kind: ext3,
		mkfs: ["-b", "1024"],
		mountOptions: "commit=1",
		load: long,
		unit: 1024,
	},
};

describe("recorder oracle, long", () => {
	for (const [name, { lateExact, ...oracleCase }] of Object.entries(cases))
		test(name, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, "dumpe2fs", "debugfs")) return;
			const unit = oracleCase.unit ?? 4096;
			const mkfs = [...oracleCase.mkfs, ...(oracleCase.mkfs.includes("-b") ? [] : ["-b", String(unit)])];
			const recorded = await recordRun(t, SIZE, { ...oracleCase, mkfs });
			if (recorded === null) return;
			const rule = await judge(t, "the rule", recorded, { open: (view) => Ext4LiveVolume.open(view) });
			assert.equal(rule.damaged, 0);
			if (lateExact) assert.equal(rule.lateBlocks, 0);
			assert.ok(rule.judged >= 5 && rule.droppedBlocks > 500, "hardly anything was dropped: the test is blind");
			await judge(t, "one commit (may lose files)", recorded, {
				open: (view) => Ext4LiveVolume.open(view, { commitsRequired: 1 }),
			});
			await judge(t, "transaction numbers (may lose files)", recorded, {
				open: (view) => Ext4LiveVolume.open(view, { countBy: "tid" }),
			});
		});

	test("a journal whose commits prove nothing by their order is refused", async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, "dumpe2fs", "debugfs")) return;
		const recorded = await recordRun(t, SIZE, {
			kind: ext4,
			mkfs: ["-b", "4096"],
			mountOptions: "commit=1,journal_async_commit,data=writeback",
			load: ["--rounds", "2", "--seconds", "3"],
		});
		if (recorded === null) return;
		const rule = await judge(t, "the rule", recorded, { open: (view) => Ext4LiveVolume.open(view) });
		assert.equal(rule.damaged, 0);
	});
});

const xfsCases: Readonly<Record<string, Omit<OracleCase, "kind" | "unit">>> = {
	"as mkfs makes it": { mkfs: [], mountOptions: "defaults", load: long },
	"cut off": { mkfs: [], mountOptions: "defaults", load: [...long, "--shutdown"] },
	"long log buffers": { mkfs: ["-l", "size=112m"], mountOptions: "logbsize=256k,logbufs=8", load: long },
	"short log buffers, cut off": {
		mkfs: [],
		mountOptions: "logbsize=16k,logbufs=2",
		load: [...long, "--shutdown"],
	},
	"aligned log": { mkfs: ["-l", "su=64k"], mountOptions: "defaults", load: long },
	"reverse map, many groups": { mkfs: ["-m", "rmapbt=1", "-d", "agcount=5"], mountOptions: "defaults", load: long },
	"nothing new": {
		mkfs: ["-m", "reflink=0,finobt=0,rmapbt=0", "-i", "sparse=0"],
		mountOptions: "defaults",
		load: [...long, "--shutdown"],
	},
	"1 KiB blocks": { mkfs: ["-b", "size=1024"], mountOptions: "defaults", load: long },
	"full and emptied": { mkfs: [], mountOptions: "defaults", load: [...long, "--fill"] },
};

describe("recorder oracle, XFS, long", () => {
	for (const [name, oracleCase] of Object.entries(xfsCases))
		test(name, async (t) => {
			if (!requireTool(t, ...LOOP_TOOLS, ...xfs.tools)) return;
			await withQuickLogWorker(t);
			const recorded = await recordRun(t, SIZE, { ...oracleCase, kind: xfs, unit: 512 });
			if (recorded === null) return;
			const { rule, now } = await judgeXfs(t, recorded);
			assert.equal(rule.damaged, 0);
			assert.ok(rule.judged >= 5 && rule.droppedBlocks > 500, "hardly anything was dropped: the test is blind");
			assert.ok(now.damaged > 0, "dropping all that is free now must lose files here");
			await judgeWith(t, "one commit (may lose files)", recorded, { records: 0, commits: 1 });
			await judgeWith(t, "eight records, no commit (may lose files)", recorded, { records: 8, commits: 0 });
		});
});
