// Disk picture: a guest map as a few rows of characters, each for an equal share of the disk.
//
//   ███████▒▒··················????      █ used  ▒ partly free  · free  ? unknown (kept)

import type { Extent } from "../../foundations/guest-map.ts";

/** Rows of a picture at most; small disks and narrow terminals get fewer cells. */
const ROWS = 4;
/** Bytes that a cell stands for at least. */
const CELL_BYTES_MIN = 4096;

export const PICTURE_LEGEND = "█ used  ▒ partly free  · free  ? unknown (kept)";

/** Draws extents that cover a disk of `size` bytes in order. `columns` is the room for a row. Walks them once. */
export function drawPicture(extents: Iterable<Extent>, size: number, columns: number): string[] {
	if (size <= 0) return [];
	const cellCount = Math.max(1, Math.min(ROWS * columns, Math.floor(size / CELL_BYTES_MIN)));
	const cellBytes = size / cellCount;
	const used = new Float64Array(cellCount);
	const free = new Float64Array(cellCount);
	for (const { start, length, state } of extents) {
		if (state === "unknown") continue;
		const sums = state === "used" ? used : free;
		const end = start + length;
		for (let cell = Math.floor(start / cellBytes); cell < cellCount && cell * cellBytes < end; cell++)
			sums[cell]! += Math.max(0, Math.min(end, (cell + 1) * cellBytes) - Math.max(start, cell * cellBytes));
	}
	let cells = "";
	for (let cell = 0; cell < cellCount; cell++) cells += character(used[cell]! / cellBytes, free[cell]! / cellBytes);
	const rows: string[] = [];
	for (let at = 0; at < cells.length; at += columns) rows.push(cells.slice(at, at + columns));
	return rows;
}

/** A cell shows what most of it is; a tenth of free space in it is worth showing. */
function character(used: number, free: number): string {
	if (1 - used - free > 0.5) return "?";
	if (free >= 0.9) return "·";
	return free >= 0.1 ? "▒" : "█";
}
