// The root directory, as far as free space needs it: where the allocation bitmap and the up-case table lie, and the label.

import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { chainFrom, clusterAt } from "./chains.ts";
import { BITMAP_FLAGS_AT, DirectoryEntry, EntryType, LABEL_AT, LABEL_LENGTH_AT, MAX_LABEL_LENGTH } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { damaged } from "./open.ts";

/** 7.4: a directory has at most this many bytes. */
const MAX_DIRECTORY_BYTES = 256 << 20;
const READ_BYTES = 1 << 20;

/** A file that the root directory points at without a name. */
export interface SystemFile {
	readonly firstCluster: number;
	readonly length: number;
}

export interface RootDirectory {
	readonly bitmap: SystemFile;
	readonly upcaseTable: SystemFile;
	readonly label: string | null;
	/** Clusters of the directory, as far as it was read. */
	readonly clusters: readonly number[];
}

/** Reads the root directory up to its end. Throws VOLUME_DAMAGED where a system file is missing or there twice. */
export async function readRootDirectory(volume: ByteSource, geometry: Geometry): Promise<RootDirectory> {
	const { clusterSize, rootCluster } = geometry;
	const found: { bitmap: SystemFile[]; upcaseTable: SystemFile[]; label: string | null } = {
		bitmap: [],
		upcaseTable: [],
		label: null,
	};
	const clusters: number[] = [];
	const limit = Math.max(1, Math.ceil(MAX_DIRECTORY_BYTES / clusterSize));
	let ended = false;
	for await (const cluster of chainFrom(volume, geometry, rootCluster, limit)) {
		clusters.push(cluster);
		for (let at = 0; !ended && at < clusterSize; at += READ_BYTES) {
			const length = Math.min(READ_BYTES, clusterSize - at);
			ended = collect(await readBytes(volume, byteOffset(clusterAt(geometry, cluster) + at), length), found);
		}
	}
	const [bitmap, secondBitmap] = found.bitmap;
	const [upcaseTable, secondTable] = found.upcaseTable;
	if (bitmap === undefined || secondBitmap !== undefined || upcaseTable === undefined || secondTable !== undefined)
		throw damaged("its root directory lacks the allocation bitmap or the up-case table; run a check in the guest");
	return { bitmap, upcaseTable, label: found.label, clusters };
}

/** Takes over the entries of a part of the directory. True behind the last one. */
function collect(
	raw: Uint8Array,
	found: { bitmap: SystemFile[]; upcaseTable: SystemFile[]; label: string | null },
): boolean {
	const view = viewOf(raw);
	for (let at = 0; at + DirectoryEntry.size <= raw.length; at += DirectoryEntry.size) {
		const { type, firstCluster, dataLength: length } = DirectoryEntry.at(view, at);
		if (type === EntryType.end) return true;
		if (type === EntryType.bitmap) {
			if ((raw[at + BITMAP_FLAGS_AT]! & 1) !== 0) throw damaged("it has a second bitmap, but no second FAT");
			found.bitmap.push({ firstCluster, length });
		} else if (type === EntryType.upcaseTable) found.upcaseTable.push({ firstCluster, length });
		else if (type === EntryType.label) {
			const units = Math.min(raw[at + LABEL_LENGTH_AT]!, MAX_LABEL_LENGTH);
			if (units > 0)
				found.label = new TextDecoder("utf-16le").decode(raw.subarray(at + LABEL_AT, at + LABEL_AT + 2 * units));
		}
	}
	return false;
}
