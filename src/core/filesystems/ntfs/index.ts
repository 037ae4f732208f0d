// NTFS: what such a volume uses and what is free in it.
//
//   boot sector ─▶ $MFT ─▶ $Volume, $LogFile: unmounted cleanly? ─▶ hibernated? shadow copies? ─▶ $Bitmap
//
// Only a cleanly unmounted volume is believed: the log's format is Windows' own and is not replayed here. There are no
// checksums, so what can be compared is: the MFT's copy, the boot sector with the MFT, and $Bitmap with the places of
// the system files; and with those of all files where no log says how the volume was left.

import type { FileSystemMap } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { clusterMap } from "../cluster-map.ts";
import type { VolumeIdentity } from "../kept-volume.ts";
import { keptWhole, reasonToKeep } from "../kept-volume.ts";
import { checkEveryFile } from "./every-file.ts";
import { Files } from "./files.ts";
import { readUsedClusters } from "./free-space.ts";
import { AttributeType, SystemFile, VOLUME_DIRTY, VOLUME_IN_REPAIR, VolumeInformation } from "./layout.ts";
import { checkMirror, readLogState } from "./log-file.ts";
import { whyHibernated, whyShadowed } from "./memory-elsewhere.ts";
import { damaged, parseBootSector, readBootSector, serialOf, unsupported } from "./open.ts";
import type { MftRecord } from "./records.ts";

/**
 * Maps a volume, or returns null where it has no NTFS mark. A volume that cannot be believed comes back with `kept`
 * set. Throws only what the source throws (IO, READ_BUDGET).
 */
export async function readNtfs(volume: ByteSource): Promise<FileSystemMap | null> {
	const raw = await readBootSector(volume);
	if (raw === null) return null;
	let identity: VolumeIdentity = { type: "ntfs", uuid: serialOf(raw), label: null, blockSize: null };
	try {
		const geometry = parseBootSector(raw, volume.size);
		identity = { ...identity, blockSize: geometry.clusterSize };
		const files = await Files.open(volume, geometry);
		const record = await files.record(SystemFile.volume);
		identity = { ...identity, label: labelOf(record) };
		const log = await readLogState(files);
		const asleep = await whyHibernated(files);
		const open = whyMarkedOpen(record) ?? (log.kind === "open" ? log.why : null) ?? asleep;
		if (open !== null) return { ...keptWhole(identity, "dirty", volume, open), isAsleep: asleep !== null };
		await checkMirror(files);
		const shadowed = await whyShadowed(volume);
		if (shadowed !== null) return keptWhole(identity, "clean", volume, shadowed);
		const used = await readUsedClusters(files);
		if (log.kind === "emptied") await checkEveryFile(files, used);
		return clusterMap(identity, "clean", used, { base: 0, clusterSize: geometry.clusterSize, size: geometry.size });
	} catch (error) {
		const why = reasonToKeep(error);
		if (why === null) throw error;
		return keptWhole(identity, "unknown", volume, why);
	}
}

/** What $Volume says against believing the volume, in one sentence, or null. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
function whyMarkedOpen(record: MftRecord): string | null {
	const found = record.find({ type: AttributeType.volumeInformation, name: "" });
	if (found?.content.kind !== "resident" || found.content.value.length < VolumeInformation.size)
		throw damaged("its $Volume is damaged; run chkdsk in the guest");
	const { majorVersion, minorVersion, flags } = VolumeInformation.at(viewOf(found.content.value));
	const version = `${majorVersion}.${minorVersion}`;
	if (!["1.2", "3.0", "3.1"].includes(version)) throw unsupported(`it has version ${version} of the format`);
	if ((flags & VOLUME_DIRTY) !== 0) return "it is marked as dirty; run chkdsk in the guest and shut it down cleanly";
	if ((flags & VOLUME_IN_REPAIR) !== 0)
		return "it is marked for repair or upgrade; start Windows, let it finish and shut it down cleanly";
	return null;
}

function labelOf(record: MftRecord): string | null {
	const found = record.find({ type: AttributeType.volumeName, name: "" });
	if (found?.content.kind !== "resident" || found.content.value.length === 0) return null;
	return new TextDecoder("utf-16le").decode(found.content.value);
}
