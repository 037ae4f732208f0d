// Disk extents: what every byte of the disk is, from what the volumes say about their own bytes.
//
//   pieces   | p1 ────────── | gap | p2 (PV) | root, segment 2 | p2 | home | root, segment 1 | p2 |
//   extents  used free used …  unknown used    free used …       used …
//
// Invariants
//  - the extents cover the disk in order, without gap or overlap; neighbours differ
//  - where pieces overlap, the first one counts (overlapping volumes are kept whole, so it says "unknown")
//  - memory is that of the pieces: runs are asked for, translated and passed on one by one

import type { Area } from "../core/volumes/areas.ts";
import { placeOnDisk, segmentEnd } from "../core/volumes/areas.ts";
import type { Extent, FileSystemMap } from "../foundations/guest-map.ts";
import { byteCount, byteOffset } from "../foundations/units.ts";

/** What is known about a volume's bytes, counted from its own start. */
export interface Content {
	/** The volume's id. */
	readonly id: string;
	/** Bytes from the volume's start in which used and free are known; behind it, `unknown`. */
	readonly known: number;
	readonly freeRuns: FileSystemMap["freeRuns"];
	readonly neverUsed: FileSystemMap["neverUsed"] | undefined;
}

/** A part of a volume at its place on the disk. */
export interface Piece {
	readonly content: Content;
	readonly area: Area;
}

/** A run inside a piece, in bytes of the volume or of the disk. */
interface Run {
	readonly start: number;
	readonly end: number;
	readonly free: boolean;
}

/** Walks the disk once. `pieces` are sorted by their place on the disk. */
export function* walkExtents(pieces: readonly Piece[], diskSize: number): Generator<Extent> {
	let pending: Extent | undefined;
	for (const next of rawExtents(pieces, diskSize)) {
		if (pending !== undefined && isAlike(pending, next)) {
			const length = byteCount(pending.length + next.length);
			pending = Object.assign(pending, { length });
			continue;
		}
		if (pending !== undefined) yield pending;
		pending = next;
	}
	if (pending !== undefined) yield pending;
}

const isAlike = (a: Extent, b: Extent): boolean =>
	a.state === b.state && a.volume === b.volume && a.neverUsed === b.neverUsed;

/** As {@link walkExtents}, but neighbours may be alike. */
function* rawExtents(pieces: readonly Piece[], diskSize: number): Generator<Extent> {
	let cursor = 0;
	const extent = (end: number, state: Extent["state"], volume: string | null): Extent => {
		const start = cursor;
		cursor = end;
		return { start: byteOffset(start), length: byteCount(end - start), state, volume };
	};
	for (const { content, area } of pieces) {
		const end = Math.min(diskSize, area.diskStart + area.length);
		if (end <= cursor) continue;
		if (area.diskStart > cursor) yield extent(area.diskStart, "unknown", null);
		for (const run of runsOnDisk(content, area)) {
			const start = Math.max(cursor, run.start);
			const stop = Math.min(end, run.end);
			if (stop <= start) continue;
			if (start > cursor) yield extent(start, "used", content.id);
			if (run.free) yield extent(stop, "free", content.id);
			else yield Object.assign(extent(stop, "used", content.id), { neverUsed: true as const });
		}
		const knownEnd = Math.min(end, placeOnDisk(area, content.known));
		if (knownEnd > cursor) yield extent(knownEnd, "used", content.id);
		if (end > cursor) yield extent(end, "unknown", content.id);
	}
	if (cursor < diskSize) yield extent(diskSize, "unknown", null);
}

/** The free and never used runs of an area, in the disk's order. */
function* runsOnDisk(content: Content, area: Area): Generator<Run> {
	const from = byteOffset(area.volumeStart);
	const to = byteOffset(Math.min(content.known, segmentEnd(area)));
	if (to <= from) return;
	for (const { start, end, free } of merged(content, from, to))
		yield { start: placeOnDisk(area, start), end: placeOnDisk(area, end), free };
}

/** Both kinds of runs of `[from, to)` of the volume, in one order. */
function* merged({ freeRuns, neverUsed }: Content, from: Run["start"], to: Run["start"]): Generator<Run> {
	const range = [byteOffset(from), byteOffset(to)] as const;
	const free = freeRuns(...range)[Symbol.iterator]();
	const unused = (neverUsed?.runs(...range) ?? [])[Symbol.iterator]();
	let [nextFree, nextUnused] = [free.next(), unused.next()];
	while (!nextFree.done || !nextUnused.done) {
		const takesFree = !nextFree.done && (nextUnused.done || nextFree.value.start <= nextUnused.value.start);
		const { start, length } = (takesFree ? nextFree : nextUnused).value as { start: number; length: number };
		yield { start, end: start + length, free: takesFree };
		if (takesFree) nextFree = free.next();
		else nextUnused = unused.next();
	}
}
