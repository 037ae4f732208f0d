// Hosts that forbid io_uring: helper threads and Node's pool do the same.

import assert from "node:assert/strict";
import { open } from "node:fs/promises";
import { test } from "node:test";
import { fadviseAsync, POSIX_FADV_DONTNEED } from "../../src/adapters/os/syscalls.ts";
import type { DiskStatus } from "../../src/services/disk-status.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk, start, vmsweep } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

const environment = { VMSWEEP_NO_IO_URING: "1" };

test("writes, flushes, cold reads and cleaning without io_uring", async (t) => {
	if (!requireTool(t, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "64M"]);
	await using server = start(vmsweep, ["serve", disk, "--clean", "off"], { environment });
	const [, uri] = await server.line(/ is served at (\S+)$/);
	// Every other block, so that cleaning has scattered places to write to.
	const writes = Array.from({ length: 300 }, (_, i) => ["-c", `write -q -P ${1 + (i % 250)} ${i * 8192} 4096`]);
	await runOk("qemu-io", ["-f", "raw", ...writes.flat(), "-c", "flush", uri!]);
	await runOk(vmsweep, ["clean", disk]);
	for (const name of ["first.log", "second.raw"]) {
		await using file = await open(`${disk}/${name}`, "r");
		await file.sync();
		assert.equal(await fadviseAsync(file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	}
	const reads = Array.from({ length: 300 }, (_, i) => ["-c", `read -q -P ${1 + (i % 250)} ${i * 8192} 4096`]);
	await runOk("qemu-io", ["-r", "-f", "raw", ...reads.flat(), uri!]);
	const status = JSON.parse(await runOk(vmsweep, ["status", "--json", disk])) as DiskStatus;
	assert.ok(status.cleaner.movedBytes >= 300 * 4096);
	assert.ok(status.guest.flushes > 0);
	assert.equal(status.guest.errors, 0);
	assert.equal((await server.end()).exitCode, 0);
});
