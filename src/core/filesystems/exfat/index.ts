// exFAT: what such a volume uses and what is free in it.
//
//   boot region, its checksum ─▶ unmounted cleanly? ─▶ root directory ─▶ allocation bitmap ─▶ one bit per cluster
//
// VolumeDirty is cleared by some drivers at every sync, while the volume is still mounted. So a clean volume is only
// clean for who knows that the VM is off.

import type { FileSystemMap } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { clusterMap } from "../cluster-map.ts";
import type { VolumeIdentity } from "../kept-volume.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import { readUsedClusters } from "./free-space.ts";
import { ACTIVE_FAT, MEDIA_FAILURE, VOLUME_DIRTY } from "./layout.ts";
import { openVolume, readBootSector, serialOf } from "./open.ts";
import { readRootDirectory } from "./root-directory.ts";

/**
 * Maps a volume, or returns null where it has no exFAT mark. A volume that cannot be believed comes back with `kept`
 * set. Throws only what the source throws (IO, READ_BUDGET).
 */
export async function readExfat(volume: ByteSource): Promise<FileSystemMap | null> {
	const raw = await readBootSector(volume);
	if (raw === null) return null;
	let identity: VolumeIdentity = { type: "exfat", uuid: serialOf(raw), label: null, blockSize: null };
	try {
		const geometry = await openVolume(volume, raw);
		identity = { ...identity, blockSize: geometry.clusterSize };
		const root = await readRootDirectory(volume, geometry);
		identity = { ...identity, label: root.label };
		const marked = whyMarked(geometry.volumeFlags);
		if (marked !== null) return keptWhole(identity, "dirty", volume, marked);
		const used = await readUsedClusters(volume, geometry, root);
		const { dataAt: base, clusterSize, size } = geometry;
		return clusterMap(identity, "clean", used, { base, clusterSize, size });
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole(identity, "unknown", volume, why);
	}
}

function whyMarked(flags: number): string | null {
	if ((flags & VOLUME_DIRTY) !== 0)
		return "it was not unmounted cleanly; run a check in the guest and shut it down cleanly";
	if ((flags & MEDIA_FAILURE) !== 0) return "its disk had errors; run a check in the guest";
	if ((flags & ACTIVE_FAT) !== 0) return "it says that a second FAT counts, but has only one";
	return null;
}
