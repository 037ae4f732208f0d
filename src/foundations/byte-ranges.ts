// Byte ranges: lists of them, sorted and without overlap.

import type { ByteRange } from "./guest-map.ts";
import { byteCount } from "./units.ts";

/** Sorts ranges and joins those that touch or overlap. */
export function joinRanges(ranges: readonly ByteRange[]): ByteRange[] {
	const joined: ByteRange[] = [];
	for (const range of ranges.toSorted((a, b) => a.start - b.start)) {
		const last = joined.at(-1);
		if (last === undefined || last.start + last.length < range.start) joined.push(range);
		else {
			const end = Math.max(last.start + last.length, range.start + range.length);
			joined[joined.length - 1] = { start: last.start, length: byteCount(end - last.start) };
		}
	}
	return joined;
}
