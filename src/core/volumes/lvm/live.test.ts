import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isAllFree } from "../../../../test/support/live-volumes.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { type ByteOffset, byteCount, byteOffset, logPosition } from "../../../foundations/units.ts";
import type { MetadataWrite } from "../../filesystems/live.ts";
import * as layout from "./layout.ts";
import { lvmChecksum, SECTOR } from "./layout.ts";
import { type FreeExtentsPast, LvmLiveVolume } from "./live.ts";

const MIB = 2 ** 20;
const AREA = { start: 4096, length: MIB - 4096 };
const UUID = "abcdefghijklmnopqrstuvwxyz012345";
const DASHED = "abcdef-ghij-klmn-opqr-stuv-wxyz-012345";

/** A group of one physical volume of 20 extents of 1 MiB; `volumes` are pieces of its text. */
const group = (volumes = "", more = ""): string =>
	`contents = "Text Format Volume Group" version = 1
	vg0 { id = "g" seqno = 1 format = "lvm2" status = ["RESIZEABLE", "READ", "WRITE"] flags = [] extent_size = 2048 ${more}
		physical_volumes { pv0 { id = "${DASHED}" status = ["ALLOCATABLE"] flags = [] pe_start = 2048 pe_count = 20 } }
		logical_volumes { ${volumes} } }`;

const linear = (name: string, first: number, count: number): string =>
	`${name} { id = "${name}" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
		segment1 { start_extent = 0 extent_count = ${count} type = "striped" stripe_count = 1 stripes = ["pv0", ${first}] } }`;

/** The bytes of a physical volume with such a text, as LVM writes them. */
function physicalVolume(text: string): ByteSource & { readonly bytes: Uint8Array } {
	const bytes = new Uint8Array(21 * MIB);
	const ascii = (word: string): Uint8Array => new TextEncoder().encode(word);
	const label = bytes.subarray(SECTOR, 2 * SECTOR);
	const words = viewOf(label);
	layout.Label.write.id(words, 0, ascii(layout.LABEL_ID));
	layout.Label.write.sector(words, 0, 1);
	layout.Label.write.headerOffset(words, 0, layout.Label.size);
	layout.Label.write.type(words, 0, ascii(layout.LABEL_TYPE));
	let at = layout.Label.size;
	layout.PvHeader.write.uuid(words, at, ascii(UUID));
	at += layout.PvHeader.size;
	for (const { offset, size } of [
		{ offset: MIB, size: 0 },
		{ offset: 0, size: 0 },
		{ offset: AREA.start, size: AREA.length },
		{ offset: 0, size: 0 },
	]) {
		layout.DiskArea.write.offset(words, at, offset);
		layout.DiskArea.write.size(words, at, size);
		at += layout.DiskArea.size;
	}
	layout.Label.write.checksum(words, 0, lvmChecksum(label.subarray(layout.LABEL_CHECKED_FROM)));
	const sector = bytes.subarray(AREA.start, AREA.start + SECTOR);
	const header = viewOf(sector);
	const body = ascii(text);
	bytes.set(body, AREA.start + SECTOR);
	layout.MetadataHeader.write.magic(header, 0, ascii(layout.METADATA_MAGIC));
	layout.MetadataHeader.write.version(header, 0, layout.METADATA_VERSION);
	layout.MetadataHeader.write.start(header, 0, AREA.start);
	layout.MetadataHeader.write.size(header, 0, AREA.length);
	layout.RawText.write.offset(header, layout.RAW_TEXTS_AT, SECTOR);
	layout.RawText.write.size(header, layout.RAW_TEXTS_AT, body.length);
	layout.RawText.write.checksum(header, layout.RAW_TEXTS_AT, lvmChecksum(body));
	layout.MetadataHeader.write.checksum(header, 0, lvmChecksum(sector.subarray(layout.METADATA_CHECKED_FROM)));
	return {
		bytes,
		size: byteCount(bytes.length),
		read: (from, into) => {
			into.set(bytes.subarray(from, from + into.length));
			return Promise.resolve();
		},
	};
}

/** A write of a block at `at`, at log position `position`. */
const write = (at: number, position: number): MetadataWrite => ({
	at: byteOffset(at),
	length: byteCount(4096),
	position: logPosition(position),
	end: logPosition(position + 1),
	read: () => Promise.resolve(new Uint8Array(4096)),
});

interface Opened {
	readonly live: LvmLiveVolume;
	readonly past: FreeExtentsPast;
}

/** `headerAt`: the position of the header's last write, null where the log has none. */
async function open(volume: ByteSource, headerAt: number | null, past?: FreeExtentsPast): Promise<Opened> {
	const known = past ?? { committed: logPosition(100), hasForeignWrites: false };
	const lastWriteOf = (at: ByteOffset): ReturnType<Parameters<typeof LvmLiveVolume.open>[2]> => {
		assert.equal(at, AREA.start);
		return Promise.resolve(headerAt === null ? null : logPosition(headerAt));
	};
	const live = await LvmLiveVolume.open(
		volume,
		(uuid) => {
			assert.equal(uuid, DASHED);
			return known;
		},
		lastWriteOf,
	);
	return { live, past: known };
}

const freeOf = (live: LvmLiveVolume): number[][] =>
	[...live.freeRuns(byteOffset(0), byteOffset(21 * MIB))].map(({ start, length }) => [start / MIB, length / MIB]);

describe("free extents", () => {
	test("are settled since the header that lists them was written, and told once", async () => {
		const volume = physicalVolume(group(linear("root", 2, 5)));
		const { live } = await open(volume, 250);
		assert.deepEqual(freeOf(live), [], "before it was judged");
		const state = await live.advance(volume, logPosition(300));
		assert(state.kind === "ready");
		assert.equal(state.settled, 250);
		assert.deepEqual(freeOf(live), [
			[1, 2],
			[8, 13],
		]);
		assert.deepEqual(
			state.changed.map(({ start, length }) => [start / MIB, length / MIB]),
			freeOf(live),
		);
		assert(isAllFree(live, byteOffset(MIB), byteCount(2 * MIB)));
		assert(!isAllFree(live, byteOffset(2 * MIB), byteCount(MIB + 1)));
		assert.deepEqual(
			[...live.freeRuns(byteOffset(2.5 * MIB), byteOffset(8.5 * MIB))],
			[
				{ start: 2.5 * MIB, length: 0.5 * MIB },
				{ start: 8 * MIB, length: 0.5 * MIB },
			],
		);
		const again = await live.advanceClean(volume, logPosition(310));
		assert(again.kind === "ready");
		assert.deepEqual(again.changed, []);
	});

	test("are settled since the disk was opened where the first image does not know the header", async () => {
		const volume = physicalVolume(group());
		const { live, past } = await open(volume, null);
		const state = await live.advance(volume, logPosition(300));
		assert(state.kind === "ready");
		assert.equal(state.settled, 100);
		// What was found out once stays known when the header has been moved to the second image.
		past.committed = logPosition(280);
		const later = await (await open(volume, null, past)).live.advance(volume, logPosition(400));
		assert(later.kind === "ready");
		assert.equal(later.settled, 280);
	});

	test("are watched, and so is all that says what they are", async () => {
		const { live } = await open(physicalVolume(group(linear("root", 0, 19))), 1);
		assert.deepEqual(
			live.watch().map(({ start, length }) => [start, length]),
			[
				[0, 2048],
				[AREA.start, AREA.length],
				[20 * MIB, MIB],
			],
		);
	});

	test("that somebody writes to are kept, all of them, whatever LVM says later", async () => {
		const volume = physicalVolume(group(linear("root", 0, 10)));
		const { live, past } = await open(volume, 200);
		assert.equal((await live.advance(volume, logPosition(300))).kind, "ready");
		await live.observe([write(3 * MIB, 310)]);
		assert.equal((await live.advance(volume, logPosition(320))).kind, "ready", "a logical volume's extents");
		await live.observe([write(15 * MIB, 330)]);
		const state = await live.advance(volume, logPosition(340));
		assert(state.kind === "keep");
		assert.match(state.reason, /does not know of writes to its free extents/);
		assert.deepEqual(freeOf(live), []);
		const next = await open(physicalVolume(group()), 400, past);
		assert.equal((await next.live.advance(physicalVolume(group()), logPosition(500))).kind, "keep");
	});

	test("may be written behind a new text, which is not this object's to read", async () => {
		const { live, past } = await open(physicalVolume(group()), 200);
		await live.observe([write(AREA.start, 300), write(5 * MIB, 301)]);
		const state = await live.advance(physicalVolume(group(linear("root", 0, 10))), logPosition(310));
		assert(state.kind === "keep");
		assert.match(state.reason, /was changed/);
		assert(!past.hasForeignWrites);
		const torn = physicalVolume(group());
		torn.bytes[AREA.start + SECTOR + 3]! ^= 1;
		const damaged = await live.advance(torn, logPosition(320));
		assert(damaged.kind === "keep");
		assert.match(damaged.reason, /wrong checksum/);
		assert.equal((await live.advance(physicalVolume(group()), logPosition(330))).kind, "ready", "the same text again");
	});
});

test("what LVM is not alone with, and what is not understood, is not followed", async () => {
	const wrong: readonly (readonly [string, RegExp])[] = [
		[group("", 'system_id = "other"'), /belongs to the host other/],
		[group().replace('"RESIZEABLE"', '"EXPORTED"'), /EXPORTED/],
		[group("", 'lock_type = "sanlock"'), /shared between hosts/],
		[group().replace("logical_volumes", `pv1 { id = "x" pe_start = 2048 pe_count = 5 } logical_volumes`), /.*/],
		[
			group().replace(
				"pe_count = 20 }",
				`pe_count = 20 } pv1 { id = "zzzzzz-zzzz-zzzz-zzzz-zzzz-zzzz-zzzzzz" status = ["ALLOCATABLE"] flags = [] pe_start = 2048 pe_count = 5 }`,
			),
			/several physical volumes/,
		],
		[group(linear("root", 0, 5).replace('"striped"', '"future"')), /kind future/],
	];
	for (const [text, reason] of wrong) await assert.rejects(open(physicalVolume(text), 1), reason);
});
