import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { ByteRange } from "../../foundations/guest-map.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { type Area, linearArea, rangesOnDisk } from "./areas.ts";
import { cutOut, inDiskOrder, piecesOf, placeInVolume, runsOnDisk } from "./pieces.ts";

const range = (start: number, length: number): ByteRange => ({ start: byteOffset(start), length: byteCount(length) });

/** A volume of a few segments, and byte by byte where it lies. */
interface Laid {
	readonly areas: readonly Area[];
	/** By byte of the volume: its byte of the disk. */
	readonly places: readonly number[];
}

/** Segments of one to three stripes; places on the disk in any order, some of them side by side, none twice. */
const volume: fc.Arbitrary<Laid> = fc
	.array(
		fc.record({
			stripes: fc.integer({ min: 1, max: 3 }),
			stripeBytes: fc.integer({ min: 1, max: 9 }),
			rows: fc.integer({ min: 1, max: 4 }),
			gaps: fc.array(fc.nat(3), { minLength: 3, maxLength: 3 }),
			order: fc.array(fc.nat(1000), { minLength: 3, maxLength: 3 }),
		}),
		{ minLength: 1, maxLength: 5 },
	)
	.map((segments) => {
		const legs = segments.flatMap(({ stripes, stripeBytes, rows, gaps, order }, segment) =>
			Array.from({ length: stripes }, (_, leg) => ({
				segment,
				leg,
				length: rows * stripeBytes,
				gap: gaps[leg]!,
				order: order[leg]!,
			})),
		);
		const starts = new Map<string, number>();
		let cursor = 0;
		for (const { segment, leg, length, gap } of legs.toSorted((a, b) => a.order - b.order)) {
			starts.set(`${segment}.${leg}`, cursor + gap);
			cursor += gap + length;
		}
		const areas: Area[] = [];
		const places: number[] = [];
		for (const [segment, { stripes, stripeBytes, rows }] of segments.entries()) {
			for (let leg = 0; leg < stripes; leg++)
				areas.push({
					diskStart: byteOffset(starts.get(`${segment}.${leg}`)!),
					length: byteCount(rows * stripeBytes),
					volumeStart: byteOffset(places.length),
					stripes,
					stripeIndex: leg,
					stripeBytes: stripes === 1 ? 0 : stripeBytes,
				});
			for (let row = 0; row < rows; row++)
				for (let leg = 0; leg < stripes; leg++)
					for (let at = 0; at < stripeBytes; at++)
						places.push(starts.get(`${segment}.${leg}`)! + row * stripeBytes + at);
		}
		return { areas, places };
	});

const someRange = fc.tuple(fc.nat(150), fc.nat(150)).map(([start, length]) => range(start, length));
/** Sorted, without overlap. */
const someRanges = fc.array(fc.tuple(fc.nat(20), fc.integer({ min: 1, max: 30 })), { maxLength: 8 }).map((gaps) => {
	let end = 0;
	return gaps.map(([gap, length]) => {
		const start = end + gap;
		end = start + length;
		return range(start, length);
	});
});

describe("a volume in pieces, against a table of all its bytes", () => {
	test("the pieces of a run hold its bytes in order, and no two of them are one", () => {
		fc.assert(
			fc.property(volume, someRange, ({ areas, places }, run) => {
				const pieces = piecesOf(areas, run);
				const bytes = pieces.flatMap(({ diskStart, volumeStart, length }) =>
					Array.from({ length }, (_, at) => [volumeStart + at, diskStart + at]),
				);
				const wanted = places.map((place, at) => [at, place]).slice(run.start, run.start + run.length);
				assert.deepEqual(bytes, wanted);
				for (const [index, piece] of pieces.entries()) {
					const before = pieces[index - 1];
					assert(before === undefined || before.diskStart + before.length !== piece.diskStart);
				}
			}),
		);
	});

	test("each byte of the disk has its place in the volume, or none", () => {
		fc.assert(
			fc.property(volume, ({ areas, places }) => {
				const sorted = inDiskOrder(areas);
				const end = Math.max(...places) + 3;
				for (let at = 0; at < end; at++) {
					const place = places.indexOf(at);
					assert.equal(placeInVolume(sorted, at), place < 0 ? undefined : place);
				}
			}),
		);
	});

	test("runs of the volume lie on the disk where their bytes do, in the disk's order, inside what was asked for", () => {
		fc.assert(
			fc.property(volume, someRanges, someRanges, ({ areas, places }, free, within) => {
				const overlapping = (from: number, to: number): ByteRange[] =>
					free.filter(({ start, length }) => start < to && from < start + length);
				const found = [...runsOnDisk(inDiskOrder(areas), within, overlapping)];
				for (const [index, { start }] of found.entries()) {
					const before = found[index - 1];
					assert(before === undefined || before.start + before.length <= start, "sorted, without overlap");
				}
				const isIn = (ranges: readonly ByteRange[], at: number): boolean =>
					ranges.some(({ start, length }) => start <= at && at < start + length);
				const wanted = places.filter((place, at) => isIn(free, at) && isIn(within, place)).sort((a, b) => a - b);
				assert.deepEqual(
					found.flatMap(({ start, length }) => Array.from({ length }, (_, at) => start + at)),
					wanted,
				);
				// What is one run on the disk is one run of the volume as well, so that a block in it is free as a whole.
				for (const { start, length } of found) {
					const runs = new Set<ByteRange>();
					for (let at = start; at < start + length; at++)
						runs.add(free.find((run) => isIn([run], places.indexOf(at)))!);
					assert.equal(runs.size, 1);
				}
			}),
		);
	});
});

test("what a physical volume has for itself is all that its logical volumes leave", () => {
	fc.assert(
		fc.property(volume, fc.nat(40), fc.integer({ min: 1, max: 200 }), ({ areas, places }, start, length) => {
			const own = cutOut([linearArea(byteOffset(start), byteCount(length))], inDiskOrder(areas));
			const wanted = Array.from({ length }, (_, at) => start + at).filter((at) => !places.includes(at));
			assert.deepEqual(
				rangesOnDisk(own, range(0, length)).flatMap((run) =>
					Array.from({ length: run.length }, (_, at) => run.start + at),
				),
				wanted,
			);
			for (const at of wanted) assert.equal(placeInVolume(own, at), at - start);
		}),
	);
});
