// Free space inside the chunks, from one of two trees:
//
//   free-space tree, where the superblock says that it is valid: it names the free runs, as extents or as bitmaps
//   extent tree, otherwise: it names what is in use; whatever lies between two extents is free
//
// Both must agree with the `used` of the block group items, chunk by chunk. The old free-space cache (files in the root
// tree) is never believed: it may be stale, and only the kernel can tell.

import { VmsweepError } from "../../../foundations/errors.ts";
import { BlockGroups } from "./block-groups.ts";
import type { ChunkMap } from "./chunks.ts";
import { allKeys, keysOf } from "./keys.ts";
import { BlockGroupItem, FREE_SPACE_USING_BITMAPS, FreeSpaceInfo, ItemType, Key, TreeId } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { type Roots, rootOf } from "./roots.ts";
import type { TreeReader } from "./tree.ts";

/** Reads what is free in every chunk. Throws VOLUME_DAMAGED where the trees contradict each other. */
export async function readBlockGroups(
	reader: TreeReader,
	geometry: Geometry,
	chunks: ChunkMap,
	roots: Roots,
): Promise<BlockGroups> {
	const groups = new BlockGroups(chunks, geometry.sectorSize);
	const extentRoot = rootOf(roots, TreeId.extent, "extent");
	const takeGroup = (leaf: DataView, keyAt: number, dataAt: number, size: number): void => {
		const { objectid: start, offset: length } = Key.at(leaf, keyAt);
		if (size < BlockGroupItem.size) throw damaged(`its block group item at ${start} is too short`);
		const { used, flags } = BlockGroupItem.at(leaf, dataAt);
		groups.describe(chunks.find(start, length), { start, length, used, flags });
	};
	// Block group items lie among the extents, one per chunk and far apart, unless they have a tree of their own.
	if (geometry.has.blockGroupTree)
		await reader.walk(rootOf(roots, TreeId.blockGroup, "block group"), [allKeys()], takeGroup);
	else if (geometry.has.freeSpaceTree) {
		const ranges = chunks.chunks.map(({ start }) => keysOf(start, ItemType.blockGroup));
		await reader.walk(extentRoot, ranges, takeGroup);
	}
	if (geometry.has.freeSpaceTree) {
		const collector = new FreeSpaceCollector(groups, chunks, geometry.sectorSize);
		await reader.walk(rootOf(roots, TreeId.freeSpace, "free-space"), [allKeys()], (leaf, keyAt, dataAt, size) =>
			collector.take(leaf, keyAt, dataAt, size),
		);
		collector.finish();
	} else {
		const collector = new ExtentCollector(groups, chunks, geometry.nodeSize);
		await reader.walk(extentRoot, [allKeys()], (leaf, keyAt, dataAt, size) => {
			const type = Key.read.type(leaf, keyAt);
			if (type === ItemType.extentItem || type === ItemType.metadataItem) collector.take(leaf, keyAt);
			else if (type === ItemType.blockGroup && !geometry.has.blockGroupTree) takeGroup(leaf, keyAt, dataAt, size);
		});
		collector.finish();
	}
	groups.finish();
	if (groups.usedBytes !== geometry.bytesUsed && !Number.isNaN(groups.usedBytes))
		throw damaged(
			`its superblock says that ${geometry.bytesUsed} bytes are in use, its block groups ${groups.usedBytes}`,
		);
	return groups;
}

/** From extents in order to the runs between them. */
class ExtentCollector {
	readonly #groups: BlockGroups;
	readonly #chunks: ChunkMap;
	readonly #nodeSize: number;
	/** The chunk of the last extent, and the end of that extent. */
	#chunk = -1;
	#cursor = 0;

	constructor(groups: BlockGroups, chunks: ChunkMap, nodeSize: number) {
		this.#groups = groups;
		this.#chunks = chunks;
		this.#nodeSize = nodeSize;
	}

	take(leaf: DataView, keyAt: number): void {
		const start = Key.read.objectid(leaf, keyAt);
		// A metadata item's key has the block's level where an extent item's has its length.
		const isExtent = Key.read.type(leaf, keyAt) === ItemType.extentItem;
		const length = isExtent ? Key.read.offset(leaf, keyAt) : this.#nodeSize;
		const { chunks } = this.#chunks;
		const known = chunks[this.#chunk];
		if (known === undefined || start >= known.start + known.length) this.#enter(this.#chunks.find(start, 1), start);
		const chunk = chunks[this.#chunk]!;
		if (length === 0 || start + length > chunk.start + chunk.length)
			throw damaged(`its extent at ${start} reaches past its block group`);
		if (start < this.#cursor) this.#groups.keep(this.#chunk, `its extent at ${start} overlaps the one before`);
		else if (start > this.#cursor) this.#groups.addFree(this.#cursor, start);
		this.#cursor = Math.max(this.#cursor, start + length);
	}

	finish(): void {
		this.#enter(this.#chunks.chunks.length, 0);
	}

	/** Ends the current chunk and those without any extent before chunk `next`. */
	#enter(next: number, start: number): void {
		if (next < 0) throw damaged(`its extent at ${start} lies in no block group`);
		for (;;) {
			const chunk = this.#chunks.chunks[this.#chunk];
			if (chunk !== undefined && this.#cursor < chunk.start + chunk.length)
				this.#groups.addFree(this.#cursor, chunk.start + chunk.length);
			if (this.#chunk + 1 > next || this.#chunk + 1 === this.#chunks.chunks.length) return;
			this.#chunk++;
			this.#groups.begin(this.#chunk);
			this.#cursor = this.#chunks.chunks[this.#chunk]!.start;
			if (this.#chunk === next) return;
		}
	}
}

/** From the items of the free-space tree to runs. */
class FreeSpaceCollector {
	readonly #groups: BlockGroups;
	readonly #chunks: ChunkMap;
	readonly #sectorSize: number;
	/** The chunk whose items come now; -1 where there is no such chunk. */
	#chunk = -1;
	/** What the current chunk's info item says. */
	#expectedRuns = 0;
	#usesBitmaps = false;

	constructor(groups: BlockGroups, chunks: ChunkMap, sectorSize: number) {
		this.#groups = groups;
		this.#chunks = chunks;
		this.#sectorSize = sectorSize;
	}

	take(leaf: DataView, keyAt: number, dataAt: number, size: number): void {
		const { objectid: start, type, offset: length } = Key.at(leaf, keyAt);
		if (type === ItemType.freeSpaceInfo) {
			this.#begin(start, length);
			if (size < FreeSpaceInfo.size) throw damaged(`its free-space info at ${start} is too short`);
			const { extentCount, flags } = FreeSpaceInfo.at(leaf, dataAt);
			this.#expectedRuns = extentCount;
			this.#usesBitmaps = (flags & FREE_SPACE_USING_BITMAPS) !== 0;
			return;
		}
		// mkfs.btrfs leaves entries of a block group behind that it made only for its own first steps.
		if (this.#chunk < 0) return;
		const chunk = this.#chunks.chunks[this.#chunk]!;
		const expected = this.#usesBitmaps ? ItemType.freeSpaceBitmap : ItemType.freeSpaceExtent;
		if (type !== expected || start < chunk.start || start + length > chunk.start + chunk.length)
			throw damaged(`its free-space tree has an item of type ${type} at ${start} in a wrong place`);
		if (type === ItemType.freeSpaceExtent) this.#groups.addFree(start, start + length);
		else {
			const sectors = length / this.#sectorSize;
			if (!Number.isInteger(sectors) || size !== Math.ceil(sectors / 8))
				throw damaged(`its free-space bitmap at ${start} has ${size} bytes for ${length}`);
			this.#takeBitmap(start, new Uint8Array(leaf.buffer, leaf.byteOffset + dataAt, size), sectors);
		}
	}

	finish(): void {
		if (this.#chunk >= 0 && this.#groups.currentRunCount !== this.#expectedRuns)
			this.#groups.keep(
				this.#chunk,
				`its free-space tree has ${this.#groups.currentRunCount} runs and says ${this.#expectedRuns}`,
			);
	}

	#begin(start: number, length: number): void {
		this.finish();
		const next = this.#chunks.find(start, length);
		const chunk = this.#chunks.chunks[next];
		const exists = chunk !== undefined && chunk.start === start && chunk.length === length;
		this.#chunk = exists ? next : -1;
		if (exists) this.#groups.begin(next);
	}

	/** One bit for each of `bits` sectors, lowest bit first, 1 = free. */
	#takeBitmap(start: number, bitmap: Uint8Array, bits: number): void {
		const isFree = (bit: number): boolean => (bitmap[bit >>> 3]! & (1 << (bit & 7))) !== 0;
		for (let bit = 0; bit < bits; ) {
			if ((bit & 7) === 0 && bitmap[bit >>> 3] === 0) {
				bit += 8;
				continue;
			}
			if (!isFree(bit)) {
				bit++;
				continue;
			}
			const first = bit;
			while (bit < bits && isFree(bit)) bit += (bit & 7) === 0 && bit + 8 <= bits && bitmap[bit >>> 3] === 0xff ? 8 : 1;
			this.#groups.addFree(start + first * this.#sectorSize, start + bit * this.#sectorSize);
		}
	}
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `${what}; run btrfs check`);
