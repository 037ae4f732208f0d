// btrfs's rule at rest on what a real kernel wrote under load.
//
//   create, serve --clean off ─► mkfs, load ─► first.log ─► both rules at each superblock ─► compare the files

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { test } from "node:test";
import { judgeBtrfs } from "../support/btrfs-oracle.ts";
import { btrfs } from "../support/file-system-kinds.ts";
import { temporaryFolder } from "../support/folders.ts";
import { LOOP_TOOLS } from "../support/loop.ts";
import { type OracleCase, recordLoad } from "../support/oracle-run.ts";
import { runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const RECORDINGS_MAX = 4;
const LOAD = ["--rounds", "3", "--seconds", "5", "--files", "60"];
const CASE: OracleCase = { kind: btrfs, mkfs: [], mountOptions: "commit=1", load: LOAD };

test("btrfs: what was used at one look and is free at the next may go, at every superblock; the naive rule loses files", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.btrfs", "btrfs")) return;
	// A load may happen to leave nothing to lose by the naive rule; then another one is recorded.
	const seed = testSeed() % 1_000_000;
	for (let tried = 0; ; tried++) {
		const recorded = await recordLoad(t, "512M", { ...CASE, seed: seed + tried });
		if (recorded === null) return;
		const { recording, from, expected } = recorded;
		const { rule, naive, disk: after } = await judgeBtrfs(t, recording, from, expected);
		assert.ok(rule.droppedBlocks > 1000, "nothing was dropped: the test is blind");
		assert.equal(rule.damaged, 0);
		await using folder = await temporaryFolder();
		await writeFile(folder.file("image"), after);
		await runOk("btrfs", ["check", folder.file("image")]);
		if (naive.damaged > 0) return;
		assert.ok(tried + 1 < RECORDINGS_MAX, "the naive rule lost nothing: the test is blind");
	}
});
