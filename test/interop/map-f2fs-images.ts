// F2FS images for tests, and what f2fs-tools say of them: valid blocks, and the blocks of each file.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import {
	BLOCKS_PER_SEGMENT,
	CHECKPOINT_CHECKSUM_MAX,
	Checkpoint,
	CheckpointFlag,
	F2FS_BLOCK,
	F2FS_MAGIC,
	JOURNAL_BYTES,
	NodeFooter,
	SitEntry,
	SUMMARY_ENTRIES_BYTES,
	SUPERBLOCK_PLACES,
	SuperBlock,
} from "../../src/core/filesystems/f2fs/layout.ts";
import { crc32From } from "../../src/foundations/crc.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import type { TemporaryFolder } from "../support/folders.ts";
import { run, runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import type { Reference } from "./map-clusters.ts";

/** What these tests need; for `requireTool`. */
export const F2FS_TOOLS = ["mkfs.f2fs", "sload.f2fs", "fsck.f2fs", "dump.f2fs"] as const;

export async function makeF2fs(image: string, size: string, ...options: readonly string[]): Promise<void> {
	await rm(image, { force: true });
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkfs.f2fs", ["-q", "-f", "-t", "0", ...options, image]);
}

/** Copies a folder into an image, as no kernel is needed for it. */
export async function fillF2fs(image: string, content: string): Promise<void> {
	// Its own fsck at the end may put something right, such as the quota files; then it ends with 1.
	const { exitCode, stdout, stderr } = await run("sload.f2fs", ["-f", content, image]);
	assert.ok(exitCode === 0 || exitCode === 1, `sload.f2fs ended with ${exitCode}\n${stdout}${stderr}`);
}

/** Files of all kinds: inside their inode, with indirect nodes, with holes, many in a folder. Returns the regular ones. */
export async function makeContent(folder: TemporaryFolder, random: Random): Promise<string> {
	const content = folder.file("content");
	await mkdir(join(content, "many"), { recursive: true });
	await mkdir(join(content, "deep", "deeper", "deepest"), { recursive: true });
	for (let index = 0; index < 60; index++)
		await writeFile(join(content, "many", `file-${index}`), random.bytes(random.below(60_000)));
	await writeFile(join(content, "deep", "inline"), random.bytes(100));
	await writeFile(join(content, "deep", "large"), random.bytes(7_000_000));
	await symlink("large", join(content, "deep", "link"));
	const holes = join(content, "deep", "deeper", "deepest", "holes");
	await writeFile(holes, random.bytes(10_000));
	await truncate(holes, 3_000_000);
	return content;
}

/** Free blocks of the main area: dump.f2fs writes the segment table, with journals applied, as text. */
export async function decodedF2fs(image: string): Promise<Reference> {
	const folder = join(dirname(image), `dump-${randomBytes(4).toString("hex")}`);
	await mkdir(folder);
	const said = await runOk("dump.f2fs", ["-d", "1", "-s", "0~-1", image], { folder });
	const number = (name: string): number =>
		Number(new RegExp(`^${name}\\s+\\[0x *[0-9a-f]+ : (\\d+)\\]`, "m").exec(said)![1]);
	const free = new Uint8Array(number("segment_count_main") * BLOCKS_PER_SEGMENT).fill(1);
	const text = await readFile(join(folder, "dump_sit"), "utf8");
	await rm(folder, { recursive: true });
	let segments = 0;
	for (const [, segment, valid, map] of text.matchAll(/^segno: *(\d+)\tvblocks: *(\d+)\t.*\n\n((?: .*\n)*)/gm)) {
		const bytes = (map!.match(/[0-9a-f]{2}/g) ?? []).map((hex) => Number.parseInt(hex, 16));
		const segmentAt = Number(segment) * BLOCKS_PER_SEGMENT;
		let used = 0;
		for (let block = 0; block < bytes.length * 8; block++) {
			if ((bytes[block >> 3]! & (0x80 >> (block & 7))) === 0) continue;
			free[segmentAt + block] = 0;
			used++;
		}
		assert.equal(used, Number(valid), `segment ${segment}`);
		assert.equal(Number(segment), segments++);
	}
	assert.equal(segments, number("segment_count_main"));
	return { base: number("main_blkaddr") * F2FS_BLOCK, clusterSize: F2FS_BLOCK, free };
}

/** The blocks of every file that has some, in its order, by its path from the root: what fsck.f2fs finds through nodes. */
export async function blocksOfFiles(image: string): Promise<ReadonlyMap<string, readonly number[]>> {
	const files = new Map<string, readonly number[]>();
	// A path that has no blocks is wiped from the screen: the next one stands behind it, on the same line.
	for (const line of (await runOk("fsck.f2fs", ["-M", image])).split(/\n|\r/)) {
		const [, path, ranges] = /^\/(.+?)((?: \d+(?:-\d+)?)+)$/.exec(line) ?? [];
		if (path === undefined) continue;
		const blocks = ranges!
			.trim()
			.split(" ")
			.flatMap((range) => {
				const [first, last] = range.split("-").map(Number) as [number, number | undefined];
				return Array.from({ length: (last ?? first) - first + 1 }, (_, index) => first + index);
			});
		files.set(path, blocks);
	}
	return files;
}

/** fsck.f2fs walks all nodes and finds nothing wrong: neither in them, nor in the segment table. */
export async function expectFscked(image: string): Promise<void> {
	const said = await runOk("fsck.f2fs", ["-f", "--dry-run", image]);
	assert.match(said, /SIT valid block bitmap checking +\[Ok..\]/, basename(image));
	assert.doesNotMatch(said, /\[Fail\]|ASSERT/);
}

/** Reads a part of an image. */
export async function readImage(image: string, at: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
	const file = await open(image, "r");
	try {
		const bytes = new Uint8Array(length);
		await file.read(bytes, 0, length, at);
		return bytes;
	} finally {
		await file.close();
	}
}

/** Puts the checksum of a checkpoint block right. */
export function sealCheckpoint(block: Uint8Array): void {
	const view = viewOf(block);
	const at = Checkpoint.read.checksumOffset(view, 0);
	if (at > CHECKPOINT_CHECKSUM_MAX) return;
	const sum = crc32From(F2FS_MAGIC, block.subarray(0, at));
	view.setUint32(at, at < CHECKPOINT_CHECKSUM_MAX ? crc32From(sum, block.subarray(at + 4, F2FS_BLOCK)) : sum, true);
}

/** An image in memory, with its parts by name. */
export class F2fsImage {
	readonly raw: Buffer;
	readonly superblock: ReturnType<typeof SuperBlock.at>;
	/** First blocks of the two checkpoints. */
	readonly packs: readonly number[];

	constructor(raw: Buffer) {
		this.raw = raw;
		this.superblock = SuperBlock.at(viewOf(raw.subarray(SUPERBLOCK_PLACES[0])));
		const { checkpointAt } = this.superblock;
		this.packs = [checkpointAt, checkpointAt + BLOCKS_PER_SEGMENT];
	}

	block(number: number): Buffer {
		return this.raw.subarray(number * F2FS_BLOCK, (number + 1) * F2FS_BLOCK);
	}

	/** A checkpoint's record. */
	checkpoint(pack = this.packs[0]!): ReturnType<typeof Checkpoint.at> {
		return Checkpoint.at(viewOf(this.block(pack)));
	}

	/** The first and the last block of a checkpoint: both have its record. */
	ends(pack: number): readonly number[] {
		return [pack, pack + this.checkpoint(pack).packBlockCount - 1];
	}

	/** Changes both records of both checkpoints, and puts their checksums right. */
	change(edit: (view: DataView) => void): void {
		for (const end of this.packs.flatMap((pack) => this.ends(pack))) {
			edit(viewOf(this.block(end)));
			sealCheckpoint(this.block(end));
		}
	}

	flag(set: number, clear = 0): void {
		this.change((view) => Checkpoint.write.flags(view, 0, (Checkpoint.read.flags(view, 0) & ~clear) | set));
	}

	/** Changes superblocks, both by default. Their checksums are as they were. */
	changeSuper(edit: (view: DataView) => void, places: readonly number[] = SUPERBLOCK_PLACES): void {
		for (const at of places) edit(viewOf(this.raw.subarray(at, at + SuperBlock.size)));
	}

	feature(bits: number): void {
		this.changeSuper((view) => SuperBlock.write.features(view, 0, bits));
	}

	/** The SIT's journal of the first checkpoint. */
	get journal(): Buffer {
		const { flags, packStartSummary, packBlockCount } = this.checkpoint();
		const compact = (flags & CheckpointFlag.compactSummary) !== 0;
		// Compact: the NAT's and the SIT's journal, one behind the other. Else in the summaries of cold data, third of six.
		const block = this.block(this.packs[0]! + (compact ? packStartSummary : packBlockCount - 5));
		return block.subarray(compact ? JOURNAL_BYTES : SUMMARY_ENTRIES_BYTES).subarray(0, JOURNAL_BYTES);
	}

	/** In the first copy of the segment table. */
	sitEntry(segment: number): Buffer {
		return this.block(this.superblock.sitAt).subarray(segment * SitEntry.size, (segment + 1) * SitEntry.size);
	}

	/** The block where the log of files' nodes goes on. */
	get nextNode(): Buffer {
		const { warmNodeSegment, warmNodeBlock } = this.checkpoint();
		return this.block(this.superblock.mainAt + warmNodeSegment * BLOCKS_PER_SEGMENT + warmNodeBlock);
	}

	/** Writes the part of a node there that says after which checkpoint it was written. */
	appendNode(version: number): void {
		NodeFooter.write.checkpointVersionLow(viewOf(this.nextNode), F2FS_BLOCK - NodeFooter.size, version);
	}

	/** Puts a block for bitmaps behind each checkpoint, in front of its summaries, as mkfs.f2fs does on large volumes. */
	addPayload(): void {
		for (const pack of this.packs) {
			const [first, last] = this.ends(pack) as [number, number];
			for (const end of [first, last]) {
				const view = viewOf(this.block(end));
				Checkpoint.write.packBlockCount(view, 0, last - first + 2);
				Checkpoint.write.packStartSummary(view, 0, Checkpoint.read.packStartSummary(view, 0) + 1);
				sealCheckpoint(this.block(end));
			}
			for (let block = last; block > first; block--) this.block(block).copy(this.block(block + 1));
			this.block(first + 1).fill(0);
		}
		this.changeSuper((view) => SuperBlock.write.checkpointPayload(view, 0, 1));
	}
}
