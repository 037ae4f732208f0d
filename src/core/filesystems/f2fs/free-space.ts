// Free space: from the segment information table (SIT) to one bit per block of the main area.
//
//   SIT    | copy 1: block | block | … | copy 2: block | block | … |     the checkpoint's bitmap chooses, block by block
//   entry  valid blocks in this segment: their count, and a bitmap      or the journal's entry, where it has one
//
// The table has no checksums, so it must agree with itself and with the checkpoint: each segment's bitmap with its
// count, all counts of node blocks with the checkpoint's, and all together must not exceed what the checkpoint counts
// (it may count more: blocks that are reserved, but have no place yet).

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { countZeroBits, UsedBitmap } from "../used-bitmap.ts";
import { type Pack, readSitJournal } from "./checkpoint.ts";
import {
	BLOCKS_PER_SEGMENT,
	F2FS_BLOCK,
	FIRST_NODE_LOG,
	LOG_COUNT,
	SIT_ENTRIES_PER_BLOCK,
	SitEntry,
	testBit,
} from "./layout.ts";
import type { Geometry } from "./open.ts";

/** Blocks read with one request. */
const MAX_REQUEST_BLOCKS = 256;
/** Requests under way at once, so that a disk with latency is kept busy. */
const MAX_PARALLEL = 4;

/** Bits of a byte in the other order: F2FS counts from the highest, the bitmap of used blocks from the lowest. */
const reversed = Uint8Array.from({ length: 256 }, (_, byte) =>
	[0, 1, 2, 3, 4, 5, 6, 7].reduce((sum, bit) => sum | (((byte >> bit) & 1) << (7 - bit)), 0),
);

/** Reads which blocks of the main area are in use. Throws VOLUME_DAMAGED where the table contradicts itself. */
export async function readSegments(volume: ByteSource, geometry: Geometry, pack: Pack): Promise<UsedBitmap> {
	const journal = await readSitJournal(volume, geometry, pack);
	const segments = new SegmentCollector(geometry.mainSegments);
	const take = (block: number, bytes: Uint8Array): void => {
		const first = block * SIT_ENTRIES_PER_BLOCK;
		const end = Math.min(first + SIT_ENTRIES_PER_BLOCK, geometry.mainSegments);
		const entries: Uint8Array[] = [];
		for (let segment = first; segment < end; segment++) {
			const at = (segment - first) * SitEntry.size;
			entries.push(journal.get(segment) ?? bytes.subarray(at, at + SitEntry.size));
		}
		segments.take(first, entries);
	};
	const requests = requestsFor(geometry, pack);
	let next = 0;
	const worker = async (): Promise<void> => {
		while (next < requests.length) {
			const { at, first, count } = requests[next++]!;
			const bytes = new Uint8Array(count * F2FS_BLOCK);
			await volume.read(byteOffset(at * F2FS_BLOCK), bytes);
			for (let i = 0; i < count; i++) take(first + i, bytes.subarray(i * F2FS_BLOCK, (i + 1) * F2FS_BLOCK));
		}
	};
	await Promise.all(Array.from({ length: Math.min(MAX_PARALLEL, requests.length) }, worker));
	segments.check(pack);
	return segments.used;
}

/** The valid copies of all SIT blocks: neighbours together. */
function requestsFor({ sitAt, sitBlocks, mainSegments }: Geometry, { sitBitmap }: Pack) {
	const requests: { at: number; first: number; count: number }[] = [];
	for (let block = 0; block < Math.ceil(mainSegments / SIT_ENTRIES_PER_BLOCK); block++) {
		const at = sitAt + block + (testBit(sitBitmap, block) ? sitBlocks : 0);
		const last = requests.at(-1);
		if (last !== undefined && at === last.at + last.count && last.count < MAX_REQUEST_BLOCKS) last.count++;
		else requests.push({ at, first: block, count: 1 });
	}
	return requests;
}

const MAP_BYTES = BLOCKS_PER_SEGMENT / 8;

class SegmentCollector {
	readonly used: UsedBitmap;
	#nodeBlocks = 0;
	#blocks = 0;

	constructor(segmentCount: number) {
		this.used = new UsedBitmap(segmentCount * BLOCKS_PER_SEGMENT);
	}

	/** Takes the entries of neighbours, from segment `first` on; all of a block at once, as each step costs a page's bits. */
	take(first: number, entries: readonly Uint8Array[]): void {
		const maps = new Uint8Array(entries.length * MAP_BYTES);
		for (const [index, entry] of entries.entries())
			this.#takeOne(first + index, entry, maps.subarray(index * MAP_BYTES, (index + 1) * MAP_BYTES));
		this.used.copyFrom(first * BLOCKS_PER_SEGMENT, entries.length * BLOCKS_PER_SEGMENT, maps);
	}

	#takeOne(segment: number, entry: Uint8Array, map: Uint8Array): void {
		const validBlocks = SitEntry.read.validBlocks(viewOf(entry), 0);
		const count = validBlocks & 0x3ff;
		const log = validBlocks >>> 10;
		for (let i = 0; i < MAP_BYTES; i++) map[i] = reversed[entry[SitEntry.offset.validMap + i]!]!;
		const inMap = BLOCKS_PER_SEGMENT - countZeroBits(map, BLOCKS_PER_SEGMENT);
		if (count !== inMap || log >= LOG_COUNT)
			throw damaged(`its segment ${segment} of log ${log} says ${count} valid blocks, its bitmap ${inMap}`);
		this.#blocks += count;
		if (log >= FIRST_NODE_LOG) this.#nodeBlocks += count;
	}

	check({ record }: Pack): void {
		if (this.#nodeBlocks !== record.validNodeCount)
			throw damaged(`its checkpoint says ${record.validNodeCount} node blocks, its segments ${this.#nodeBlocks}`);
		if (this.#blocks > record.validBlockCount)
			throw damaged(`its checkpoint says ${record.validBlockCount} valid blocks, its segments ${this.#blocks}`);
	}
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `${what}; run fsck.f2fs`);
