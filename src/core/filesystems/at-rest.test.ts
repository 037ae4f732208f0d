import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { isAllFree } from "../../../test/support/live-volumes.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import type { ByteRange, FileSystemMap } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { byteCount, byteOffset, type LogPosition, logPosition } from "../../foundations/units.ts";
import { type AtRestKind, AtRestVolume, without } from "./at-rest.ts";
import type { LiveState, MetadataWrite } from "./live.ts";

const K = 4096;
const BLOCKS = 16;
const bytes = (start: number, length: number): ByteRange => ({ start: byteOffset(start), length: byteCount(length) });

/**
 * A toy of which every fact can be chosen: byte 0 of block 1 says whether it is clean, the other blocks' first bytes
 * whether they are used. Block 1 is what an unmount writes last. It bears ext's name, so that there is one owner.
 */
class Toy {
	readonly bytes = new Uint8Array(BLOCKS * K);
	readonly source: ByteSource = {
		size: byteCount(this.bytes.length),
		read: (at, into) => {
			into.set(this.bytes.subarray(at, at + into.length));
			return Promise.resolve();
		},
	};
	readonly kind: AtRestKind;

	constructor(facts: Partial<AtRestKind> = {}) {
		this.bytes.set([0x53, 0xef], 1024 + 0x38);
		this.kind = {
			type: "ext",
			whileMounted: "toy is mounted",
			read: () => Promise.resolve(this.map()),
			marks: () => Promise.resolve([bytes(K, K)]),
			showsUnmount: true,
			marksMounts: false,
			neverReusesEarly: false,
			...facts,
		};
	}

	use(block: number, used: boolean): void {
		this.bytes[block * K] = used ? 1 : 0;
	}

	map(): FileSystemMap {
		const used = Array.from({ length: BLOCKS }, (_, block) => block < 2 || this.bytes[block * K] === 1);
		const clean = this.bytes[K] === 1;
		return {
			type: "toy",
			uuid: "1",
			label: null,
			state: clean ? "clean" : "dirty",
			blockSize: byteCount(K),
			size: byteCount(BLOCKS * K),
			usedBytes: null,
			freeBytes: null,
			kept: null,
			warnings: [],
			*freeRuns(from, to) {
				for (const [block, isUsed] of used.entries())
					if (!isUsed && block * K >= from && (block + 1) * K <= to) yield bytes(block * K, K);
			},
		};
	}
}

const write = (block: number, position: number): MetadataWrite => ({
	at: byteOffset(block * K),
	length: byteCount(K),
	position: logPosition(position),
	end: logPosition(position + 1),
	read: () => Promise.resolve(new Uint8Array(K)),
});
const at = logPosition;
const freeBlocks = (volume: AtRestVolume): number[] =>
	[...volume.freeRuns(byteOffset(0), byteOffset(BLOCKS * K))].map(({ start }) => start / K);
const reasonOf = (state: LiveState): string => (state.kind === "keep" ? state.reason : "ready");

describe("an unmount", () => {
	const cases: readonly {
		readonly name: string;
		readonly marked: number | null;
		readonly lastWrite: LogPosition | null;
		readonly clean: boolean;
		readonly marksMounts?: boolean;
		readonly ready: boolean;
	}[] = [
		{ name: "the mark is the newest write", marked: 9, lastWrite: at(10), clean: true, ready: true },
		{ name: "something was written after the mark", marked: 9, lastWrite: at(11), clean: true, ready: false },
		{ name: "the mark says mounted", marked: 9, lastWrite: at(10), clean: false, ready: false },
		{ name: "no mark was seen", marked: null, lastWrite: at(10), clean: true, ready: false },
		{ name: "as it was found", marked: null, lastWrite: null, clean: true, ready: false },
		{ name: "as found, mounts are marked", marked: null, lastWrite: null, clean: true, marksMounts: true, ready: true },
		{ name: "as found, mounted", marked: null, lastWrite: null, clean: false, marksMounts: true, ready: false },
	];
	for (const { name, marked, lastWrite, clean, marksMounts = false, ready } of cases)
		test(`${ready ? "is believed" : "is not believed"}: ${name}`, async () => {
			const toy = new Toy({ marksMounts });
			const volume = await AtRestVolume.open(toy.source, toy.kind);
			assert.deepEqual(volume.watch(), [{ ...bytes(K, K), kind: "structure", withoutBytes: true }]);
			toy.bytes[K] = clean ? 1 : 0;
			for (let block = 3; block < BLOCKS; block++) toy.use(block, block !== 7);
			if (marked !== null) await volume.observe([write(1, marked)]);
			const state = await volume.advanceClean(toy.source, at(20), lastWrite);
			assert.equal(state.kind, ready ? "ready" : "keep", reasonOf(state));
			assert.deepEqual(freeBlocks(volume), ready ? [2, 7] : []);
			assert.equal(isAllFree(volume, byteOffset(7 * K), byteCount(K)), ready);
			assert.ok(!isAllFree(volume, byteOffset(7 * K), byteCount(2 * K)));
		});

	test("is not believed where it never shows, or a second owner's mark is there", async () => {
		const silent = new Toy({ showsUnmount: false });
		silent.bytes[K] = 1;
		const volume = await AtRestVolume.open(silent.source, silent.kind);
		await volume.observe([write(1, 9)]);
		assert.equal(reasonOf(await volume.advanceClean(silent.source, at(20), at(10))), "toy is mounted");
		const toy = new Toy();
		toy.bytes[K] = 1;
		toy.bytes.set(new TextEncoder().encode("XFSB"), 0);
		const stale = await AtRestVolume.open(toy.source, toy.kind);
		await stale.observe([write(1, 9)]);
		assert.match(reasonOf(await stale.advanceClean(toy.source, at(20), at(10))), /wipefs/);
	});

	test("after its marks have moved, the volume is followed anew", async () => {
		let marks = [bytes(K, K)];
		const toy = new Toy({ marks: () => Promise.resolve(marks) });
		toy.bytes[K] = 1;
		const volume = await AtRestVolume.open(toy.source, toy.kind);
		await volume.observe([write(1, 9)]);
		marks = [bytes(2 * K, K)];
		const state = await volume.advanceClean(toy.source, at(20), at(10));
		assert.deepEqual([state.kind, state.watchChanged], ["keep", true]);
	});

	test("found before it was made, it is followed anew once it is, though nothing seen so far marks an unmount", async () => {
		let isMade = false;
		const marks = async (): Promise<ByteRange[]> => {
			if (isMade) return [bytes(K, K)];
			throw new VmsweepError("VOLUME_DAMAGED", "it has no log");
		};
		const toy = new Toy({ marks });
		const volume = await AtRestVolume.open(toy.source, toy.kind);
		const state = await volume.advanceClean(toy.source, at(20), at(10));
		assert.deepEqual([reasonOf(state), state.watchChanged], ["toy is mounted", false]);
		isMade = true;
		assert.equal((await volume.advanceClean(toy.source, at(30), at(30))).watchChanged, true);
	});
});

test("what was used at one look, and is free at the next, goes where it was written before the first", async () => {
	const toy = new Toy({ neverReusesEarly: true });
	const volume = await AtRestVolume.open(toy.source, toy.kind);
	for (const block of [3, 4, 5]) toy.use(block, true);
	assert.equal((await volume.advance(toy.source, at(10))).kind, "keep", "there was no look before");
	toy.use(3, false);
	toy.use(9, true);
	const first = await volume.advance(toy.source, at(20));
	assert.deepEqual([first.kind, first.kind === "ready" && first.settled], ["ready", 10]);
	assert.deepEqual(freeBlocks(volume), [3], "not those that were free before, whoever may have them by now");
	toy.use(4, false);
	const second = await volume.advanceClean(toy.source, at(30), at(30));
	assert.equal(second.kind === "ready" && second.settled, 20);
	assert.deepEqual(freeBlocks(volume), [4], "what was not dropped at once has had its chance");
});

describe("a freeze", () => {
	const moment = (asked: number, lastWrite: number | null) => ({
		asked: at(asked),
		lastWrite: lastWrite === null ? null : at(lastWrite),
	});
	const frozen = async (marked: number, asked: number, lastWrite: number | null): Promise<LiveState> => {
		const toy = new Toy();
		const kind = { ...toy.kind, readFrozen: toy.kind.read };
		const volume = await AtRestVolume.open(toy.source, kind);
		await volume.observe([write(1, marked)]);
		return await volume.advanceFrozen!(toy.source, at(20), moment(asked, lastWrite));
	};
	test("is believed where it wrote the mark, last of all", async () => {
		const state = await frozen(14, 12, 15);
		assert.deepEqual([state.kind, state.kind === "ready" && state.settled], ["ready", 20]);
	});
	test("is not where the mark is older, or not the last, or nothing was written", async () => {
		for (const [marked, asked, lastWrite] of [
			[11, 12, 12],
			[14, 12, 16],
			[14, 12, null],
		] as const)
			assert.match(reasonOf(await frozen(marked, asked, lastWrite)), /nothing on the disk shows it/);
	});
	test("proves nothing of a kind on which it leaves no trace", async () => {
		const toy = new Toy();
		assert.equal((await AtRestVolume.open(toy.source, toy.kind)).advanceFrozen, undefined);
	});
});

test("what sorted runs have that others don't", () => {
	const runs = fc.uniqueArray(fc.nat(40)).map((list) => {
		const set = new Set(list);
		return {
			set,
			*[Symbol.iterator]() {
				for (let from = 0; from <= 40; from++) {
					if (!set.has(from)) continue;
					const start = from;
					while (set.has(from + 1)) from++;
					yield bytes(start, from + 1 - start);
				}
			},
		};
	});
	fc.assert(
		fc.property(runs, runs, (one, other) => {
			const left = [...without(one, other)];
			const found = left.flatMap(({ start, length }) => Array.from({ length }, (_, i) => start + i));
			assert.deepEqual(
				found,
				[...one.set].filter((at) => !other.set.has(at)).sort((a, b) => a - b),
			);
			for (const [i, { start, length }] of left.entries())
				assert.ok(i + 1 === left.length || start + length <= left[i + 1]!.start);
		}),
	);
});
