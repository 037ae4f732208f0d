// btrfs's rule at rest on what a real kernel wrote under load.
//
//   create, serve --clean off ─► mkfs, load ─► first.log ─► both rules at each superblock ─► compare the files

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { judgeBtrfs } from "../support/btrfs-oracle.ts";
import { temporaryFolder } from "../support/folders.ts";
import { LOOP_TOOLS, LoopDevice } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { readRecording } from "../support/oracle-recording.ts";
import { loadProgram } from "../support/oracle-run.ts";
import { run, runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

test("btrfs: what was used at one look and is free at the next may go, at every superblock; the naive rule loses files", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.btrfs", "btrfs")) return;
	const seed = testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "512M" });
	let from: number;
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk, "--clean", "off", "--log-limit", "64G");
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk("mkfs.btrfs", ["-q", "-f", device.path]);
		from = (await server.status()).first.position;
		await mkdir(folder.file("m"));
		const load = [
			"--rounds",
			"3",
			"--seconds",
			"5",
			"--files",
			"60",
			"--mount-options",
			"commit=1",
			"--seed",
			String(seed),
		];
		const finished = await run(loadProgram, ["work", device.path, folder.file("m"), ...load], { timeoutSeconds: 600 });
		await run("umount", [folder.file("m")]);
		t.diagnostic(finished.stderr.trim());
		assert.equal(finished.exitCode, 0, finished.stderr);
		expected = finished.stdout.split("\n").filter((line) => line !== "");
		await runOk("blockdev", ["--flushbufs", device.path]);
		assert.equal((await server.stop()).exitCode, 0);
	}
	const recording = readRecording(join(disk, "first.log"));
	const { rule, naive, disk: after } = await judgeBtrfs(t, recording, from, expected);
	assert.ok(rule.droppedBlocks > 1000, "nothing was dropped: the test is blind");
	assert.equal(rule.damaged, 0);
	assert.ok(naive.damaged > 0, "the naive rule lost nothing: the test is blind");
	await using copy = await temporaryFolder();
	await writeFile(copy.file("image"), after);
	await runOk("btrfs", ["check", copy.file("image")]);
});
