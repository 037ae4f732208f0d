// Golden first image: an image of every format version is kept and must open for ever, and the worked hex dump of
// docs/format/first-image.md is what the code writes today.
//
//   VMSWEEP_UPDATE_GOLDEN=1 node --test test/golden/first-image.test.ts      after a wanted change of format or document

import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { crc32, gunzipSync, gzipSync } from "node:zlib";
import { ABSENT, FirstImage, formatFirstImage, ZERO } from "../../src/core/log/first-image.ts";
import { FORMAT_VERSION } from "../../src/core/log/format.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import { Random } from "../sim/random.ts";
import { PowerCut, pinned, SimFile, SOME_TORN, World } from "../sim/sim-file.ts";

const document = new URL("../../docs/format/first-image.md", import.meta.url);
const golden = (version: number) => new URL(`first-image-v${version}.log.gz`, import.meta.url);
const update = process.env.VMSWEEP_UPDATE_GOLDEN === "1";

const open = (file: SimFile) =>
	FirstImage.open(file, {
		checksum: (bytes) => crc32(bytes),
		allocatePinned: (length) => pinned(new Uint8Array(length)),
	});

const filled = (value: number, blocks: number) => pinned(new Uint8Array(blocks * 4096).fill(value));

/** The example of the document: a disk of 1 MiB with segments of 16 KiB. */
function sampleImage(): SimFile {
	const file = new SimFile(new World(new Random(1), SOME_TORN));
	const uuid = Uint8Array.from({ length: 16 }, (_, i) => 0xa0 + i);
	formatFirstImage(file, { uuid, diskBytes: byteCount(1 << 20), segmentBytes: 16_384 });
	const log = open(file);
	log.stageData(3, 2, filled(0x11, 2), 0);
	log.stageZero(16, 5, "zero");
	log.commit();
	const position = log.beginFlush();
	file.datasync();
	log.completeFlush(position);
	log.stageData(4, 1, filled(0x22, 1), 0);
	log.stageZero(20, 2, "drop");
	log.commit();
	log.close();
	return file;
}

/** Rows of 16 bytes that aren't all zero, of the given ranges. */
function hexDump(bytes: Uint8Array, ranges: readonly (readonly [string, number, number])[]): string {
	const lines: string[] = [];
	for (const [title, start, end] of ranges) {
		lines.push(`# ${title}`);
		for (let at = start; at < end; at += 16) {
			const row = bytes.subarray(at, at + 16);
			if (row.every((byte) => byte === 0)) continue;
			const hex = Array.from(row, (byte) => byte.toString(16).padStart(2, "0"));
			const text = Array.from(row, (byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "."));
			lines.push(
				`${at.toString(16).padStart(6, "0")}  ${hex.slice(0, 8).join(" ")}  ${hex.slice(8).join(" ")}  ${text.join("")}`,
			);
		}
	}
	return lines.join("\n");
}

test("the document's hex dump is what the code writes", () => {
	const dump = hexDump(sampleImage().contents(), [
		["superblock A", 0x0, 0x200],
		["superblock B", 0x1000, 0x1200],
		["segment 1: header", 0x10000, 0x10200],
		["segment 1: entries", 0x11000, 0x12000],
		["segment 2: header", 0x14000, 0x14200],
		["segment 2: entries", 0x15000, 0x16000],
	]);
	const text = readFileSync(document, "utf8");
	const block = /(<!-- dump -->\n```\n)[^`]*(\n```)/;
	assert.match(text, block);
	const expected = text.replace(block, (_, before: string, after: string) => before + dump + after);
	if (update) writeFileSync(document, expected);
	else
		assert.ok(text === expected, "docs/format/first-image.md is outdated; run this test with VMSWEEP_UPDATE_GOLDEN=1");
});

/** What the sample shows, per block: absent, zero, or the byte that fills it. */
function shown(file: SimFile, log: FirstImage): (string | number)[] {
	return [2, 3, 4, 5, 16, 19, 20, 21, 22].map((block) => {
		const value = log.get(block);
		if (value === ABSENT || value === ZERO) return value === ABSENT ? "absent" : "zero";
		const data = new Uint8Array(4096);
		file.read(byteOffset(log.offsetOfSlot(value)), data);
		assert.ok(data.every((byte) => byte === data[0]));
		return data[0]!;
	});
}

const expected = ["absent", 0x11, 0x22, "absent", "zero", "zero", "zero", "zero", "absent"];

function stored(version: number, world = new World(new Random(1), SOME_TORN)): SimFile {
	const file = new SimFile(world);
	file.write(gunzipSync(readFileSync(golden(version))), 0);
	file.datasync();
	return file;
}

for (let version = 1; version <= FORMAT_VERSION; version++)
	test(`a first image of format version ${version} opens`, () => {
		if (update && !existsSync(golden(version))) writeFileSync(golden(version), gzipSync(sampleImage().contents()));
		const file = stored(version);
		const log = open(file);
		assert.deepEqual(shown(file, log), expected);
		assert.equal(log.diskBytes, 1 << 20);
		// Opened to write, it is of today's version, old segments and new ones together.
		log.stageData(100, 3, filled(0x33, 3), 0);
		assert.equal(log.commit(), 1);
		for (const image of [log, open(file)]) {
			assert.deepEqual(shown(file, image), expected);
			assert.equal(image.sumOfSlot(image.get(101)), crc32(filled(0x33, 1).bytes));
			assert.equal(image.sumOfSlot(image.get(4)), crc32(filled(0x22, 1).bytes), "a run of one block");
			const [first] = image.segments();
			assert.deepEqual([...image.liveRuns(first!.sequence).runs], [3, 1, image.get(3)]);
			assert.deepEqual(image.scrub(first!.sequence).rotten, []);
		}
		assert.deepEqual(versionsIn(file).superblocks, [FORMAT_VERSION, FORMAT_VERSION]);
	});

test("what version 1 wrote last, and wasn't known to be durable, is checked as a whole run", () => {
	for (const { rotten, block4 } of [
		{ rotten: false, block4: 0x22 },
		{ rotten: true, block4: 0x11 },
	]) {
		const file = stored(1);
		// Without the superblock that was written at the end, only the first two entries are known to be durable.
		file.write(new Uint8Array(512), 0);
		if (rotten) file.write(new Uint8Array(512), 0x16000 + 512);
		assert.equal(shown(file, open(file))[2], block4);
	}
});

/** Versions that the file's superblocks and segment headers say. */
function versionsIn(file: SimFile): { superblocks: number[]; headers: number[] } {
	const bytes = file.contents();
	const headers: number[] = [];
	for (let at = 65_536; at < bytes.length; at += 16_384)
		if (new TextDecoder().decode(bytes.subarray(at, at + 8)) === "VMSWPSEG") headers.push(bytes[at + 8]!);
	return { superblocks: [bytes[8]!, bytes[4096 + 8]!], headers };
}

test("a cut while version 1 becomes version 2 leaves nothing that a vmsweep of version 1 would misread", () => {
	const newest = open(stored(1)).position;
	let mixed = 0;
	for (let seed = 1; seed <= 40; seed++)
		for (let call = 1; ; call++) {
			const world = new World(new Random(seed), SOME_TORN);
			const file = stored(1, world);
			world.cutAt = world.calls + call;
			try {
				open(file);
			} catch (error) {
				assert.ok(error instanceof PowerCut || world.isCut);
			}
			if (!world.isCut) break;
			world.powerOn();
			file.powerCut(new Random(seed * 1000 + call));
			const { superblocks, headers } = versionsIn(file);
			// One superblock of version 1 is enough for it to go on: then all must be of version 1, but for the other superblock.
			if (superblocks.includes(1))
				assert.ok(
					headers.every((version) => version === 1),
					`seed ${seed}, call ${call}`,
				);
			if (superblocks.includes(1) && superblocks.includes(2)) {
				mixed++;
				assert.equal(superblocks[0], 1, "the newest superblock of version 1 goes last");
			}
			const log = open(file);
			assert.deepEqual(shown(file, log), expected);
			assert.ok(log.position >= newest);
		}
	assert.ok(mixed > 0, "no cut between the two superblocks");
});
