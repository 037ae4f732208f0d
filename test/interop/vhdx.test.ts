// VHDX images that QEMU makes: content, runs and guest map are those of the raw image. A log that was left behind is
// read as QEMU applies it. What isn't understood is refused.

import assert from "node:assert/strict";
import { copyFile, readFile, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import {
	blockState,
	guid,
	HEADER_PLACES,
	Header,
	LOG_SECTOR,
	METADATA_ENTRIES_AT,
	MetadataEntry,
	REGION_ENTRIES_AT,
	REGION_TABLE_PLACES,
	RegionEntry,
	RegionTable,
} from "../../src/core/images/vhdx/layout.ts";
import { isThorough } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { checkGuestMap, checkImage, MIB, makeExt4, makeRaw, runsOf } from "./image-formats.ts";
import { type LoggedWrite, logEntry, VhdxBytes, withChecksum } from "./vhdx-log-writer.ts";

/** Name: options of qemu-img. */
const kinds: Readonly<Record<string, string>> = {
	dynamic: "subformat=dynamic,block_size=1M",
	"dynamic, large blocks": "subformat=dynamic,block_size=32M",
	fixed: "subformat=fixed",
	"zeros as blocks": "subformat=dynamic,block_size=2M,block_state_zero=off",
	"a larger log": "subformat=dynamic,log_size=4M",
};

describe("VHDX", () => {
	for (const [kind, options] of Object.entries(kinds))
		test(`${kind}: as the raw image`, async (t) => {
			if (!requireTool(t, "qemu-img")) return;
			await using folder = await temporaryFolder();
			const [raw, image] = [folder.file("raw"), folder.file("image.vhdx")];
			await makeRaw(raw, 11 * MIB + 3 * 512, 3);
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, image]);
			assert.deepEqual(await checkImage(image, raw, "vhdx"), []);
		});

	test("a disk of several chunks: blocks behind a bitmap's entry are found", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image.vhdx");
		// 4 GiB are a chunk; with blocks of 256 MiB it has 16 of them.
		for (const [blockSize, blocks] of [
			["256M", [0, 15, 16, 17, 31, 32, 47]],
			["1M", [0, 4095, 4096, 4097, 8191, 8192, 12_287]],
		] as const) {
			await runOk("qemu-img", ["create", "-q", "-f", "vhdx", "-o", `block_size=${blockSize}`, image, "12G"]);
			const bytes = Number.parseInt(blockSize, 10) * MIB;
			const writes = blocks.map((block) => `write -P ${1 + (block % 200)} ${block * bytes + bytes - 4096} 4096`);
			await runOk("qemu-io", ["-f", "vhdx", ...writes.flatMap((each) => ["-c", each]), image]);
			await using opened = await openDiskImage(image);
			const expected = blocks.map((block) => ({ start: block * bytes + bytes - 4096, length: 4096 }));
			assert.deepEqual(await runsOf(opened, "data"), expected);
			for (const [index, { start }] of expected.entries()) {
				const sector = new Uint8Array(4096);
				await opened.read(start as never, sector);
				assert.ok(sector.every((byte) => byte === 1 + (blocks[index]! % 200)));
			}
		}
	});

	test("the guest map of an ext4 inside", async (t) => {
		if (!requireTool(t, "qemu-img", "mke2fs", "debugfs")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vhdx")];
		await makeExt4(raw, 40 * MIB);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", raw, image]);
		await checkGuestMap(image, raw);
	});
});

/** Random changes of a dynamic image with blocks of 1 MiB: of its table, of its blocks. */
function randomWrites(file: VhdxBytes, random: Random): LoggedWrite[] {
	const { tableAt } = file;
	const blocks = (file.bytes.length - 4 * MIB) / MIB;
	const table = file.bytes.slice(tableAt, tableAt + LOG_SECTOR);
	const view = new DataView(table.buffer);
	return Array.from({ length: random.between(1, 140) }, () => {
		const at = 4 * MIB + random.below(blocks * 256) * LOG_SECTOR;
		switch (random.below(4)) {
			case 0: {
				const states = [blockState.NOT_PRESENT, blockState.ZERO, blockState.UNMAPPED, blockState.FULLY_PRESENT];
				const place = 4 + random.below(blocks);
				const state = random.pick(states);
				view.setBigUint64(random.below(8) * 8, (BigInt(place) << 20n) | BigInt(state), true);
				return { at: tableAt, data: table.slice() };
			}
			case 1:
				return { at, zeros: Math.min(random.between(1, 40) * LOG_SECTOR, file.bytes.length - at) };
			default:
				return { at, data: random.bytes(LOG_SECTOR) };
		}
	});
}

describe("VHDX with a log that was not applied", () => {
	test("is read as QEMU applies it, and stays as it is", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image, repaired] = [folder.file("raw"), folder.file("image.vhdx"), folder.file("repaired.vhdx")];
		await makeRaw(raw, 5 * MIB, 3);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, image]);
		const whole = await readFile(image);
		const original = await readFile(raw);
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		for (let round = 0; round < (isThorough ? 100 : 4); round++) {
			const random = seededRandom(seed + round);
			const file = new VhdxBytes(whole);
			const fileSize = whole.length;
			// What an older use of the log left: whole entries of another GUID.
			for (let at = 0; at < MIB; at += 64 * 1024)
				file.putEntry(
					at,
					logEntry({
						sequence: 900,
						writes: randomWrites(file, random).slice(0, 10),
						tail: at,
						fileSize,
						guid: new Uint8Array(16).fill(9),
					}),
				);
			const first = random.below(20) * LOG_SECTOR;
			let at = first;
			let sequence = random.between(1, 100);
			for (let count = random.between(1, 4); count > 0 && at < MIB / 2; count--, sequence++)
				at = file.putEntry(
					at,
					logEntry({ sequence, writes: randomWrites(file, random).slice(0, 40), tail: first, fileSize }),
				);
			// The next entry was being written when the power went.
			const torn = logEntry({ sequence, writes: randomWrites(file, random).slice(0, 20), tail: first, fileSize });
			torn[torn.length - 3]! ^= 1;
			if (random.chance(0.7)) file.putEntry(at, torn);
			await writeFile(image, file.bytes);
			await writeFile(repaired, file.bytes);
			await runOk("qemu-img", ["check", "-q", "-r", "all", "-f", "vhdx", repaired]);
			await runOk("qemu-img", ["convert", "-f", "vhdx", "-O", "raw", repaired, raw]);
			assert.ok(Buffer.compare(await readFile(raw), original) !== 0, "the log changed nothing");
			const warnings = await checkImage(image, raw, "vhdx");
			assert.match(warnings.join(), /not closed cleanly/, `seed ${seed + round}`);
			assert.ok(Buffer.compare(await readFile(image), file.bytes) === 0, "the image was changed");
			if (round === 0) assert.deepEqual(await checkImage(repaired, raw, "vhdx"), []);
		}
	});

	test("around the log's end, from the tail that the last entry names", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vhdx")];
		await writeFile(raw, new Uint8Array(2 * MIB).fill(0x11));
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, image]);
		const file = new VhdxBytes(await readFile(image));
		const fileSize = file.bytes.length;
		const data = (value: number): Uint8Array => new Uint8Array(LOG_SECTOR).fill(value);
		const blockAt = Number(file.view.getBigUint64(file.tableAt, true) >> 20n) * MIB;
		const write = (sector: number, value: number): LoggedWrite => ({
			at: blockAt + sector * LOG_SECTOR,
			data: data(value),
		});
		const length = file.log.length;
		const start = length - 5 * LOG_SECTOR;
		// Two sectors each, the last of three: it lies around the ring's end.
		let at = file.putEntry(start, logEntry({ sequence: 7, writes: [write(0, 7)], tail: start, fileSize }));
		const tail = at;
		at = file.putEntry(at, logEntry({ sequence: 8, writes: [write(1, 8)], tail: start, fileSize }));
		at = file.putEntry(at, logEntry({ sequence: 9, writes: [write(2, 8), write(2, 9)], tail, fileSize }));
		assert.equal(at, 2 * LOG_SECTOR);
		await writeFile(image, file.bytes);
		const expected = new Uint8Array(2 * MIB).fill(0x11);
		expected.set(data(8), LOG_SECTOR);
		expected.set(data(9), 2 * LOG_SECTOR);
		await writeFile(raw, expected);
		await checkImage(image, raw, "vhdx");
	});

	test("a log without a whole entry, or of a file that was cut, is damage", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vhdx")];
		await makeRaw(raw, 2 * MIB, 3);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, image]);
		const whole = await readFile(image);
		const writes = [{ at: 2 * MIB, zeros: LOG_SECTOR }];
		const cases: readonly [Parameters<typeof logEntry>[0], RegExp][] = [
			[{ sequence: 1, writes, tail: 0, fileSize: whole.length + 1 }, /had \d+ bytes when its log was written/],
			[{ sequence: 1, writes, tail: LOG_SECTOR, fileSize: 0 }, /no whole entry/],
			[{ sequence: 0, writes, tail: 0, fileSize: 0 }, /no whole entry/],
			[{ sequence: 1, writes: [{ at: 512, zeros: LOG_SECTOR }], tail: 0, fileSize: 0 }, /wrong descriptor/],
		];
		for (const [entry, message] of cases) {
			const file = new VhdxBytes(whole);
			file.putEntry(0, logEntry(entry));
			await writeFile(image, file.bytes);
			await assert.rejects(openDiskImage(image), { code: "IMAGE_DAMAGED", message });
		}
		const file = new VhdxBytes(whole);
		file.putHeader({ logGuid: new Uint8Array(16).fill(3), logVersion: 1 });
		await writeFile(image, file.bytes);
		await assert.rejects(openDiskImage(image), { code: "IMAGE_UNSUPPORTED", message: /log version/ });
	});
});

describe("VHDX that can't be read", () => {
	/** Changes a region table's or metadata table's entry, or a file parameter. */
	const changes: Readonly<Record<string, readonly [(file: VhdxBytes) => void, code: string, message: RegExp]>> = {
		"an unknown region that is required": [
			(file) =>
				changeRegions(file, (at) => RegionEntry.put(file.view, at, { guid: new Uint8Array(16).fill(5), flags: 1 })),
			"IMAGE_UNSUPPORTED",
			/region 05050505-0505-/,
		],
		"unknown metadata that is required": [
			(file) => changeMetadata(file, 0, { itemId: new Uint8Array(16).fill(5), flags: 4 }),
			"IMAGE_UNSUPPORTED",
			/metadata 05050505-/,
		],
		"a parent": [(file) => file.view.setUint32(itemAt(file, 0) + 4, 2, true), "IMAGE_UNSUPPORTED", /parent/],
		"blocks of an impossible size": [
			(file) => file.view.setUint32(itemAt(file, 0), 12_345, true),
			"IMAGE_DAMAGED",
			/block size/,
		],
		"no whole header": [
			(file) => {
				for (const at of HEADER_PLACES) Header.put(file.view, at, { checksum: 1 });
			},
			"IMAGE_DAMAGED",
			/no whole VHDX header/,
		],
		"another version": [(file) => file.putHeader({ version: 2 }), "IMAGE_UNSUPPORTED", /version 2/],
		"no region table": [
			(file) => {
				for (const at of REGION_TABLE_PLACES) RegionTable.put(file.view, at, { checksum: 1 });
			},
			"IMAGE_DAMAGED",
			/region table/,
		],
		"a region past the end": [
			(file) => changeRegions(file, (at) => RegionEntry.put(file.view, at, { fileOffset: 2 ** 40 })),
			"IMAGE_DAMAGED",
			/ends at byte/,
		],
	};
	/** Applies a change to the first entry of both region tables. */
	function changeRegions(file: VhdxBytes, change: (at: number) => void): void {
		for (const at of REGION_TABLE_PLACES) {
			change(at + REGION_ENTRIES_AT);
			withChecksum(file.bytes.subarray(at, at + RegionTable.size), RegionTable.offset.checksum);
		}
	}
	const metadataAt = (file: VhdxBytes, index: number): number =>
		file.region(guid.metadataRegion) + METADATA_ENTRIES_AT + index * MetadataEntry.size;
	function changeMetadata(file: VhdxBytes, index: number, values: Parameters<typeof MetadataEntry.put>[2]): void {
		MetadataEntry.put(file.view, metadataAt(file, index), values);
	}
	/** QEMU puts the file parameters first. */
	const itemAt = (file: VhdxBytes, index: number): number =>
		file.region(guid.metadataRegion) + MetadataEntry.read.offset(file.view, metadataAt(file, index));

	test("is refused, and says why", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [image, spoilt] = [folder.file("image.vhdx"), folder.file("spoilt.vhdx")];
		await runOk("qemu-img", ["create", "-q", "-f", "vhdx", image, "8M"]);
		const whole = await readFile(image);
		await copyFile(image, spoilt);
		await (await openDiskImage(spoilt)).close();
		for (const [what, [change, code, message]] of Object.entries(changes)) {
			const file = new VhdxBytes(whole);
			change(file);
			await writeFile(spoilt, file.bytes);
			await assert.rejects(openDiskImage(spoilt), { code, message }, what);
		}
	});
});
