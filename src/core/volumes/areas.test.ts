import assert from "node:assert/strict";
import { test } from "node:test";
import { seededRandom, testSeed } from "../../../test/support/randomness.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { type Area, assembled, linearArea, placeOnDisk, rangesOnDisk } from "./areas.ts";

const DISK = 4096;

/** A disk whose bytes tell their place, modulo 251. */
const disk: ByteSource = {
	size: byteCount(DISK),
	async read(at, into) {
		for (let i = 0; i < into.length; i++) into[i] = (at + i) % 251;
	},
};

/** Segments of one to three stripes in shuffled places, and byte by byte where the volume's bytes lie. */
function randomVolume(seed: number): { areas: Area[]; places: number[] } {
	const random = seededRandom(seed);
	const areas: Area[] = [];
	const places: number[] = [];
	const starts = Array.from({ length: 8 }, (_, index) => index * 512).sort(() => random.between(-1, 1));
	while (starts.length >= 3) {
		const stripes = random.between(1, 3);
		const stripeBytes = random.pick([8, 16, 24]);
		const length = stripes === 1 ? random.between(1, 100) : stripeBytes * random.between(1, 6);
		const volumeStart = byteOffset(places.length);
		const legs = starts.splice(0, stripes);
		for (const [stripeIndex, start] of legs.entries())
			areas.push({
				diskStart: byteOffset(start),
				length: byteCount(length),
				volumeStart,
				stripes,
				stripeIndex,
				stripeBytes,
			});
		for (let at = 0; at < length * stripes; at++) {
			const chunk = Math.floor(at / stripeBytes);
			const inLeg = Math.floor(chunk / stripes) * stripeBytes + (at % stripeBytes);
			places.push(stripes === 1 ? legs[0]! + at : legs[chunk % stripes]! + inLeg);
		}
	}
	return { areas: areas.sort(() => random.between(-1, 1)), places };
}

test("bytes are read from where they lie, and runs of the volume are runs of each area", async () => {
	const seed = testSeed();
	for (let round = 0; round < 200; round++) {
		const { areas, places } = randomVolume(seed + round);
		const size = byteCount(places.length);
		const volume = assembled(disk, areas, size);
		const random = seededRandom(seed + round);
		const from = random.below(size);
		const length = random.between(0, size - from);
		const read = await readBytes(volume, byteOffset(from), length);
		assert.deepEqual(
			[...read],
			places.slice(from, from + length).map((place) => place % 251),
			`seed ${seed + round}`,
		);
		const onDisk = rangesOnDisk(areas, { start: byteOffset(from), length: byteCount(length) })
			.flatMap(({ start, length: bytes }) => Array.from({ length: bytes }, (_, index) => start + index))
			.sort((a, b) => a - b);
		assert.deepEqual(
			onDisk,
			places.slice(from, from + length).sort((a, b) => a - b),
		);
		for (const area of areas) {
			let last = area.diskStart as number;
			for (let at = 0; at <= size; at++) {
				const place = placeOnDisk(area, at);
				assert.ok(place >= last && place <= area.diskStart + area.length);
				last = place;
			}
		}
	}
});

test("areas that leave a hole, overlap, or lack a stripe are no volume", () => {
	const area = (start: number, length: number, at: number): Area =>
		linearArea(byteOffset(start), byteCount(length), at);
	const whole = [area(0, 100, 0), area(500, 100, 100)];
	assert.equal(assembled(disk, whole, byteCount(200)).size, 200);
	const striped = { ...area(0, 96, 0), stripes: 2, stripeBytes: 32 };
	const wrong: readonly (readonly [readonly Area[], number])[] = [
		[whole, 201],
		[whole, 100],
		[[area(0, 100, 0), area(500, 100, 101)], 201],
		[[area(0, 100, 0), area(500, 100, 99)], 199],
		[[striped], 192],
		[[striped, { ...striped, stripeIndex: 0 }], 192],
		[[striped, { ...striped, stripeIndex: 1, length: byteCount(64) }], 192],
		[[striped, { ...striped, stripeIndex: 1, stripeBytes: 16 }], 192],
		[
			[
				{ ...striped, stripeBytes: 0 },
				{ ...striped, stripeIndex: 1, stripeBytes: 0 },
			],
			192,
		],
	];
	for (const [areas, size] of wrong) assert.throws(() => assembled(disk, areas, byteCount(size)), /whole volume/);
});
