// Chains: the clusters of the root directory and of the system files, which the FAT links one to the next.

import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import type { Geometry } from "./open.ts";
import { damaged } from "./open.ts";

const END_OF_CHAIN = 0xffffffff;
/** Bytes of the FAT that are read and remembered at once; chains are mostly in order. */
const WINDOW = 64 << 10;

/**
 * The clusters of a chain from `first` on, in order. Throws VOLUME_DAMAGED where it leaves the volume or has more than
 * `limit` clusters, which also ends rings.
 */
export async function* chainFrom(
	volume: ByteSource,
	{ fatAt, clusterCount }: Geometry,
	first: number,
	limit: number,
): AsyncGenerator<number> {
	let cluster = first;
	let windowAt = -1;
	let window: DataView = new DataView(new ArrayBuffer(0));
	for (let count = 0; cluster !== END_OF_CHAIN; count++) {
		if (cluster < 2 || cluster >= clusterCount + 2)
			throw damaged(`a chain of its FAT leads to cluster ${cluster}; run a check in the guest`);
		if (count >= limit) throw damaged("a chain of its FAT is longer than it may be; run a check in the guest");
		yield cluster;
		const start = Math.floor((cluster * 4) / WINDOW) * WINDOW;
		if (start !== windowAt) {
			windowAt = start;
			const end = Math.min(start + WINDOW, (clusterCount + 2) * 4);
			window = viewOf(await readBytes(volume, byteOffset(fatAt + start), end - start));
		}
		cluster = window.getUint32(cluster * 4 - start, true);
	}
}

/** Where a cluster starts in the volume. */
export const clusterAt = ({ dataAt, clusterSize }: Geometry, cluster: number): number =>
	dataAt + (cluster - 2) * clusterSize;
