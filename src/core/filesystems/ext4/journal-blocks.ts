// Control blocks of jbd2, the journal of ext3 and ext4: superblock, descriptors, revokes, commits. Parsing and
// checksums only; `journal.ts` walks a journal at rest with it, `commit-chain.ts` follows one that is being written.
//
//   | super | … | descriptor | block | block | … | revoke | commit | descriptor | … |     a ring from `first` to `end`
//               └──────────────── one transaction ────────────────┘

import { crc32c, crc32cWithout } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { checkJournalFeatures, JOURNAL_COMPAT_CHECKSUM, JournalIncompat } from "./features.ts";
import {
	BLOCK_SUPER_V1,
	BLOCK_SUPER_V2,
	COMMIT_CHECKSUM_AT,
	CommitBlock,
	JBD2_MAGIC,
	JournalHeader,
	JournalSuperBlock,
	RevokeBlock,
	TAG_ESCAPE,
	TAG_LAST,
	TAG_SAME_UUID,
	Tag,
	Tag3,
} from "./layout.ts";

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `its journal is damaged: ${what}`);

/** Kernels use a fast-commit area only where this much is left for the ring (`JBD2_MIN_JOURNAL_BLOCKS`). */
const MIN_RING_BLOCKS = 1024;
const DEFAULT_FAST_COMMIT_BLOCKS = 256;

/** What the journal's superblock fixes. Positions are journal blocks. */
export interface JournalInfo {
	readonly blockSize: number;
	readonly blockCount: number;
	/** The ring is `[first, end)`. */
	readonly first: number;
	readonly end: number;
	/** Fast-commit blocks are `[fastCommitStart, blockCount)`; empty without the feature. */
	readonly fastCommitStart: number;
	/** Where the oldest transaction that is still needed starts; 0 means none. */
	readonly start: number;
	/** That transaction's sequence number. */
	readonly sequence: number;
	readonly errorNumber: number;
	readonly uuid: Uint8Array;
	readonly has: {
		readonly is64Bit: boolean;
		readonly asyncCommit: boolean;
		/** Version of the per-block checksums. */
		readonly checksum: 0 | 2 | 3;
		/** One checksum per transaction (version 1). */
		readonly transactionChecksum: boolean;
		readonly fastCommit: boolean;
	};
	readonly checksumSeed: number;
	readonly tagSize: number;
}

/** Parses and checks the journal's first block against the journal's file. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
export function parseJournalSuperblock(block: Uint8Array, blockSize: number, fileBlocks: number): JournalInfo {
	const record = JournalSuperBlock.at(viewOf(block));
	if (record.magic !== JBD2_MAGIC) throw damaged("its superblock has no magic number");
	const version2 = record.blockType === BLOCK_SUPER_V2;
	if (!version2 && record.blockType !== BLOCK_SUPER_V1) throw damaged(`its superblock has type ${record.blockType}`);
	// Version 1 has no feature words; what stands there means nothing.
	const words = {
		compat: version2 ? record.featureCompat : 0,
		incompat: version2 ? record.featureIncompat : 0,
		roCompat: version2 ? record.featureRoCompat : 0,
	};
	checkJournalFeatures(words);
	const has = (flag: number): boolean => (words.incompat & flag) !== 0;
	const v2 = has(JournalIncompat.checksumV2);
	const v3 = has(JournalIncompat.checksumV3);
	const transactionChecksum = (words.compat & JOURNAL_COMPAT_CHECKSUM) !== 0;
	if ((v2 && v3) || (transactionChecksum && (v2 || v3))) throw damaged("it has two kinds of checksums at once");
	if (v2 || v3) {
		if (record.checksumType !== 4) throw damaged(`its checksums have type ${record.checksumType}`);
		const raw = block.subarray(0, JournalSuperBlock.size);
		if (crc32cWithout(0xffffffff, raw, JournalSuperBlock.offset.checksum) !== record.checksum)
			throw damaged("its superblock's checksum is wrong");
	}
	if (record.blockSize !== blockSize) throw damaged(`it has blocks of ${record.blockSize} bytes`);
	if (record.blockCount > fileBlocks || record.blockCount < 3)
		throw damaged(`it says that it has ${record.blockCount} blocks`);
	const fastCommit = has(JournalIncompat.fastCommit);
	const fastCommitBlocks = record.fastCommitBlocks === 0 ? DEFAULT_FAST_COMMIT_BLOCKS : record.fastCommitBlocks;
	const end =
		fastCommit && record.blockCount - fastCommitBlocks >= MIN_RING_BLOCKS
			? record.blockCount - fastCommitBlocks
			: record.blockCount;
	if (record.first < 1 || record.first >= end) throw damaged(`its ring starts at block ${record.first}`);
	if (record.start !== 0 && (record.start < record.first || record.start >= end))
		throw damaged(`its oldest transaction starts at block ${record.start}, outside its ring`);
	const is64Bit = has(JournalIncompat.is64Bit);
	return {
		blockSize,
		blockCount: record.blockCount,
		first: record.first,
		end,
		fastCommitStart: end,
		start: record.start,
		sequence: record.sequence,
		errorNumber: record.errorNumber,
		uuid: record.uuid.slice(),
		has: {
			is64Bit,
			asyncCommit: has(JournalIncompat.asyncCommit),
			checksum: v3 ? 3 : v2 ? 2 : 0,
			transactionChecksum,
			fastCommit,
		},
		checksumSeed: crc32c(0xffffffff, record.uuid),
		tagSize: v3 ? Tag3.size : 8 + (v2 ? 2 : 0) + (is64Bit ? 4 : 0),
	};
}

/** The ring position `steps` behind `position`. */
export function ringStep(info: JournalInfo, position: number, steps: number): number {
	const length = info.end - info.first;
	return info.first + ((position - info.first + steps) % length);
}

/** Positive where sequence number `a` is later than `b`; they wrap at 2^32 (`tid_gt`). */
export const sequenceDifference = (a: number, b: number): number => (a - b) | 0;
export const nextSequence = (sequence: number): number => (sequence + 1) >>> 0;

/** Type and sequence of a control block, or null where the magic number is missing. */
export function controlHeader(block: Uint8Array): { blockType: number; sequence: number } | null {
	const view = viewOf(block);
	if (JournalHeader.read.magic(view, 0) !== JBD2_MAGIC) return null;
	return { blockType: JournalHeader.read.blockType(view, 0), sequence: JournalHeader.read.sequence(view, 0) };
}

/** One logged block. */
export interface LoggedTag {
	/** The volume's block that the journal holds a newer content of. */
	readonly block: number;
	/** The content's first four bytes are the journal's magic number, and zero in the journal. */
	readonly escaped: boolean;
	/** 32 bits (version 3), 16 bits (version 2), or meaningless. */
	readonly checksum: number;
}

/** The tags of a descriptor block, in the order of the blocks behind it. */
export function parseTags(block: Uint8Array, info: JournalInfo): LoggedTag[] {
	const view = viewOf(block);
	const end = block.length - (info.has.checksum === 0 ? 0 : 4);
	const tags: LoggedTag[] = [];
	let at = JournalHeader.size;
	while (at + info.tagSize <= end) {
		const isVersion3 = info.has.checksum === 3;
		const low = view.getUint32(at);
		const flags = isVersion3 ? Tag3.read.flags(view, at) : Tag.read.flags(view, at);
		const high = !info.has.is64Bit ? 0 : isVersion3 ? Tag3.read.blockHigh(view, at) : Tag.read.blockHigh(view, at);
		tags.push({
			block: low + high * 2 ** 32,
			escaped: (flags & TAG_ESCAPE) !== 0,
			checksum: isVersion3 ? Tag3.read.checksum(view, at) : Tag.read.checksum(view, at),
		});
		at += info.tagSize + ((flags & TAG_SAME_UUID) === 0 ? 16 : 0);
		if ((flags & TAG_LAST) !== 0) break;
	}
	return tags;
}

/** The blocks that a revoke block names. Throws VOLUME_DAMAGED where its length is wrong. */
export function parseRevoked(block: Uint8Array, info: JournalInfo): number[] {
	const view = viewOf(block);
	const used = RevokeBlock.read.used(view, 0);
	if (used < RevokeBlock.size || used > block.length - (info.has.checksum === 0 ? 0 : 4))
		throw damaged("a revoke block has a bad length");
	const recordSize = info.has.is64Bit ? 8 : 4;
	const revoked: number[] = [];
	for (let at = RevokeBlock.size; at + recordSize <= used; at += recordSize)
		revoked.push(info.has.is64Bit ? view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4) : view.getUint32(at));
	return revoked;
}

/** True where a descriptor's or revoke block's checksum (its last four bytes) is right, or there is none. */
export function isTailChecksumRight(block: Uint8Array, info: JournalInfo): boolean {
	if (info.has.checksum === 0) return true;
	const at = block.length - 4;
	return viewOf(block).getUint32(at) === crc32cWithout(info.checksumSeed, block, at);
}

/** True where a commit block's own checksum is right, or there is none. */
export function isCommitChecksumRight(block: Uint8Array, info: JournalInfo): boolean {
	if (info.has.checksum === 0) return true;
	return CommitBlock.read.checksum(viewOf(block), 0) === crc32cWithout(info.checksumSeed, block, COMMIT_CHECKSUM_AT);
}

/** True where a logged block, as it stands in the journal, is what its tag was made for, or there is no checksum. */
export function isTagChecksumRight(logged: Uint8Array, tag: LoggedTag, sequence: number, info: JournalInfo): boolean {
	if (info.has.checksum === 0) return true;
	const prefix = new Uint8Array(4);
	viewOf(prefix).setUint32(0, sequence);
	const sum = crc32c(crc32c(info.checksumSeed, prefix), logged);
	return info.has.checksum === 3 ? sum === tag.checksum : (sum & 0xffff) === tag.checksum;
}

/** A logged block's content: the journal's copy with the escaped magic number put back. */
export function unescaped(logged: Uint8Array, tag: { readonly escaped: boolean }): Uint8Array {
	if (!tag.escaped) return logged;
	const content = logged.slice();
	viewOf(content).setUint32(0, JBD2_MAGIC);
	return content;
}

/** What fast-commit blocks begin with: tag HEAD (9), length, features, and the sequence that they continue. Little-endian. */
const FAST_COMMIT_HEAD = 0x9;

/** The transaction that fast commits in `block`, the first of their area, continue; null where there are none. */
export function fastCommitSequence(block: Uint8Array): number | null {
	const view = viewOf(block);
	return view.getUint16(0, true) === FAST_COMMIT_HEAD ? view.getUint32(8, true) : null;
}
