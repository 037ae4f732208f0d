// Host file systems that fill up under the whole server while a guest writes: the first image's, and the second's. Writes
// wait or fail with ENOSPC, what was acknowledged is there, and with space everything goes on by itself.

import assert from "node:assert/strict";
import { rm, truncate, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Ledger } from "../support/ledger.ts";
import { Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

const MIB = 2 ** 20;
const TOOLS = ["root", "loop devices", "mkfs.ext4"];

/** A host file system of its own, with a filler file of `fillerBytes` in it. */
async function smallHost(folder: { file(name: string): string }, name: string, megabytes: number, fillerBytes: number) {
	const image = folder.file(`${name}.img`);
	await runOk("truncate", ["-s", `${megabytes}M`, image]);
	await runOk("mkfs.ext4", ["-q", "-F", image]);
	const mounted = await Mounted.mount(image, folder.file(name), "loop");
	await writeFile(`${mounted.path}/filler`, new Uint8Array(fillerBytes));
	return mounted;
}

const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);

test("the second image's host is full: the log takes what it may, then writers wait until there is space", async (t) => {
	if (!requireTool(t, ...TOOLS)) return;
	await using folder = await temporaryFolder();
	await using host = await smallHost(folder, "h", 240, 190 * MIB);
	const second = `${host.path}/second.raw`;
	await writeFile(second, "");
	await truncate(second, 256 * MIB);
	const disk = folder.file("d");
	await createDisk(disk, { second });
	const ledger = new Ledger(2048, 65_536);
	{
		await using server = await SweepServer.serve(disk, "--log-limit", "80M");
		await using client = await server.connect();
		let done = false;
		// 150 MiB: more than the log and what is left of the second image's host take together.
		const writing = ledger
			.writeAll(
				client,
				range(0, 2400).map((i) => i % 2048),
			)
			.then((failed) => {
				done = true;
				return failed;
			});
		writing.catch(() => {}); // what fails below is the cause, and ends this connection
		await server.reaches(({ stalled }) => stalled > 0 || done, "a full log");
		await server.process.until(() => server.process.stderr.includes("ENOSPC"), "the cleaner to say what it lacks");
		assert(!done, "the host never became full");
		await using other = await server.connect();
		await ledger.check(other);
		await rm(`${host.path}/filler`);
		assert.equal(await writing, 0, "writes that only had to wait failed");
		assert.equal(await ledger.flush(client), 0);
		await ledger.check(client);
		assert.equal((await server.stop()).exitCode, 0);
	}
	await using server = await SweepServer.serve(disk, "--clean", "off");
	await using client = await server.connect();
	await ledger.check(client);
	assert.equal((await server.stop()).exitCode, 0);
});

test("the first image's host is full: ENOSPC, nothing acknowledged is lost, also by a crash there, and it goes on", async (t) => {
	if (!requireTool(t, ...TOOLS)) return;
	await using folder = await temporaryFolder();
	await using host = await smallHost(folder, "h", 160, 100 * MIB);
	const second = folder.file("second.raw");
	await writeFile(second, "");
	await truncate(second, 256 * MIB);
	const disk = `${host.path}/d`;
	await createDisk(disk, { second });
	const ledger = new Ledger(2048, 65_536);
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await using client = await server.connect();
		assert((await ledger.writeAll(client, range(0, 1200))) > 0, "the host never became full");
		await ledger.flush(client);
		await ledger.check(client);
		await server.kill();
	}
	{
		await using server = await SweepServer.serve(disk);
		await using client = await server.connect();
		await ledger.check(client);
		await rm(`${host.path}/filler`);
		await server.reaches(({ first }) => first.usedBytes < 24 * MIB, "the cleaner to make room");
		assert.equal(await ledger.writeAll(client, range(1000, 1300)), 0, "there is space again");
		assert.equal(await ledger.flush(client), 0);
		await ledger.check(client);
		assert.equal((await server.stop()).exitCode, 0);
	}
});
