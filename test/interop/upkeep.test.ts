// undo, check, resize and attach --second-only, as operators call them, on file systems of the host's kernel.

import assert from "node:assert/strict";
import { readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { test } from "node:test";
import type { CheckReport } from "../../src/services/check.ts";
import type { RestingDiskStatus } from "../../src/services/control-at-rest.ts";
import { flip } from "../support/bit-rot.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashBytes, hashFile, hashTree } from "../support/hashes.ts";
import { LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { SweepServer } from "../support/loop-server.ts";
import { run, runOk, vmsweep } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 2 ** 20;

const status = async (disk: string): Promise<RestingDiskStatus> =>
	JSON.parse(await runOk(vmsweep, ["status", "--json", disk])) as RestingDiskStatus;

const check = async (disk: string, ...options: string[]): Promise<{ report: CheckReport; exitCode: number }> => {
	const { stdout, stderr, exitCode } = await run(vmsweep, ["check", disk, "--json", ...options]);
	assert.ok(exitCode === 0 || exitCode === 3, stderr);
	return { report: JSON.parse(stdout) as CheckReport, exitCode };
};

/** Byte offset in a file at which these bytes stand, which must be there exactly once at a block's start. */
async function placeOf(path: string, bytes: Buffer): Promise<number> {
	const found = (await readFile(path)).indexOf(bytes);
	assert.ok(found >= 0, `${path} doesn't hold these bytes`);
	return found;
}

/** Mounts a served disk for `work`; cleanly unmounted and let go of afterwards. */
async function mounted(
	folder: TemporaryFolder,
	uri: string,
	work: (path: string) => Promise<void>,
	{ format }: { readonly format?: boolean } = {},
): Promise<void> {
	await using device = await LoopDevice.attach(uri, folder.file("fuse"));
	if (format === true) await runOk("mke2fs", ["-q", "-t", "ext4", "-F", device.path]);
	await using mount = await Mounted.mount(device.path, folder.file("mnt"));
	await work(mount.path);
	await mount.unmount();
}

test("undo brings back what cleaning dropped, byte by byte, while the quarantine holds it", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "qemu-img")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "256M"]);
	const bytes = Buffer.from(seededRandom(5).bytes(24 * MIB));
	const uri = async (): Promise<SweepServer> => await SweepServer.serve(disk, "--quarantine", "3600");
	{
		await using server = await uri();
		await mounted(
			folder,
			server.uri,
			async (path) => {
				await writeFile(`${path}/kept`, bytes.subarray(0, 4 * MIB));
				await writeFile(`${path}/gone`, bytes);
			},
			{ format: true },
		);
		// A part of it lies in the second image when it is dropped, the rest in the first.
		await runOk(vmsweep, ["clean", disk]);
		// The cleaner may see what follows by itself, too.
		const before = (await server.status()).cleaner.droppedBytes;
		await mounted(folder, server.uri, async (path) => {
			await writeFile(`${path}/young`, bytes.subarray(8 * MIB));
			await rm(`${path}/gone`);
			await runOk("sync", ["-f", path]);
			await rm(`${path}/young`);
		});
		await runOk(vmsweep, ["clean", disk]);
		const { cleaner } = await server.status();
		assert.ok(cleaner.droppedBytes - before >= 24 * MIB, `dropped ${cleaner.droppedBytes - before}`);
		await server.stop();
	}
	assert.match(await runOk(vmsweep, ["undo", disk, "--dry-run"]), /could be brought back/);
	const { bytes: back } = JSON.parse(await runOk(vmsweep, ["undo", disk, "--json"])) as { bytes: number };
	assert.ok(back >= 24 * MIB, `${back} bytes came back`);
	{
		// The file's blocks are free in the file system, and hold what they held.
		await using server = await SweepServer.serve(disk, "--clean", "off");
		const raw = folder.file("raw");
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", server.uri, raw]);
		const image = await readFile(raw);
		for (let at = 0; at < bytes.length; at += 4 * MIB)
			assert.ok(image.includes(bytes.subarray(at, at + 4096)), `the block at ${at} of the deleted file is not back`);
		await runOk("e2fsck", ["-fn", raw]);
		await server.stop();
	}
	// Without a quarantine the same blocks go for good.
	await runOk(vmsweep, ["clean", disk]);
	assert.equal(JSON.parse(await runOk(vmsweep, ["undo", disk, "--json"])).bytes, 0);
});

test("bit rot in either image is an error on read, found by check, and repaired where nothing is lost by it", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "128M"]);
	const first = Buffer.from(seededRandom(6).bytes(4096));
	const second = Buffer.from(seededRandom(7).bytes(4096));
	const unused = Buffer.from(seededRandom(8).bytes(8 * MIB));
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await mounted(
			folder,
			server.uri,
			async (path) => {
				await writeFile(`${path}/second`, second);
				await writeFile(`${path}/unused`, unused);
			},
			{ format: true },
		);
		await runOk(vmsweep, ["clean", disk]);
		await mounted(folder, server.uri, async (path) => {
			await writeFile(`${path}/first`, first);
			await rm(`${path}/unused`);
		});
		assert.deepEqual((await check(disk)).report.rotten, []);
		await server.stop();
	}
	assert.equal((await check(disk)).exitCode, 0);
	await flip(`${disk}/first.log`, (await placeOf(`${disk}/first.log`, first)) + 100);
	await flip(`${disk}/second.raw`, (await placeOf(`${disk}/second.raw`, second)) + 4000);
	const ofUnused = (await placeOf(`${disk}/second.raw`, unused.subarray(4 * MIB, 4 * MIB + 4096))) + 7;
	await flip(`${disk}/second.raw`, ofUnused);
	{
		// The clean close is the last time that vmsweep saw the image: what changed it is named, and overruled here.
		const refused = await run(vmsweep, ["serve", disk]);
		assert.match(refused.stderr, /second\.raw was changed at/);
		await rm(`${disk}/closed.json`);
	}
	const { report, exitCode } = await check(disk);
	assert.equal(exitCode, 3);
	assert.deepEqual(report.rotten.map(({ where, use }) => `${where} ${use}`).sort(), [
		"first-image used",
		"second-image unused",
		"second-image used",
	]);
	assert.match((await run(vmsweep, ["check", disk])).stdout, /damaged: 3 blocks[\s\S]*in use: read it from a backup/);
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		for (const { start } of report.rotten) {
			const read = await run("qemu-io", ["-r", "-f", "raw", "-c", `read ${start} 4096`, server.uri]);
			assert.match(`${read.stdout}${read.stderr}`, /Input\/output error/, `byte ${start}`);
			// A part of the block, too, and a write into it that would keep the rest.
			const part = await run("qemu-io", ["-f", "raw", "-c", `read ${start + 512} 512`, server.uri]);
			assert.match(`${part.stdout}${part.stderr}`, /Input\/output error/);
			const write = await run("qemu-io", ["-f", "raw", "-c", `write ${start} 512`, server.uri]);
			assert.match(`${write.stdout}${write.stderr}`, /Input\/output error/);
		}
		assert.ok((await server.status()).guest.rottenReads >= 6);
		assert.match(server.process.stderr, /doesn't match its checksum/);
		// While a client is there nothing is given up.
		await server.stop();
	}
	const repaired = await check(disk, "--repair");
	assert.equal(repaired.exitCode, 3, "two blocks are in use, and stay lost");
	assert.match(repaired.report.repaired.join(), /gave up 1 rotten blocks/);
	const after = (await check(disk)).report;
	assert.deepEqual(after.rotten.map(({ where }) => where).sort(), ["first-image", "second-image"]);
	{
		// The guest writes whole blocks again, and all is well.
		await using server = await SweepServer.serve(disk, "--clean", "off");
		for (const { start } of after.rotten)
			await runOk("qemu-io", ["-f", "raw", "-c", `write -q -P 9 ${start} 4096`, "-c", "flush", server.uri]);
		assert.equal((await check(disk)).report.isGood, true);
	}
});

test("resize: grown under a mounted file system, shrunk only where the guest map shows the end unused", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "resize2fs", "nbdinfo", "qemu-io")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "128M"]);
	const bytes = Buffer.from(seededRandom(9).bytes(20 * MIB));
	{
		await using server = await SweepServer.serve(disk);
		await mounted(folder, server.uri, (path) => writeFile(`${path}/a`, bytes), { format: true });
		assert.match(await runOk(vmsweep, ["resize", disk, "512M"]), /128 MiB → 512 MiB/);
		assert.match(await runOk("nbdinfo", [server.uri]), /export-size: 536870912/);
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		// resize2fs wants it where the file system was mounted in a later second than it was made.
		await runOk("e2fsck", ["-fp", device.path]);
		await runOk("resize2fs", [device.path]);
		await using mount = await Mounted.mount(device.path, folder.file("mnt"));
		await writeFile(`${mount.path}/b`, Buffer.concat(Array.from({ length: 10 }, () => bytes)));
		assert.equal(await hashFile(`${mount.path}/a`), hashBytes(bytes));
		await mount.unmount();
		await runOk("e2fsck", ["-fn", device.path]);
		await server.kill();
	}
	assert.equal((await status(disk)).size, 512 * MIB);
	const refused = await run(vmsweep, ["resize", disk, "200M"]);
	assert.match(refused.stderr, /add --shrink/);
	assert.equal(refused.exitCode, 2);
	const used = await run(vmsweep, ["resize", disk, "200M", "--shrink"]);
	assert.match(used.stderr, /its volume disk \(ext4\) reaches to 512 MiB/);
	assert.equal(used.exitCode, 3);
	{
		await using server = await SweepServer.serve(disk);
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await using mount = await Mounted.mount(device.path, folder.file("mnt"));
		await rm(`${mount.path}/b`);
		await mount.unmount();
		await runOk("e2fsck", ["-fp", device.path]);
		await runOk("resize2fs", [device.path, "100M"]);
		const busy = await run(vmsweep, ["resize", disk, "200M", "--shrink"]);
		assert.match(busy.stderr, /has \d clients\. Shut the VM down, then shrink it/);
		assert.equal(busy.exitCode, 3);
	}
	assert.match(await runOk(vmsweep, ["resize", disk, "200M", "--shrink"]), /512 MiB → 200 MiB/);
	assert.equal((await stat(`${disk}/second.raw`)).size, 200 * MIB);
	// What was cut off had checksums; what is gained is zeros, and no bit rot.
	await runOk(vmsweep, ["resize", disk, "400M"]);
	await using server = await SweepServer.serve(disk);
	await runOk("qemu-io", ["-r", "-f", "raw", "-c", "read -q -P 0 200M 200M", server.uri]);
	await mounted(folder, server.uri, async (path) => {
		assert.equal(await hashFile(`${path}/a`), hashBytes(bytes));
	});
});

test("attach --second-only: the disk as it stood at the last complete pass, and a clear no in the middle of one", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS)) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await runOk(vmsweep, ["create", disk, "--size", "256M"]);
	const bytes = Buffer.from(seededRandom(10).bytes(30 * MIB));
	let hashes: Record<string, string> = {};
	let stand = 0;
	{
		await using server = await SweepServer.serve(disk);
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk("mke2fs", ["-q", "-t", "ext4", "-F", device.path]);
		await using mount = await Mounted.mount(device.path, folder.file("mnt"));
		await writeFile(`${mount.path}/a`, bytes);
		await writeFile(`${mount.path}/b`, bytes.subarray(0, 5 * MIB));
		await runOk("sync", ["-f", mount.path]);
		hashes = await hashTree(mount.path);
		const { position } = (await server.status()).first;
		// The guest rests, and its last commit is behind everything that was written.
		const stands = await server.reaches(
			({ second }) => second.state === "stands" && second.standsAt >= position,
			"the second image stands by itself behind that",
		);
		stand = stands.second.standsAt;
		await server.kill();
		await run("umount", ["-l", mount.path]);
	}
	const lost = await run(vmsweep, ["attach", disk, "--second-only"]);
	assert.match(lost.stderr, /first\.log is there/);
	assert.equal(lost.exitCode, 3);
	await rm(`${disk}/first.log`);
	const attached = await runOk(vmsweep, ["attach", disk, "--second-only"]);
	assert.match(attached, new RegExp(`the disk as it was at log position ${stand} \\(20.* ago\\)`));
	assert.match(attached, /everything written since then is lost/);
	{
		await using server = await SweepServer.serve(disk);
		assert.ok((await server.status()).first.position > stand, "positions only grow");
		await mounted(folder, server.uri, async (path) => assert.deepEqual(await hashTree(path), hashes));
		await server.stop();
	}
	// In the middle of a pass: what the record says then.
	const recordPath = `${disk}/second.raw.vmsweep`;
	const record = JSON.parse(await readFile(recordPath, "utf8")) as object;
	await writeFile(recordPath, JSON.stringify({ ...record, state: "needs-first-image" }));
	await rm(`${disk}/first.log`);
	const refused = await run(vmsweep, ["attach", disk, "--second-only"]);
	assert.match(refused.stderr, /stood by itself last at log position \d+ \(20.*of two times\. Restore a backup/);
	assert.equal(refused.exitCode, 3);
	assert.equal(await stat(`${disk}/first.log`).catch(() => undefined), undefined, "nothing was made");
	assert.match(await runOk(vmsweep, ["attach", disk, "--second-only", "--accept-broken"]), /of two different times/);
	await truncate(`${disk}/second.sums`, 0);
	await using server = await SweepServer.serve(disk);
	await waitUntil(async () => (await server.status()).served, "the disk is served");
});
