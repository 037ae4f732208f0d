// Free space: the allocation bitmap, one bit per cluster, believed where it shows the root directory, the up-case table
// and itself as in use.

import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { UsedBitmap } from "../used-bitmap.ts";
import { chainFrom, clusterAt } from "./chains.ts";
import type { Geometry } from "./open.ts";
import { damaged } from "./open.ts";
import type { RootDirectory, SystemFile } from "./root-directory.ts";

const READ_BYTES = 1 << 20;
/** 7.2.5.1: one entry per UTF-16 unit. */
const MAX_UPCASE_BYTES = 128 << 10;

/** Reads the allocation bitmap. Cluster 2 is bit 0. Throws VOLUME_DAMAGED. */
export async function readUsedClusters(
	volume: ByteSource,
	geometry: Geometry,
	root: RootDirectory,
): Promise<UsedBitmap> {
	const { clusterCount, clusterSize } = geometry;
	const length = Math.ceil(clusterCount / 8);
	if (root.bitmap.length !== length)
		throw damaged(
			`its allocation bitmap has ${root.bitmap.length} bytes instead of ${length}; run a check in the guest`,
		);
	if (root.upcaseTable.length > MAX_UPCASE_BYTES)
		throw damaged(`its up-case table has ${root.upcaseTable.length} bytes; run a check in the guest`);
	const used = new UsedBitmap(clusterCount);
	const own = [...root.clusters];
	let done = 0;
	for await (const cluster of systemClusters(volume, geometry, root.bitmap)) {
		own.push(cluster);
		const end = Math.min(length, done + clusterSize);
		for (let at = clusterAt(geometry, cluster); done < end; ) {
			const part = await readBytes(volume, byteOffset(at), Math.min(READ_BYTES, end - done));
			used.copyFrom(done * 8, Math.min(part.length * 8, clusterCount - done * 8), part);
			at += part.length;
			done += part.length;
		}
	}
	if (done < length) throw damaged("its allocation bitmap is cut off; run a check in the guest");
	for await (const cluster of systemClusters(volume, geometry, root.upcaseTable)) own.push(cluster);
	if (own.some((cluster) => !used.isUsed(cluster - 2)))
		throw damaged("its allocation bitmap shows system files as free; run a check in the guest");
	return used;
}

/** The clusters of a system file; no more than its length needs. */
const systemClusters = (volume: ByteSource, geometry: Geometry, { firstCluster, length }: SystemFile) =>
	chainFrom(volume, geometry, firstCluster, Math.max(1, Math.ceil(length / geometry.clusterSize)));
