// btrfs's rule at rest, judged far more often than the product does: at every superblock that a real kernel wrote under load.
//
//   create, serve --clean off ─► mkfs, load ─► first.log ─► at each superblock: used at the last look, not written since,
//                                                           free now? ─► really zeroed ─► compare the files
//
// The naive rule, which takes the newest superblock for the sign of an unmount, must lose files on the same recording:
// else this test would see nothing.

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { AtRestVolume } from "../../src/core/filesystems/at-rest.ts";
import { btrfsMounted } from "../../src/core/filesystems/btrfs/at-rest.ts";
import { readBtrfs } from "../../src/core/filesystems/btrfs/index.ts";
import { SUPERBLOCK_PLACES } from "../../src/core/filesystems/btrfs/layout.ts";
import type { ByteRange } from "../../src/foundations/guest-map.ts";
import { BLOCK_SIZE, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { type Recording, readRecording } from "../support/oracle-recording.ts";
import { memory, playWrites } from "../support/oracle-rule.ts";
import { loadProgram } from "../support/oracle-run.ts";
import { run, runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

/** What a rule lets go of in a view: blocks in these runs that were last written before `settled`. */
type Judge = (disk: Uint8Array, at: number) => Promise<{ free: Iterable<ByteRange>; settled: number } | undefined>;

/** Plays a recording, and zeroes whatever the rule drops. */
async function play(
	{ size, writes }: Recording,
	from: number,
	judge: Judge,
): Promise<{ disk: Uint8Array; droppedBlocks: number }> {
	const disk = new Uint8Array(size);
	const lastWrite = new Float64Array(size / BLOCK_SIZE).fill(-1);
	let droppedBlocks = 0;
	for (const { at, length, bytes, position, end } of writes) {
		if (bytes === undefined) disk.fill(0, at, at + length);
		else disk.set(bytes, at);
		lastWrite.fill(position, Math.floor(at / BLOCK_SIZE), Math.ceil((at + length) / BLOCK_SIZE));
		if (end < from || at !== SUPERBLOCK_PLACES[0]) continue;
		const verdict = await judge(disk, end);
		for (const { start, length: free } of verdict?.free ?? [])
			for (let block = Math.ceil(start / BLOCK_SIZE); (block + 1) * BLOCK_SIZE <= start + free; block++) {
				if (lastWrite[block] === -1 || lastWrite[block]! >= verdict!.settled) continue;
				disk.fill(0, block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
				lastWrite[block] = -1;
				droppedBlocks++;
			}
	}
	return { disk, droppedBlocks };
}

async function damagedFiles(
	t: TestContext,
	name: string,
	disk: Uint8Array,
	expected: readonly string[],
): Promise<number> {
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await writeFile(image, disk);
	if (
		(
			await run("bash", [
				"-c",
				`mkdir "$2" && mount -o loop,ro,rescue=nologreplay "$1" "$2"`,
				"m",
				image,
				folder.file("m"),
			])
		).exitCode !== 0
	) {
		t.diagnostic(`${name}: can't be mounted any more`);
		return expected.length;
	}
	await using mounted = await Mounted.adopt(folder.file("m"));
	const script = 'cd "$1" && find . -type f -printf "%P\\0" | sort -z | xargs -0 -r sha256sum 2> /dev/null || true';
	const found = new Set((await runOk("bash", ["-c", script, "h", mounted.path], { timeoutSeconds: 600 })).split("\n"));
	return expected.filter((line) => !found.has(line)).length;
}

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
	assert.equal(await damagedFiles(t, "recording", playWrites(recording), expected), 0, "the recording itself is wrong");

	const superblocks = new Set<number>();
	let volume: AtRestVolume | undefined;
	const reasons = new Map<string, number>();
	const rule = await play(recording, from, async (bytes, at) => {
		superblocks.add(at);
		volume ??= await AtRestVolume.open(memory(bytes), btrfsMounted);
		const state = await volume.advanceClean(memory(bytes), logPosition(at), logPosition(at));
		if (state.kind === "keep") reasons.set(state.reason, (reasons.get(state.reason) ?? 0) + 1);
		if (state.kind === "keep") return undefined;
		return { free: volume.freeRuns(byteOffset(0), byteOffset(recording.size)), settled: state.settled };
	});
	const naive = await play(recording, from, async (bytes) => {
		const map = await readBtrfs(memory(bytes));
		return map?.kept === null
			? { free: map.freeRuns(byteOffset(0), byteOffset(recording.size)), settled: Number.POSITIVE_INFINITY }
			: undefined;
	});
	const lost = await damagedFiles(t, "rule", rule.disk, expected);
	const lostByNaive = await damagedFiles(t, "naive rule", naive.disk, expected);
	t.diagnostic(
		`${superblocks.size} superblocks, ${expected.length} files; dropped ${rule.droppedBlocks} blocks, naive ${naive.droppedBlocks}; lost ${lost}, naive ${lostByNaive}; ${JSON.stringify([...reasons])}`,
	);
	assert.ok(rule.droppedBlocks > 1000, "nothing was dropped: the test is blind");
	assert.equal(lost, 0);
	assert.ok(lostByNaive > 0, "the naive rule lost nothing: the test is blind");
	await using copy = await temporaryFolder();
	await writeFile(copy.file("image"), rule.disk);
	await runOk("btrfs", ["check", copy.file("image")]);
});
