// btrfs's rule at rest, played on a recording and judged at every superblock in it, far more often than the product does.
//
//   recording ─► at each superblock: what does the rule let go? ─► really zeroed ─► which files are damaged at the end?
//
// The naive rule takes the newest superblock for the sign of an unmount: a test in which it loses nothing would see nothing.

import { writeFile } from "node:fs/promises";
import type { TestContext } from "node:test";
import { AtRestVolume } from "../../src/core/filesystems/at-rest.ts";
import { btrfsMounted } from "../../src/core/filesystems/btrfs/at-rest.ts";
import { readBtrfs } from "../../src/core/filesystems/btrfs/index.ts";
import { SUPERBLOCK_PLACES } from "../../src/core/filesystems/btrfs/layout.ts";
import type { ByteRange } from "../../src/foundations/guest-map.ts";
import { BLOCK_SIZE, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { temporaryFolder } from "./folders.ts";
import { Mounted } from "./loop.ts";
import type { Recording } from "./oracle-recording.ts";
import { memory, playWrites } from "./oracle-rule.ts";
import { run, runOk } from "./processes.ts";

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
	const script = 'mkdir "$2" && mount -o loop,ro,rescue=nologreplay "$1" "$2"';
	const { exitCode, stderr } = await run("bash", ["-c", script, "mount", image, folder.file("m")]);
	if (exitCode !== 0) {
		t.diagnostic(`${name}: can't be mounted any more: ${stderr.trim()}`);
		return expected.length;
	}
	await using mounted = await Mounted.adopt(folder.file("m"));
	const hash = 'cd "$1" && find . -type f -printf "%P\\0" | sort -z | xargs -0 -r sha256sum 2> /dev/null || true';
	const found = new Set((await runOk("bash", ["-c", hash, "hash", mounted.path], { timeoutSeconds: 600 })).split("\n"));
	return expected.filter((line) => !found.has(line)).length;
}

export interface BtrfsJudgement {
	readonly superblocks: number;
	/** The disk as the rule leaves it. */
	readonly disk: Uint8Array;
	readonly rule: { readonly droppedBlocks: number; readonly damaged: number };
	readonly naive: { readonly droppedBlocks: number; readonly damaged: number };
}

/** Plays a recording from a position on by both rules; `expected` are `sha256sum` lines. Throws where the recording itself lacks one. */
export async function judgeBtrfs(
	t: TestContext,
	recording: Recording,
	from: number,
	expected: readonly string[],
): Promise<BtrfsJudgement> {
	const whole = [byteOffset(0), byteOffset(recording.size)] as const;
	if ((await damagedFiles(t, "recording", playWrites(recording), expected)) > 0)
		throw new Error("the recording is wrong");
	const superblocks = new Set<number>();
	let volume: AtRestVolume | undefined;
	const rule = await play(recording, from, async (bytes, at) => {
		superblocks.add(at);
		volume ??= await AtRestVolume.open(memory(bytes), btrfsMounted);
		const state = await volume.advance(memory(bytes), logPosition(at));
		return state.kind === "keep" ? undefined : { free: volume.freeRuns(...whole), settled: state.settled };
	});
	const naive = await play(recording, from, async (bytes) => {
		const map = await readBtrfs(memory(bytes));
		return map?.kept === null ? { free: map.freeRuns(...whole), settled: Number.POSITIVE_INFINITY } : undefined;
	});
	const judgement = {
		superblocks: superblocks.size,
		rule: { droppedBlocks: rule.droppedBlocks, damaged: await damagedFiles(t, "rule", rule.disk, expected) },
		naive: { droppedBlocks: naive.droppedBlocks, damaged: await damagedFiles(t, "naive rule", naive.disk, expected) },
	};
	t.diagnostic(`${expected.length} files; ${JSON.stringify(judgement)}`);
	return { ...judgement, disk: rule.disk };
}
