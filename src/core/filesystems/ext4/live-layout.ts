// The layout that the live rule follows: which blocks of the volume are structure, and what to watch of it.
//
//   | superblock | descriptors | … bitmap … | journal: superblock, ring | … bitmap … |
//     structure    structure       structure   journal, with a mark on commit blocks
//
// Reserved descriptors, inode tables and backups are not watched: no free block is proved by them.

import { joinRanges } from "../../../foundations/byte-ranges.ts";
import { viewOf } from "../../../foundations/struct.ts";
import type { ByteCount } from "../../../foundations/units.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { WatchRange } from "../live.ts";
import { signatureRanges } from "../signatures.ts";
import { Compat, Incompat, RoCompat } from "./features.ts";
import { parseDescriptor, readDescriptors } from "./free-space.ts";
import { descriptorBlockAt } from "./groups.ts";
import type { JournalFile } from "./journal-file.ts";
import { BLOCK_COMMIT, JBD2_MAGIC, SUPERBLOCK_AT, SuperBlock } from "./layout.ts";
import type { Geometry } from "./open.ts";
import type { Recovered } from "./recover.ts";

/** Feature bits that the kernel itself changes while it goes on writing the same file system. */
const KERNEL_COMPAT = ~Compat.fastCommit;
const KERNEL_INCOMPAT = ~Incompat.recover;
const KERNEL_RO_COMPAT = ~RoCompat.orphanPresent;

/** What the structure blocks of a layout are. */
export interface Structure {
	readonly geometry: Geometry;
	readonly superblockBlock: number;
	/** Block of the group descriptors: its index among them. */
	readonly descriptorBlocks: ReadonlyMap<number, number>;
	/** Block bitmap: its group. */
	readonly bitmaps: ReadonlyMap<number, number>;
	readonly journal: JournalFile | null;
}

/** Reads the descriptors of a recovered volume for where its bitmaps are. */
export async function readStructure({ geometry, view, journal }: Recovered): Promise<Structure> {
	const descriptors = await readDescriptors(view, geometry);
	const bitmaps = new Map<number, number>();
	for (let group = 0; group < geometry.groupCount; group++) {
		const { blockBitmap, wrong } = parseDescriptor(descriptors, geometry, group);
		if (wrong === null) bitmaps.set(blockBitmap, group);
	}
	const descriptorBlocks = new Map<number, number>();
	for (let index = 0; index < geometry.descriptorBlocks; index++)
		descriptorBlocks.set(descriptorBlockAt(geometry, index), index);
	const superblockBlock = geometry.blockSize === 1024 ? 1 : 0;
	return { geometry, superblockBlock, descriptorBlocks, bitmaps, journal: journal?.file ?? null };
}

export const isStructureBlock = (structure: Structure, block: number): boolean =>
	block === structure.superblockBlock || structure.descriptorBlocks.has(block) || structure.bitmaps.has(block);

/** True where both have the same structure blocks and journal. */
export const isSameStructure = (a: Structure, b: Structure): boolean =>
	isSameVolume(a.geometry, b.geometry) &&
	sameRuns(a.journal, b.journal) &&
	a.bitmaps.size === b.bitmaps.size &&
	[...b.bitmaps].every(([block, group]) => a.bitmaps.get(block) === group);

/** What the data plane must report: structure merged into runs, the journal with the mark of commit blocks. */
export function watchRanges(volumeSize: ByteCount, structure: Structure | null): readonly WatchRange[] {
	const places: { start: number; length: number }[] = [
		{ start: 0, length: SUPERBLOCK_AT + SuperBlock.size },
		...signatureRanges(volumeSize),
	];
	const journal: WatchRange[] = [];
	if (structure !== null) {
		const { blockSize } = structure.geometry;
		for (const block of [structure.superblockBlock, ...structure.descriptorBlocks.keys(), ...structure.bitmaps.keys()])
			places.push({ start: block * blockSize, length: blockSize });
		const pattern = new Uint8Array(8);
		viewOf(pattern).setUint32(0, JBD2_MAGIC);
		viewOf(pattern).setUint32(4, BLOCK_COMMIT);
		for (const { physical, count } of structure.journal?.runs ?? [])
			journal.push({
				start: byteOffset(physical * blockSize),
				length: byteCount(count * blockSize),
				kind: "journal",
				mark: { pattern, every: byteCount(blockSize) },
			});
	}
	const ranges = joinRanges(
		places.map(({ start, length }) => ({ start: byteOffset(start), length: byteCount(length) })),
	);
	return [...ranges.map((range) => ({ ...range, kind: "structure" as const })), ...journal];
}

/** True where two superblocks describe one file system in one layout; what kernels change in passing does not count. */
export function isSameVolume(a: Geometry, b: Geometry): boolean {
	return (
		a.identity.uuid === b.identity.uuid &&
		a.checksumSeed === b.checksumSeed &&
		a.blockSize === b.blockSize &&
		a.blocksCount === b.blocksCount &&
		a.clusterRatio === b.clusterRatio &&
		a.blocksPerGroup === b.blocksPerGroup &&
		a.inodesPerGroup === b.inodesPerGroup &&
		a.inodeSize === b.inodeSize &&
		a.descriptorSize === b.descriptorSize &&
		a.reservedDescriptorBlocks === b.reservedDescriptorBlocks &&
		a.firstMetaGroup === b.firstMetaGroup &&
		a.journalInode === b.journalInode &&
		a.mmpBlock === b.mmpBlock &&
		(a.features.compat & KERNEL_COMPAT) === (b.features.compat & KERNEL_COMPAT) &&
		(a.features.incompat & KERNEL_INCOMPAT) === (b.features.incompat & KERNEL_INCOMPAT) &&
		(a.features.roCompat & KERNEL_RO_COMPAT) === (b.features.roCompat & KERNEL_RO_COMPAT)
	);
}

const sameRuns = (a: JournalFile | null, b: JournalFile | null): boolean =>
	a === b ||
	(a !== null &&
		b !== null &&
		a.runs.length === b.runs.length &&
		a.runs.every((run, i) => run.physical === b.runs[i]!.physical && run.count === b.runs[i]!.count));
