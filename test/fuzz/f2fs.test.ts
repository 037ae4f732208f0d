// Fuzzing the F2FS reader: mutations of the superblocks, the checkpoints (with right checksums), their bitmaps and
// journals, the segment table, and of what an fsync would have left behind the checkpoint.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/f2fs.test.ts      a soak

import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { readF2fs } from "../../src/core/filesystems/f2fs/index.ts";
import {
	BLOCKS_PER_SEGMENT,
	CHECKPOINT_BITMAP_AT,
	Checkpoint,
	F2FS_BLOCK,
	F2FS_MAGIC,
	FIRST_NODE_LOG,
	SIT_JOURNAL_HEAD,
	SIT_JOURNAL_MAX,
	SitEntry,
	SitJournalEntry,
	SUPERBLOCK_PLACES,
	SuperBlock,
} from "../../src/core/filesystems/f2fs/layout.ts";
import { crc32From } from "../../src/foundations/crc.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { F2FS_TOOLS, F2fsImage, fillF2fs, makeF2fs, sealCheckpoint } from "../interop/map-f2fs-images.ts";
import { memorySource } from "../interop/map-journal-writer.ts";
import { temporaryFolder } from "../support/folders.ts";
import { type Random, seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import type { FuzzTarget } from "./reader-fuzz.ts";
import { fuzzReader, scramble } from "./reader-fuzz.ts";

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

/** What a target is made of. */
interface Recipe {
	readonly size: string;
	readonly options?: readonly string[];
	/** With files in it; their tables have no journals then. */
	readonly filled?: true;
	readonly payload?: true;
}

/** Each seed copies its image: read-only ones are the smallest that mkfs.f2fs makes. */
const recipes: Readonly<Record<string, Recipe>> = {
	"files, checksums": { size: "20M", options: ["-O", "ro,extra_attr,sb_checksum"], filled: true },
	"journals, compact": { size: "52M" },
	"extended node bitmap, files": { size: "20M", options: ["-O", "ro", "-i"], filled: true },
	"bitmap in the payload": { size: "20M", options: ["-O", "ro"], payload: true },
};

async function makeTarget(name: string, recipe: Recipe): Promise<FuzzTarget> {
	await using folder = await temporaryFolder();
	const [path, content] = [folder.file("image"), folder.file("content")];
	await makeF2fs(path, recipe.size, ...(recipe.options ?? []));
	if (recipe.filled) {
		await mkdir(content);
		await writeFile(`${content}/file`, seededRandom(1).bytes(50_000));
		await fillF2fs(path, content);
	}
	const made = new F2fsImage(await readFile(path));
	if (recipe.payload) made.addPayload();
	return await describeTarget(name, made);
}

const sealSuperblock = (raw: Uint8Array): void =>
	SuperBlock.write.checksum(viewOf(raw), 0, crc32From(F2FS_MAGIC, raw.subarray(0, SuperBlock.offset.checksum)));

async function describeTarget(name: string, made: F2fsImage): Promise<FuzzTarget> {
	const { mainAt, mainSegments, sitAt, sitSegments } = made.superblock;
	const used = await usedRanges(made.raw);
	// Places are those of the unchanged image: a mutated one may have them anywhere.
	const packs = made.packs.map((pack) => {
		const { packBlockCount, packStartSummary } = made.checkpoint(pack);
		return { first: pack, last: pack + packBlockCount - 1, summary: pack + packStartSummary };
	});
	const journalAt = made.journal.byteOffset - made.raw.byteOffset;
	const nextNodeAt = made.nextNode.byteOffset - made.raw.byteOffset;
	const tables = [sitAt, sitAt + (sitSegments / 2) * BLOCKS_PER_SEGMENT];
	/** All from which free space is computed. */
	const free = [...tables.map((first) => ({ first, last: first })), ...packs];
	const isUntouched = (bytes: Uint8Array): boolean =>
		free.every(({ first, last }) => {
			const [from, to] = [first * F2FS_BLOCK, (last + 1) * F2FS_BLOCK];
			return Buffer.compare(made.raw.subarray(from, to), bytes.subarray(from, to)) === 0;
		});
	const block = (bytes: Uint8Array, number: number): Uint8Array =>
		bytes.subarray(number * F2FS_BLOCK, (number + 1) * F2FS_BLOCK);

	function mutateSuperblock(bytes: Uint8Array, random: Random): string {
		const places = random.pick([SUPERBLOCK_PLACES, SUPERBLOCK_PLACES, ...SUPERBLOCK_PLACES.map((at) => [at])]);
		const [field, offset] = random.pick(Object.entries(SuperBlock.offset));
		const seal = random.chance(0.95);
		const { seed } = random;
		const kind = random.below(2 ** 32);
		for (const at of places) {
			const superblock = bytes.subarray(at, at + SuperBlock.size);
			scramble(superblock.subarray(offset), seededRandom(seed ^ kind));
			if (seal) sealSuperblock(superblock);
		}
		return `superblocks ${places.join("+")} ${field}`;
	}

	/** Changes one or both checkpoints, in their first and last blocks. */
	function changeCheckpoints(bytes: Uint8Array, random: Random, edit: (record: Uint8Array) => void): void {
		for (const { first, last } of random.pick([packs, packs, ...packs.map((pack) => [pack])]))
			for (const number of random.chance(0.9) ? [first, last] : [first]) {
				edit(block(bytes, number));
				if (random.chance(0.97)) sealCheckpoint(block(bytes, number));
			}
	}

	function mutateCheckpoint(bytes: Uint8Array, random: Random): string {
		const [field, offset] = random.pick(Object.entries({ ...Checkpoint.offset, bitmap: CHECKPOINT_BITMAP_AT }));
		const at = field === "bitmap" ? offset + random.below(140) : offset;
		const kind = random.below(2 ** 32);
		changeCheckpoints(bytes, random, (record) => scramble(record.subarray(at), seededRandom(kind)));
		return `checkpoint ${field} ${at}`;
	}

	/** One valid block more or less, and counted so. */
	function mutateSoundly(bytes: Uint8Array, random: Random): string {
		const segment = random.below(mainSegments);
		const bit = random.below(BLOCKS_PER_SEGMENT);
		const inJournal = random.chance(0.5);
		const at = inJournal
			? journalAt + SIT_JOURNAL_HEAD + random.below(SIT_JOURNAL_MAX) * SitJournalEntry.size + 4
			: random.pick(tables) * F2FS_BLOCK + segment * SitEntry.size;
		const entry = bytes.subarray(at, at + SitEntry.size);
		const mapByte = SitEntry.offset.validMap + (bit >> 3);
		entry[mapByte]! ^= 0x80 >> (bit & 7);
		const step = (entry[mapByte]! & (0x80 >> (bit & 7))) === 0 ? -1 : 1;
		const counts = SitEntry.read.validBlocks(viewOf(entry), 0);
		SitEntry.write.validBlocks(viewOf(entry), 0, (counts + step) & 0xffff);
		if (random.chance(0.8))
			changeCheckpoints(bytes, random, (record) => {
				const view = viewOf(record);
				const { validBlockCount, validNodeCount } = Checkpoint.at(view);
				Checkpoint.write.validBlockCount(view, 0, Math.max(0, validBlockCount + step));
				if (counts >>> 10 >= FIRST_NODE_LOG)
					Checkpoint.write.validNodeCount(view, 0, Math.max(0, validNodeCount + step));
			});
		return `${inJournal ? "journal" : "table"}, ${step} block at ${at}`;
	}

	return {
		name,
		bytes: new Uint8Array(made.raw),
		mutate(bytes, random) {
			switch (random.below(8)) {
				case 0:
				case 1:
					return mutateSuperblock(bytes, random);
				case 2:
				case 3:
					return mutateCheckpoint(bytes, random);
				case 4:
					return mutateSoundly(bytes, random);
				case 5: {
					const at = journalAt + random.below(random.chance(0.3) ? 2 : 1 + SIT_JOURNAL_MAX * SitJournalEntry.size);
					scramble(bytes.subarray(at), random);
					return `journal ${at}`;
				}
				case 6: {
					const at = random.pick(tables) * F2FS_BLOCK + random.below(mainSegments * SitEntry.size);
					scramble(bytes.subarray(at), random);
					return `segment table ${at}`;
				}
				default: {
					const { first, last } = random.pick([
						...packs,
						{ first: nextNodeAt / F2FS_BLOCK, last: nextNodeAt / F2FS_BLOCK },
					]);
					const at = random.between(first, last) * F2FS_BLOCK + random.below(F2FS_BLOCK);
					scramble(bytes.subarray(at), random);
					return `anything ${at}`;
				}
			}
		},
		protectedIn(bytes) {
			return [
				[0, mainAt * F2FS_BLOCK],
				[(mainAt + mainSegments * BLOCKS_PER_SEGMENT) * F2FS_BLOCK, Number.POSITIVE_INFINITY],
				...(isUntouched(bytes) ? used : []),
			];
		},
	};
}

/** What is not free in an image, in bytes. */
async function usedRanges(bytes: Uint8Array): Promise<readonly (readonly [number, number])[]> {
	const source = memorySource(bytes);
	const map = await readF2fs(source, { vmOff: false });
	assert.equal(map?.kept, null);
	const ranges: (readonly [number, number])[] = [];
	let end = 0;
	for (const { start, length } of map.freeRuns(byteOffset(0), byteOffset(map.size))) {
		if (start > end) ranges.push([end, start]);
		end = start + length;
	}
	return [...ranges, [end, Number.POSITIVE_INFINITY]];
}

test("a map that holds, or one of our errors", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS)) return;
	const targets = [];
	for (const [name, recipe] of Object.entries(recipes)) targets.push(await makeTarget(name, recipe));
	await fuzzReader(t, readF2fs, targets, FOUND);
});
