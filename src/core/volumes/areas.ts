// Areas: where the bytes of a volume lie on the disk, when a volume manager has put it together from pieces.
//
//   disk     … | area, stripe 0 of 2 | … | linear area | … | area, stripe 1 of 2 | …
//   volume   | s0 chunk 0 | s1 chunk 0 | s0 chunk 1 | s1 chunk 1 | … | linear segment |
//
// Invariants
//  - one area is one run of the disk; inside it, higher places on the disk are higher places in the volume
//  - so a run of the volume is at most one run of each area, and free space can be told in the disk's order with no
//    more memory than there are areas, however many stripes they hold
//
// A partition is a volume with a single linear area, so nothing else needs to know about this.

import { VmsweepError } from "../../foundations/errors.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { checkRange } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";

/** One run of the disk that holds a linear segment of a volume, or one stripe of a striped segment. */
export interface Area {
	/** Byte position on the disk. */
	readonly diskStart: ByteOffset;
	/** Bytes of the disk; a multiple of `stripeBytes` where there are several stripes. */
	readonly length: ByteCount;
	/** Byte of the volume at which the segment (all of its stripes) starts. */
	readonly volumeStart: ByteOffset;
	/** How many areas make up the segment; 1 is linear. */
	readonly stripes: number;
	/** Which of them this is, from 0. */
	readonly stripeIndex: number;
	/** Bytes that go to one stripe before the next one's turn; meaningless where linear. */
	readonly stripeBytes: number;
}

/** A volume that lies on the disk in one piece. */
export const linearArea = (diskStart: ByteOffset, length: ByteCount, volumeStart: number = 0): Area => ({
	diskStart,
	length,
	volumeStart: byteOffset(volumeStart),
	stripes: 1,
	stripeIndex: 0,
	stripeBytes: 0,
});

/** First byte of the volume behind the segment that an area belongs to. */
export const segmentEnd = (area: Area): number => area.volumeStart + area.length * area.stripes;

/**
 * Where the first byte of the area at or after byte `at` of the volume lies on the disk; the area's end where there is
 * none. Never falls as `at` grows, so the run `[a, b)` of the volume is `[placeOnDisk(a), placeOnDisk(b))` of the area.
 */
export function placeOnDisk(area: Area, at: number): number {
	const { diskStart, length, volumeStart, stripes, stripeIndex, stripeBytes } = area;
	const inSegment = Math.min(Math.max(at - volumeStart, 0), length * stripes);
	if (stripes === 1) return diskStart + inSegment;
	const rowBytes = stripeBytes * stripes;
	const row = Math.floor(inSegment / rowBytes);
	const inRow = inSegment - row * rowBytes - stripeIndex * stripeBytes;
	return diskStart + row * stripeBytes + Math.min(Math.max(inRow, 0), stripeBytes);
}

/** The runs of the disk that hold `[start, start + length)` of a volume; one per area at most, in the areas' order. */
export function rangesOnDisk(areas: readonly Area[], { start, length }: ByteRange): ByteRange[] {
	const ranges: ByteRange[] = [];
	for (const area of areas) {
		const from = placeOnDisk(area, start);
		const to = placeOnDisk(area, start + length);
		if (to > from) ranges.push({ start: byteOffset(from), length: byteCount(to - from) });
	}
	return ranges;
}

/** The areas of one segment, by their stripe. */
interface Segment {
	readonly start: number;
	readonly end: number;
	readonly areas: readonly Area[];
}

/**
 * A volume put together from its areas, as a source of its own. Throws VOLUME_DAMAGED where the areas do not make up
 * exactly `size` bytes, each once.
 */
export function assembled(disk: ByteSource, areas: readonly Area[], size: ByteCount): ByteSource {
	const segments = segmentsOf(areas, size);
	const segmentAt = (at: number): Segment => {
		let low = 0;
		let high = segments.length - 1;
		while (low < high) {
			const middle = (low + high + 1) >>> 1;
			if (segments[middle]!.start <= at) low = middle;
			else high = middle - 1;
		}
		return segments[low]!;
	};
	return {
		size,
		async read(at, into) {
			checkRange(size, at, into.length, "volume");
			for (let done = 0; done < into.length; ) {
				const { place, length } = pieceAt(segmentAt(at + done), at + done);
				const part = into.subarray(done, Math.min(into.length, done + length));
				await disk.read(byteOffset(place), part);
				done += part.length;
			}
		},
	};
}

/** Where byte `at` of the volume lies on the disk, and how many bytes follow it there. */
function pieceAt({ start, end, areas }: Segment, at: number): { place: number; length: number } {
	const first = areas[0]!;
	if (areas.length === 1) return { place: first.diskStart + at - start, length: end - at };
	const { stripeBytes, stripes } = first;
	const inRow = (at - start) % (stripeBytes * stripes);
	const area = areas[Math.floor(inRow / stripeBytes)]!;
	return { place: placeOnDisk(area, at), length: stripeBytes - (inRow % stripeBytes) };
}

function segmentsOf(areas: readonly Area[], size: ByteCount): Segment[] {
	const wrong = (): VmsweepError => new VmsweepError("VOLUME_DAMAGED", "its areas do not make up a whole volume");
	const sorted = [...areas].sort((a, b) => a.volumeStart - b.volumeStart || a.stripeIndex - b.stripeIndex);
	const segments: Segment[] = [];
	let end = 0;
	for (let index = 0; index < sorted.length; ) {
		const first = sorted[index]!;
		const stripes = sorted.slice(index, index + first.stripes);
		const fits = (area: Area, stripe: number): boolean =>
			area.volumeStart === end &&
			area.stripeIndex === stripe &&
			area.stripes === first.stripes &&
			area.stripeBytes === first.stripeBytes &&
			area.length === first.length;
		if (first.length <= 0 || first.stripes < 1 || stripes.length !== first.stripes || !stripes.every(fits))
			throw wrong();
		if (first.stripes > 1 && !(first.stripeBytes > 0 && first.length % first.stripeBytes === 0)) throw wrong();
		end = segmentEnd(first);
		segments.push({ start: first.volumeStart, end, areas: stripes });
		index += first.stripes;
	}
	if (end !== size) throw wrong();
	return segments;
}
