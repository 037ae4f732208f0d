// FAT12, FAT16 and FAT32: what such a volume uses and what is free in it.
//
//   boot sector ─▶ unmounted cleanly? ─▶ FAT and its copies ─▶ one bit per cluster
//
// A volume that is marked as mounted is kept whole: there is no journal that would tell what was under way.

import type { FileSystemMap } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { clusterMap } from "../cluster-map.ts";
import type { VolumeIdentity } from "../kept-volume.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import { isMarkedDirty, readUsedClusters } from "./free-space.ts";
import { ATTRIBUTE_LABEL, ATTRIBUTES_LABEL_MASK, DirectoryEntry } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { labelText, namesIn, parseBootSector, readBootSector } from "./open.ts";

/** The label stands among the first entries; a whole root directory of FAT16 has this size. */
const MAX_LABEL_BYTES = 64 << 10;

/**
 * Maps a volume, or returns null where it cannot be FAT. A volume that cannot be believed comes back with `kept` set.
 * Throws only what the source throws (IO, READ_BUDGET).
 */
export async function readFat(volume: ByteSource): Promise<FileSystemMap | null> {
	const raw = await readBootSector(volume);
	if (raw === null) return null;
	let identity: VolumeIdentity = { type: "vfat", ...namesIn(raw), blockSize: null };
	try {
		const geometry = parseBootSector(raw, volume.size);
		const label = (await labelInRoot(volume, geometry)) ?? identity.label;
		identity = { ...identity, label, blockSize: geometry.clusterSize };
		if (await isMarkedDirty(volume, geometry)) {
			const why = "it was not unmounted cleanly, or has errors; run a check in the guest and shut it down cleanly";
			return keptWhole(identity, "dirty", volume, why);
		}
		const used = await readUsedClusters(volume, geometry);
		const { dataAt: base, clusterSize, size } = geometry;
		return clusterMap(identity, "clean", used, { base, clusterSize, size });
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole(identity, "unknown", volume, why);
	}
}

/** The label in the root directory, which counts more than that of the boot sector; null where its start has none. */
async function labelInRoot(volume: ByteSource, geometry: Geometry): Promise<string | null> {
	const { rootCluster, rootAt, rootSize, dataAt, clusterSize } = geometry;
	const [at, size] = rootCluster === 0 ? [rootAt, rootSize] : [dataAt + (rootCluster - 2) * clusterSize, clusterSize];
	const raw = await readBytes(volume, byteOffset(at), Math.min(size, MAX_LABEL_BYTES));
	const view = viewOf(raw);
	for (let entry = 0; entry + DirectoryEntry.size <= raw.length; entry += DirectoryEntry.size) {
		const { name, attributes } = DirectoryEntry.at(view, entry);
		if (name[0] === 0) return null;
		if (name[0] !== 0xe5 && (attributes & ATTRIBUTES_LABEL_MASK) === ATTRIBUTE_LABEL) return labelText(name);
	}
	return null;
}
