// Snapshots as users take them: readable under a name whatever the guest and the cleaner do afterwards, over crashes too.

import assert from "node:assert/strict";
import { mkdir, open, rm, stat } from "node:fs/promises";
import { test } from "node:test";
import type { RestingDiskStatus } from "../../src/services/control-at-rest.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { SweepServer } from "../support/loop-server.ts";
import { type Finished, run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { assertSameBytes, contentByQemu } from "./qcow2-images.ts";

const MIB = 2 ** 20;
const SIZE = 64 * MIB;

/** What the guest's disk holds, by what was written. */
class Mirror {
	bytes = Buffer.alloc(SIZE);
	readonly #random = seededRandom(4711);

	/** Some writes, zeroes and trims of whole and partial blocks, as qemu-io commands; kept in mind. */
	commands(count: number): string[] {
		const commands: string[] = [];
		for (let i = 0; i < count; i++) {
			const at = Math.floor(this.#random.below(SIZE / 512 - 2048)) * 512;
			const length = (1 + this.#random.below(1024)) * 512;
			const value = this.#random.below(5) === 0 ? 0 : 1 + this.#random.below(254);
			this.bytes.fill(value, at, at + length);
			commands.push("-c", value === 0 ? `write -q -z ${at} ${length}` : `write -q -P ${value} ${at} ${length}`);
		}
		return commands;
	}
}

const write = (uri: string, commands: readonly string[]): Promise<string> =>
	runOk("qemu-io", ["-f", "raw", ...commands, "-c", "flush", uri]);

/** The whole of an export. */
async function assertHolds(folder: TemporaryFolder, uri: string, expected: Buffer, what: string): Promise<void> {
	assertSameBytes(await contentByQemu(folder, uri, "-f", "raw"), expected, what);
}

const snapshotUri = (uri: string, name: string): string => uri.replace("?", `@${name}?`);

test("snapshots stay what they were under writes, cleaning, kill -9 and the deletion of others", async (t) => {
	if (!requireTool(t, "qemu-io", "qemu-img", "nbdinfo")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", String(SIZE)]);
	const mirror = new Mirror();
	const taken = new Map<string, Buffer>();
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		for (const name of ["a", "b", "c"]) {
			await write(server.uri, mirror.commands(60));
			await runOk(vmsweep, ["snapshot", disk, name]);
			taken.set(name, Buffer.from(mirror.bytes));
			await write(server.uri, mirror.commands(60));
			// Moves what is newer over what the snapshot still needs.
			await runOk(vmsweep, ["clean", disk]);
		}
		for (const [name, expected] of taken)
			await assertHolds(folder, snapshotUri(server.uri, name), expected, `snapshot ${name}`);
		await assertHolds(folder, server.uri, mirror.bytes, "the disk");
		const listed = await runOk("nbdinfo", ["--list", server.uri]);
		for (const name of taken.keys()) assert.match(listed, new RegExp(`export="web01@${name}"`));
		assert.match(await runOk("nbdinfo", [snapshotUri(server.uri, "a")]), /is_read_only: true/);
		await write(server.uri, mirror.commands(30));
		await server.kill();
	}
	{
		await using server = await SweepServer.serve(disk);
		for (const [name, expected] of taken)
			await assertHolds(folder, snapshotUri(server.uri, name), expected, `snapshot ${name} after a crash`);
		await assertHolds(folder, server.uri, mirror.bytes, "the disk after a crash");
		assert.match(await runOk(vmsweep, ["map", `${disk}@a`]), /64\.0 MiB/);

		// A snapshot that is read can't go; one in the middle hands what it kept to the older one.
		await mkdir(folder.file("mnt"));
		const file = folder.file("mnt/b");
		await using reader = start("nbdfuse", [file, snapshotUri(server.uri, "b")]);
		await reader.until(async () => (await stat(file).catch(() => undefined))?.size === SIZE, "nbdfuse");
		const refused = await run(vmsweep, ["snapshot", disk, "b", "--delete"]);
		assert.equal(refused.exitCode, 3, refused.stderr);
		assert.match(refused.stderr, /snapshot b is in use by \d+ clients/);
		await runOk("fusermount3", ["-u", folder.file("mnt")]);
		await reader.finished;
		await server.reaches(({ clients }) => clients === 0, "no clients");
		await runOk(vmsweep, ["snapshot", disk, "b", "--delete"]);
		taken.delete("b");
		await write(server.uri, mirror.commands(30));
		await runOk(vmsweep, ["clean", disk]);
		for (const [name, expected] of taken)
			await assertHolds(folder, snapshotUri(server.uri, name), expected, `snapshot ${name} without b`);
		await assertHolds(folder, server.uri, mirror.bytes, "the disk without b");
		await server.stop();
	}
	const atRest = JSON.parse(await runOk(vmsweep, ["status", "--json", disk])) as RestingDiskStatus;
	assert.deepEqual(
		atRest.snapshots.map(({ name, complete }) => [name, complete]),
		[
			["a", true],
			["c", true],
		],
	);
	assert.match(await runOk(vmsweep, ["map", `${disk}@c`]), /64\.0 MiB/);
	// Committing keeps them, too.
	await runOk(vmsweep, ["commit", disk]);
	await using server = await SweepServer.serve(disk);
	for (const [name, expected] of taken)
		await assertHolds(folder, snapshotUri(server.uri, name), expected, `snapshot ${name} after a commit`);
	for (const name of taken.keys()) await runOk(vmsweep, ["snapshot", disk, name, "--delete"]);
	assert.equal(await runOk(vmsweep, ["snapshot", disk]), `${disk} has no snapshots\n`);
	await assertHolds(folder, server.uri, mirror.bytes, "the disk without snapshots");
});

test("a snapshot that a kill -9 interrupts is completed by the next start, as of its instant", async (t) => {
	if (!requireTool(t, "qemu-io", "qemu-img")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", String(SIZE)]);
	const mirror = new Mirror();
	let expected: Buffer;
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await write(server.uri, mirror.commands(200));
		expected = Buffer.from(mirror.bytes);
		await using taking = start(vmsweep, ["snapshot", disk, "early"]);
		// From this record on the snapshot's instant is fixed, and its blocks are on their way.
		await taking.until(
			async () => (await stat(`${disk}/snapshots/early.json`).catch(() => undefined)) !== undefined,
			"a record of the snapshot",
		);
		await server.kill();
		await taking.finished;
	}
	await using server = await SweepServer.serve(disk, "--clean", "off");
	await write(server.uri, mirror.commands(50));
	await server.reaches(({ snapshots }) => snapshots.every(({ complete }) => complete), "the snapshot is complete");
	await runOk(vmsweep, ["clean", disk]);
	await assertHolds(folder, snapshotUri(server.uri, "early"), expected, "the snapshot");
	await assertHolds(folder, server.uri, mirror.bytes, "the disk");
});

test("names that can't be, names that are taken, snapshots that aren't there", async () => {
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "16M"]);
	const cases: [args: string[], code: number, message: RegExp][] = [
		[[disk, "../x"], 2, /can't name a snapshot/],
		[[disk, ""], 2, /can't name a snapshot/],
		[[disk, "none", "--delete"], 2, /has no snapshot none/],
		[[disk, "--delete"], 2, /name the snapshot to delete/],
	];
	for (const [args, code, message] of cases) {
		const { exitCode, stderr } = await run(vmsweep, ["snapshot", ...args]);
		assert.match(stderr, message);
		assert.equal(exitCode, code, stderr);
	}
	await runOk(vmsweep, ["snapshot", disk, "one"]);
	const again = await run(vmsweep, ["snapshot", disk, "one"]);
	assert.match(again.stderr, /there is a snapshot one already/);
	assert.equal(again.exitCode, 3);
	assert.equal((await run(vmsweep, ["map", `${disk}@two`])).exitCode, 2);
});

test("after the first image was lost, older and newer snapshots keep their order", async (t) => {
	if (!requireTool(t, "qemu-io", "qemu-img")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", String(SIZE)]);
	const mirror = new Mirror();
	const taken = new Map<string, Buffer>();
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await write(server.uri, mirror.commands(200));
		await runOk(vmsweep, ["snapshot", disk, "old"]);
		taken.set("old", Buffer.from(mirror.bytes));
		await server.stop();
	}
	await rm(`${disk}/first.log`);
	await runOk(vmsweep, ["attach", disk, "--second-only"]);
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await assertHolds(folder, server.uri, mirror.bytes, "the disk as it stood");
		await write(server.uri, mirror.commands(20));
		await runOk(vmsweep, ["snapshot", disk, "new"]);
		taken.set("new", Buffer.from(mirror.bytes));
		await server.stop();
	}
	await using server = await SweepServer.serve(disk, "--clean", "off");
	await write(server.uri, mirror.commands(60));
	await runOk(vmsweep, ["clean", disk]);
	for (const [name, expected] of taken)
		await assertHolds(folder, snapshotUri(server.uri, name), expected, `snapshot ${name}`);
});

test("a rotten block that a snapshot needs is lost to it, and cleaning goes on", async (t) => {
	if (!requireTool(t, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", String(SIZE)]);
	await using server = await SweepServer.serve(disk, "--clean", "off");
	await write(server.uri, ["-c", "write -q -P 7 1M 64k"]);
	for (const name of ["a", "b"]) await runOk(vmsweep, ["snapshot", disk, name]);
	{
		await using image = await open(`${disk}/second.raw`, "r+");
		await image.write(Buffer.from([8]), 0, 1, MIB + 5000);
	}
	await write(server.uri, ["-c", "write -q -P 9 1M 64k"]);
	await runOk(vmsweep, ["clean", disk]);
	assert.match(server.process.stderr, /1 rotten blocks are lost to snapshot b and older ones/);
	const read = (uri: string, command: string): Promise<Finished> =>
		run("qemu-io", ["-r", "-f", "raw", "-c", command, uri]);
	const check = async (uri: string): Promise<void> => {
		for (const name of ["a", "b"]) {
			const snapshot = snapshotUri(uri, name);
			for (const command of ["read -P 7 1M 4k", "read -P 7 1056768 56k"])
				assert.doesNotMatch((await read(snapshot, command)).stdout, /error|failed/i, `${name}: ${command}`);
			assert.match((await read(snapshot, "read 1052672 4k")).stdout, /Input\/output error/, name);
		}
		assert.doesNotMatch((await read(uri, "read -P 9 1M 64k")).stdout, /error|failed/i);
	};
	await check(server.uri);
	await server.stop();
	await using again = await SweepServer.serve(disk);
	await check(again.uri);
});
