// Records of the first image's file, as docs/format/first-image.md describes them: superblock, segment header,
// summary entry. This module turns bytes into fields and back and checks them; it knows no policy.
//
//   0         4 KiB      64 KiB
//   | super A | super B | … | segment at place 0 | segment at place 1 | …
//                             | header 4 KiB | summary | data slot | data slot | … |
//
// Invariants
//  - superblock and header records are 512 bytes, so one sector holds all of each, and end with their checksum;
//    both exist twice
//  - a summary entry is 32 bytes, so none straddles a sector, and an appended entry never changes the bytes of
//    an older one: a torn sector can't hurt what was durable before
//  - a data run's entry is followed by as many records as its other blocks' checksums need, 6 in each
//  - an entry's checksum covers who it belongs to (disk, segment sequence, epoch, place in the summary), so an
//    entry left over from a segment's earlier life never passes
//  - no kind is 0 and reserved bytes are 0

import { crc32c, crc32cWords } from "../../foundations/crc.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { bytes, struct, u16le, u32le, u64le, viewOf } from "../../foundations/struct.ts";
import { BLOCK_SIZE, formatBytes, isPowerOfTwo } from "../../foundations/units.ts";

/** What this vmsweep writes; it reads version 1 as well, whose data runs have one checksum each. */
export const FORMAT_VERSION = 2;
/** Bytes of a superblock or header record; the rest of its 4 KiB is zero. */
export const RECORD_SIZE = 512;
/** A header's second copy, so that one bad sector doesn't take a segment away. */
export const HEADER_COPY_AT = 2048;
/** Where the first segment starts. */
export const SEGMENTS_AT = 65_536;
export const ENTRY_SIZE = 32;
export const ENTRY_WORDS = ENTRY_SIZE / 4;
export const DEFAULT_SEGMENT_BYTES = 8 * 1024 * 1024;
export const MIN_SEGMENT_BYTES = 4 * BLOCK_SIZE;
export const MAX_SEGMENT_BYTES = 1024 * 1024 * 1024;
/** Largest disk: block numbers and counts are 32 bits. */
export const MAX_DISK_BYTES = (2 ** 32 - 1) * BLOCK_SIZE;

/** Kinds of summary entries. */
export const KIND_DATA = 1;
/** The guest zeroed or trimmed the run. */
export const KIND_ZERO = 2;
/** The cleaner dropped the run: the guest no longer used it. */
export const KIND_DROP = 3;
/** What a drop's entry says in place of a data checksum: where its blocks were, or that nobody knows (version 1). */
export const DROPPED_IN_LOG = 0;
export const DROPPED_IN_SECOND = 1;
/** Not an entry of its own: checksums of more blocks of the data run before it. */
const KIND_CHECKSUMS = 4;

/** Most blocks of a data run, so that a run is checked in one piece of at most 1 MiB. */
export const RUN_BLOCKS_MAX = 256;
/** Checksums in a record of kind 4. */
const SUMS_PER_RECORD = 6;

/** Header flag: the segment begins an epoch, and what lay past the end of the log before it is void. */
export const FLAG_EPOCH_START = 1;

const superblockMagic = new TextEncoder().encode("VMSWPLOG");
const headerMagic = new TextEncoder().encode("VMSWPSEG");

export const SuperblockRecord = struct("first image superblock", RECORD_SIZE, {
	magic: bytes(0x00, 8),
	version: u16le(0x08),
	incompatibleFeatures: u32le(0x0c),
	uuid: bytes(0x10, 16),
	diskBytes: u64le(0x20),
	segmentBytes: u32le(0x28),
	summaryBytes: u32le(0x2c),
	limitBytes: u64le(0x30),
	generation: u64le(0x38),
	freedSequence: u64le(0x40),
	freedEntries: u64le(0x48),
	durableEntries: u64le(0x50),
	epoch: u32le(0x58),
	largestDiskBytes: u64le(0x60),
	checksum: u32le(0x1fc),
});

export const HeaderRecord = struct("first image segment header", RECORD_SIZE, {
	magic: bytes(0x00, 8),
	version: u16le(0x08),
	flags: u16le(0x0a),
	epoch: u32le(0x0c),
	uuid: bytes(0x10, 16),
	sequence: u64le(0x20),
	previousSequence: u64le(0x28),
	firstEntry: u64le(0x30),
	durableEntries: u64le(0x38),
	checksum: u32le(0x1fc),
});

/** What both superblock copies say. */
export interface Superblock {
	readonly uuid: Uint8Array;
	readonly diskBytes: number;
	/** The largest size that the disk ever had: entries from before it shrank reach as far. */
	readonly largestDiskBytes: number;
	readonly segmentBytes: number;
	readonly summaryBytes: number;
	/** 0: unlimited. */
	readonly limitBytes: number;
	/** Grows with every superblock written; the valid copy with the higher one counts. */
	readonly generation: number;
	/** Sequence of the newest segment that was freed; the log starts with its successor. 0: none yet. */
	readonly freedSequence: number;
	/** Entries that were in freed segments: the number of the log's first entry. */
	readonly freedEntries: number;
	/** Entries known durable when this was written. */
	readonly durableEntries: number;
	/** Epoch in which this was written. */
	readonly epoch: number;
}

/** What a segment's header says. */
export interface SegmentHeader {
	/** Format version of this segment's entries: a log that is older than this vmsweep has segments of both. */
	readonly version: number;
	readonly sequence: number;
	/** The segment before it in the log; sequences may skip. */
	readonly previousSequence: number;
	readonly epoch: number;
	readonly flags: number;
	/** Number of its first entry, counted over the disk's life: says where the segment before it ends. */
	readonly firstEntry: number;
	readonly durableEntries: number;
}

/** How a disk's segments are laid out; all derived from the superblock. */
export interface Geometry {
	readonly segmentBytes: number;
	readonly summaryBytes: number;
	/** Blocks of 4 KiB of a segment, header and summary included. A power of two. */
	readonly blocksPerSegment: number;
	/** log2 of `blocksPerSegment`. */
	readonly shift: number;
	/** Blocks before the first data slot. */
	readonly leadBlocks: number;
	readonly slotsPerSegment: number;
	readonly entriesPerSegment: number;
}

/** Throws USAGE where the segment size is none. */
export function geometryOf(segmentBytes: number, summaryBytes = summaryBytesFor(segmentBytes)): Geometry {
	if (!isPowerOfTwo(segmentBytes) || segmentBytes < MIN_SEGMENT_BYTES || segmentBytes > MAX_SEGMENT_BYTES)
		throw new VmsweepError(
			"USAGE",
			`segment size ${segmentBytes}: give a power of two from ${formatBytes(MIN_SEGMENT_BYTES)} to ${formatBytes(MAX_SEGMENT_BYTES)}`,
		);
	const blocksPerSegment = segmentBytes / BLOCK_SIZE;
	const leadBlocks = 1 + summaryBytes / BLOCK_SIZE;
	return {
		segmentBytes,
		summaryBytes,
		blocksPerSegment,
		shift: Math.log2(blocksPerSegment),
		leadBlocks,
		slotsPerSegment: blocksPerSegment - leadBlocks,
		entriesPerSegment: summaryBytes / ENTRY_SIZE,
	};
}

/** One entry per block of the segment, so that even writes of single blocks fill the data area. */
const summaryBytesFor = (segmentBytes: number): number =>
	Math.ceil(((segmentBytes / BLOCK_SIZE) * ENTRY_SIZE) / BLOCK_SIZE) * BLOCK_SIZE;

/** Byte offset in the file of the segment at a place. */
export const offsetOfPlace = (geometry: Geometry, place: number): number => SEGMENTS_AT + place * geometry.segmentBytes;

/** Fills `into` (4 KiB) with a superblock. */
export function encodeSuperblock(into: Uint8Array, superblock: Superblock): void {
	into.fill(0);
	const view = viewOf(into);
	SuperblockRecord.put(view, 0, { ...superblock, magic: superblockMagic, version: FORMAT_VERSION });
	SuperblockRecord.write.checksum(view, 0, recordChecksum(into));
}

/** A superblock copy, or why it is none. */
export type SuperblockResult =
	| { readonly kind: "ok"; readonly superblock: Superblock; readonly version: number }
	| { readonly kind: "missing" }
	| { readonly kind: "version"; readonly version: number }
	| { readonly kind: "features"; readonly features: number }
	| { readonly kind: "damaged" };

/** Checks, in this order: magic, version, checksum, feature bits, ranges. */
export function decodeSuperblock(record: Uint8Array): SuperblockResult {
	const view = viewOf(record);
	if (!startsWith(record, superblockMagic)) return { kind: "missing" };
	const fields = SuperblockRecord.at(view);
	if (!isKnownVersion(fields.version)) return { kind: "version", version: fields.version };
	if (fields.checksum !== recordChecksum(record)) return { kind: "damaged" };
	if (fields.incompatibleFeatures !== 0) return { kind: "features", features: fields.incompatibleFeatures };
	// Version 1 knew only one size.
	const largestDiskBytes = fields.version === 1 ? fields.diskBytes : fields.largestDiskBytes;
	const plausible =
		fields.diskBytes > 0 &&
		fields.diskBytes <= largestDiskBytes &&
		largestDiskBytes <= MAX_DISK_BYTES &&
		isPowerOfTwo(fields.segmentBytes) &&
		fields.segmentBytes >= MIN_SEGMENT_BYTES &&
		fields.segmentBytes <= MAX_SEGMENT_BYTES &&
		fields.summaryBytes >= BLOCK_SIZE &&
		fields.summaryBytes % BLOCK_SIZE === 0 &&
		fields.summaryBytes <= fields.segmentBytes - 2 * BLOCK_SIZE;
	if (!plausible) return { kind: "damaged" };
	return {
		kind: "ok",
		superblock: { ...fields, largestDiskBytes, uuid: fields.uuid.slice() },
		version: fields.version,
	};
}

/** Fills `into` (4 KiB) with a segment header. */
export function encodeHeader(into: Uint8Array, uuid: Uint8Array, header: Omit<SegmentHeader, "version">): void {
	into.fill(0);
	const view = viewOf(into);
	HeaderRecord.put(view, 0, { ...header, magic: headerMagic, version: FORMAT_VERSION, uuid });
	HeaderRecord.write.checksum(view, 0, recordChecksum(into));
	into.copyWithin(HEADER_COPY_AT, 0, RECORD_SIZE);
}

/**
 * The header in `block` (4 KiB), or undefined where neither copy is a whole one of this disk. After a torn write the
 * copies may be of two lives of the segment: the later one counts.
 */
export function decodeHeader(block: Uint8Array, uuid: Uint8Array): SegmentHeader | undefined {
	const first = decodeHeaderRecord(block, uuid);
	const second = decodeHeaderRecord(block.subarray(HEADER_COPY_AT), uuid);
	if (!first || !second) return first ?? second;
	return second.sequence > first.sequence ? second : first;
}

function decodeHeaderRecord(record: Uint8Array, uuid: Uint8Array): SegmentHeader | undefined {
	if (!startsWith(record, headerMagic)) return undefined;
	const fields = HeaderRecord.at(viewOf(record));
	if (!isKnownVersion(fields.version) || fields.checksum !== recordChecksum(record)) return undefined;
	if (!startsWith(fields.uuid, uuid)) return undefined;
	return fields;
}

const isKnownVersion = (version: number): boolean => version >= 1 && version <= FORMAT_VERSION;

/** CRC-32C of a 512-byte record, or of a sector of `second.sums`, without its last word, where it stands. */
export const recordChecksum = (record: Uint8Array): number => ~crc32c(~0, record.subarray(0, RECORD_SIZE - 4)) >>> 0;

const startsWith = (array: Uint8Array, start: Uint8Array): boolean => start.every((byte, i) => array[i] === byte);

/** Records of the summary that a data run of `count` blocks takes. */
export const recordsForBlocks = (count: number): number => 1 + Math.ceil((count - 1) / SUMS_PER_RECORD);

/** Most blocks of a data run that `records` records can describe. */
export const blocksForRecords = (records: number): number =>
	Math.min(RUN_BLOCKS_MAX, 1 + (records - 1) * SUMS_PER_RECORD);

/**
 * A segment's summary area in memory, read and written as 32-bit words (the hosts that vmsweep runs on are
 * little-endian, and so is the format). Fields of entry i start at word 8 i:
 *
 *   0 kind (low byte; the others 0)   1 block count   2 first disk block   3 first slot in the segment
 *   4 CRC-32 of the first block's data, for drops where the blocks were, else 0   5, 6 entries durable when it was written   7 CRC-32C, seeded
 *
 * and of a record of more checksums
 *
 *   0 kind   1 to 6 CRC-32 of the blocks that follow, 0 past the run's end   7 CRC-32C, seeded
 *
 * In a segment of version 1 there are no such records, and word 4 is the CRC-32 of the whole run.
 */
export class Summary {
	readonly words: Uint32Array;
	/** Of the life that it is bound to. */
	version = FORMAT_VERSION;
	readonly #seed = new Uint32Array(8);
	#register = 0;

	/** `memory` must be 4-byte aligned. */
	constructor(memory: Uint8Array) {
		this.words = new Uint32Array(memory.buffer, memory.byteOffset, memory.byteLength / 4);
	}

	/** Binds what follows to one life of one segment. */
	bind(uuid: Uint8Array, life: { readonly sequence: number; readonly epoch: number; readonly version: number }): void {
		const seed = this.#seed;
		new Uint8Array(seed.buffer).set(uuid);
		seed[4] = life.sequence % 0x1_0000_0000;
		seed[5] = Math.floor(life.sequence / 0x1_0000_0000);
		seed[6] = life.epoch;
		this.version = life.version;
		this.#register = crc32cWords(~0, seed, 0, 7);
	}

	/** A zero or drop run; `where` is 0, or DROPPED_IN_SECOND. */
	put(entry: number, kind: number, block: number, count: number, slot: number, where: number, durable: number): void {
		this.#put(entry, kind, block, count, slot, where, durable);
	}

	/** A data run, whose blocks' checksums are in `sums` from index `slot`. Returns how many records it took. */
	putData(entry: number, block: number, count: number, slot: number, sums: Uint32Array, durable: number): number {
		this.#put(entry, KIND_DATA, block, count, slot, sums[slot]!, durable);
		const words = this.words;
		let record = entry + 1;
		for (let done = 1; done < count; done += SUMS_PER_RECORD, record++) {
			const at = record * ENTRY_WORDS;
			words[at] = KIND_CHECKSUMS;
			const these = Math.min(SUMS_PER_RECORD, count - done);
			for (let i = 0; i < SUMS_PER_RECORD; i++) words[at + 1 + i] = i < these ? sums[slot + done + i]! : 0;
			words[at + 7] = this.#checksum(record);
		}
		return record - entry;
	}

	/** Forgets entries `[first, end)`. */
	erase(first: number, end: number): void {
		this.words.fill(0, first * ENTRY_WORDS, end * ENTRY_WORDS);
	}

	/** True where the entry is whole and belongs to the bound life of the segment; its further records are not looked at. */
	intact(entry: number): boolean {
		const at = entry * ENTRY_WORDS;
		const kind = this.words[at]!;
		return kind >= KIND_DATA && kind <= KIND_DROP && this.words[at + 7] === this.#checksum(entry);
	}

	/** The same for a record of more checksums. */
	intactSums(record: number): boolean {
		const at = record * ENTRY_WORDS;
		return this.words[at] === KIND_CHECKSUMS && this.words[at + 7] === this.#checksum(record);
	}

	/** True where the entry and all its further records are whole, and end before record `limit`. */
	intactThrough(entry: number, limit: number): boolean {
		if (!this.intact(entry)) return false;
		const end = entry + this.records(entry);
		if (end > limit) return false;
		for (let record = entry + 1; record < end; record++) if (!this.intactSums(record)) return false;
		return true;
	}

	/** Records that the entry takes, itself included. */
	records(entry: number): number {
		if (this.version === 1 || this.kind(entry) !== KIND_DATA) return 1;
		return recordsForBlocks(this.count(entry));
	}

	/** Puts the checksums of a data run's blocks into `into` from index `slot`; 0 where the format has none for a single block. */
	copySums(entry: number, into: Uint32Array): void {
		const count = this.count(entry);
		const slot = this.slot(entry);
		if (this.version === 1) {
			into.fill(0, slot, slot + count);
			if (count === 1) into[slot] = this.dataCrc(entry);
			return;
		}
		into[slot] = this.dataCrc(entry);
		const words = this.words;
		let at = (entry + 1) * ENTRY_WORDS;
		for (let done = 1; done < count; done += SUMS_PER_RECORD, at += ENTRY_WORDS) {
			const these = Math.min(SUMS_PER_RECORD, count - done);
			for (let i = 0; i < these; i++) into[slot + done + i] = words[at + 1 + i]!;
		}
	}

	kind = (entry: number): number => this.words[entry * ENTRY_WORDS]!;
	count = (entry: number): number => this.words[entry * ENTRY_WORDS + 1]!;
	block = (entry: number): number => this.words[entry * ENTRY_WORDS + 2]!;
	slot = (entry: number): number => this.words[entry * ENTRY_WORDS + 3]!;
	/** Of a data run's first block; in version 1 of the whole run. */
	dataCrc = (entry: number): number => this.words[entry * ENTRY_WORDS + 4]!;
	durable = (entry: number): number =>
		this.words[entry * ENTRY_WORDS + 5]! + this.words[entry * ENTRY_WORDS + 6]! * 0x1_0000_0000;

	#put(
		entry: number,
		kind: number,
		block: number,
		count: number,
		slot: number,
		dataCrc: number,
		durable: number,
	): void {
		const words = this.words;
		const at = entry * ENTRY_WORDS;
		words[at] = kind;
		words[at + 1] = count;
		words[at + 2] = block;
		words[at + 3] = slot;
		words[at + 4] = dataCrc;
		words[at + 5] = durable % 0x1_0000_0000;
		words[at + 6] = Math.floor(durable / 0x1_0000_0000);
		words[at + 7] = this.#checksum(entry);
	}

	#checksum(entry: number): number {
		this.#seed[7] = entry;
		const register = crc32cWords(this.#register, this.#seed, 7, 1);
		return ~crc32cWords(register, this.words, entry * ENTRY_WORDS, ENTRY_WORDS - 1) >>> 0;
	}
}
