// What a reader tells about a volume whose space is handed out in equal clusters from one place on: the usual shape
// of NTFS, FAT and exFAT.
//
//   | boot, tables … | cluster | cluster | … | cluster | rest |
//   0                base                            size
//
// Everything outside the clusters is in use.

import type { FileSystemMap, VolumeState } from "../../foundations/guest-map.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { named, type VolumeIdentity } from "./kept-volume.ts";
import type { UsedBitmap } from "./used-bitmap.ts";

/** Where clusters lie. Bytes count from the volume's start. */
export interface ClusterArea {
	/** First byte of cluster 0 of the bitmap. */
	readonly base: number;
	readonly clusterSize: number;
	/** Bytes that the file system covers. */
	readonly size: number;
}

/** The map of a volume that can be believed. `used` has one bit per cluster; all clusters must lie inside the area's size. */
export function clusterMap(
	identity: VolumeIdentity,
	state: VolumeState,
	used: UsedBitmap,
	{ base, clusterSize, size }: ClusterArea,
	warnings: readonly string[] = [],
): FileSystemMap {
	const freeBytes = used.countFree() * clusterSize;
	return {
		...named(identity),
		state,
		size: byteCount(size),
		usedBytes: byteCount(size - freeBytes),
		freeBytes: byteCount(freeBytes),
		kept: null,
		warnings,
		*freeRuns(from, to) {
			const first = Math.max(0, Math.floor((from - base) / clusterSize));
			const end = Math.max(0, Math.ceil((to - base) / clusterSize));
			for (const run of used.freeRuns(first, end)) {
				const start = Math.max(from, base + run.start * clusterSize);
				const stop = Math.min(to, base + run.end * clusterSize);
				if (stop > start) yield { start: byteOffset(start), length: byteCount(stop - start) };
			}
		},
	};
}
