// Pieces: from a volume's bytes to the disk's and back, where the volume lies on the disk in several areas.
//
//   volume   | a0 ───── | b0 | b1 | b0 | b1 | a1 ── |        a: linear segments   b: a segment of two stripes
//   disk     … | b1 b1 | … | a1 ── | … | a0 ───── | b0 b0 | …
//
//   pieces   the volume's order: which runs of the disk hold this run of it      (what to watch)
//   place    the disk's order: which byte of the volume is this one              (what was written)
//   runs     the disk's order: where the volume's free runs lie on the disk      (what to drop)
//
// Invariants
//  - a piece is one run of the disk and one run of the volume at once; neighbours that go on in both are one piece
//  - nothing is stored per stripe: lists are as long as there are areas, all else is computed while it is walked
//
// Areas need not make up a whole volume: a physical volume of LVM has holes where its logical volumes are.

import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { type Area, linearArea, placeOnDisk, segmentEnd } from "./areas.ts";

/** Bytes that follow each other on the disk and in the volume. */
export interface Piece {
	readonly diskStart: ByteOffset;
	readonly volumeStart: ByteOffset;
	readonly length: ByteCount;
}

/** Areas in the order of the disk, in which the functions below want them. */
export const inDiskOrder = (areas: readonly Area[]): readonly Area[] =>
	areas.toSorted((a, b) => a.diskStart - b.diskStart);

/** The pieces that hold a run of a volume, in the volume's order. What lies in no area is left out. */
export function piecesOf(areas: readonly Area[], { start, length }: ByteRange): Piece[] {
	const pieces: Piece[] = [];
	for (const area of areas) for (const piece of piecesIn(area, start, start + length)) pieces.push(piece);
	const joined: Piece[] = [];
	for (const piece of pieces.sort((a, b) => a.volumeStart - b.volumeStart)) {
		const last = joined.at(-1);
		const goesOn =
			last !== undefined &&
			last.volumeStart + last.length === piece.volumeStart &&
			last.diskStart + last.length === piece.diskStart;
		if (goesOn) joined[joined.length - 1] = { ...last, length: byteCount(last.length + piece.length) };
		else joined.push(piece);
	}
	return joined;
}

/** The chunks of an area inside `[from, to)` of the volume. */
function* piecesIn(area: Area, from: number, to: number): Generator<Piece> {
	const { volumeStart, stripes, stripeIndex, stripeBytes } = area;
	const start = Math.max(from, volumeStart);
	const end = Math.min(to, segmentEnd(area));
	if (end <= start) return;
	const piece = (first: number, stop: number): Piece => ({
		diskStart: byteOffset(placeOnDisk(area, first)),
		volumeStart: byteOffset(first),
		length: byteCount(stop - first),
	});
	if (stripes === 1) {
		yield piece(start, end);
		return;
	}
	const rowBytes = stripes * stripeBytes;
	const firstRow = Math.floor((start - volumeStart) / rowBytes);
	for (let chunk = volumeStart + firstRow * rowBytes + stripeIndex * stripeBytes; chunk < end; chunk += rowBytes) {
		const first = Math.max(start, chunk);
		const stop = Math.min(end, chunk + stripeBytes);
		if (stop > first) yield piece(first, stop);
	}
}

/** Which byte of the volume lies at byte `at` of the disk; undefined where none does. `areas` are in the disk's order. */
export function placeInVolume(areas: readonly Area[], at: number): number | undefined {
	const area = areas[firstBehind(areas, at)];
	return area === undefined || at < area.diskStart ? undefined : placeInArea(area, at);
}

/** Which byte of the volume lies at byte `at` of the disk, which is one of the area's. */
function placeInArea({ diskStart, volumeStart, stripes, stripeIndex, stripeBytes }: Area, at: number): number {
	const inArea = at - diskStart;
	if (stripes === 1) return volumeStart + inArea;
	const row = Math.floor(inArea / stripeBytes);
	return volumeStart + (row * stripes + stripeIndex) * stripeBytes + (inArea - row * stripeBytes);
}

/**
 * Where runs of a volume lie on the disk, inside `within` (of the disk), in the disk's order; found as it is walked.
 * `runs` gives those of the volume that overlap `[from, to)`, in order. `areas` are in the disk's order, `within` is
 * sorted and without overlap. A run goes on in the next one only where both are one run of the volume.
 */
export function* runsOnDisk(
	areas: readonly Area[],
	within: readonly ByteRange[],
	runs: (from: ByteOffset, to: ByteOffset) => Iterable<ByteRange>,
): Generator<ByteRange> {
	let index = 0;
	for (const area of areas) {
		const areaEnd = area.diskStart + area.length;
		while (index < within.length && within[index]!.start + within[index]!.length <= area.diskStart) index++;
		for (let at = index; at < within.length && within[at]!.start < areaEnd; at++) {
			const first = Math.max(area.diskStart, within[at]!.start);
			const stop = Math.min(areaEnd, within[at]!.start + within[at]!.length);
			if (stop <= first) continue;
			// Other areas' bytes lie between these of the volume; they are nothing in this area.
			const from = byteOffset(placeInArea(area, first));
			const to = byteOffset(placeInArea(area, stop - 1) + 1);
			for (const run of runs(from, to)) {
				const start = Math.max(first, placeOnDisk(area, run.start));
				const end = Math.min(stop, placeOnDisk(area, run.start + run.length));
				if (end > start) yield { start: byteOffset(start), length: byteCount(end - start) };
			}
		}
	}
}

/** What linear areas leave of themselves between `holes`; both in the disk's order, and the holes without overlap. */
export function cutOut(areas: readonly Area[], holes: readonly Area[]): Area[] {
	const parts: Area[] = [];
	for (const area of areas) {
		const end = area.diskStart + area.length;
		let cursor = area.diskStart as number;
		const takeTo = (stop: number): void => {
			if (stop > cursor)
				parts.push(
					linearArea(byteOffset(cursor), byteCount(stop - cursor), area.volumeStart + cursor - area.diskStart),
				);
		};
		for (let index = firstBehind(holes, cursor); index < holes.length && holes[index]!.diskStart < end; index++) {
			takeTo(holes[index]!.diskStart);
			cursor = holes[index]!.diskStart + holes[index]!.length;
		}
		takeTo(end);
	}
	return parts;
}

/** Index of the first of sorted, disjoint areas that ends behind `at`. */
function firstBehind(areas: readonly Area[], at: number): number {
	let low = 0;
	let high = areas.length;
	while (low < high) {
		const middle = (low + high) >>> 1;
		const { diskStart, length } = areas[middle]!;
		if (diskStart + length <= at) low = middle + 1;
		else high = middle;
	}
	return low;
}
