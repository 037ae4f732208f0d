// Feature bits and flags of a btrfs superblock: each one is either read here or refused by name.
//
// `read` means that it changes nothing about where free space is, or that its change is implemented. A bit in no list
// is refused with its number: it is newer than this reader and may change anything.

import { VmsweepError } from "../../../foundations/errors.ts";
import { SUPER_FLAG_WRITTEN } from "./layout.ts";

export const Incompat = { metadataUuid: 0x400 } as const;
export const CompatRo = { freeSpaceTree: 0x1, freeSpaceTreeValid: 0x2, blockGroupTree: 0x8 } as const;

interface FlagWord {
	readonly word: string;
	/** Bits that are read, with the kernel's names. */
	readonly read: Readonly<Record<number, string>>;
	/** Bits that are known and refused, with what they mean in a sentence that begins with "it". */
	readonly refused: Readonly<Record<number, string>>;
}

const incompat: FlagWord = {
	word: "incompatible feature",
	read: {
		1: "mixed_backref",
		2: "default_subvol",
		4: "mixed_groups",
		8: "compress_lzo",
		16: "compress_zstd",
		32: "big_metadata",
		64: "extended_iref",
		// Chunks with such profiles are refused where they are met; the bits stay when the last one is gone.
		128: "raid56",
		256: "skinny_metadata",
		512: "no_holes",
		1024: "metadata_uuid",
		2048: "raid1c34",
		65536: "simple_quota",
	},
	refused: {
		4096: "it is zoned, which is not supported",
		8192: "it has the feature extent-tree-v2, which is not supported",
		16384: "it has the feature raid-stripe-tree, which is not supported",
		32768: "it is encrypted, which is not supported",
		131072: "it has the feature remap-tree, which is not supported",
	},
};
const compatRo: FlagWord = {
	word: "read-only compatible feature",
	read: { 1: "free_space_tree", 2: "free_space_tree_valid", 4: "verity", 8: "block_group_tree" },
	refused: {},
};
const compat: FlagWord = { word: "compatible feature", read: {}, refused: {} };
const changing = "it is being converted by btrfstune; let that finish, then try again";
const superFlags: FlagWord = {
	word: "superblock flag",
	read: { [SUPER_FLAG_WRITTEN]: "written" },
	refused: {
		2: "its superblock belongs to a relocation",
		4: "it recorded errors; run btrfs check",
		[2 ** 32]: "it is a seed device, which other file systems may build on",
		[2 ** 33]: "it is a metadata dump, without data",
		[2 ** 34]: "it is a metadata dump, without data",
		[2 ** 35]: changing,
		[2 ** 36]: changing,
		[2 ** 38]: changing,
		[2 ** 39]: changing,
		[2 ** 40]: changing,
	},
};

/** True where `flag`, a power of two, is set in `word`, which may be wider than 32 bits. */
export const hasFlag = (word: number, flag: number): boolean => Math.floor(word / flag) % 2 === 1;

/** Throws VOLUME_UNSUPPORTED, naming the bit, unless all flags and features of a superblock are read here. */
export function checkFeatures(words: {
	readonly flags: number;
	readonly incompat: number;
	readonly compatRo: number;
	readonly compat: number;
}): void {
	checkWord(words.incompat, incompat);
	checkWord(words.compatRo, compatRo);
	checkWord(words.compat, compat);
	checkWord(words.flags, superFlags);
}

function checkWord(value: number, { word, read, refused }: FlagWord): void {
	for (let bit = 0; bit < 64; bit++) {
		const flag = 2 ** bit;
		if (!hasFlag(value, flag) || read[flag] !== undefined) continue;
		throw new VmsweepError(
			"VOLUME_UNSUPPORTED",
			refused[flag] ?? `it has the unknown ${word} 0x${flag.toString(16)}; a newer vmsweep may read it`,
		);
	}
}
