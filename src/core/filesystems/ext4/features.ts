// Feature bits of ext2, ext3, ext4 and jbd2: each one is either read here or refused by name.
//
// `read` means that it changes nothing about where free space is, or that its change is implemented. A bit that is
// in no list is refused with its number: it is newer than this reader, and may change anything, even where the
// format's rules allow old kernels to mount it.

import { checkWord, type FeatureWord } from "../feature-words.ts";

export const Compat = {
	hasJournal: 0x4,
	resizeInode: 0x10,
	sparseSuper2: 0x200,
	fastCommit: 0x400,
} as const;
export const Incompat = {
	recover: 0x4,
	metaBg: 0x10,
	is64Bit: 0x80,
	mmp: 0x100,
	flexBg: 0x200,
	checksumSeed: 0x2000,
} as const;
export const RoCompat = {
	sparseSuper: 0x1,
	groupChecksum: 0x10,
	bigalloc: 0x200,
	metadataChecksum: 0x400,
	orphanPresent: 0x10000,
} as const;
export const JournalIncompat = {
	revoke: 0x1,
	is64Bit: 0x2,
	asyncCommit: 0x4,
	checksumV2: 0x8,
	checksumV3: 0x10,
	fastCommit: 0x20,
} as const;
/** `JBD2_FEATURE_COMPAT_CHECKSUM`: one checksum over a whole transaction, in its commit block. */
export const JOURNAL_COMPAT_CHECKSUM = 0x1;

const compat: FeatureWord = {
	word: "compatible",
	read: new Map<number, string>([
		[0x1, "dir_prealloc"],
		[0x2, "imagic_inodes"],
		[0x4, "has_journal"],
		[0x8, "ext_attr"],
		[0x10, "resize_inode"],
		[0x20, "dir_index"],
		[0x200, "sparse_super2"],
		[0x400, "fast_commit"],
		[0x800, "stable_inodes"],
		[0x1000, "orphan_file"],
	]),
	refused: new Map<number, string>([
		[0x40, "lazy_bg"],
		[0x80, "snapshot_inode"],
		[0x100, "snapshot_bitmap"],
	]),
};
const incompat: FeatureWord = {
	word: "incompatible",
	read: new Map<number, string>([
		[0x2, "filetype"],
		[0x4, "needs_recovery"],
		[0x10, "meta_bg"],
		[0x40, "extent"],
		[0x80, "64bit"],
		[0x100, "mmp"],
		[0x200, "flex_bg"],
		[0x400, "ea_inode"],
		[0x2000, "metadata_csum_seed"],
		[0x4000, "large_dir"],
		[0x8000, "inline_data"],
		[0x10000, "encrypt"],
		[0x20000, "casefold"],
	]),
	refused: new Map<number, string>([
		[0x1, "compression"],
		[0x8, "journal_dev"],
		[0x1000, "dirdata"],
	]),
};
const roCompat: FeatureWord = {
	word: "read-only compatible",
	read: new Map<number, string>([
		[0x1, "sparse_super"],
		[0x2, "large_file"],
		[0x4, "btree_dir"],
		[0x8, "huge_file"],
		[0x10, "uninit_bg"],
		[0x20, "dir_nlink"],
		[0x40, "extra_isize"],
		[0x100, "quota"],
		[0x200, "bigalloc"],
		[0x400, "metadata_csum"],
		[0x1000, "read-only"],
		[0x2000, "project"],
		[0x8000, "verity"],
		[0x10000, "orphan_present"],
	]),
	refused: new Map<number, string>([
		[0x80, "has_snapshot"],
		[0x800, "replica"],
		[0x4000, "shared_blocks"],
	]),
};
const journalWord: FeatureWord = {
	word: "journal",
	read: new Map<number, string>([
		[0x1, "revoke"],
		[0x2, "64bit"],
		[0x4, "async_commit"],
		[0x8, "checksum_v2"],
		[0x10, "checksum_v3"],
		[0x20, "fast_commit"],
	]),
	refused: new Map<number, string>(),
};

/** Throws VOLUME_UNSUPPORTED, naming the feature, unless all bits of the superblock's three words are read here. */
export function checkFeatures(words: { compat: number; incompat: number; roCompat: number }): void {
	checkWord(words.incompat, incompat);
	checkWord(words.roCompat, roCompat);
	checkWord(words.compat, compat);
}

/** Same for the journal's superblock. */
export function checkJournalFeatures(words: { compat: number; incompat: number; roCompat: number }): void {
	checkWord(words.incompat, journalWord);
	checkWord(words.roCompat, {
		word: "read-only compatible journal",
		read: new Map<number, string>(),
		refused: new Map<number, string>(),
	});
	checkWord(words.compat, {
		word: "compatible journal",
		read: new Map<number, string>([[0x1, "checksum"]]),
		refused: new Map<number, string>(),
	});
}
