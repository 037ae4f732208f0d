// Free space of one allocation group: its tree of free extents by block number ("AG Free Space B+trees").
//
//   AGF ─▶ root        keys and block numbers of children     level 2
//           ├─▶ node   …                                      level 1
//           │    ├─▶ leaf   (start, length) (start, length) …  level 0, chained left and right
//
// The tree is read level by level, each in key order, a bounded batch of blocks at a time. A block's first key must be
// the one that its parent has for it, and keys rise over the whole level: so no block is reached twice, there are no
// rings, and the levels fall by one. Whatever is not as the format says makes the whole group doubtful.

import { VmsweepError } from "../../../foundations/errors.ts";
import { viewOf } from "../../../foundations/struct.ts";
import type { FreeRuns } from "./free-runs.ts";
import {
	BASIC_BLOCK,
	BTREE_HEADER_V4,
	BtreeBlock,
	BY_BLOCK_MAGIC_V4,
	BY_BLOCK_MAGIC_V5,
	FreeRecord,
	NULL_AG_BLOCK,
} from "./layout.ts";
import type { MetadataBlock, MetadataView } from "./metadata-view.ts";
import { crc32cOf, type Geometry, groupLength, headerBlocks } from "./open.ts";

const BATCH_BYTES = 1 << 20;

/** The root of a group's tree, from its AGF. */
export interface TreeRoot {
	readonly group: number;
	readonly block: number;
	readonly levels: number;
}

/** What a walk found beside the runs. */
export interface TreeFacts {
	readonly freeBlocks: number;
	readonly longest: number;
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", what);

/**
 * Adds the free runs of a group to `runs`, as its open group. Throws VOLUME_DAMAGED where anything about the tree is
 * wrong; `runs` then holds a part of it, to be dropped. `newerThanLog` judges log positions of blocks.
 */
export async function readFreeTree(
	view: MetadataView,
	geometry: Geometry,
	root: TreeRoot,
	runs: FreeRuns,
	newerThanLog: (lsn: bigint) => boolean,
): Promise<TreeFacts> {
	const { group } = root;
	const isPlausible = plausibleBlock(geometry, group);
	const limits = treeLimits(geometry, group);
	if (!isPlausible(root.block)) throw damaged(`its root is block ${root.block}`);
	let blocks = [root.block];
	/** First key of each block; unknown for the root. */
	let keys: number[] | null = null;
	const treeBlocks = [root.block];
	for (let level = root.levels - 1; level > 0; level--) {
		const children: number[] = [];
		const childKeys: number[] = [];
		for await (const { bytes, index, count } of readLevel(view, geometry, group, level, blocks, newerThanLog)) {
			if (count === 0) throw damaged(`its block ${blocks[index]} is empty`);
			const data = viewOf(bytes);
			for (let i = 0; i < count; i++) {
				const key = FreeRecord.read.start(data, limits.header + i * 8);
				const child = data.getUint32(limits.header + limits.maxChildren * 8 + i * 4);
				if (i === 0 && keys !== null && key !== keys[index])
					throw damaged(`its block ${blocks[index]} has a wrong key`);
				if (childKeys.length > 0 && key <= childKeys.at(-1)!) throw damaged(`its keys go back at ${key}`);
				if (!isPlausible(child)) throw damaged(`it names block ${child}`);
				children.push(child);
				childKeys.push(key);
			}
			if (children.length > limits.maxBlocks) throw damaged(`it has more than ${limits.maxBlocks} blocks at a level`);
		}
		blocks = children;
		keys = childKeys;
		for (const child of children) treeBlocks.push(child);
	}

	let freeBlocks = 0;
	let longest = 0;
	const end = groupLength(geometry, group);
	for await (const { bytes, index, count } of readLevel(view, geometry, group, 0, blocks, newerThanLog)) {
		// An empty leaf may only be the root: nothing is free then.
		if (count === 0 && keys !== null) throw damaged(`its block ${blocks[index]} is empty`);
		const data = viewOf(bytes);
		for (let i = 0; i < count; i++) {
			const at = limits.header + i * 8;
			const start = FreeRecord.read.start(data, at);
			const length = FreeRecord.read.length(data, at);
			if (i === 0 && keys !== null && start !== keys[index])
				throw damaged(`its block ${blocks[index]} has a wrong key`);
			if (start < limits.firstBlock || length === 0 || start + length > end)
				throw damaged(`it has free blocks ${start} to ${start + length} of ${end}`);
			runs.add(start, length);
			freeBlocks += length;
			if (length > longest) longest = length;
		}
	}
	for (const block of treeBlocks)
		if (runs.overlaps(group, block, block + 1)) throw damaged(`it says that its own block ${block} is free`);
	return { freeBlocks, longest };
}

interface TreeLimits {
	readonly header: number;
	readonly maxChildren: number;
	/** First block behind the group's headers. */
	readonly firstBlock: number;
	/** More blocks than this at a level are never needed: twice what half-full blocks and single free blocks would take. */
	readonly maxBlocks: number;
}

function treeLimits(geometry: Geometry, group: number): TreeLimits {
	const header = geometry.version === 5 ? BtreeBlock.size : BTREE_HEADER_V4;
	const maxRecords = Math.floor((geometry.blockSize - header) / 8);
	const mostRuns = groupLength(geometry, group) / 2;
	return {
		header,
		maxChildren: Math.floor((geometry.blockSize - header) / 12),
		firstBlock: headerBlocks(geometry),
		maxBlocks: Math.ceil((4 * mostRuns) / maxRecords) + 8,
	};
}

/** Can this block of the group be a tree block? */
function plausibleBlock(geometry: Geometry, group: number): (block: number) => boolean {
	const first = headerBlocks(geometry);
	const end = groupLength(geometry, group);
	const log = geometry.log?.group === group ? geometry.log : null;
	return (block) =>
		block >= first &&
		block < end &&
		(log === null || block < log.firstBlock || block >= log.firstBlock + log.blockCount);
}

interface LevelBlock {
	readonly bytes: Uint8Array;
	/** In the level's order. */
	readonly index: number;
	readonly count: number;
}

/** Reads the blocks of one level in order and checks their heads. */
async function* readLevel(
	view: MetadataView,
	geometry: Geometry,
	group: number,
	level: number,
	blocks: readonly number[],
	newerThanLog: (lsn: bigint) => boolean,
): AsyncGenerator<LevelBlock> {
	const { blockSize } = geometry;
	const batch = Math.max(1, Math.floor(BATCH_BYTES / blockSize));
	for (let from = 0; from < blocks.length; from += batch) {
		const places = blocks.slice(from, from + batch).map((block) => (group * geometry.agBlocks + block) * blockSize);
		const found = await view.readAll(places, blockSize);
		for (const [offset, block] of found.entries()) {
			const index = from + offset;
			const expected = {
				group,
				level,
				block: blocks[index]!,
				left: blocks[index - 1] ?? NULL_AG_BLOCK,
				right: blocks[index + 1] ?? NULL_AG_BLOCK,
			};
			const count = checkBlock(geometry, block, expected, newerThanLog);
			yield { bytes: block.bytes, index, count };
		}
	}
}

interface ExpectedBlock {
	readonly group: number;
	readonly block: number;
	readonly level: number;
	readonly left: number;
	readonly right: number;
}

/** Checks the head of a tree block; returns how many records it has. */
function checkBlock(
	geometry: Geometry,
	{ bytes, replayed }: MetadataBlock,
	{ group, block, level, left, right }: ExpectedBlock,
	newerThanLog: (lsn: bigint) => boolean,
): number {
	const data = viewOf(bytes);
	const read = BtreeBlock.read;
	const isV5 = geometry.version === 5;
	if (read.magic(data, 0) !== (isV5 ? BY_BLOCK_MAGIC_V5 : BY_BLOCK_MAGIC_V4))
		throw damaged(`its block ${block} has no magic number`);
	if (isV5) {
		if (!replayed && crc32cOf(bytes, BtreeBlock.offset.checksum) !== read.checksum(data, 0))
			throw damaged(`its block ${block} has a wrong checksum`);
		const address = ((group * geometry.agBlocks + block) * geometry.blockSize) / BASIC_BLOCK;
		if (read.basicBlock(data, 0) !== address || read.owner(data, 0) !== group)
			throw damaged(`its block ${block} belongs elsewhere`);
		const uuid = read.uuid(data, 0);
		if (!geometry.metadataUuid.every((byte, at) => byte === uuid[at]))
			throw damaged(`its block ${block} belongs to another file system`);
		if (!replayed && newerThanLog(read.lsn(data, 0))) throw damaged(`its block ${block} is newer than the log`);
	}
	if (read.level(data, 0) !== level) throw damaged(`its block ${block} is not at level ${level}`);
	if (read.left(data, 0) !== left || read.right(data, 0) !== right)
		throw damaged(`its block ${block} has wrong neighbours`);
	const count = read.recordCount(data, 0);
	const header = isV5 ? BtreeBlock.size : BTREE_HEADER_V4;
	if (count > Math.floor((geometry.blockSize - header) / (level === 0 ? 8 : 12)))
		throw damaged(`its block ${block} has ${count} records`);
	return count;
}
