// F2FS: free blocks equal the segment table that dump.f2fs writes out, on volumes that f2fs-tools made, filled, moved and
// resized; garbage in all that is free changes no file; and what is in doubt is kept. What Linux's own driver leaves is
// in test/guest/f2fs.test.ts.

import assert from "node:assert/strict";
import { copyFile, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import {
	BLOCKS_PER_SEGMENT,
	CHECKPOINT_BITMAP_AT,
	Checkpoint,
	CheckpointFlag,
	F2FS_BLOCK,
	SitEntry,
	SitJournalEntry,
	SUPERBLOCK_PLACES,
	SuperBlock,
} from "../../src/core/filesystems/f2fs/layout.ts";
import type { GuestMap } from "../../src/foundations/guest-map.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { readGuestMap } from "../../src/services/guest-map.ts";
import { isThorough, someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { expectNothingUsedIsFree, expectSameFree, mapVolume, scrambleFree } from "./map-clusters.ts";
import {
	blocksOfFiles,
	decodedF2fs,
	expectFscked,
	F2FS_TOOLS,
	F2fsImage,
	fillF2fs,
	makeContent,
	makeF2fs,
	readImage,
	sealCheckpoint,
} from "./map-f2fs-images.ts";
import { memorySource } from "./map-journal-writer.ts";

/** Size, options of mkfs.f2fs. Files that sload.f2fs puts beside `flexible_inline_xattr` are broken by its own fsck. */
const variants: Readonly<Record<string, { size: string; options: readonly string[] }>> = {
	"as it comes": { size: "100M", options: ["-l", "Größe 1"] },
	"checksums, compression": { size: "100M", options: ["-O", "extra_attr,inode_checksum,sb_checksum,compression"] },
	"quota, verity, casefold": {
		size: "100M",
		options: ["-O", "extra_attr,project_quota,quota,inode_crtime,lost_found,verity,casefold", "-C", "utf8"],
	},
	"sections of 4 segments, encrypt": { size: "300M", options: ["-s", "4", "-O", "encrypt"] },
	"zones of 3 sections of 2 segments": { size: "400M", options: ["-s", "2", "-z", "3"] },
	"much overprovision, allocated from both ends": { size: "128M", options: ["-o", "30", "-a", "1"] },
	"extended node bitmap": { size: "100M", options: ["-i"] },
	"read-only": { size: "100M", options: ["-O", "ro"] },
	"4 KiB sectors, odd size": { size: "101235K", options: ["-w", "4096"] },
	"many blocks of the segment table": { size: "3G", options: [] },
};

/** Cheap to make, but with megabytes of tables and many blocks to compare: the checkpoint's bitmaps need more blocks. */
const large: typeof variants = {
	"bitmap from the checkpoint on into its payload": { size: "268G", options: ["-i"] },
	"bitmap behind a large one, in the payload": { size: "300G", options: ["-i"] },
};

describe("free blocks equal the segment table, and garbage in them changes no file", () => {
	for (const [name, { size, options }] of [
		...someOf(Object.entries(variants), 2),
		...(isThorough ? Object.entries(large) : []),
	])
		test(name, async (t) => {
			if (!requireTool(t, ...F2FS_TOOLS, "blkid", ...(isThorough ? ["partclone.f2fs"] : []))) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await makeF2fs(image, size, ...options);
			expectSameFree(await mapVolume(image), await decodedF2fs(image));

			const content = await makeContent(folder, seededRandom(seed));
			await fillF2fs(image, content);
			const map = await mapVolume(image);
			expectSameFree(map, await decodedF2fs(image));
			await expectFscked(image);
			await expectFiles(image, content, map);
			// partclone crashes where the checksum comes before the bitmaps.
			if (isThorough && !options.includes("-i")) await expectNothingUsedIsFree(map, "partclone.f2fs", image, folder);
			const { type, uuid, label, freeBytes } = map.volumes[0]!;
			assert.equal(type, "f2fs");
			const known = await runOk("blkid", ["-p", image]);
			assert.equal(/ UUID="([^"]*)"/.exec(known)?.[1], uuid);
			assert.equal(label, name === "as it comes" ? "Größe 1" : null);
			if (large[name] !== undefined) return;

			assert.equal(await scrambleFree(image, map), freeBytes);
			await expectFscked(image);
			await expectFiles(image, content, map);
		});
});

test("4 TiB: the segment table's bitmap in the payload alone", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS)) return;
	if (!isThorough) return t.skip("hundreds of megabytes of tables: make soak");
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await makeF2fs(image, "4T");
	const { kept, usedBytes } = (await mapVolume(image)).volumes[0]!;
	assert.equal(kept, null);
	const superblock = SuperBlock.at(viewOf(await readImage(image, SUPERBLOCK_PLACES[0]!, SuperBlock.size)));
	const checkpoint = Checkpoint.at(viewOf(await readImage(image, superblock.checkpointAt * F2FS_BLOCK, F2FS_BLOCK)));
	const behind = superblock.blockCount - superblock.mainAt - superblock.mainSegments * BLOCKS_PER_SEGMENT;
	assert.ok(superblock.checkpointPayload > 1);
	assert.equal(usedBytes, (superblock.mainAt + behind + checkpoint.validBlockCount) * F2FS_BLOCK);
});

/** What fsck.f2fs finds as a file's blocks is used, and holds what the file had. Files in their inodes have none. */
async function expectFiles(image: string, content: string, map: GuestMap): Promise<void> {
	const free = [...map.extents].filter(({ state }) => state === "free");
	const files = await blocksOfFiles(image);
	assert.ok(files.size > 50);
	for (const [path, blocks] of files) {
		const wanted = await readFile(join(content, path));
		const found = new Uint8Array(blocks.length * F2FS_BLOCK);
		for (const [index, block] of blocks.entries()) {
			if (block === 0) continue; // a hole
			const at = block * F2FS_BLOCK;
			assert.ok(
				free.every(({ start, length }) => at + F2FS_BLOCK <= start || at >= start + length),
				`block ${block} of ${path} is free`,
			);
			found.set(await readImage(image, at, F2FS_BLOCK), index * F2FS_BLOCK);
		}
		assert.equal(Buffer.compare(wanted, found.subarray(0, wanted.length)), 0, path);
	}
}

test("after defrag.f2fs has moved blocks, free blocks equal the segment table", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS, "defrag.f2fs")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await makeF2fs(image, "100M");
	await fillF2fs(image, await makeContent(folder, seededRandom(1)));
	const before = await decodedF2fs(image);
	await runOk("defrag.f2fs", [image]);
	const after = await decodedF2fs(image);
	assert.notDeepEqual(after.free, before.free);
	expectSameFree(await mapVolume(image), after);
});

test("resize.f2fs leaves one checkpoint: kept", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS, "resize.f2fs")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await makeF2fs(image, "100M");
	await fillF2fs(image, await makeContent(folder, seededRandom(1)));
	await truncate(image, 160 << 20);
	await runOk("resize.f2fs", [image]);
	assert.match(`${(await mapVolume(image)).volumes[0]!.kept}`, /one of its two checkpoints is damaged or missing/);
});

test("several devices", async (t) => {
	if (!requireTool(t, "mkfs.f2fs")) return;
	await using folder = await temporaryFolder();
	await runOk("truncate", ["-s", "128M", folder.file("first"), folder.file("second")]);
	await runOk("mkfs.f2fs", ["-q", "-f", "-t", "0", "-c", "second", "first"], { folder: folder.path });
	const keptOf = async (name: string): Promise<string> => `${(await mapVolume(folder.file(name))).volumes[0]!.kept}`;
	assert.match(await keptOf("first"), /spans several devices/);
	assert.match(await keptOf("second"), /nothing known is in it/);
});

interface Case {
	readonly edit: (image: F2fsImage) => void;
	/** Why it is kept; null where it is not, but has a warning. */
	readonly why: RegExp | null;
	readonly state?: string;
	/** The volume has a checksum in its superblock. */
	readonly checksum?: true;
}

const damage = (block: Buffer): number => block.writeUInt32LE(0xffff_fff0, 0x10);

/** All of an image that mkfs.f2fs made. */
const cases: Readonly<Record<string, Case>> = {
	"not unmounted": {
		edit: (image) => image.flag(0, CheckpointFlag.unmounted),
		why: /it was not unmounted/,
		state: "dirty",
	},
	"a node behind the checkpoint": {
		edit: (image) => image.appendNode(image.checkpoint().version),
		why: /it was mounted again since it was unmounted/,
		state: "dirty",
	},
	errors: { edit: (image) => image.flag(CheckpointFlag.error), why: /recorded errors/, state: "clean" },
	"fsck wanted": { edit: (image) => image.flag(CheckpointFlag.needsCheck), why: /recorded errors/, state: "clean" },
	resizing: { edit: (image) => image.flag(CheckpointFlag.resizing), why: /being resized/, state: "clean" },
	"checkpoints off": { edit: (image) => image.flag(CheckpointFlag.disabled), why: /switched off/, state: "clean" },
	"checkpoints off, quickly": {
		edit: (image) => image.flag(CheckpointFlag.disabledQuick),
		why: /switched off/,
		state: "clean",
	},

	"both checkpoints damaged": {
		edit(image) {
			for (const pack of image.packs) damage(image.block(pack));
		},
		why: /no valid checkpoint/,
	},
	"first checkpoint damaged": { edit: (image) => damage(image.block(image.packs[0]!)), why: /one of its two/ },
	"second checkpoint damaged": { edit: (image) => damage(image.block(image.packs[1]!)), why: /one of its two/ },
	"checkpoint torn": { edit: (image) => image.block(image.ends(image.packs[0]!)[1]!).fill(0), why: /one of its two/ },
	"checkpoint of two versions": {
		edit: (image) => {
			const last = image.block(image.ends(image.packs[0]!)[1]!);
			last.writeUInt32LE(7, 0);
			sealCheckpoint(last);
		},
		why: /one of its two/,
	},
	"a huge version": { edit: (image) => image.change((view) => view.setUint32(4, 2 ** 31, true)), why: /2\^53/ },
	"bitmaps of another size": {
		edit: (image) => image.change((view) => Checkpoint.write.sitBitmapBytes(view, 0, 128)),
		why: /bitmaps of 128 and 64 bytes/,
	},
	"extended node bitmap in its old place": {
		edit: (image) => image.flag(CheckpointFlag.largeNatBitmap),
		why: /before 1\.13/,
	},
	"the log of nodes outside": {
		edit: (image) => image.change((view) => Checkpoint.write.warmNodeSegment(view, 0, 5000)),
		why: /warm nodes goes on at block 0 of segment 5000/,
	},
	"summaries outside": {
		edit: (image) => image.change((view) => Checkpoint.write.packStartSummary(view, 0, 5)),
		why: /summaries at block 5 of 6/,
		state: "clean",
	},

	"more journal entries than fit": {
		edit: (image) => image.journal.writeUInt16LE(7, 0),
		why: /journal has 7 entries/,
		state: "clean",
	},
	"one segment twice in the journal": {
		edit: ({ journal }) => journal.copy(journal, 2, 2 + SitJournalEntry.size, 2 + SitJournalEntry.size + 4),
		why: /wrong entry for segment 1/,
		state: "clean",
	},
	"a segment outside in the journal": {
		edit: ({ journal }) => journal.writeUInt32LE(99_999, 2),
		why: /wrong entry for segment 99999/,
		state: "clean",
	},
	"a valid block that is not counted": {
		edit: (image) => image.sitEntry(9).writeUInt8(1, SitEntry.offset.validMap),
		why: /segment 9 of log 0 says 0 valid blocks, its bitmap 1/,
		state: "clean",
	},
	"a valid block too many": {
		edit: (image) => {
			image.sitEntry(9).writeUInt8(1, SitEntry.offset.validMap);
			image.sitEntry(9).writeUInt16LE(1, 0);
		},
		why: /checkpoint says 2 valid blocks, its segments 3/,
		state: "clean",
	},
	"nodes that are counted as data": {
		edit: (image) => image.journal.writeUInt16LE(1, 2 + 4),
		why: /checkpoint says 1 node blocks, its segments 0/,
		state: "clean",
	},
	"a log that there is not": {
		edit: (image) => image.sitEntry(9).writeUInt16LE(6 << 10, 0),
		why: /segment 9 of log 6/,
		state: "clean",
	},

	zoned: { edit: (image) => image.feature(0x2), why: /it is zoned/ },
	"device aliases": { edit: (image) => image.feature(0x8000), why: /aliases devices/ },
	"an unknown feature": { edit: (image) => image.feature(0x20000), why: /unknown feature 0x20000/ },
	"the highest feature": { edit: (image) => image.feature(0x8000_0000), why: /unknown feature 0x80000000/ },
	"an unknown feature in one superblock": {
		edit: (image) =>
			image.changeSuper((view) => SuperBlock.write.features(view, 0, 0x20000), SUPERBLOCK_PLACES.slice(1)),
		why: /unknown feature 0x20000/,
	},
	"superblocks that differ": {
		edit: (image) => image.changeSuper((view) => view.setUint8(SuperBlock.offset.uuid, 7), SUPERBLOCK_PLACES.slice(1)),
		why: /superblocks differ/,
	},
	"format 2": {
		edit: (image) => image.changeSuper((view) => SuperBlock.write.majorVersion(view, 0, 2)),
		why: /version 2/,
	},
	"blocks of 16 KiB": {
		edit: (image) => image.changeSuper((view) => SuperBlock.write.logBlockSize(view, 0, 14)),
		why: /2\^14 bytes/,
	},
	"larger than its partition": {
		edit: (image) => image.changeSuper((view) => SuperBlock.write.blockCount(view, 0, 99_999)),
		why: /99999 blocks, more than its partition/,
	},
	"more main segments": {
		edit: (image) => image.changeSuper((view) => SuperBlock.write.mainSegments(view, 0, 25)),
		why: /has 25 of 31 segments|more than its partition/,
	},
	"the segment table elsewhere": {
		edit: (image) => image.changeSuper((view) => SuperBlock.write.sitAt(view, 0, 2048)),
		why: /checkpoint area .* does not end where the next one begins/,
	},

	"wrong checksums of both superblocks": {
		edit: (image) => image.changeSuper((view) => view.setUint8(SuperBlock.offset.volumeName, 7)),
		why: /superblock's checksum is wrong/,
		checksum: true,
	},
	"wrong checksum of one superblock": {
		edit: (image) => image.changeSuper((view) => view.setUint8(SuperBlock.offset.volumeName, 7), [1024]),
		why: null,
		checksum: true,
	},
	"the first superblock gone": { edit: ({ raw }) => raw.fill(0, 0, F2FS_BLOCK), why: null },
	"the second superblock gone": { edit: ({ raw }) => raw.fill(0, F2FS_BLOCK, 2 * F2FS_BLOCK), why: null },
};

test("kept whole", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS)) return;
	await using folder = await temporaryFolder();
	const [plain, checksums] = [folder.file("plain"), folder.file("checksums")];
	await makeF2fs(plain, "64M");
	await makeF2fs(checksums, "64M", "-O", "extra_attr,sb_checksum");
	const images = { plain: await readFile(plain), checksums: await readFile(checksums) };
	for (const image of [plain, checksums]) assert.equal((await mapVolume(image)).volumes[0]!.kept, null);
	for (const [name, { edit, why, state, checksum }] of Object.entries(cases)) {
		const raw = Buffer.from(images[checksum ? "checksums" : "plain"]);
		edit(new F2fsImage(raw));
		const volume = (await readGuestMap(memorySource(raw))).volumes[0]!;
		if (why === null) {
			assert.equal(volume.kept, null, name);
			assert.match(volume.warnings.join(), /one of its two superblocks is damaged/, name);
			continue;
		}
		assert.match(`${volume.kept}`, why, name);
		assert.deepEqual([volume.type, volume.state, volume.freeBytes], ["f2fs", state ?? "unknown", null], name);
	}
});

test("a node of an earlier checkpoint where the log of nodes goes on is nothing", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS)) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await makeF2fs(image, "64M");
	const raw = await readFile(image);
	const changed = new F2fsImage(raw);
	changed.appendNode(changed.checkpoint().version - 1);
	assert.equal((await readGuestMap(memorySource(raw))).volumes[0]!.kept, null);
});

describe("the checkpoint's bitmap chooses between the two copies of the segment table", () => {
	const CHOOSE_SECOND = 0x80;
	/** Where the bitmap's first byte is. */
	const layouts: Readonly<Record<string, { options: readonly string[]; choose: (image: F2fsImage) => void }>> = {
		"in the checkpoint": {
			options: [],
			choose: (image) => image.change((view) => view.setUint8(CHECKPOINT_BITMAP_AT, CHOOSE_SECOND)),
		},
		"behind an extended node bitmap": {
			options: ["-i"],
			choose: (image) => image.change((view) => view.setUint8(CHECKPOINT_BITMAP_AT + 4 + 64, CHOOSE_SECOND)),
		},
		"in the payload": {
			options: [],
			choose(image) {
				image.addPayload();
				for (const pack of image.packs) image.block(pack + 1)[0] = CHOOSE_SECOND;
			},
		},
	};
	for (const [name, { options, choose }] of Object.entries(layouts))
		test(name, async (t) => {
			if (!requireTool(t, ...F2FS_TOOLS)) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			await makeF2fs(image, "64M", ...options);
			const changed = new F2fsImage(await readFile(image));
			choose(changed);
			// Only the second copy says that three blocks of segment 9 are in use.
			const { sitAt, sitSegments } = changed.superblock;
			const second = changed.block(sitAt + (sitSegments / 2) * BLOCKS_PER_SEGMENT);
			changed.block(sitAt).copy(second);
			second.writeUInt16LE(3, 9 * SitEntry.size);
			second.writeUInt8(0b1011_0000, 9 * SitEntry.size + SitEntry.offset.validMap);
			changed.change((view) => Checkpoint.write.validBlockCount(view, 0, Checkpoint.read.validBlockCount(view, 0) + 3));
			await writeFile(image, changed.raw);
			const reference = await decodedF2fs(image);
			assert.equal(reference.free.subarray(9 * BLOCKS_PER_SEGMENT, 10 * BLOCKS_PER_SEGMENT).indexOf(1), 1);
			expectSameFree(await mapVolume(image), reference);
		});
});

/**
 * f2fs-tools write their tables in place: their second checkpoint has the first one's version, but is of the past. So
 * fsck.f2fs, which goes back to it, finds a broken volume; here it is kept.
 */
test("the older checkpoint of f2fs-tools is no substitute", async (t) => {
	if (!requireTool(t, ...F2FS_TOOLS)) return;
	await using folder = await temporaryFolder();
	const [image, copy] = [folder.file("image"), folder.file("copy")];
	await makeF2fs(image, "100M");
	await fillF2fs(image, await makeContent(folder, seededRandom(1)));
	await copyFile(image, copy);
	const { packs } = new F2fsImage(await readFile(image));
	await runOk("dd", ["if=/dev/zero", `of=${copy}`, "bs=4096", "count=1", `seek=${packs[0]}`, "conv=notrunc"]);
	const { exitCode, stdout } = await run("fsck.f2fs", ["-f", "--dry-run", copy]);
	assert.notEqual(exitCode, 0);
	assert.match(stdout, /\[Fail\]/);
	assert.match(`${(await mapVolume(copy)).volumes[0]!.kept}`, /one of its two checkpoints is damaged or missing/);
});
