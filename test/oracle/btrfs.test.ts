// btrfs's rule at rest on what a real kernel wrote under load.
//
//   create, serve --clean off ─► mkfs, load ─► first.log ─► both rules at each superblock ─► compare the files

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { judgeBtrfs } from "../support/btrfs-oracle.ts";
import { temporaryFolder } from "../support/folders.ts";
import { LOOP_TOOLS, LoopDevice } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { readRecording } from "../support/oracle-recording.ts";
import { loadProgram } from "../support/oracle-run.ts";
import { run, runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const RECORDINGS_MAX = 4;

test("btrfs: what was used at one look and is free at the next may go, at every superblock; the naive rule loses files", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.btrfs", "btrfs")) return;
	// A load may happen to leave nothing to lose by the naive rule; then another one is recorded.
	for (let recorded = 1; ; recorded++) {
		await using folder = await temporaryFolder();
		const { from, expected } = await recordLoad(t, folder.file("d"), folder.file("m"), folder.file("fuse"));
		const recording = readRecording(join(folder.file("d"), "first.log"));
		const { rule, naive, disk: after } = await judgeBtrfs(t, recording, from, expected);
		assert.ok(rule.droppedBlocks > 1000, "nothing was dropped: the test is blind");
		assert.equal(rule.damaged, 0);
		await writeFile(folder.file("image"), after);
		await runOk("btrfs", ["check", folder.file("image")]);
		if (naive.damaged > 0) return;
		assert.ok(recorded < RECORDINGS_MAX, "the naive rule lost nothing: the test is blind");
	}
});

/** Records a load on a btrfs. Returns where its making ends, and what its files must hold. */
async function recordLoad(
	t: TestContext,
	disk: string,
	mount: string,
	fuse: string,
): Promise<{ from: number; expected: string[] }> {
	const seed = testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await createDisk(disk, { size: "512M" });
	await using server = await SweepServer.serve(disk, "--clean", "off", "--log-limit", "64G");
	await using device = await LoopDevice.attach(server.uri, fuse);
	await runOk("mkfs.btrfs", ["-q", "-f", device.path]);
	const from = (await server.status()).first.position;
	await mkdir(mount);
	const how = ["--rounds", "3", "--seconds", "5", "--files", "60", "--mount-options", "commit=1"];
	const finished = await run(loadProgram, ["work", device.path, mount, ...how, "--seed", String(seed)], {
		timeoutSeconds: 600,
	});
	await run("umount", [mount]);
	t.diagnostic(finished.stderr.trim());
	assert.equal(finished.exitCode, 0, finished.stderr);
	await runOk("blockdev", ["--flushbufs", device.path]);
	assert.equal((await server.stop()).exitCode, 0);
	return { from, expected: finished.stdout.split("\n").filter((line) => line !== "") };
}
