// Check: is a disk as it was written? And what of a damage can be repaired.
//
//   scrub ─► rotten blocks ─► guest map ─► used | unused | unknown ─► repair: what is unused is dropped,
//                                                                      what records describe badly is moved
//
// A used block that rotted can't be made good from here: reading it stays an error until the guest writes it again.

import type { BlockRun } from "../core/cleaner/runs.ts";
import { allVolumes, type GuestMap } from "../foundations/guest-map.ts";
import { BLOCK_SIZE } from "../foundations/units.ts";
import { whyKept } from "./droppable.ts";
import type { RottenBlock, ScrubReport } from "./scrub.ts";

/** Most rotten blocks that a report lists. */
const LISTED_MAX = 1000;

/** What a rotten block is to the guest. */
export interface RottenPlace extends RottenBlock {
	/** Byte of the disk. */
	readonly start: number;
	/** The guest map's verdict on it; `unknown` where it can't be read or says nothing. */
	readonly use: "used" | "unused" | "unknown";
	readonly volume: string | null;
}

/** What `vmsweep check` tells. Sizes in bytes. */
export interface CheckReport extends Omit<ScrubReport, "rotten"> {
	readonly rottenBlocks: number;
	/** The first thousand. */
	readonly rotten: readonly RottenPlace[];
	/** What else is wrong, one line each. */
	readonly problems: readonly string[];
	/** What was made good, one line each. */
	readonly repaired: readonly string[];
	/** Nothing is wrong, or all that was is repaired. */
	readonly isGood: boolean;
}

/** Says of each rotten block what it is to the guest. */
export function placesOf(rotten: readonly RottenBlock[], map: GuestMap | undefined): RottenPlace[] {
	const sorted = rotten.toSorted((a, b) => a.block - b.block);
	if (map === undefined) return sorted.map((each) => placeOf(each, "unknown", null));
	const proven = new Set(
		[...allVolumes(map.volumes)].filter((volume) => whyKept(volume, { vmOff: false }) === null).map(({ id }) => id),
	);
	const places: RottenPlace[] = [];
	let next = 0;
	for (const { start, length, state, volume } of map.extents) {
		while (next < sorted.length && sorted[next]!.block * BLOCK_SIZE < start + length) {
			const each = sorted[next]!;
			const isWhole = each.block * BLOCK_SIZE >= start && (each.block + 1) * BLOCK_SIZE <= start + length;
			const isUnused = isWhole && state === "free" && volume !== null && proven.has(volume);
			// A block that two extents share counts as used.
			places.push(placeOf(each, isUnused ? "unused" : state === "unknown" ? "unknown" : "used", volume));
			next++;
		}
		if (next === sorted.length) break;
	}
	return places;
}

const placeOf = (each: RottenBlock, use: RottenPlace["use"], volume: string | null): RottenPlace => ({
	...each,
	start: each.block * BLOCK_SIZE,
	use,
	volume,
});

/** The unused ones of the disk itself, as runs: giving them up makes them zeros. */
export const repairable = (places: readonly RottenPlace[]): BlockRun[] =>
	places
		.filter(({ use, where }) => use === "unused" && (where === "first-image" || where === "second-image"))
		.map(({ block }) => ({ block, count: 1 }));

/** Puts a report together. */
export function checkReport(
	found: ScrubReport,
	places: readonly RottenPlace[],
	problems: readonly string[],
	repaired: { readonly blocks: number; readonly lines: readonly string[]; readonly records: boolean },
): CheckReport {
	const left = places.length - repaired.blocks;
	return {
		...found,
		rottenBlocks: places.length,
		rotten: places.slice(0, LISTED_MAX),
		problems,
		repaired: repaired.lines,
		isGood: left === 0 && problems.length === 0 && (found.rottenRecords === 0 || repaired.records),
	};
}
