// A journal at rest: what recovery would write, as an overlay in memory. Nothing is ever written.
//
//   home blocks          … bitmap 12 (old) …          read through the overlay:  bitmap 12 (new)
//   journal              | desc | bitmap 12 (new) | commit |  ──────────────────────┘
//
// As Linux recovers (`jbd2_journal_recover`): scan from `start` while sequence numbers follow, then apply every
// whole transaction, skipping blocks that an equal or later transaction revoked. Orphan lists, which mounting also
// works off, are not touched: the guest may still use those blocks.
//
// Stricter than recovery where it is in doubt: checksums of all logged blocks are verified, and a transaction that
// is damaged but followed by a commit refuses the volume.

import { crc32be } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { checkRange, readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import type { JournalInfo } from "./journal-blocks.ts";
import {
	controlHeader,
	fastCommitSequence,
	isCommitChecksumRight,
	isTagChecksumRight,
	isTailChecksumRight,
	nextSequence,
	parseJournalSuperblock,
	parseRevoked,
	parseTags,
	ringStep,
	sequenceDifference,
	unescaped,
} from "./journal-blocks.ts";
import type { JournalFile } from "./journal-file.ts";
import { MAX_JOURNAL_BLOCKS } from "./journal-file.ts";
import { BLOCK_COMMIT, BLOCK_DESCRIPTOR, BLOCK_REVOKE, CommitBlock } from "./layout.ts";
import type { Geometry } from "./open.ts";

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its journal is damaged: ${what}; run e2fsck in the guest`);

/** Where the newest logged content of a block lies. */
export interface LoggedBlock {
	/** Journal block that holds it. */
	readonly logical: number;
	/** The volume's block that is that journal block. */
	readonly physical: number;
	readonly sequence: number;
	readonly escaped: boolean;
}

/** The outcome of scanning a journal. Positions are journal blocks. */
export interface Replay {
	/** Newest content of every block that recovery would write. */
	readonly blocks: ReadonlyMap<number, LoggedBlock>;
	/** Whole transactions found, oldest first. */
	readonly transactions: readonly { readonly sequence: number; readonly start: number; readonly commit: number }[];
	/** Where the next transaction will start, and with which sequence number. */
	readonly next: { readonly position: number; readonly sequence: number };
	/**
	 * `pending`: fast commits continue the last transaction; only replaying them could tell what is free. `stale`: those
	 * in the journal belong to an older transaction, so kernels ignore them.
	 */
	readonly fastCommits: "none" | "stale" | "pending";
}

export async function readJournalInfo(volume: ByteSource, geometry: Geometry, file: JournalFile): Promise<JournalInfo> {
	const block = await readBytes(volume, byteOffset(file.locate(0).physical * geometry.blockSize), geometry.blockSize);
	return parseJournalSuperblock(block, geometry.blockSize, file.blockCount);
}

/** Reads journal blocks in order, a stretch at a time. */
function sequentialReader(
	volume: ByteSource,
	file: JournalFile,
	blockSize: number,
): (logical: number) => Promise<Uint8Array> {
	const stretch = Math.max(1, Math.floor((256 << 10) / blockSize));
	let first = 0;
	let held: Uint8Array = new Uint8Array(0);
	return async (logical) => {
		const at = (logical - first) * blockSize;
		if (at >= 0 && at + blockSize <= held.length) return held.subarray(at, at + blockSize);
		const { physical, count } = file.locate(logical);
		first = logical;
		held = await readBytes(volume, byteOffset(physical * blockSize), Math.min(count, stretch) * blockSize);
		return held.subarray(0, blockSize);
	};
}

/** Scans the journal from its oldest transaction and collects what recovery would write. */
export async function replay(
	volume: ByteSource,
	geometry: Geometry,
	file: JournalFile,
	info: JournalInfo,
): Promise<Replay> {
	const blockAt = sequentialReader(volume, file, geometry.blockSize);
	const blocks = new Map<number, LoggedBlock>();
	const revoked = new Map<number, number>();
	const transactions: { sequence: number; start: number; commit: number }[] = [];
	let next = { position: info.start, sequence: info.sequence };
	if (info.start === 0) return { blocks, transactions, next, fastCommits: "none" };

	let steps = 0;
	const ringLength = info.end - info.first;
	for (;;) {
		const transaction = await scanTransaction(blockAt, info, next, ringLength - steps);
		if (transaction === null) break;
		steps += transaction.length;
		for (const { tag, logical } of transaction.logged) {
			if (tag.block >= geometry.blocksCount)
				throw damaged(`a transaction holds block ${tag.block}, outside the file system`);
			const { physical } = file.locate(logical);
			blocks.set(tag.block, { logical, physical, sequence: next.sequence, escaped: tag.escaped });
		}
		for (const block of transaction.revoked) revoked.set(block, next.sequence);
		if (revoked.size > MAX_JOURNAL_BLOCKS) throw damaged(`it revokes more than ${MAX_JOURNAL_BLOCKS} blocks`);
		transactions.push({ sequence: next.sequence, start: next.position, commit: transaction.commit });
		next = { position: ringStep(info, transaction.commit, 1), sequence: nextSequence(next.sequence) };
	}
	for (const [block, sequence] of revoked) {
		const logged = blocks.get(block);
		if (logged !== undefined && sequenceDifference(sequence, logged.sequence) >= 0) blocks.delete(block);
	}
	return { blocks, transactions, next, fastCommits: await findFastCommits(blockAt, info, next.sequence) };
}

async function findFastCommits(
	blockAt: (logical: number) => Promise<Uint8Array>,
	info: JournalInfo,
	nextSequence: number,
): Promise<Replay["fastCommits"]> {
	let found: Replay["fastCommits"] = "none";
	if (!info.has.fastCommit) return found;
	// The area is counted from its end: kernels write its first block one behind its start.
	for (const logical of [info.fastCommitStart, info.fastCommitStart + 1]) {
		const sequence = logical < info.blockCount ? fastCommitSequence(await blockAt(logical)) : null;
		if (sequence === nextSequence) return "pending";
		if (sequence !== null) found = "stale";
	}
	return found;
}

interface Transaction {
	readonly logged: readonly { tag: ReturnType<typeof parseTags>[number]; logical: number }[];
	readonly revoked: readonly number[];
	readonly commit: number;
	/** Journal blocks that it takes. */
	readonly length: number;
}

/** One transaction from `at` on, or null where the log ends there. `room` is how much of the ring is not walked yet. */
async function scanTransaction(
	blockAt: (logical: number) => Promise<Uint8Array>,
	info: JournalInfo,
	at: { position: number; sequence: number },
	room: number,
): Promise<Transaction | null> {
	const logged: { tag: ReturnType<typeof parseTags>[number]; logical: number }[] = [];
	const revoked: number[] = [];
	/** Set once something is wrong: an unfinished transaction looks like that, too, unless a commit follows. */
	let wrong: string | null = null;
	let transactionChecksum = 0xffffffff;
	for (let length = 0; length < room; ) {
		const position = ringStep(info, at.position, length);
		const block = await blockAt(position);
		const header = controlHeader(block);
		if (header === null || header.sequence !== at.sequence) return null;
		switch (header.blockType) {
			case BLOCK_DESCRIPTOR: {
				if (!isTailChecksumRight(block, info)) wrong ??= `the descriptor at its block ${position} has a wrong checksum`;
				if (info.has.transactionChecksum) transactionChecksum = crc32be(transactionChecksum, block);
				const tags = parseTags(block, info);
				if (tags.length >= room - length) return null;
				const mustRead = info.has.checksum !== 0 || info.has.transactionChecksum;
				for (const [index, tag] of tags.entries()) {
					const logical = ringStep(info, position, 1 + index);
					if (mustRead) {
						const content = await blockAt(logical);
						if (info.has.transactionChecksum) transactionChecksum = crc32be(transactionChecksum, content);
						if (!isTagChecksumRight(content, tag, at.sequence, info))
							wrong ??= `its block ${logical} has a wrong checksum`;
					}
					logged.push({ tag, logical });
				}
				length += 1 + tags.length;
				break;
			}
			case BLOCK_REVOKE:
				if (!isTailChecksumRight(block, info)) wrong ??= `the revoke block ${position} has a wrong checksum`;
				else for (const each of parseRevoked(block, info)) revoked.push(each);
				length += 1;
				break;
			case BLOCK_COMMIT:
				if (!isCommitChecksumRight(block, info)) wrong ??= `the commit block ${position} has a wrong checksum`;
				if (info.has.transactionChecksum && !isTransactionChecksumRight(block, transactionChecksum))
					wrong ??= `the transaction that ends at its block ${position} has a wrong checksum`;
				if (wrong !== null) throw damaged(wrong);
				return { logged, revoked, commit: position, length: length + 1 };
			default:
				return null;
		}
	}
	return null;
}

/** Version 1: the commit block holds a CRC-32 of all descriptors and logged blocks, or zeros where none was made. */
function isTransactionChecksumRight(commit: Uint8Array, sum: number): boolean {
	const { checksumType, checksumSize, checksum } = CommitBlock.at(viewOf(commit));
	return checksumType === 1 && checksumSize === 4
		? checksum === sum
		: checksumType === 0 && checksumSize === 0 && checksum === 0;
}

/** The volume as recovery would leave it: reads of logged blocks come from the journal. */
export function overlaid(
	volume: ByteSource,
	blockSize: number,
	blocks: ReadonlyMap<number, Pick<LoggedBlock, "physical" | "escaped">>,
): ByteSource {
	if (blocks.size === 0) return volume;
	return {
		size: volume.size,
		async read(at, into) {
			checkRange(volume.size, at, into.length, "volume");
			await volume.read(at, into);
			const last = Math.floor((at + into.length - 1) / blockSize);
			for (let block = Math.floor(at / blockSize); block <= last; block++) {
				const logged = blocks.get(block);
				if (logged === undefined) continue;
				const raw = await readBytes(volume, byteOffset(logged.physical * blockSize), blockSize);
				const content = unescaped(raw, logged);
				const start = block * blockSize;
				const from = Math.max(at, start);
				const to = Math.min(at + into.length, start + blockSize);
				into.set(content.subarray(from - start, to - start), from - at);
			}
		},
	};
}
