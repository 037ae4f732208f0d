// Resize: what has to hold before a disk gets another size. Growing needs nothing of the guest. Shrinking cuts the
// disk's end off for good, so the guest map must show that nothing of the guest's lies there.

import { VmsweepError } from "../foundations/errors.ts";
import type { GuestMap } from "../foundations/guest-map.ts";
import { formatBytes } from "../foundations/units.ts";

/** Throws IMAGE_UNSUPPORTED where something of the guest's lies at or behind byte `size` of the disk, or may lie there. */
export function checkTailUnused(map: GuestMap, size: number, path: string): void {
	for (const { id, type, offset, size: length, kept } of map.volumes) {
		if (offset + length <= size) continue;
		// A file system straight on the disk may be smaller than the disk.
		if (id === "disk" && kept === null && endOfKnown(map) <= size) continue;
		const end = id === "disk" && kept === null ? endOfKnown(map) : offset + length;
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${path} can't be shrunk to ${formatBytes(size)}: its volume ${id} (${type}) reaches to ${formatBytes(end)}${kept === null ? "" : ` (${kept})`}. Shrink the file system and its partition in the guest first.`,
		);
	}
	if (map.volumes.length === 0)
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${path} can't be shrunk: nothing tells what the guest uses of it. Make a new disk instead.`,
		);
}

/** End of the last byte of which the guest map knows whether it is used. */
function endOfKnown(map: GuestMap): number {
	let end = 0;
	for (const { start, length, state } of map.extents) if (state !== "unknown") end = start + length;
	return end;
}

/** What the operator should do in the guest after the disk was shrunk, one line each. */
export const notesAfterShrinking = (map: GuestMap): string[] =>
	map.table === "gpt"
		? ["the partition table's backup copy was at the old end: write it anew in the guest with sgdisk -e"]
		: [];
