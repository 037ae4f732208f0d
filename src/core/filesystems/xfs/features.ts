// Feature bits of XFS: each one is either read here or refused by name.
//
// `read` means that it changes nothing about where free space is. A bit that is in no list is refused with its number:
// it is newer than this reader, and may change anything, even where the format's rules allow old kernels to mount it
// read-only. The "compatible" word of version 5 is not looked at: no bit of it was ever used, and none may matter.

import { VmsweepError } from "../../../foundations/errors.ts";
import { checkWord, type FeatureWord } from "../feature-words.ts";

export const Incompat = { metaUuid: 0x4, needsRepair: 0x10 } as const;

/** Version 5, `sb_features_incompat`. */
const incompat: FeatureWord = {
	word: "incompatible",
	read: new Map<number, string>([
		[0x1, "ftype"],
		[0x2, "sparse"],
		[0x4, "meta_uuid"],
		[0x8, "bigtime"],
		[0x20, "nrext64"],
		[0x40, "exchange"],
		[0x80, "parent"],
	]),
	refused: new Map<number, string>([
		[0x100, "metadir"],
		[0x200, "zoned"],
		[0x400, "zone gaps"],
	]),
};

/** Version 5, `sb_features_ro_compat`. */
const roCompat: FeatureWord = {
	word: "read-only compatible",
	read: new Map<number, string>([
		[0x1, "finobt"],
		[0x2, "rmapbt"],
		[0x4, "reflink"],
		[0x8, "inobtcount"],
	]),
	refused: new Map<number, string>(),
};

/** Version 4, the bits of `sb_versionnum` above the number itself. */
const version: FeatureWord = {
	word: "version",
	read: new Map<number, string>([
		[0x10, "attr"],
		[0x20, "nlink"],
		[0x40, "quota"],
		[0x80, "align"],
		[0x100, "dalign"],
		[0x400, "logv2"],
		[0x800, "sector"],
		[0x1000, "extflg"],
		[0x2000, "dirv2"],
		[0x4000, "ascii-ci"],
		[0x8000, "morebits"],
	]),
	refused: new Map<number, string>([[0x200, "shared"]]),
};

/** Version 4, `sb_features2`. */
const features2: FeatureWord = {
	word: "second version",
	read: new Map<number, string>([
		[0x2, "lazy-count"],
		[0x8, "attr2"],
		[0x80, "projid32bit"],
		[0x200, "ftype"],
	]),
	refused: new Map<number, string>([[0x10, "parent"]]),
};
const VERSION_DIRECTORY_2 = 0x2000;
const VERSION_MORE_BITS = 0x8000;

/** The words that a superblock has. */
export interface FeatureWords {
	/** `sb_versionnum`, with the format's version in the lowest four bits. */
	readonly version: number;
	readonly features2: number;
	readonly roCompat: number;
	readonly incompat: number;
}

/** Throws VOLUME_UNSUPPORTED, naming the feature, unless all bits are read here; VOLUME_DAMAGED for a known-broken volume. */
export function checkFeatures(words: FeatureWords): void {
	if ((words.version & 0xf) === 5) {
		if ((words.incompat & Incompat.needsRepair) !== 0)
			throw new VmsweepError("VOLUME_DAMAGED", "it is marked as needing repair; run xfs_repair in the guest");
		checkWord(words.incompat, incompat);
		checkWord(words.roCompat, roCompat);
		return;
	}
	checkWord(words.version & 0xfff0, version);
	if ((words.version & VERSION_DIRECTORY_2) === 0)
		throw new VmsweepError("VOLUME_UNSUPPORTED", "it has directories of version 1, which is not supported");
	if ((words.version & VERSION_MORE_BITS) !== 0) checkWord(words.features2, features2);
}
