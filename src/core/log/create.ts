// Creating a first image: an empty log, ready to be opened.

import { assert, VmsweepError } from "../../foundations/errors.ts";
import type { ByteCount } from "../../foundations/units.ts";
import { BLOCK_SIZE, byteOffset, divCeil, divFloor, formatBytes } from "../../foundations/units.ts";
import { RESERVED_SEGMENTS } from "./appender.ts";
import { DEFAULT_SEGMENT_BYTES, encodeSuperblock, geometryOf, MAX_DISK_BYTES, SEGMENTS_AT } from "./format.ts";
import type { HostFile } from "./host-file.ts";

/** What identifies and shapes a first image; fixed when it is formatted. */
export interface FormatParams {
	/** 16 bytes, shared with the second image and disk.json. */
	readonly uuid: Uint8Array;
	readonly diskBytes: ByteCount;
	/** Host bytes of one segment, a power of two; default 8 MiB. */
	readonly segmentBytes?: number;
	/** Most host bytes that the log may fill; default unlimited. Can be overridden at open. */
	readonly limitBytes?: number;
	/** The log's positions lie behind this one; for a disk whose first image was lost. Default: none was. */
	readonly afterPosition?: number;
}

/** Smallest log that can work: the reserve, one segment to write, one to clean. */
const MIN_SEGMENTS = RESERVED_SEGMENTS + 2;

/** Writes an empty log into an empty file, durable on return. Throws FILE_EXISTS where the file is not empty, USAGE. */
export function formatFirstImage(file: HostFile, params: FormatParams): void {
	const { uuid, diskBytes, segmentBytes = DEFAULT_SEGMENT_BYTES, limitBytes = 0, afterPosition = 0 } = params;
	if (file.size() !== 0)
		throw new VmsweepError("FILE_EXISTS", "the first image's file is not empty; give a disk that does not exist yet");
	checkDiskBytes(diskBytes);
	assert(uuid.length === 16, "a disk's UUID has 16 bytes");
	const geometry = geometryOf(segmentBytes);
	placesWithin(limitBytes, segmentBytes);
	file.truncate(SEGMENTS_AT);
	const record = new Uint8Array(BLOCK_SIZE);
	for (const copy of [0, 1]) {
		encodeSuperblock(record, {
			uuid,
			diskBytes,
			largestDiskBytes: diskBytes,
			segmentBytes,
			summaryBytes: geometry.summaryBytes,
			limitBytes,
			generation: copy + 1,
			freedSequence: divCeil(afterPosition, geometry.slotsPerSegment),
			freedEntries: 0,
			durableEntries: 0,
			epoch: 0,
		});
		file.write(record, byteOffset(copy * BLOCK_SIZE));
	}
	file.datasync();
}

/** Throws USAGE where no log can be of a disk of this size. */
export function checkDiskBytes(diskBytes: number): void {
	if (diskBytes > 0 && diskBytes <= MAX_DISK_BYTES && diskBytes % 512 === 0) return;
	throw new VmsweepError(
		"USAGE",
		`disk size ${diskBytes}: give a multiple of 512 bytes up to ${formatBytes(MAX_DISK_BYTES)}`,
	);
}

/** How many segments fit into `limitBytes` (0: unlimited), and into 32-bit slot numbers. Throws USAGE where too few. */
export function placesWithin(limitBytes: number, segmentBytes: number): number {
	const addressable = divFloor(2 ** 32 * BLOCK_SIZE - SEGMENTS_AT, segmentBytes);
	const places = Math.min(addressable, divFloor((limitBytes || Number.POSITIVE_INFINITY) - SEGMENTS_AT, segmentBytes));
	if (places < MIN_SEGMENTS)
		throw new VmsweepError(
			"USAGE",
			`limit ${formatBytes(limitBytes)} is too small for a first image; give at least ${formatBytes(SEGMENTS_AT + MIN_SEGMENTS * segmentBytes)}`,
		);
	return places;
}
