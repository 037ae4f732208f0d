// Where the metadata of block groups lies: pure arithmetic over the geometry.
//
//   group with superblock copy   | superblock | descriptors … | reserved descriptors … | bitmaps, tables … | data |
//   meta_bg                      descriptor block i lies in groups first, second and last of its own meta group
//   flex_bg                      bitmaps and inode tables may lie in any group
//
// As Linux computes it (`ext4_bg_has_super`, `ext4_num_base_meta_clusters`, `descriptor_loc`), since an
// uninitialised group's bitmap exists only as the result of that computation.

import type { Geometry } from "./open.ts";
import { groupEnd, groupStart } from "./open.ts";

/** True where the group holds a copy of the superblock. */
export function hasSuperblock(geometry: Geometry, group: number): boolean {
	if (group === 0) return true;
	if (geometry.has.sparseSuper2) return group === geometry.backupGroups[0] || group === geometry.backupGroups[1];
	if (group === 1 || !geometry.has.sparseSuper) return true;
	return group % 2 === 1 && [3, 5, 7].some((base) => isPowerOf(group, base));
}

function isPowerOf(n: number, base: number): boolean {
	let rest = n;
	while (rest % base === 0) rest /= base;
	return rest === 1;
}

/** The block that holds block `index` of the group descriptors (the primary one). */
export function descriptorBlockAt(geometry: Geometry, index: number): number {
	const superblockBlock = geometry.blockSize === 1024 ? 1 : 0;
	if (index < geometry.firstMetaGroup) return superblockBlock + 1 + index;
	const group = index * geometry.descriptorsPerBlock;
	let behind = hasSuperblock(geometry, group) ? 1 : 0;
	// With 1 KiB blocks and clusters, block 0 is part of group 0, in front of the superblock.
	if (geometry.blockSize === 1024 && geometry.firstDataBlock === 0 && index === 0) behind++;
	return groupStart(geometry, group) + behind;
}

/** How many blocks at a group's start hold superblock, descriptors and reserved descriptors. */
export function baseMetadataBlocks(geometry: Geometry, group: number): number {
	const metaGroup = Math.floor(group / geometry.descriptorsPerBlock);
	const superblocks = hasSuperblock(geometry, group) ? 1 : 0;
	if (metaGroup < geometry.firstMetaGroup) {
		if (superblocks === 0) return 0;
		const descriptors = Math.min(geometry.descriptorBlocks, geometry.firstMetaGroup);
		// Block 0 in front of the superblock, see above.
		const boot = group === 0 && geometry.blockSize === 1024 && geometry.firstDataBlock === 0 ? 1 : 0;
		return boot + superblocks + descriptors + geometry.reservedDescriptorBlocks;
	}
	const first = metaGroup * geometry.descriptorsPerBlock;
	const holdsDescriptors = group === first || group === first + 1 || group === first + geometry.descriptorsPerBlock - 1;
	const boot = group === 0 && geometry.blockSize === 1024 && geometry.firstDataBlock === 0 ? 1 : 0;
	return boot + superblocks + (holdsDescriptors ? 1 : 0);
}

/** Sorted, disjoint, merged runs of blocks. */
export class BlockRanges {
	readonly #starts: Float64Array;
	readonly #ends: Float64Array;

	constructor(ranges: { start: number; end: number }[]) {
		const sorted = ranges.filter(({ start, end }) => end > start).sort((a, b) => a.start - b.start);
		const merged: { start: number; end: number }[] = [];
		for (const range of sorted) {
			const last = merged.at(-1);
			if (last !== undefined && range.start <= last.end) last.end = Math.max(last.end, range.end);
			else merged.push({ ...range });
		}
		this.#starts = Float64Array.from(merged, (range) => range.start);
		this.#ends = Float64Array.from(merged, (range) => range.end);
	}

	get count(): number {
		return this.#starts.length;
	}

	/** The parts of the ranges inside `[from, to)`, in order. */
	*within(from: number, to: number): Generator<{ start: number; end: number }> {
		if (from >= to) return;
		let low = 0;
		let high = this.#ends.length;
		while (low < high) {
			const middle = (low + high) >>> 1;
			if (this.#ends[middle]! <= from) low = middle + 1;
			else high = middle;
		}
		for (let i = low; i < this.#starts.length && this.#starts[i]! < to; i++)
			yield { start: Math.max(from, this.#starts[i]!), end: Math.min(to, this.#ends[i]!) };
	}
}

/** Runs of blocks at the starts of groups: superblock copies, descriptors, reserved descriptors; and the boot area. */
export function baseMetadata(geometry: Geometry): { start: number; end: number }[] {
	const ranges = [{ start: 0, end: geometry.firstDataBlock + 1 }];
	if (geometry.mmpBlock > 0) ranges.push({ start: geometry.mmpBlock, end: geometry.mmpBlock + 1 });
	for (let group = 0; group < geometry.groupCount; group++) {
		const blocks = baseMetadataBlocks(geometry, group);
		const start = groupStart(geometry, group);
		if (blocks > 0) ranges.push({ start, end: Math.min(start + blocks, groupEnd(geometry, group)) });
	}
	return ranges;
}
