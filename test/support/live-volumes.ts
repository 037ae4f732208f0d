// What tests ask of a volume that is followed.

import type { LiveVolume } from "../../src/core/filesystems/live.ts";
import { type ByteCount, type ByteOffset, byteOffset } from "../../src/foundations/units.ts";

/** True where every byte of `[at, at + length)` is free, as last judged. */
export function isAllFree(volume: Pick<LiveVolume, "freeRuns">, at: ByteOffset, length: ByteCount): boolean {
	const end = byteOffset(at + length);
	let free = 0;
	for (const run of volume.freeRuns(at, end)) free += run.length;
	return free === length;
}
