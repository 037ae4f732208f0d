// Every file against $Bitmap: may the bitmap be believed where no log tells that the volume was closed?
//
//   $MFT, a piece at a time ─▶ records in use ─▶ runs of all their attributes ─▶ each cluster in use in $Bitmap?
//
// ntfs-3g empties the log when it mounts, and marks nothing: a volume that it left in a crash looks as one that it left
// cleanly, and what it had not written yet may be just $Bitmap. chkdsk would build that anew from these records.

import { viewOf } from "../../../foundations/struct.ts";
import type { UsedBitmap } from "../used-bitmap.ts";
import type { Files } from "./files.ts";
import { FileRecord, MAGIC_FILE, RECORD_IN_USE } from "./layout.ts";
import { damaged } from "./open.ts";
import { MftRecord } from "./records.ts";
import { RunList } from "./runs.ts";

const READ_BYTES = 1 << 20;

/** Throws VOLUME_DAMAGED where a file has clusters that `used` shows as free, or where a record is torn. Reads the whole MFT. */
export async function checkEveryFile(files: Files, used: UsedBitmap): Promise<void> {
	const { recordSize, clusterCount } = files.geometry;
	const length = Math.min(files.mft.size, files.mft.initializedSize);
	for (let at = 0; at + recordSize <= length; at += READ_BYTES) {
		const part = await files.read(files.mft, at, Math.min(READ_BYTES, length - at));
		for (let from = 0; from + recordSize <= part.length; from += recordSize) {
			const raw = part.subarray(from, from + recordSize);
			if (isUnused(raw)) continue;
			const record = new MftRecord((at + from) / recordSize, raw);
			for (const { content } of record.attributes())
				if (content.kind === "runs") checkRuns(record, content, used, clusterCount);
		}
	}
}

/** Never written, or let go. What is neither that nor a record is torn, and refused by its reader. */
function isUnused(raw: Uint8Array): boolean {
	const { magic, flags } = FileRecord.at(viewOf(raw));
	return magic === 0 || (magic === MAGIC_FILE && (flags & RECORD_IN_USE) === 0);
}

function checkRuns(
	{ number }: MftRecord,
	content: { readonly runs: Uint8Array; readonly clusters: number },
	used: UsedBitmap,
	clusterCount: number,
): void {
	const runs = new RunList();
	runs.append(content.runs, content.clusters, clusterCount);
	for (const { cluster, count } of runs)
		if (cluster !== null && used.countFree(cluster, cluster + count) > 0)
			throw damaged(
				`its $Bitmap shows clusters of MFT record ${number} as free, so it was not unmounted cleanly; run chkdsk in the guest`,
			);
}
