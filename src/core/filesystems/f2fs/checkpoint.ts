// Checkpoints: the newer of two packs says which copy of each table block is valid, and what the tables lack.
//
//   pack   | checkpoint | payload: bitmaps | orphans … | summaries: journals | checkpoint |
//            version v                                                         version v     both: the pack is whole
//
// An fsync writes nodes without a checkpoint. They are found by their chain at the next mount, and their blocks and those
// of their files are free in the checkpoint's own tables. So a volume counts as unmounted only where its checkpoint says
// so *and* no such chain begins behind it: mounting writes nothing, and the mark of the last unmount stays on a volume
// that is in use again, until its first checkpoint (docs/live-safety.md).

import { crc32From } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import {
	BLOCKS_PER_SEGMENT,
	CHECKPOINT_BITMAP_AT,
	CHECKPOINT_CHECKSUM_MAX,
	Checkpoint,
	CheckpointFlag,
	COLD_DATA_LOG,
	F2FS_BLOCK,
	F2FS_MAGIC,
	JOURNAL_BYTES,
	LOG_COUNT,
	NodeFooter,
	SIT_JOURNAL_HEAD,
	SIT_JOURNAL_MAX,
	SitEntry,
	SitJournalEntry,
	SUMMARY_ENTRIES_BYTES,
} from "./layout.ts";
import type { Geometry } from "./open.ts";

/** The valid pack. */
export interface Pack {
	/** Its first block. */
	readonly at: number;
	readonly record: ReturnType<typeof Checkpoint.at>;
	/** One bit per block of the SIT: set where its second copy is the valid one. */
	readonly sitBitmap: Uint8Array;
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `${what}; run fsck.f2fs`);
const unsupported = (what: string): VmsweepError => new VmsweepError("VOLUME_UNSUPPORTED", what);

const hasFlag = (pack: Pack, flag: number): boolean => (pack.record.flags & flag) !== 0;

/** True where the volume was unmounted cleanly, as far as the checkpoint knows; see {@link wasSyncedSince}. */
export const isUnmounted = (pack: Pack): boolean => hasFlag(pack, CheckpointFlag.unmounted);

/**
 * Finds the pack with the higher version; the first, where both have the same, as kernel and tools do. Throws
 * VOLUME_DAMAGED unless both are valid.
 *
 * A kernel goes back to the older pack where the newer one is torn. But then the volume was in use when it stopped, or
 * what the newer one said is lost; and f2fs-tools write their tables in place, so that their older pack has the same
 * version and is of the past. A mount that changes anything writes the damaged pack anew.
 */
export async function readCheckpoint(volume: ByteSource, geometry: Geometry): Promise<Pack> {
	const first = await readPack(volume, geometry, geometry.checkpointAt);
	const second = await readPack(volume, geometry, geometry.checkpointAt + BLOCKS_PER_SEGMENT);
	if (first === null && second === null) throw damaged("it has no valid checkpoint");
	if (first === null || second === null)
		throw new VmsweepError(
			"VOLUME_DAMAGED",
			"one of its two checkpoints is damaged or missing; mount and unmount it, then try again",
		);
	return second.record.version > first.record.version ? second : first;
}

/**
 * True where nodes were written after the checkpoint: the volume was mounted again, and a recovery may find what it
 * synced, whatever the flags say (`find_fsync_dnodes` of fs/f2fs/recovery.c). It goes along the chain of nodes that
 * begins at the next free block of the log of warm nodes, as long as they carry the checkpoint's version. Part of their
 * `cp_ver` is the checkpoint's checksum, depending on flags (`is_recoverable_dnode`); less is compared here, so never
 * fewer chains are found.
 */
export async function wasSyncedSince(volume: ByteSource, geometry: Geometry, { record }: Pack): Promise<boolean> {
	const { version, warmNodeSegment, warmNodeBlock } = record;
	if (warmNodeSegment >= geometry.mainSegments || warmNodeBlock >= BLOCKS_PER_SEGMENT)
		throw damaged(`its log of warm nodes goes on at block ${warmNodeBlock} of segment ${warmNodeSegment}`);
	const block = geometry.mainAt + warmNodeSegment * BLOCKS_PER_SEGMENT + warmNodeBlock;
	const footer = await readBytes(volume, byteOffset((block + 1) * F2FS_BLOCK - NodeFooter.size), NodeFooter.size);
	return NodeFooter.read.checkpointVersionLow(viewOf(footer), 0) === version % 2 ** 32;
}

/** Throws VOLUME_UNSUPPORTED unless the checkpoint's tables are the whole truth about the volume. */
export function checkState(pack: Pack, syncedSince: boolean, mustBeUnmounted: boolean): void {
	if (hasFlag(pack, CheckpointFlag.error) || hasFlag(pack, CheckpointFlag.needsCheck))
		throw unsupported("it recorded errors; run fsck.f2fs");
	if (hasFlag(pack, CheckpointFlag.resizing)) throw unsupported("it is being resized; let that finish, then try again");
	if (hasFlag(pack, CheckpointFlag.disabled) || hasFlag(pack, CheckpointFlag.disabledQuick))
		throw unsupported("its checkpoints are switched off; mount it with checkpoint=enable, then try again");
	if (mustBeUnmounted && !isUnmounted(pack))
		throw unsupported(
			"it was not unmounted, and files may have been synced since its last checkpoint; mount and unmount it, then try again",
		);
	if (syncedSince)
		throw unsupported(
			"it was mounted again since it was unmounted, and files were synced; mount and unmount it, then try again",
		);
}

/** SIT entries of the checkpoint's own journal, by segment: they count instead of those in the table. */
export async function readSitJournal(
	volume: ByteSource,
	geometry: Geometry,
	pack: Pack,
): Promise<ReadonlyMap<number, Uint8Array>> {
	const { packBlockCount, packStartSummary } = pack.record;
	const compact = hasFlag(pack, CheckpointFlag.compactSummary);
	// Compact: both journals lie at the summaries' start. Otherwise each of the six logs has a block in front of the end.
	const block = compact ? packStartSummary : packBlockCount - (LOG_COUNT + 1) + COLD_DATA_LOG;
	if (block <= geometry.checkpointPayload || block >= packBlockCount - 1)
		throw damaged(`its checkpoint has its summaries at block ${block} of ${packBlockCount}`);
	const journalAt = compact ? JOURNAL_BYTES : SUMMARY_ENTRIES_BYTES;
	const at = (pack.at + block) * F2FS_BLOCK + journalAt;
	const journal = await readBytes(volume, byteOffset(at), JOURNAL_BYTES);
	const view = viewOf(journal);
	const count = view.getUint16(0, true);
	if (count > SIT_JOURNAL_MAX) throw damaged(`its SIT journal has ${count} entries`);
	const entries = new Map<number, Uint8Array>();
	for (let i = 0; i < count; i++) {
		const entryAt = SIT_JOURNAL_HEAD + i * SitJournalEntry.size;
		const segment = SitJournalEntry.read.segment(view, entryAt);
		if (segment >= geometry.mainSegments || entries.has(segment))
			throw damaged(`its SIT journal has a wrong entry for segment ${segment}`);
		entries.set(segment, journal.subarray(entryAt + 4, entryAt + 4 + SitEntry.size));
	}
	return entries;
}

/** A pack whose first and last block are right and of one version, or null. */
async function readPack(volume: ByteSource, geometry: Geometry, at: number): Promise<Pack | null> {
	const head = await readBytes(volume, byteOffset(at * F2FS_BLOCK), (1 + geometry.checkpointPayload) * F2FS_BLOCK);
	const first = head.subarray(0, F2FS_BLOCK);
	if (!hasRightChecksum(first)) return null;
	const record = Checkpoint.at(viewOf(first));
	const { packBlockCount } = record;
	if (packBlockCount < 3 || packBlockCount > BLOCKS_PER_SEGMENT) return null;
	const last = await readBytes(volume, byteOffset((at + packBlockCount - 1) * F2FS_BLOCK), F2FS_BLOCK);
	// The version as bytes: a number would not tell neighbours apart past 2^53.
	if (!hasRightChecksum(last) || !first.subarray(0, 8).every((byte, index) => byte === last[index])) return null;
	if (!Number.isSafeInteger(record.version)) throw unsupported("its checkpoints' versions are larger than 2^53");
	if (record.sitBitmapBytes !== geometry.sitBlocks / 8 || record.natBitmapBytes !== geometry.natBlocks / 8)
		throw damaged(`its checkpoint has bitmaps of ${record.sitBitmapBytes} and ${record.natBitmapBytes} bytes`);
	const sitBitmap = sitBitmapIn(head, record);
	return { at, record, sitBitmap };
}

/** The SIT's bitmap in a pack's first blocks (`__bitmap_ptr` of fs/f2fs/f2fs.h). */
function sitBitmapIn(head: Uint8Array, { flags, checksumOffset, sitBitmapBytes, natBitmapBytes }: Pack["record"]) {
	const hasPayload = head.length > F2FS_BLOCK;
	let at = hasPayload ? F2FS_BLOCK : CHECKPOINT_BITMAP_AT;
	let end = hasPayload ? head.length : checksumOffset;
	if ((flags & CheckpointFlag.largeNatBitmap) !== 0) {
		// The checksum comes first, then the NAT's bitmap, then the SIT's; both may reach into the payload. mkfs.f2fs
		// before 1.13 had no place for the checksum there, so that all bits lay elsewhere; kernels refuse that, too.
		if (checksumOffset !== CHECKPOINT_BITMAP_AT)
			throw unsupported("it has the bitmaps of mkfs.f2fs before 1.13; a newer fsck.f2fs repairs that");
		at = CHECKPOINT_BITMAP_AT + 4 + natBitmapBytes;
		end = head.length;
	}
	if (at + sitBitmapBytes > end) throw damaged("its checkpoint has no room for its bitmaps");
	return head.slice(at, at + sitBitmapBytes);
}

/** The checksum covers the block up to itself, and what lies behind it where it is not at the end. */
function hasRightChecksum(block: Uint8Array): boolean {
	const view = viewOf(block);
	const at = Checkpoint.read.checksumOffset(view, 0);
	if (at < CHECKPOINT_BITMAP_AT || at > CHECKPOINT_CHECKSUM_MAX) return false;
	let sum = crc32From(F2FS_MAGIC, block.subarray(0, at));
	if (at < CHECKPOINT_CHECKSUM_MAX) sum = crc32From(sum, block.subarray(at + 4));
	return sum === view.getUint32(at, true);
}
