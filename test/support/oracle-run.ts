// One run of the recorder oracle: a real kernel's file system under a seeded load on a served disk, recorded, and judged.
//
//   create, serve --clean off ─► mkfs, load with remounts ─► first.log ─► rule at every commit ─► compare the files

import assert from "node:assert/strict";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { BLOCK_SIZE } from "../../src/foundations/units.ts";
import { type FileSystemKind, makeFileSystem, xfs, xfsSuperblock } from "./file-system-kinds.ts";
import { temporaryFolder } from "./folders.ts";
import { hashesIn, LoopDevice, Mounted } from "./loop.ts";
import { createDisk, SweepServer } from "./loop-server.ts";
import { type Recording, readRecording } from "./oracle-recording.ts";
import { playRule, playWrites, type RuleOptions, type RuleOutcome } from "./oracle-rule.ts";
import { checkout, run, runOk } from "./processes.ts";
import { testSeed } from "./randomness.ts";

export const loadProgram = join(checkout, "test/oracle/load.py");

/** A kind of file system and load. */
export interface OracleCase {
	readonly kind: FileSystemKind;
	/** More options of mkfs. */
	readonly mkfs: readonly string[];
	readonly mountOptions: string;
	/** More options of load.py's `work`. */
	readonly load?: readonly string[];
	/** Of load.py; the test's own where not given. */
	readonly seed?: number;
	/** File-system block size where the kernel writes in smaller units than 4 KiB. */
	readonly unit?: number;
}

/** What a load wrote. */
export interface RecordedLoad {
	readonly recording: Recording;
	/** Log position behind mkfs. */
	readonly from: number;
	/** `sha256sum` lines of what every file must hold, sorted by path. */
	readonly expected: readonly string[];
}

export interface RecordedRun extends RecordedLoad {
	readonly kind: FileSystemKind;
	readonly metadata: ReadonlySet<number>;
}

/** Records a load on ext or XFS, which the recording must show; null where this kernel can't mount the case (the test is then skipped). */
export async function recordRun(t: TestContext, size: string, oracleCase: OracleCase): Promise<RecordedRun | null> {
	const { kind } = oracleCase;
	const recorded = await recordLoad(t, size, oracleCase);
	if (recorded === null) return null;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	const disk = playWrites(recorded.recording);
	await writeFile(image, disk);
	const run_ = { ...recorded, kind, metadata: await (kind === xfs ? xfsMetadata : extMetadata)(image) };
	assert.equal((await compareFiles(disk, run_)).damaged, 0, "the recording itself is not what the load wrote");
	return run_;
}

/** Records a load; null where this kernel can't mount the case (the test is then skipped). */
export async function recordLoad(
	t: TestContext,
	size: string,
	{ kind, mkfs, mountOptions, load = [], seed = testSeed() % 1_000_000, unit }: OracleCase,
): Promise<RecordedLoad | null> {
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size });
	let from: number;
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk, "--clean", "off", "--log-limit", "64G");
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await makeFileSystem(kind, device.path, ...mkfs);
		from = (await server.status()).first.position;
		const mount = folder.file("mnt");
		await mkdir(mount);
		if ((await run("mount", ["-o", mountOptions, device.path, mount])).exitCode !== 0) {
			t.skip(`this kernel does not mount it with ${mountOptions}`);
			return null;
		}
		await runOk("umount", [mount]);
		const options = ["--mount-options", mountOptions, "--seed", String(seed), ...load];
		const finished = await run(loadProgram, ["work", device.path, mount, ...options], { timeoutSeconds: 3600 });
		await run("umount", [mount]);
		t.diagnostic(finished.stderr.trim());
		assert.equal(finished.exitCode, 0, finished.stderr);
		expected = byPath(finished.stdout.split("\n").filter((line) => line !== ""));
		await runOk("blockdev", ["--flushbufs", device.path]);
		assert.equal((await server.stop()).exitCode, 0);
	}
	return { recording: readRecording(join(disk, "first.log"), unit), from, expected };
}

export interface Judgement extends RuleOutcome {
	readonly files: number;
	readonly damaged: number;
}

/** Applies a rule to a recorded run and compares all files. */
export async function judge(
	t: TestContext,
	name: string,
	recorded: RecordedRun,
	options: Omit<RuleOptions, "from" | "metadata">,
): Promise<Judgement> {
	const outcome = await playRule(recorded.recording, { ...options, from: recorded.from, metadata: recorded.metadata });
	const judgement = { ...outcome, ...(await compareFiles(outcome.disk, recorded)) };
	const { disk: _, ...shown } = judgement;
	t.diagnostic(`${name}: ${JSON.stringify(shown)}`);
	return judgement;
}

/** Mounts an image (without replaying anything onto it) and compares every file with what the load wrote. */
async function compareFiles(
	disk: Uint8Array,
	{ kind, expected }: RecordedRun,
): Promise<{ files: number; damaged: number }> {
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await writeFile(image, disk);
	const [checker, ...options] = kind.check;
	await runOk(checker!, [...options, image]);
	await using mounted = await Mounted.mount(image, folder.file("m"), kind.mountToRead);
	const found = new Set((await hashesIn(mounted.path)).filter((line) => /^\w+ {2}w\d+\//.test(line)));
	assert.ok(found.size >= expected.length, `${found.size} files instead of ${expected.length}`);
	await mounted.unmount();
	return { files: expected.length, damaged: expected.filter((line) => !found.has(line)).length };
}

const byPath = (lines: string[]): string[] => lines.sort((a, b) => (a.slice(66) < b.slice(66) ? -1 : 1));

/** 4 KiB blocks that hold superblocks, descriptors, bitmaps, inode tables or the journal, by dumpe2fs and debugfs. */
async function extMetadata(image: string): Promise<Set<number>> {
	const dump = await runOk("dumpe2fs", [image]);
	const blockSize = Number(/^Block size:\s+(\d+)/m.exec(dump)![1]);
	const blocks = new Set<number>();
	const add = (first: number, last: number): void => {
		for (let at = Math.floor((first * blockSize) / BLOCK_SIZE); at * BLOCK_SIZE < (last + 1) * blockSize; at++)
			blocks.add(at);
	};
	const places =
		/(?:superblock|Group descriptors|descriptors|Block bitmap|Inode bitmap|Inode table) at (\d+)(?:-(\d+))?/g;
	for (const [, first, last] of dump.matchAll(places)) add(Number(first), Number(last ?? first));
	const journal = Number(/^Journal inode:\s+(\d+)/m.exec(dump)?.[1] ?? 0);
	if (journal > 0) {
		const list = await runOk("debugfs", ["-R", `blocks <${journal}>`, image]);
		for (const block of list.trim().split(/\s+/)) add(Number(block), Number(block));
	}
	return blocks;
}

/** 4 KiB blocks that hold the headers of allocation groups, or the log, by xfs_db. */
async function xfsMetadata(image: string): Promise<Set<number>> {
	const fields = ["blocksize", "sectsize", "agblocks", "agcount", "logstart", "logblocks", "agblklog"];
	const superblock = await xfsSuperblock(image, fields);
	const value = (field: string): number => superblock[field]!;
	const blocks = new Set<number>();
	const add = (start: number, length: number): void => {
		for (let at = Math.floor(start / BLOCK_SIZE); at * BLOCK_SIZE < start + length; at++) blocks.add(at);
	};
	const groupBytes = value("agblocks") * value("blocksize");
	for (let group = 0; group < value("agcount"); group++) add(group * groupBytes, 4 * value("sectsize"));
	const group = Math.floor(value("logstart") / 2 ** value("agblklog"));
	const inGroup = value("logstart") % 2 ** value("agblklog");
	add(group * groupBytes + inGroup * value("blocksize"), value("logblocks") * value("blocksize"));
	return blocks;
}
