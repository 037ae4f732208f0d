// Never used: blocks that ext counts as its own, but whose content nobody will ever read.
//
//   inode table   | used inodes | … | never needed again until it is written |     bg_itable_unused at its end
//   journal       | superblock | blocks of finished transactions …           |     nothing to replay
//
// Inode tables. With checksummed descriptors a group says how many inodes at the end of its table are not in use, and
// that the whole table is not (INODE_UNINIT); the kernel and e2fsck then don't read that part (Linux,
// Documentation/filesystems/ext4, "Block Group Descriptors", "Lazy Block Group Initialization"). Zeros there are what the
// kernel writes itself after a mount (`ext4_init_inode_table` zeroes exactly these blocks, unless INODE_ZEROED says that
// they are zeros already or were used since), and what a kernel assumes that makes the first inode of such a block
// (`__ext4_get_inode_loc` fills it with zeros instead of reading it). So it doesn't matter what is there now.
//
// The journal. Where it is empty (`s_start` is 0), recovery does nothing, and the next mount writes from anew. Recovery
// after a later crash ends at the first block that doesn't continue the chain, which a zeroed block does at once.
//
// Invariants
//  - only of volumes that were unmounted cleanly: a running kernel may have taken such inodes already, or the journal
//  - only of groups whose descriptor's checksum is right, and only whole blocks
//  - no block that any other metadata claims: where two overlap, nothing of the volume is told

import type { Group } from "./free-space.ts";
import { BlockRanges, baseMetadata } from "./groups.ts";
import type { JournalInfo } from "./journal-blocks.ts";
import type { JournalFile, JournalRun } from "./journal-file.ts";
import type { Geometry } from "./open.ts";

interface Blocks {
	readonly start: number;
	readonly end: number;
}

/** Inodes that every file system has in its first group; the kernel finds them missing where the table says so. */
const FIRST_GROUP_INODES = 11;

/** The never used blocks of a cleanly unmounted volume, and how many they are. */
export function neverUsedBlocks(
	geometry: Geometry,
	groups: readonly Group[],
	journal: { readonly file: JournalFile; readonly info: JournalInfo } | null,
): { readonly ranges: BlockRanges; readonly count: number } {
	const inTables = groups.flatMap((group, index) => unusedTable(geometry, group, index));
	const inJournal = journal === null ? [] : finishedJournal(journal.file, journal.info);
	const none = { ranges: new BlockRanges([]), count: 0 };
	if (inTables.length + inJournal.length === 0 || metadataOverlaps(geometry, groups, journal?.file.runs ?? []))
		return none;
	const blocks = [...inTables, ...inJournal];
	return { ranges: new BlockRanges(blocks), count: blocks.reduce((sum, { start, end }) => sum + end - start, 0) };
}

/** The blocks of a group's inode table behind the last one that holds an inode in use. */
function unusedTable(geometry: Geometry, { wrong, inodeTable, unusedInodes }: Group, index: number): Blocks[] {
	const used = geometry.inodesPerGroup - unusedInodes;
	if (wrong !== null || unusedInodes === 0 || (index === 0 && used < FIRST_GROUP_INODES)) return [];
	const usedBlocks = Math.ceil((used * geometry.inodeSize) / geometry.blockSize);
	if (usedBlocks >= geometry.inodeTableBlocks) return [];
	return [{ start: inodeTable + usedBlocks, end: inodeTable + geometry.inodeTableBlocks }];
}

/** The ring and the area of fast commits of an empty journal. */
function finishedJournal(file: JournalFile, { start, first, blockCount }: JournalInfo): Blocks[] {
	if (start !== 0 || first < 1) return [];
	return file.runs.flatMap(({ logical, physical, count }) => {
		const skipped = Math.max(0, first - logical);
		const length = Math.min(count, blockCount - logical) - skipped;
		return length > 0 ? [{ start: physical + skipped, end: physical + skipped + length }] : [];
	});
}

/** True where any two pieces of metadata claim one block, which no file system in order has. */
function metadataOverlaps(geometry: Geometry, groups: readonly Group[], journal: readonly JournalRun[]): boolean {
	const all: Blocks[] = [
		...baseMetadata(geometry),
		...journal.map(({ physical, count }) => ({ start: physical, end: physical + count })),
	];
	for (const { wrong, blockBitmap, inodeBitmap, inodeTable } of groups) {
		if (wrong !== null) return true;
		all.push({ start: blockBitmap, end: blockBitmap + 1 }, { start: inodeBitmap, end: inodeBitmap + 1 });
		all.push({ start: inodeTable, end: inodeTable + geometry.inodeTableBlocks });
	}
	all.sort((a, b) => a.start - b.start);
	// The boot area and the first group's superblock are told twice.
	return all.some(({ start }, index) => index > 0 && start > geometry.firstDataBlock && start < all[index - 1]!.end);
}
