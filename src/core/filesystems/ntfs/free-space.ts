// Free space: $Bitmap, one bit per cluster, believed where it shows the volume's own files as in use.

import { UsedBitmap } from "../used-bitmap.ts";
import type { Content, Files } from "./files.ts";
import { DATA } from "./files.ts";
import { SystemFile } from "./layout.ts";
import { damaged } from "./open.ts";

const READ_BYTES = 1 << 20;
/** $Boot: the boot sector and the loader behind it. */
const BOOT_BYTES = 8192;

/** Reads $Bitmap. Throws VOLUME_DAMAGED where it is too short or shows system files as free. */
export async function readUsedClusters(files: Files): Promise<UsedBitmap> {
	const { clusterCount, clusterSize } = files.geometry;
	const bitmap = await files.content(await files.record(SystemFile.bitmap), DATA);
	const length = Math.ceil(clusterCount / 8);
	if (bitmap === null || !bitmap.plain || Math.min(bitmap.size, bitmap.initializedSize) < length)
		throw damaged("its $Bitmap is shorter than the volume; run chkdsk in the guest");
	const used = new UsedBitmap(clusterCount);
	for (let at = 0; at < length; at += READ_BYTES) {
		const part = await files.read(bitmap, at, Math.min(READ_BYTES, length - at));
		used.copyFrom(at * 8, Math.min(part.length * 8, clusterCount - at * 8), part);
	}
	const inUse = (content: Content | null): boolean => {
		if (content?.where.kind !== "runs") return content !== null;
		for (const { cluster, count } of content.where.runs)
			if (cluster !== null && used.countFree(cluster, cluster + count) > 0) return false;
		return true;
	};
	if (used.countFree(0, Math.ceil(BOOT_BYTES / clusterSize)) > 0 || !inUse(files.mft) || !inUse(bitmap))
		throw damaged("its $Bitmap shows the boot area, the MFT or itself as free; run chkdsk in the guest");
	for (const file of [SystemFile.mftMirror, SystemFile.logFile])
		if (!inUse(await files.content(await files.record(file), DATA)))
			throw damaged("its $Bitmap shows $MFTMirr or $LogFile as free; run chkdsk in the guest");
	return used;
}
