// Trees: walks the parts of a btrfs tree that hold given keys, in key order.
//
//   inner node  | header | key, block, generation | key, block, generation | …                 level 1 … 7
//   leaf        | header | key, offset, size | key, offset, size | …  →  ←  … | data | data |  level 0
//
// Invariants that make any walk end
//  - a block is believed only with the right checksum, file system, position, owner, generation and level
//  - a block's first key is the one that its parent names, and all its keys lie before the parent's next one:
//    so no block can be met twice in one walk, and each level down is one lower
//
// Blocks are read some dozens at a time, neighbours with one request; memory stays at a few batches, one per level.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { type ChunkMap, holdsTrees } from "./chunks.ts";
import { compareKeys, type KeyPlace, type KeyRange } from "./keys.ts";
import { KeyPointer, LeafItem, NodeHeader } from "./layout.ts";
import { type Geometry, MAX_LEVEL, type TreeRoot } from "./open.ts";

/** Blocks that are read and held together, per level. */
const BATCH = 64;
/** Requests under way at once, so that a disk with latency is kept busy. */
const MAX_PARALLEL = 8;

/** Called for an item: the leaf, where its key and its data are in it, and the data's size. */
export type VisitItem = (leaf: DataView, keyAt: number, dataAt: number, size: number) => void;

/** A block to read, and what its parent says about it. */
interface BlockPointer {
	readonly logical: number;
	readonly generation: number;
	/** The block's first key; null for a root. */
	readonly first: KeyPlace | null;
	/** A key behind all of the block's; null where there is none. */
	readonly end: KeyPlace | null;
}

export class TreeReader {
	readonly #volume: ByteSource;
	readonly #geometry: Geometry;
	readonly #chunks: ChunkMap;
	readonly #maxBlocks: number;
	/** Logical positions of all blocks that were read: they are in use, whatever the trees say. */
	readonly visited: number[] = [];

	constructor(volume: ByteSource, geometry: Geometry, chunks: ChunkMap) {
		this.#volume = volume;
		this.#geometry = geometry;
		this.#chunks = chunks;
		// The extent tree may be walked twice: once for the block groups, once for the extents.
		this.#maxBlocks = (2 * chunks.metadataBytes) / geometry.nodeSize;
	}

	/**
	 * Visits all items of a tree with keys in `ranges` (ascending, disjoint), in key order.
	 * Throws VOLUME_DAMAGED where a block on the way has no good copy.
	 */
	async walk(root: TreeRoot, ranges: readonly KeyRange[], visit: VisitItem): Promise<void> {
		if (root.level >= MAX_LEVEL) throw damaged(`tree ${root.tree} is ${root.level} levels deep`);
		const pointer = { logical: root.logical, generation: root.generation, first: null, end: null };
		await this.#walkLevel([pointer], root, root.level, ranges, visit);
	}

	async #walkLevel(
		pointers: readonly BlockPointer[],
		root: TreeRoot,
		level: number,
		ranges: readonly KeyRange[],
		visit: VisitItem,
	): Promise<void> {
		for (let done = 0; done < pointers.length; done += BATCH) {
			const batch = pointers.slice(done, done + BATCH);
			const blocks = await this.#readBlocks(batch, root.tree, level);
			if (level === 0) for (const block of blocks) visitLeaf(block, ranges, visit);
			else {
				const children = blocks.flatMap((block, index) => childrenIn(block, batch[index]!.end, ranges));
				await this.#walkLevel(children, root, level - 1, ranges, visit);
			}
		}
	}

	/** Reads and checks blocks; a block with a second copy is taken from there where the first one is bad. */
	async #readBlocks(pointers: readonly BlockPointer[], tree: number, level: number): Promise<DataView[]> {
		const { nodeSize, sectorSize, generation } = this.#geometry;
		const copies = pointers.map((pointer) => {
			const { logical } = pointer;
			const chunk = this.#chunks.chunks[this.#chunks.find(logical, nodeSize)];
			if (chunk === undefined || !holdsTrees(chunk.type) || logical % sectorSize !== 0)
				throw damaged(`tree ${tree} has a block at ${logical}, where no metadata lies`);
			if (pointer.generation > generation)
				throw damaged(`tree ${tree} has a block of generation ${pointer.generation}, from the future`);
			return chunk.stripes.map((start) => start + logical - chunk.start);
		});
		for (const { logical } of pointers) this.visited.push(logical);
		if (this.visited.length > this.#maxBlocks) throw damaged("its trees have more blocks than its metadata holds");
		const blocks: DataView[] = [];
		let wanted = pointers.map((_, index) => index);
		let why = "";
		for (let copy = 0; copy < 2 && wanted.length > 0; copy++) {
			const places = wanted.flatMap((index) => {
				const at = copies[index]![copy];
				return at === undefined ? [] : [{ at, index }];
			});
			wanted = wanted.filter((index) => copies[index]![copy] === undefined);
			await this.#readAt(places, (index, bytes) => {
				const wrong = this.#whatIsWrong(bytes, pointers[index]!, tree, level);
				if (wrong === null) blocks[index] = viewOf(bytes);
				else {
					wanted.push(index);
					why = `the block at ${pointers[index]!.logical} of tree ${tree} ${wrong}`;
				}
			});
		}
		if (wanted.length > 0) throw damaged(why);
		return blocks;
	}

	/** Reads blocks at places of the device; neighbours with one request, several requests at once. */
	async #readAt(
		places: { at: number; index: number }[],
		take: (index: number, bytes: Uint8Array) => void,
	): Promise<void> {
		const { nodeSize } = this.#geometry;
		const requests: { at: number; indexes: number[] }[] = [];
		for (const { at, index } of places.sort((a, b) => a.at - b.at)) {
			const last = requests.at(-1);
			if (last !== undefined && at === last.at + last.indexes.length * nodeSize) last.indexes.push(index);
			else requests.push({ at, indexes: [index] });
		}
		let next = 0;
		const worker = async (): Promise<void> => {
			while (next < requests.length) {
				const { at, indexes } = requests[next++]!;
				const bytes = new Uint8Array(indexes.length * nodeSize);
				await this.#volume.read(byteOffset(at), bytes);
				for (const [i, index] of indexes.entries()) take(index, bytes.subarray(i * nodeSize, (i + 1) * nodeSize));
			}
		};
		await Promise.all(Array.from({ length: Math.min(MAX_PARALLEL, requests.length) }, worker));
	}

	/** Why a block cannot be believed, to follow "the block …"; null where it can. */
	#whatIsWrong(bytes: Uint8Array, pointer: BlockPointer, tree: number, level: number): string | null {
		if (!this.#geometry.checksumFits(bytes)) return "has a wrong checksum";
		const view = viewOf(bytes);
		const header = NodeHeader.at(view);
		if (!header.fsid.every((byte, at) => byte === this.#geometry.metadataFsid[at])) return "is of another file system";
		if (header.bytenr !== pointer.logical) return `belongs at ${header.bytenr}`;
		if (header.owner !== tree) return `belongs to tree ${header.owner}`;
		if (header.level !== level) return `has level ${header.level} instead of ${level}`;
		if (header.generation !== pointer.generation)
			return `has generation ${header.generation} instead of ${pointer.generation}`;
		return whatIsWrongInside(view, header.itemCount, pointer, level);
	}
}

function whatIsWrongInside(view: DataView, count: number, pointer: BlockPointer, level: number): string | null {
	const entrySize = level === 0 ? LeafItem.size : KeyPointer.size;
	if (count > (view.byteLength - NodeHeader.size) / entrySize) return `has ${count} entries`;
	if (count === 0) return level === 0 && pointer.first === null ? null : "is empty";
	const keyAt = (index: number): number => NodeHeader.size + index * entrySize;
	const { first, end } = pointer;
	if (first !== null && compareKeys(view, keyAt(0), first.view, first.at) !== 0)
		return "does not begin with the key that its parent names";
	for (let at = keyAt(1); at < keyAt(count); at += entrySize)
		if (compareKeys(view, at - entrySize, view, at) >= 0) return "has its keys out of order";
	if (end !== null && compareKeys(view, keyAt(count - 1), end.view, end.at) >= 0)
		return "has keys behind those of its neighbour";
	if (level > 0) return null;
	let dataEnd = view.byteLength - NodeHeader.size;
	for (let at = keyAt(0); at < keyAt(count); at += entrySize) {
		const offset = LeafItem.read.offset(view, at);
		if (offset + LeafItem.read.size(view, at) !== dataEnd) return "has items that overlap or leave gaps";
		dataEnd = offset;
	}
	return dataEnd < count * entrySize ? "has items that overlap its header" : null;
}

function visitLeaf(leaf: DataView, ranges: readonly KeyRange[], visit: VisitItem): void {
	const count = NodeHeader.read.itemCount(leaf, 0);
	let range = 0;
	for (let i = 0, keyAt = NodeHeader.size; i < count; i++, keyAt += LeafItem.size) {
		range = skipRanges(ranges, range, leaf, keyAt);
		if (range === ranges.length) return;
		const { from } = ranges[range]!;
		if (compareKeys(leaf, keyAt, from.view, from.at) < 0) continue;
		const dataAt = NodeHeader.size + LeafItem.read.offset(leaf, keyAt);
		visit(leaf, keyAt, dataAt, LeafItem.read.size(leaf, keyAt));
	}
}

/** The children of an inner node that may hold keys of `ranges`. */
function childrenIn(node: DataView, end: KeyPlace | null, ranges: readonly KeyRange[]): BlockPointer[] {
	const count = NodeHeader.read.itemCount(node, 0);
	const children: BlockPointer[] = [];
	let range = 0;
	for (let i = 0, at = NodeHeader.size; i < count; i++, at += KeyPointer.size) {
		range = skipRanges(ranges, range, node, at);
		if (range === ranges.length) break;
		const childEnd = i + 1 < count ? { view: node, at: at + KeyPointer.size } : end;
		const { from } = ranges[range]!;
		if (childEnd !== null && compareKeys(from.view, from.at, childEnd.view, childEnd.at) >= 0) continue;
		children.push({
			logical: KeyPointer.read.logical(node, at),
			generation: KeyPointer.read.generation(node, at),
			first: { view: node, at },
			end: childEnd,
		});
	}
	return children;
}

/** The first range from `range` on that does not end before the key. */
function skipRanges(ranges: readonly KeyRange[], range: number, view: DataView, keyAt: number): number {
	const endsBefore = (index: number): boolean => {
		const { to } = ranges[index]!;
		return compareKeys(to.view, to.at, view, keyAt) < 0;
	};
	if (range === ranges.length || !endsBefore(range)) return range;
	let low = range + 1;
	let high = ranges.length;
	while (low < high) {
		const middle = (low + high) >>> 1;
		if (endsBefore(middle)) low = middle + 1;
		else high = middle;
	}
	return low;
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `${what}; run btrfs check`);
