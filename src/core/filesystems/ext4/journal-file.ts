// Where the journal lies: the blocks of its inode, through an extent tree or through indirect blocks.
//
//   inode 8 ── extents ──▶ header | index … ──▶ header | leaf …        i_flags has EXTENTS
//           └─ blocks  ──▶ 12 direct | indirect | double | triple       ext3 and "^extent"
//
// A journal has no holes and no unwritten parts; one that seems to have is damaged. Trees are walked with a depth
// that must shrink and a logical position that must grow, so a ring or a repeated node ends the walk.

import { crc32c } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import { descriptorBlockAt } from "./groups.ts";
import {
	EXTENT_MAGIC,
	Extent,
	ExtentHeader,
	ExtentIndex,
	GroupDescriptor,
	INODE_CHECKSUM_HIGH_AT,
	INODE_CHECKSUM_LOW_AT,
	INODE_EXTENTS_FLAG,
	Inode,
} from "./layout.ts";
import type { Geometry } from "./open.ts";

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its journal's inode is damaged: ${what}`);

/** More than mke2fs' largest default journal (1 GiB) in the smallest blocks; bounds time and memory. */
export const MAX_JOURNAL_BLOCKS = 1 << 21;
const MAX_DEPTH = 5;

/** A run of journal blocks that lie together in the volume. */
export interface JournalRun {
	readonly logical: number;
	readonly physical: number;
	readonly count: number;
}

/** The journal's blocks in order. */
export class JournalFile {
	readonly runs: readonly JournalRun[];
	readonly blockCount: number;
	/** The same runs, by their place in the volume. */
	readonly #byPlace: readonly JournalRun[];

	constructor(runs: readonly JournalRun[]) {
		this.runs = runs;
		this.#byPlace = [...runs].sort((a, b) => a.physical - b.physical);
		this.blockCount = runs.reduce((sum, run) => sum + run.count, 0);
	}

	/** The volume's block that holds journal block `logical`, and how many more follow it directly. */
	locate(logical: number): { physical: number; count: number } {
		const run = lastNotAbove(this.runs, logical, (each) => each.logical);
		if (run === undefined || logical < run.logical || logical >= run.logical + run.count)
			throw damaged(`it has no block ${logical}`);
		const within = logical - run.logical;
		return { physical: run.physical + within, count: run.count - within };
	}

	/** The journal block that lies at the volume's block `physical`, or -1. */
	logicalAt(physical: number): number {
		const run = lastNotAbove(this.#byPlace, physical, (each) => each.physical);
		const isInside = run !== undefined && physical >= run.physical && physical < run.physical + run.count;
		return isInside ? run.logical + physical - run.physical : -1;
	}
}

/** The last of the sorted `runs` whose key is not above `limit`; the first one where all are. */
function lastNotAbove(
	runs: readonly JournalRun[],
	limit: number,
	key: (run: JournalRun) => number,
): JournalRun | undefined {
	let low = 0;
	let high = runs.length - 1;
	while (low < high) {
		const middle = (low + high + 1) >>> 1;
		if (key(runs[middle]!) <= limit) low = middle;
		else high = middle - 1;
	}
	return runs[low];
}

/** Finds the blocks of the internal journal. Throws VOLUME_DAMAGED where its inode makes no sense. */
export async function findJournal(volume: ByteSource, geometry: Geometry): Promise<JournalFile> {
	const { raw, seed } = await readInode(volume, geometry, geometry.journalInode);
	const inode = Inode.at(viewOf(raw));
	if ((inode.mode & 0xf000) !== 0x8000 || inode.linksCount === 0) throw damaged("it is no regular file");
	const wanted = Math.floor((inode.sizeLow + inode.sizeHigh * 2 ** 32) / geometry.blockSize);
	if (wanted === 0 || wanted > MAX_JOURNAL_BLOCKS || wanted > geometry.blocksCount)
		throw damaged(`it has ${wanted} blocks`);
	const runs: { logical: number; physical: number; count: number }[] = [];
	let mapped = 0;
	const add = (physical: number, count: number): void => {
		if (physical < geometry.firstDataBlock + 1 || physical + count > geometry.blocksCount)
			throw damaged(`it points at block ${physical}, outside the file system`);
		const use = Math.min(count, wanted - mapped);
		const last = runs.at(-1);
		if (last !== undefined && last.physical + last.count === physical) last.count += use;
		else if (use > 0) runs.push({ logical: mapped, physical, count: use });
		mapped += use;
	};
	const block = (number: number): Promise<Uint8Array> => {
		if (number < geometry.firstDataBlock + 1 || number >= geometry.blocksCount)
			throw damaged(`it points at block ${number}, outside the file system`);
		return readBytes(volume, byteOffset(number * geometry.blockSize), geometry.blockSize);
	};

	const walkExtents = async (node: Uint8Array, depth: number): Promise<void> => {
		const view = viewOf(node);
		const header = ExtentHeader.at(view);
		const room = Math.floor((node.length - ExtentHeader.size) / Extent.size);
		if (header.magic !== EXTENT_MAGIC || header.depth !== depth || header.entries > header.max || header.max > room)
			throw damaged("its extent tree has a bad header");
		for (let entry = 0; entry < header.entries && mapped < wanted; entry++) {
			const at = ExtentHeader.size + entry * Extent.size;
			if (Extent.read.logicalBlock(view, at) !== mapped) throw damaged(`it has a hole at its block ${mapped}`);
			if (depth === 0) {
				const { length, startHigh, startLow } = Extent.at(view, at);
				if (length === 0 || length > 0x8000) throw damaged("it has an unwritten part");
				add(startLow + startHigh * 2 ** 32, length);
			} else {
				const { leafLow, leafHigh } = ExtentIndex.at(view, at);
				const before = mapped;
				const child = await block(leafLow + leafHigh * 2 ** 32);
				if (geometry.has.metadataChecksum) checkExtentBlock(child, seed);
				await walkExtents(child, depth - 1);
				if (mapped === before) throw damaged("its extent tree has an empty node");
			}
		}
	};
	const walkIndirect = async (number: number, depth: number): Promise<void> => {
		if (depth === 0) return add(number, 1);
		const view = viewOf(await block(number));
		for (let at = 0; at < geometry.blockSize && mapped < wanted; at += 4)
			await walkIndirect(view.getUint32(at, true), depth - 1);
	};

	const root = viewOf(inode.block);
	if ((inode.flags & INODE_EXTENTS_FLAG) !== 0) {
		const depth = ExtentHeader.read.depth(root, 0);
		if (depth > MAX_DEPTH) throw damaged(`its extent tree is ${depth} levels deep`);
		await walkExtents(inode.block, depth);
	} else {
		for (let i = 0; i < 12 && mapped < wanted; i++) await walkIndirect(root.getUint32(i * 4, true), 0);
		for (let level = 1; level <= 3 && mapped < wanted; level++)
			await walkIndirect(root.getUint32((11 + level) * 4, true), level);
	}
	if (mapped !== wanted) throw damaged(`it has only ${mapped} of ${wanted} blocks`);
	return new JournalFile(runs);
}

/** An inode's bytes, checked, and the start value of its checksums. */
async function readInode(
	volume: ByteSource,
	geometry: Geometry,
	number: number,
): Promise<{ raw: Uint8Array; seed: number }> {
	if (number < 1 || number > geometry.inodeCount) throw damaged(`its number is ${number}`);
	const group = Math.floor((number - 1) / geometry.inodesPerGroup);
	const descriptor = await readBytes(
		volume,
		byteOffset(
			descriptorBlockAt(geometry, Math.floor(group / geometry.descriptorsPerBlock)) * geometry.blockSize +
				(group % geometry.descriptorsPerBlock) * geometry.descriptorSize,
		),
		geometry.descriptorSize,
	);
	const view = viewOf(descriptor);
	const high = geometry.descriptorSize >= 64 ? GroupDescriptor.read.inodeTableHigh(view, 0) : 0;
	const table = GroupDescriptor.read.inodeTableLow(view, 0) + high * 2 ** 32;
	if (table <= geometry.firstDataBlock || table + geometry.inodeTableBlocks > geometry.blocksCount)
		throw damaged(`group ${group} has its inode table outside the file system`);
	const at = table * geometry.blockSize + ((number - 1) % geometry.inodesPerGroup) * geometry.inodeSize;
	const raw = await readBytes(volume, byteOffset(at), geometry.inodeSize);
	if (!geometry.has.metadataChecksum) return { raw, seed: 0 };

	const tag = new Uint8Array(8);
	viewOf(tag).setUint32(0, number, true);
	viewOf(tag).setUint32(4, Inode.read.generation(viewOf(raw), 0), true);
	const seed = crc32c(geometry.checksumSeed, tag);
	const zeroed = raw.slice();
	zeroed.fill(0, INODE_CHECKSUM_LOW_AT, INODE_CHECKSUM_LOW_AT + 2);
	let stored = Inode.read.checksumLow(viewOf(raw), 0);
	let mask = 0xffff;
	// `i_extra_isize` says how far the inode reaches behind its first 128 bytes.
	if (raw.length > 128 && viewOf(raw).getUint16(128, true) >= INODE_CHECKSUM_HIGH_AT + 2 - 128) {
		zeroed.fill(0, INODE_CHECKSUM_HIGH_AT, INODE_CHECKSUM_HIGH_AT + 2);
		stored += viewOf(raw).getUint16(INODE_CHECKSUM_HIGH_AT, true) * 0x1_0000;
		mask = 0xffffffff;
	}
	if ((crc32c(seed, zeroed) & mask) >>> 0 !== stored) throw damaged("its checksum is wrong");
	return { raw, seed };
}

/** Verifies the checksum behind the last possible entry of an extent block (`ext4_extent_tail`). */
function checkExtentBlock(node: Uint8Array, seed: number): void {
	const view = viewOf(node);
	const tail = ExtentHeader.size + ExtentHeader.read.max(view, 0) * Extent.size;
	if (tail + 4 > node.length || view.getUint32(tail, true) !== crc32c(seed, node.subarray(0, tail)))
		throw damaged("its extent tree has a wrong checksum");
}
