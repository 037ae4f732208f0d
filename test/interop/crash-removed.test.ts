// A second image that somebody deletes: missing at the start it is a refusal, in one line; deleted while it is served,
// nothing is moved into the dead file any more, everybody is told, and what it held can still be saved.

import assert from "node:assert/strict";
import { copyFile, rename, rm } from "node:fs/promises";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Ledger } from "../support/ledger.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk, vmsweep } from "../support/processes.ts";

test("missing at the start", async () => {
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "16M" });
	await rename(`${disk}/second.raw`, folder.file("elsewhere"));
	for (const command of ["serve", "clean", "commit"]) {
		const { exitCode, stdout, stderr } = await run(vmsweep, [command, disk]);
		assert.equal(exitCode, 3, stderr);
		assert.equal(stdout, "");
		assert.match(stderr, /^vmsweep: .*second\.raw, the disk's second image, is missing\..*\n$/);
	}
	await rename(folder.file("elsewhere"), `${disk}/second.raw`);
	await using server = await SweepServer.serve(disk);
	assert.equal((await server.stop()).exitCode, 0);
});

test("deleted while it is served", async () => {
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "64M" });
	const ledger = new Ledger(512, 65_536);
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await using client = await server.connect();
		assert.equal(await ledger.writeAll(client, [...ledger.sent.keys()].slice(0, 256)), 0);
		await runOk(vmsweep, ["clean", disk]);
		await rm(`${disk}/second.raw`);
		assert.equal(await ledger.writeAll(client, [...ledger.sent.keys()].slice(128)), 0);
		assert.equal(await ledger.flush(client), 0);
		const cleaned = await run(vmsweep, ["clean", disk]);
		assert.equal(cleaned.exitCode, 1);
		const saved = /second\.raw was deleted.*Copy (\/proc\/\d+\/fd\/\d+)/.exec(cleaned.stderr);
		assert(saved, cleaned.stderr);
		// The guest notices nothing: all is still there.
		await ledger.check(client);
		await copyFile(saved[1]!, `${disk}/second.raw`);
		const stopped = await server.stop();
		assert.notEqual(stopped.exitCode, 0, "closed as if all were well");
		assert.match(stopped.stderr, /second\.raw was deleted/);
	}
	await using server = await SweepServer.serve(disk);
	await using client = await server.connect();
	await ledger.check(client);
	assert.equal((await server.stop()).exitCode, 0);
});
