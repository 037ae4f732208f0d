// With `--clean off` nobody makes room while a client waits: a full log is ENOSPC, and a cleaning ends it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk, vmsweep } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

test("a full log with cleaning off is ENOSPC until it is cleaned", async (t) => {
	if (!requireTool(t, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("full");
	await createDisk(disk, { size: "512M" });
	await using server = await SweepServer.serve(disk, "--clean", "off", "--log-limit", "128M");
	const write = (offset: string) => run("qemu-io", ["-f", "raw", "-c", `write -P 2 ${offset} 64M`, server.uri]);
	assert.equal((await write("0")).exitCode, 0);
	const refused = await write("64M");
	assert.match(refused.stdout + refused.stderr, /No space left on device/);
	await runOk(vmsweep, ["clean", disk]);
	assert.equal((await write("64M")).exitCode, 0);
	await runOk("qemu-io", ["-f", "raw", "-c", "read -P 2 0 128M", server.uri]);
	assert.equal((await server.stop()).exitCode, 0);
});
