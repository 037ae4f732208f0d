// serve, status, clean and commit, as users call them, with real NBD clients.

import assert from "node:assert/strict";
import { mkdir, readdir, stat, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { describe, test } from "node:test";
import type { RestingDiskStatus } from "../../src/services/control-at-rest.ts";
import type { DiskStatus } from "../../src/services/disk-status.ts";
import type { CleanReport } from "../../src/services/served-disk.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashBytes, hashFile } from "../support/hashes.ts";
import { type Finished, type Running, run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { freePort } from "../support/waiting.ts";

const MIB = 2 ** 20;

function assertFails({ exitCode, stderr }: Finished, code: number, message: RegExp): void {
	assert.match(stderr, message);
	assert.equal(exitCode, code);
}

const uriOf = async (server: Running, name: string): Promise<string> =>
	(await server.line(new RegExp(`^${name} .*is served at (\\S+)$`)))[1]!;

const status = async <T>(disk: string): Promise<T> => JSON.parse(await runOk(vmsweep, ["status", "--json", disk])) as T;

/** Writes a file's bytes to the start of an export. */
const writeStart = (uri: string, file: string, bytes: number): Promise<string> =>
	runOk("qemu-io", ["-f", "raw", "-c", `write -q -s ${file} 0 ${bytes}`, "-c", "flush", uri]);

test("a disk's life: serve, write, status, clean, stop, commit, plain image", async (t) => {
	if (!requireTool(t, "qemu-io", "nbdinfo", "qemu-img")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "256M"]);
	const bytes = seededRandom(11).bytes(20 * MIB);
	await writeFile(folder.file("data"), bytes);
	{
		await using server = start(vmsweep, ["serve", disk, "--clean", "off"]);
		const uri = await uriOf(server, "web01");
		assert.equal(uri, `nbd+unix:///web01?socket=${disk}/nbd.sock`);
		for (const name of ["nbd.sock", "control.sock"])
			assert.equal((await stat(`${disk}/${name}`)).mode & 0o777, 0o600, name);
		const shown = JSON.parse(await runOk("nbdinfo", ["--json", uri])).exports[0];
		assert.deepEqual(
			[
				shown["export-size"],
				shown.can_multi_conn,
				shown.block_size_minimum,
				shown.block_size_preferred,
				shown.block_size_maximum,
			],
			[256 * MIB, true, 1, 4096, 32 * MIB],
		);
		await writeStart(uri, folder.file("data"), bytes.length);

		const served = await status<DiskStatus>(disk);
		assert.deepEqual([served.name, served.served, served.cleaning], ["web01", true, "off"]);
		assert(served.guest.writtenBytes >= bytes.length);
		assert.match(
			await runOk(vmsweep, ["status", disk]),
			/served, \d clients?, cleaning off[\s\S]*first image +2\d\.\d MiB/,
		);
		assert.match(await runOk(vmsweep, ["status"], { folder: folder.path }), /^web01 +256 MiB +served/m);

		for (const command of ["commit", "serve"])
			assertFails(await run(vmsweep, [command, disk]), 3, new RegExp(`served by .*\\(process ${server.pid}\\)`));

		const report = JSON.parse(await runOk(vmsweep, ["clean", "--json", disk])) as CleanReport;
		assert(report.movedBytes >= 19 * MIB, `moved ${report.movedBytes}`);
		assert(report.secondBytesAfter >= 19 * MIB);

		const { exitCode, stderr } = await server.end("SIGINT");
		assert.equal(exitCode, 0, stderr);
		for (const line of stderr.trim().split("\n")) assert.equal(typeof JSON.parse(line).msg, "string", "logs are JSON");
	}
	assert.deepEqual(
		(await readdir(disk)).filter((name) => name.endsWith(".sock")),
		[],
		"sockets are gone",
	);
	const resting = await status<RestingDiskStatus>(disk);
	assert.deepEqual([resting.served, resting.left, resting.second.state], [false, "clean", "needs-first-image"]);
	assertFails(await run(vmsweep, ["map", `${disk}/second.raw`]), 3, /part of the vmsweep disk .* vmsweep commit/);

	assert.match(await runOk(vmsweep, ["clean", disk]), /dropped .*, moved /);
	assert.match(await runOk(vmsweep, ["commit", disk]), /second\.raw is a whole image of the disk now\.\n$/);
	assert.equal(await hashFile(`${disk}/second.raw`, { start: 0, end: bytes.length }), hashBytes(bytes));
	assert.equal((await status<RestingDiskStatus>(disk)).second.state, "whole");
	await runOk(vmsweep, ["map", `${disk}/second.raw`]);
	await using server = start(vmsweep, ["serve", disk]);
	await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", await uriOf(server, "web01"), folder.file("copy")]);
	assert.equal(await hashFile(folder.file("copy"), { start: 0, end: bytes.length }), hashBytes(bytes));
});

describe("where clients connect", () => {
	test("several disks: own sockets, one socket, one port", async (t) => {
		if (!requireTool(t, "qemu-io", "nbdinfo")) return;
		await using folder = await temporaryFolder();
		const disks = [folder.file("a"), folder.file("b")];
		for (const disk of disks) await runOk(vmsweep, ["create", disk, "--size", "16M"]);
		{
			await using server = start(vmsweep, ["serve", ...disks]);
			for (const name of ["a", "b"])
				assert.equal(await uriOf(server, name), `nbd+unix:///${name}?socket=${folder.file(name)}/nbd.sock`);
			assert.equal((await server.end()).exitCode, 0);
		}
		{
			await using server = start(vmsweep, ["serve", ...disks, "--socket", "both.sock", "--json"], {
				folder: folder.path,
			});
			const lines = await server.until(
				() => server.stdout.split("\n").length === 3 && server.stdout.trim().split("\n"),
				"two lines",
			);
			const uris = lines.map((line) => JSON.parse(line).uri as string);
			assert.deepEqual(
				uris,
				["a", "b"].map((name) => `nbd+unix:///${name}?socket=${folder.file("both.sock")}`),
			);
			const all = JSON.parse(await runOk("nbdinfo", ["--list", "--json", uris[0]!])).exports as {
				"export-name": string;
			}[];
			assert.deepEqual(
				all.map((each) => each["export-name"]),
				["a", "b"],
			);
			assertFails(await run(vmsweep, ["serve", disks[0]!]), 3, /served by/);
		}
		const port = await freePort();
		await using server = start(vmsweep, [
			"serve",
			...disks,
			"--listen",
			`127.0.0.1:${port}`,
			"--read-only",
			"--print-qemu",
		]);
		const uri = await uriOf(server, "b");
		assert.equal(uri, `nbd://127.0.0.1:${port}/b`);
		assert.match(server.stdout, /-blockdev driver=nbd,node-name=vmsweep-a,server\.type=inet,server\.host=127\.0\.0\.1/);
		await runOk("qemu-io", ["-r", "-f", "raw", "-c", "read -q -P 0 0 1M", uri]);
		assert.equal(JSON.parse(await runOk("nbdinfo", ["--json", uri])).exports[0].is_read_only, true);
		assert.notEqual((await run("qemu-io", ["-f", "raw", "-c", "write 0 4k", uri])).exitCode, 0);
	});

	test("an address that is taken, a folder that doesn't exist: nothing is left open", async () => {
		await using folder = await temporaryFolder();
		for (const name of ["a", "b"]) await runOk(vmsweep, ["create", folder.file(name), "--size", "16M"]);
		await using server = start(vmsweep, ["serve", folder.file("a"), "--socket", folder.file("s")]);
		await uriOf(server, "a");
		assertFails(
			await run(vmsweep, ["serve", folder.file("b"), "--socket", folder.file("s")]),
			3,
			/another server listens/,
		);
		assertFails(
			await run(vmsweep, ["serve", folder.file("b"), "--socket", folder.file("no/s")]),
			2,
			/directory doesn't exist/,
		);
		assert.equal((await status<RestingDiskStatus>(folder.file("b"))).left, "clean");
	});

	test("a deep folder: control works, the NBD socket is refused with advice", async (t) => {
		if (!requireTool(t, "nbdinfo")) return;
		await using folder = await temporaryFolder();
		const deep = folder.file(`${"deep/".repeat(30)}web01`);
		await mkdir(folder.file("deep/".repeat(30)), { recursive: true });
		await runOk(vmsweep, ["create", deep, "--size", "16M"]);
		assertFails(await run(vmsweep, ["serve", deep]), 2, /Unix sockets take 107\. Choose another with --socket/);
		await using server = start(vmsweep, ["serve", deep, "--socket", folder.file("s")]);
		await runOk("nbdinfo", [await uriOf(server, "web01")]);
		assert.equal((await status<DiskStatus>(deep)).served, true);
		await runOk(vmsweep, ["clean", deep]);
		await server.end();
		assert.deepEqual(
			(await readdir(deep)).filter((name) => name.endsWith(".sock")),
			[],
		);
	});
});

test("the control socket answers wrong questions, and survives askers that leave", async () => {
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "16M"]);
	await using server = start(vmsweep, ["serve", disk]);
	await uriOf(server, "web01");
	const ask = (method: string, path: string): Promise<number | undefined> =>
		new Promise((resolve, reject) => {
			const asking = request({ socketPath: `${disk}/control.sock`, method, path }, (answer) => {
				answer.resume().on("end", () => resolve(answer.statusCode));
			});
			asking.on("error", reject).end();
		});
	assert.equal(await ask("GET", "/nothing"), 404);
	assert.equal(await ask("POST", "/status"), 405);
	assert.equal(await ask("GET", "/clean"), 405);
	for (let i = 0; i < 5; i++) {
		const leaving = request({ socketPath: `${disk}/control.sock`, method: "POST", path: "/clean" });
		leaving.on("error", () => {});
		leaving.end(() => leaving.destroy());
	}
	assert.equal(await ask("GET", "/status"), 200);
	assert.equal((await server.end()).exitCode, 0);
});

test("SIGKILL leaves an unclean disk, which the next start recovers", async (t) => {
	if (!requireTool(t, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "64M"]);
	const bytes = seededRandom(12).bytes(8 * MIB);
	await writeFile(folder.file("data"), bytes);
	{
		await using server = start(vmsweep, ["serve", disk]);
		await writeStart(await uriOf(server, "web01"), folder.file("data"), bytes.length);
		await server.kill();
	}
	assert.match(await runOk(vmsweep, ["status", disk]), /not closed cleanly \(the next start recovers it\)/);
	await using server = start(vmsweep, ["serve", disk]);
	const uri = await uriOf(server, "web01");
	await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, folder.file("copy")]);
	assert.equal(await hashFile(folder.file("copy"), { start: 0, end: bytes.length }), hashBytes(bytes));
	assert.equal((await server.end()).exitCode, 0);
});

test("a host that is full gives ENOSPC to the guest and loses nothing", async (t) => {
	if (!requireTool(t, "qemu-io", "root")) return;
	await using folder = await temporaryFolder();
	const mount = folder.file("tmpfs");
	await mkdir(mount);
	await runOk("mount", ["-t", "tmpfs", "-o", "size=60M", "tmpfs", mount]);
	try {
		const disk = `${mount}/web01`;
		await runOk(vmsweep, ["create", disk, "--size", "256M"]);
		const bytes = seededRandom(13).bytes(8 * MIB);
		await writeFile(folder.file("data"), bytes);
		await using server = start(vmsweep, ["serve", disk, "--clean", "off", "--socket", folder.file("s")]);
		const uri = await uriOf(server, "web01");
		await writeStart(uri, folder.file("data"), bytes.length);
		const full = await run("qemu-io", ["-f", "raw", "-c", "write -q -P 7 64M 64M", uri], { timeoutSeconds: 60 });
		assert.match(full.stdout + full.stderr, /No space left/);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, folder.file("copy")]);
		assert.equal(await hashFile(folder.file("copy"), { start: 0, end: bytes.length }), hashBytes(bytes));
	} finally {
		await runOk("umount", ["-l", mount]);
	}
});

test("a first image that the host fails ends the server with 1; the other disk is closed cleanly", async (t) => {
	if (!requireTool(t, "qemu-io", "prlimit")) return;
	await using folder = await temporaryFolder();
	const [failing, healthy] = [folder.file("failing"), folder.file("healthy")];
	for (const disk of [failing, healthy]) await runOk(vmsweep, ["create", disk, "--size", "128M"]);
	const bytes = seededRandom(14).bytes(4 * MIB);
	await writeFile(folder.file("data"), bytes);
	{
		// Growing a file beyond this fails with EFBIG, as a failing storage would with EIO.
		await using server = start("prlimit", [
			`--fsize=${30 * MIB}`,
			vmsweep,
			"serve",
			failing,
			healthy,
			"--clean",
			"off",
		]);
		await writeStart(await uriOf(server, "healthy"), folder.file("data"), bytes.length);
		const uri = await uriOf(server, "failing");
		await writeStart(uri, folder.file("data"), bytes.length);
		const writing = await run("qemu-io", ["-f", "raw", "-c", "write -q -P 7 16M 64M", uri], { timeoutSeconds: 60 });
		assert.notEqual(writing.exitCode, 0, "the client sees an error and doesn't hang");
		const { exitCode, stderr } = await server.finished;
		assert.match(stderr, /a disk can't be served any more, so this server ends: .*first\.log: EFBIG/);
		assert.equal(exitCode, 1);
	}
	assert.equal((await status<RestingDiskStatus>(healthy)).left, "clean");
	assert.equal((await status<RestingDiskStatus>(failing)).left, "unclean");
	await using server = start(vmsweep, ["serve", failing]);
	await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", await uriOf(server, "failing"), folder.file("copy")]);
	assert.equal(await hashFile(folder.file("copy"), { start: 0, end: bytes.length }), hashBytes(bytes));
});
