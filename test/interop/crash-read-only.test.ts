// A host file system that turns read-only under the server, as ext4 does when it meets an error: clients get errors, the
// server says why in one line and ends with 1, and what was flushed is there once the host is well again.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Ledger } from "../support/ledger.ts";
import { Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

test("a host file system that turns read-only", async (t) => {
	if (!requireTool(t, "root", "loop devices", "mkfs.ext4", "e2fsck", "findmnt")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("host.img");
	await runOk("truncate", ["-s", "200M", image]);
	await runOk("mkfs.ext4", ["-q", "-F", image]);
	const disk = `${folder.file("h")}/d`;
	const ledger = new Ledger(256, 65_536);
	{
		await using host = await Mounted.mount(image, folder.file("h"), "loop,errors=remount-ro");
		await createDisk(disk, { size: "64M" });
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await using client = await server.connect();
		assert.equal(await ledger.writeAll(client, [...ledger.sent.keys()]), 0);
		assert.equal(await ledger.flush(client), 0);
		const device = (await runOk("findmnt", ["-no", "SOURCE", host.path])).trim();
		await writeFile(`/sys/fs/ext4/${basename(device)}/trigger_fs_error`, "1");
		// Errors or a closed connection, but no acknowledgement that means nothing: the flush can't succeed.
		const unit = async (at: number): Promise<number> => ledger.write(client, at).catch(() => -1);
		for (let at = 0; at < 32; at++) await unit(at);
		assert.notEqual(await ledger.flush(client).catch(() => -1), 0);
		const { exitCode } = await server.process.finished;
		assert.equal(exitCode, 1);
		const lines = server.process.stderr.split("\n").filter((line) => line.includes('"level":50'));
		assert.equal(lines.length, 1, server.process.stderr);
		assert.match(lines[0]!, /first\.log.*(EROFS|EIO)/);
	}
	const checked = await run("e2fsck", ["-fp", image]);
	assert((checked.exitCode ?? 8) < 4, checked.stdout);
	await using host = await Mounted.mount(image, folder.file("h"), "loop");
	await using server = await SweepServer.serve(disk);
	await using client = await server.connect();
	await ledger.check(client, ledger.flushed);
	assert.equal(await ledger.writeAll(client, [...ledger.sent.keys()]), 0);
	assert.equal(await ledger.flush(client), 0);
	await ledger.check(client);
	assert.equal((await server.stop()).exitCode, 0);
	await host.unmount();
});
