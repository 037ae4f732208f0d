// File systems that are judged at rest, by the host's own kernel: while mounted nothing of a deleted file is dropped, once
// unmounted all of it is, and every other file is as it was. (FAT, F2FS and XFS version 4 need
// a guest's kernel: test/guest/at-rest.test.ts.) btrfs is cleaned while it is mounted, where that is
// wanted, and its files are right all the same.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { test } from "node:test";
import { btrfs } from "../support/file-system-kinds.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { crashUnderCleaning } from "../support/loop-cleaning.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { loadProgram } from "../support/oracle-run.ts";
import { run, runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const MIB = 1024 * 1024;
const JUNK_BYTES = 48 * MIB;

interface Kind {
	readonly tools: readonly string[];
	readonly mkfs: readonly string[];
	readonly type: string;
	readonly check: readonly string[];
	/** What the status says of it while it is mounted. */
	readonly reason: RegExp;
}

const kinds: Readonly<Record<string, Kind>> = {
	ext2: {
		tools: ["mke2fs", "e2fsck"],
		mkfs: ["mke2fs", "-q", "-F", "-t", "ext2"],
		type: "ext2",
		check: ["e2fsck", "-fn"],
		reason: /mounted|written to after it was last marked clean/,
	},
};

/** Writes files to keep and files to delete, and syncs. */
const fill = (folder: string): Promise<string> =>
	runOk("bash", [
		"-c",
		`cd "$1" && mkdir keep junk && for i in $(seq 12); do head -c 500000 /dev/urandom > keep/$i; head -c ${JUNK_BYTES / 12} /dev/urandom > junk/$i; done && sync -f .`,
		"fill",
		folder,
	]);

/** After some rounds in which nothing was written: whatever can be looked at was. */
async function afterRest(server: SweepServer): Promise<Awaited<ReturnType<SweepServer["status"]>>> {
	await server.rounds(4);
	return await server.status();
}

for (const [name, { tools, mkfs, type, check, reason }] of Object.entries(kinds))
	test(`${name}: nothing while mounted, all of it once unmounted`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, ...tools)) return;
		await using folder = await temporaryFolder();
		await createDisk(folder.file("d"), { size: "512M" });
		await using server = await SweepServer.serve(folder.file("d"));
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk(mkfs[0]!, [...mkfs.slice(1), device.path]);
		if (
			(await run("bash", ["-c", `mkdir "$1" && mount -t ${type} ${device.path} "$1"`, "m", folder.file("m")]))
				.exitCode !== 0
		) {
			t.skip(`this kernel does not mount ${name}`);
			return;
		}
		await using mounted = await Mounted.adopt(folder.file("m"));
		await fill(mounted.path);
		const expected = await hashesIn(`${mounted.path}/keep`);
		await runOk("bash", ["-c", 'rm -r "$1/junk" && sync -f "$1"', "rm", mounted.path]);
		const before = (await server.status()).cleaner.droppedBytes;
		const still = await afterRest(server);
		assert.equal(still.cleaner.droppedBytes, before, "something was dropped while it was mounted");
		assert.match(still.volumes[0]?.reason ?? "", reason);
		await mounted.unmount();
		await runOk("blockdev", ["--flushbufs", device.path]);
		const { cleaner } = await server.reaches(
			(status) => status.cleaner.droppedBytes - before >= JUNK_BYTES * 0.98,
			"the deleted files' space",
		);
		t.diagnostic(`${cleaner.droppedBytes - before} bytes dropped after the unmount`);
		await runOk(check[0]!, [...check.slice(1), device.path]);
		await using again = await Mounted.mount(device.path, folder.file("again"));
		assert.deepEqual(await hashesIn(`${again.path}/keep`), expected);
	});

test("btrfs: deleted files' space is back while it works, and every file is right", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.btrfs", "btrfs")) return;
	const seed = testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	await createDisk(folder.file("d"), { size: "1G" });
	await using server = await SweepServer.serve(folder.file("d"), "--btrfs-mounted", "drop");
	await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
	await runOk("mkfs.btrfs", ["-q", "-f", device.path]);
	await mkdir(folder.file("m"));
	const load = ["--rounds", "2", "--seconds", "6", "--mount-options", "commit=1", "--seed", String(seed)];
	const finished = await run(loadProgram, ["work", device.path, folder.file("m"), ...load], { timeoutSeconds: 600 });
	await run("umount", [folder.file("m")]);
	t.diagnostic(finished.stderr.trim());
	assert.equal(finished.exitCode, 0, finished.stderr);
	const { cleaner, guest } = await afterRest(server);
	t.diagnostic(`written ${guest.writtenBytes}, dropped ${cleaner.droppedBytes}, moved ${cleaner.movedBytes}`);
	assert.ok(cleaner.droppedBytes > 16 * MIB, "nothing was dropped: the test is blind");
	await runOk("btrfs", ["check", device.path]);
	await runOk("bash", ["-c", "echo 3 > /proc/sys/vm/drop_caches"]);
	await using again = await Mounted.mount(device.path, folder.file("again"));
	const found = new Set(await hashesIn(again.path));
	const expected = finished.stdout.split("\n").filter((line) => line !== "");
	assert.deepEqual(
		expected.filter((line) => !found.has(line)),
		[],
		"files are not what was written",
	);
});

test("btrfs: kill -9 of the server while it cleans: what was synced is there", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "mkfs.btrfs", "btrfs", "nbdcopy")) return;
	await crashUnderCleaning(t, 4, ["--log-limit", "160M", "--btrfs-mounted", "drop"], btrfs);
});
