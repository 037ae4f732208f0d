// Free space: from group descriptors and block bitmaps to one bit per cluster of the volume.
//
//   descriptor ──▶ block bitmap on disk     checksum right, free count as the descriptor says  ─▶ its bits
//              └─▶ BLOCK_UNINIT: computed   only where checksums protect the descriptors       ─▶ all but metadata
//   then the metadata of *all* groups, the journal and the boot area are marked in use
//
// Invariants
//  - a group about which anything is wrong is in use as a whole, and a warning says why
//  - a computed bitmap is believed only while every descriptor is right: a wrong one might have put its inode
//    table into the very group that looks untouched
//  - a group can be read again alone, with the same outcome as reading all (the live rule does that)
//
// Bitmaps are read with few large requests (flex_bg lays sixteen side by side), so a map costs little more than
// the bitmaps' bytes: 32 MiB for a full volume of 1 TiB, and nothing for groups that were never used.

import { crc16, crc32c } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { countZeroBits, UsedBitmap } from "../used-bitmap.ts";
import { readBlocks } from "./block-reader.ts";
import { BlockRanges, baseMetadata, descriptorBlockAt } from "./groups.ts";
import type { JournalRun } from "./journal-file.ts";
import { BLOCK_UNINIT, GroupDescriptor, INODE_UNINIT } from "./layout.ts";
import type { Geometry } from "./open.ts";
import { clustersInGroup, groupEnd, groupStart } from "./open.ts";

const MAX_WARNINGS = 20;

/** One group descriptor, as far as free space needs it. */
export interface Group {
	readonly blockBitmap: number;
	readonly inodeBitmap: number;
	readonly inodeTable: number;
	readonly freeClusters: number;
	readonly uninitialised: boolean;
	/** Inodes at the end of its table that are not in use; 0 where no checksum protects that statement. */
	readonly unusedInodes: number;
	readonly bitmapChecksum: number;
	/** Why the group cannot be believed, or null. */
	readonly wrong: string | null;
}

/** All group descriptors, one behind the other in group order, without gaps. */
export async function readDescriptors(volume: ByteSource, geometry: Geometry): Promise<Uint8Array> {
	const places = Array.from({ length: geometry.descriptorBlocks }, (_, index) => descriptorBlockAt(geometry, index));
	if (places.some((block) => block >= geometry.blocksCount))
		throw new VmsweepError("VOLUME_DAMAGED", "its group descriptors lie outside it; run e2fsck in the guest");
	const all = new Uint8Array(geometry.descriptorBlocks * geometry.blockSize);
	await readBlocks(volume, geometry.blockSize, places, (index, block) => all.set(block, index * geometry.blockSize));
	return all.subarray(0, geometry.groupCount * geometry.descriptorSize);
}

/** Parses and checks a group's descriptor at byte `at` of `descriptors`; by default of {@link readDescriptors}'s array. */
export function parseDescriptor(
	descriptors: Uint8Array,
	geometry: Geometry,
	group: number,
	at: number = group * geometry.descriptorSize,
): Group {
	const raw = descriptors.subarray(at, at + geometry.descriptorSize);
	const view = viewOf(raw);
	const read = GroupDescriptor.read;
	const wide = geometry.descriptorSize >= 64;
	const place = (low: number, high: (view: DataView, base: number) => number): number =>
		low + (wide ? high(view, 0) * 2 ** 32 : 0);
	const blockBitmap = place(read.blockBitmapLow(view, 0), read.blockBitmapHigh);
	const inodeBitmap = place(read.inodeBitmapLow(view, 0), read.inodeBitmapHigh);
	const inodeTable = place(read.inodeTableLow(view, 0), read.inodeTableHigh);
	const inside = (block: number, count: number): boolean =>
		block >= geometry.firstDataBlock && block + count <= geometry.blocksCount;
	let wrong: string | null = null;
	const expected = descriptorChecksum(raw, geometry, group);
	if (expected !== null && expected !== read.checksum(view, 0)) wrong = "its descriptor's checksum is wrong";
	else if (!inside(blockBitmap, 1) || !inside(inodeBitmap, 1) || !inside(inodeTable, geometry.inodeTableBlocks))
		wrong = "its descriptor points outside the file system";
	return {
		blockBitmap,
		inodeBitmap,
		inodeTable,
		freeClusters: read.freeBlocksLow(view, 0) + (wide ? read.freeBlocksHigh(view, 0) * 0x1_0000 : 0),
		uninitialised: expected !== null && (read.flags(view, 0) & BLOCK_UNINIT) !== 0,
		unusedInodes: expected === null ? 0 : unusedInodes(view, geometry, wide),
		bitmapChecksum:
			read.blockBitmapChecksumLow(view, 0) + (wide ? read.blockBitmapChecksumHigh(view, 0) * 0x1_0000 : 0),
		wrong,
	};
}

/** `bg_itable_unused`, 0 where it contradicts the number of free inodes. */
function unusedInodes(view: DataView, { inodesPerGroup }: Geometry, wide: boolean): number {
	const read = GroupDescriptor.read;
	const count = (low: number, high: (view: DataView, base: number) => number): number =>
		low + (wide ? high(view, 0) * 0x1_0000 : 0);
	const free = count(read.freeInodesLow(view, 0), read.freeInodesHigh);
	const isUninitialised = (read.flags(view, 0) & INODE_UNINIT) !== 0;
	const unused = isUninitialised ? inodesPerGroup : count(read.unusedInodesLow(view, 0), read.unusedInodesHigh);
	return unused <= free && free <= inodesPerGroup ? unused : 0;
}

/** The checksum that a descriptor should carry, or null where the file system has none. */
function descriptorChecksum(raw: Uint8Array, geometry: Geometry, group: number): number | null {
	const at = GroupDescriptor.offset.checksum;
	const number = new Uint8Array(4);
	viewOf(number).setUint32(0, group, true);
	if (geometry.has.metadataChecksum) {
		let sum = crc32c(crc32c(geometry.checksumSeed, number), raw.subarray(0, at));
		sum = crc32c(sum, new Uint8Array(2));
		return crc32c(sum, raw.subarray(at + 2)) & 0xffff;
	}
	if (!geometry.has.groupChecksum) return null;
	const sum = crc16(crc16(crc16(0xffff, geometry.uuidBytes), number), raw.subarray(0, at));
	return geometry.has.is64Bit ? crc16(sum, raw.subarray(at + 2)) : sum;
}

/** The free space of a volume: bitmap, and what it was built from. */
export class Allocation {
	readonly geometry: Geometry;
	readonly used: UsedBitmap;
	readonly #groups: Group[];
	/** All blocks that hold metadata, whatever the bitmaps say. */
	readonly metadata: BlockRanges;
	readonly #warnings = new Map<number, string>();
	readonly #anyDescriptorWrong: boolean;
	/** Free clusters of each group as this map sees them: counted once, when a group is read. */
	readonly #free: Float64Array;

	constructor(geometry: Geometry, descriptors: Uint8Array, journal: readonly JournalRun[]) {
		this.geometry = geometry;
		this.used = new UsedBitmap(geometry.clusterCount);
		this.#groups = Array.from({ length: geometry.groupCount }, (_, group) =>
			parseDescriptor(descriptors, geometry, group),
		);
		this.#free = new Float64Array(geometry.groupCount);
		this.#anyDescriptorWrong = this.groups.some((group) => group.wrong !== null);
		const ranges = baseMetadata(geometry);
		for (const { physical, count } of journal) ranges.push({ start: physical, end: physical + count });
		for (const group of this.groups) {
			if (group.wrong !== null) continue;
			ranges.push({ start: group.blockBitmap, end: group.blockBitmap + 1 });
			ranges.push({ start: group.inodeBitmap, end: group.inodeBitmap + 1 });
			ranges.push({ start: group.inodeTable, end: group.inodeTable + geometry.inodeTableBlocks });
		}
		this.metadata = new BlockRanges(ranges);
	}

	get groups(): readonly Group[] {
		return this.#groups;
	}

	/**
	 * Takes a newer descriptor of a group; its bitmap must be read again. False where it moves the group's metadata or
	 * is wrong: then only reading everything again tells the truth.
	 */
	replaceDescriptor(group: number, next: Group): boolean {
		const before = this.#groups[group]!;
		if (
			next.wrong !== null ||
			before.wrong !== null ||
			next.blockBitmap !== before.blockBitmap ||
			next.inodeBitmap !== before.inodeBitmap ||
			next.inodeTable !== before.inodeTable
		)
			return false;
		this.#groups[group] = next;
		return true;
	}

	/** What is wrong with which groups; at most a screenful. */
	get warnings(): readonly string[] {
		const all = [...this.#warnings]
			.sort(([a], [b]) => a - b)
			.map(([group, text]) => `group ${group} is kept whole: ${text}`);
		return all.length <= MAX_WARNINGS
			? all
			: [...all.slice(0, MAX_WARNINGS), `${all.length - MAX_WARNINGS} more groups are kept whole`];
	}

	get badGroupCount(): number {
		return this.#warnings.size;
	}

	/** Reads the bitmaps of the given groups and takes over what they prove. */
	async readGroups(volume: ByteSource, groups: readonly number[]): Promise<void> {
		const onDisk: number[] = [];
		for (const group of groups) {
			this.#warnings.delete(group);
			const { wrong, uninitialised } = this.groups[group]!;
			if (wrong !== null) this.#keep(group, wrong);
			else if (uninitialised) this.#compute(group);
			else onDisk.push(group);
		}
		const places = onDisk.map((group) => this.groups[group]!.blockBitmap);
		await readBlocks(volume, this.geometry.blockSize, places, (index, bitmap) => this.#take(onDisk[index]!, bitmap));
	}

	/** `ext4_init_block_bitmap`: everything is free but the metadata. */
	#compute(group: number): void {
		if (this.#anyDescriptorWrong) {
			this.#keep(group, "it was never used, but another group's descriptor is wrong");
			return;
		}
		const { first, count } = this.#clusters(group);
		this.used.markFree(first, count);
		const free = count - this.#markMetadata(group);
		const stated = this.groups[group]!.freeClusters;
		this.#free[group] = free;
		if (free !== stated) this.#keep(group, `its descriptor says ${stated} free units, its layout leaves ${free}`);
	}

	#take(group: number, bitmap: Uint8Array): void {
		const { first, count } = this.#clusters(group);
		const { freeClusters: stated, bitmapChecksum } = this.groups[group]!;
		if (this.geometry.has.metadataChecksum) {
			const sum = crc32c(this.geometry.checksumSeed, bitmap.subarray(0, this.geometry.clustersPerGroup / 8));
			if ((this.geometry.descriptorSize >= 64 ? sum : sum & 0xffff) !== bitmapChecksum) {
				this.#keep(group, "its block bitmap's checksum is wrong");
				return;
			}
		}
		const free = countZeroBits(bitmap, count);
		if (free !== stated) {
			this.#keep(group, `its descriptor says ${stated} free units, its bitmap ${free}`);
			return;
		}
		this.used.copyFrom(first, count, bitmap);
		this.#free[group] = free;
		if (this.#markMetadata(group) > 0) this.#keep(group, "its bitmap shows metadata as free");
	}

	#keep(group: number, why: string): void {
		const { first, count } = this.#clusters(group);
		this.used.markUsed(first, first + count);
		this.#free[group] = 0;
		this.#warnings.set(group, why);
	}

	/** Marks the group's part of all metadata as in use. Returns how many units were free before. */
	#markMetadata(group: number): number {
		const { firstDataBlock, clusterRatio } = this.geometry;
		let changed = 0;
		for (const { start, end } of this.metadata.within(
			groupStart(this.geometry, group),
			groupEnd(this.geometry, group),
		)) {
			const from = Math.floor((start - firstDataBlock) / clusterRatio);
			const to = Math.ceil((end - firstDataBlock) / clusterRatio);
			changed += this.used.countFree(from, to);
			this.used.markUsed(from, to);
		}
		return changed;
	}

	#clusters(group: number): { first: number; count: number } {
		return { first: group * this.geometry.clustersPerGroup, count: clustersInGroup(this.geometry, group) };
	}

	/** Free bytes of the volume. */
	freeBytes(): number {
		const { clusterRatio, blockSize, blocksCount, firstDataBlock, clusterCount } = this.geometry;
		const bytes = this.#free.reduce((sum, free) => sum + free, 0) * clusterRatio * blockSize;
		// The last cluster may reach past the file system's end.
		if (clusterCount === 0 || this.used.isUsed(clusterCount - 1)) return bytes;
		return bytes - (firstDataBlock + clusterCount * clusterRatio - blocksCount) * blockSize;
	}

	/** Free runs that overlap `[from, to)`, cut to it, in bytes of the volume. */
	*freeRuns(from: number, to: number): Generator<{ start: number; length: number }> {
		const { clusterRatio, blockSize, blocksCount, firstDataBlock } = this.geometry;
		const unit = clusterRatio * blockSize;
		const base = firstDataBlock * blockSize;
		const end = Math.min(to, blocksCount * blockSize);
		if (from >= end) return;
		for (const run of this.used.freeRuns(
			Math.max(0, Math.floor((from - base) / unit)),
			Math.max(0, Math.ceil((end - base) / unit)),
		)) {
			const start = Math.max(from, base + run.start * unit);
			const stop = Math.min(end, base + run.end * unit);
			if (stop > start) yield { start, length: stop - start };
		}
	}
}
