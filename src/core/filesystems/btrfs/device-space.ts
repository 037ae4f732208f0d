// Free space on the device: chunk by chunk in the order of their places, and what lies between them.
//
//   device   | 1 MiB kept | stripe: runs of its chunk | free | stripe: … | 64 KiB kept: copy of the superblock | free |
//
// Nothing is stored per place: runs are computed from those of the chunks while they are walked, so a chunk that lies
// twice on the device costs no more than one that lies once.

import type { BlockGroups } from "./block-groups.ts";
import type { ChunkMap } from "./chunks.ts";
import { DEVICE_RESERVE, SUPERBLOCK_PLACES, SUPERBLOCK_RESERVE } from "./layout.ts";

/** What is never free, whatever is said about it: in order, in bytes of the device. */
const reserved: readonly { readonly start: number; readonly end: number }[] = [
	{ start: 0, end: DEVICE_RESERVE },
	...SUPERBLOCK_PLACES.slice(1).map((at) => ({ start: at, end: at + SUPERBLOCK_RESERVE })),
];

/** Maximal free runs inside `[from, to)` of a device that ends at `deviceEnd`, in order, in bytes. */
export function* freeOnDevice(
	chunks: ChunkMap,
	groups: BlockGroups,
	deviceEnd: number,
	from: number,
	to: number,
): Generator<{ start: number; length: number }> {
	const stop = Math.min(to, deviceEnd);
	let start = -1;
	let end = -1;
	for (const run of withoutReserved(chunks, groups, deviceEnd, from)) {
		if (run.start >= stop) break;
		if (run.start === end) {
			end = run.end;
			continue;
		}
		if (end > start) yield { start, length: end - start };
		start = Math.max(run.start, from);
		end = run.end;
	}
	end = Math.min(end, stop);
	if (end > start) yield { start, length: end - start };
}

/** Free runs that end behind `from`, in order; neighbours may touch. */
function* withoutReserved(
	chunks: ChunkMap,
	groups: BlockGroups,
	deviceEnd: number,
	from: number,
): Generator<{ start: number; end: number }> {
	let next = 0;
	for (const run of inOrder(chunks, groups, deviceEnd, from)) {
		let { start } = run;
		while (next < reserved.length && reserved[next]!.start < run.end) {
			const keep = reserved[next]!;
			if (keep.start > start) yield { start, end: keep.start };
			start = Math.max(start, keep.end);
			if (keep.end > run.end) break;
			next++;
		}
		if (start < run.end) yield { start, end: run.end };
	}
}

function* inOrder(
	chunks: ChunkMap,
	groups: BlockGroups,
	deviceEnd: number,
	from: number,
): Generator<{ start: number; end: number }> {
	let cursor = 0;
	for (const { physical, length, chunk } of chunks.stripes) {
		if (physical > Math.max(cursor, from)) yield { start: cursor, end: physical };
		cursor = physical + length;
		if (cursor <= from) continue;
		for (const run of groups.runsOf(chunk, from - physical))
			yield { start: physical + run.start, end: physical + run.end };
	}
	if (deviceEnd > cursor) yield { start: cursor, end: deviceEnd };
}
