// Free space: the file allocation table, one entry per cluster. Zero is free, all else is in use: links to the next
// cluster, ends of chains, bad clusters.
//
//   entry 0: media type | entry 1: state of the volume | entry 2: cluster 2 | entry 3: cluster 3 | …
//
// There are no checksums and no journal. So the FAT is believed only where all copies agree and no chain leads to a
// free cluster.

import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { UsedBitmap } from "../used-bitmap.ts";
import { STATE_BITS } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { damaged } from "./open.ts";

/** Entries read at once: up to 1 MiB. */
const READ_ENTRIES = 1 << 18;
/** Bits of an entry that count; in FAT32 the upper four are reserved. */
const VALUE_MASK = { 12: 0xfff, 16: 0xffff, 32: 0xfffffff } as const;
/** In entry 1, set: unmounted cleanly, and no error met. FAT12 has no such bits. */
const CLEAN_BITS = { 12: 0, 16: 0xc000, 32: 0xc000000 } as const;

/** True where the boot sector or any copy of the FAT says that the volume is mounted or has errors. Throws VOLUME_DAMAGED. */
export async function isMarkedDirty(volume: ByteSource, geometry: Geometry): Promise<boolean> {
	const { bits, fatAt, fatSize, fatCount, media } = geometry;
	let dirty = (geometry.state & STATE_BITS) !== 0;
	for (let copy = 0; copy < fatCount; copy++) {
		const view = viewOf(await readBytes(volume, byteOffset(fatAt + copy * fatSize), 8));
		if (view.getUint8(0) !== media)
			throw damaged("its FAT does not start with the media type; run a check in the guest");
		if ((entryAt(view, bits, 1) & CLEAN_BITS[bits]) !== CLEAN_BITS[bits]) dirty = true;
	}
	return dirty;
}

/** Reads all copies of the FAT. Cluster 2 is bit 0. Throws VOLUME_DAMAGED where they differ, or a chain leads to a free cluster. */
export async function readUsedClusters(volume: ByteSource, geometry: Geometry): Promise<UsedBitmap> {
	const { bits, clusterCount, fatAt, fatSize, fatCount, rootCluster } = geometry;
	const used = new UsedBitmap(clusterCount);
	/** One bit per cluster that a chain leads to. */
	const wanted = new Uint8Array(Math.ceil(clusterCount / 8));
	if (rootCluster >= 2) wanted[(rootCluster - 2) >> 3]! |= 1 << ((rootCluster - 2) & 7);
	for (let first = 0; first < clusterCount; first += READ_ENTRIES) {
		const count = Math.min(READ_ENTRIES, clusterCount - first);
		const at = ((first + 2) * bits) / 8;
		const length = Math.ceil((count * bits) / 8);
		const raw = await readBytes(volume, byteOffset(fatAt + at), length);
		for (let copy = 1; copy < fatCount; copy++)
			if (!same(raw, await readBytes(volume, byteOffset(fatAt + copy * fatSize + at), length)))
				throw damaged("its two FATs differ; run a check in the guest");
		used.copyFrom(first, count, usedBits(raw, count, geometry, wanted));
	}
	for (const { start, end } of used.freeRuns())
		for (let cluster = start; cluster < end; cluster++) {
			if ((cluster & 7) === 0 && cluster + 8 <= end && wanted[cluster >> 3] === 0) cluster += 7;
			else if ((wanted[cluster >> 3]! & (1 << (cluster & 7))) !== 0)
				throw damaged(`cluster ${cluster + 2} is part of a file and free; run a check in the guest`);
		}
	return used;
}

/** One bit per entry of a part of the FAT, 1 = in use; marks in `wanted` where links lead. */
function usedBits(raw: Uint8Array, count: number, { bits, clusterCount }: Geometry, wanted: Uint8Array): Uint8Array {
	const view = viewOf(raw);
	const mask = VALUE_MASK[bits];
	const part = new Uint8Array(Math.ceil(count / 8));
	for (let index = 0; index < count; index++) {
		const value = entryAt(view, bits, index) & mask;
		if (value === 0) continue;
		part[index >> 3]! |= 1 << (index & 7);
		const next = value - 2;
		if (next >= 0 && next < clusterCount) wanted[next >> 3]! |= 1 << (next & 7);
	}
	return part;
}

function entryAt(view: DataView, bits: Geometry["bits"], index: number): number {
	if (bits === 32) return view.getUint32(index * 4, true);
	if (bits === 16) return view.getUint16(index * 2, true);
	const at = index + (index >> 1);
	const low = view.getUint8(at);
	const high = at + 1 < view.byteLength ? view.getUint8(at + 1) : 0;
	return index % 2 === 0 ? low | ((high & 0xf) << 8) : (low >> 4) | (high << 4);
}

function same(a: Uint8Array, b: Uint8Array): boolean {
	for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
	return true;
}
