// Recovery: from the bytes of a first image to the log that they hold. Reads headers of all segments,
// summaries of those in the log, and data only of what wasn't known to be durable.
//
//   superblock ─▶ headers ─▶ chain: the segment after the freed ones, the one after that, …
//              ─▶ entries in order, up to the first that is not whole ─▶ the prefix
//
// Where the log ends. Entries are numbered through the disk's life; a data run's further records count, so that an entry's
// number is where its record lies. Every header and entry notes how many entries were
// durable when it was written, so the highest such number found anywhere, D, is a fact. Entries before D must be whole:
// one that isn't was damaged later, and the log is refused (LOG_DAMAGED). From D on, an entry counts if it and its data
// have the right checksum; the first that doesn't ends the log, whatever follows, since a power cut may keep any subset
// of unflushed sectors and what follows might depend on it.
//
// Which segment comes next. A header names its predecessor. Several may name the same one: after a crash, the epoch's
// first segment takes the place of the successors that were cut off. The highest epoch counts, then the highest
// sequence. The successor's first entry number says where its predecessor ends, so that whatever was cut off
// (or written by a commit that failed) beyond it never counts again.
//
// What is returned was only read. A failed flush may have left sectors that read well from the host's cache but are
// not on disk and that no later flush would write. So everything from D on, and the superblock, is written again as
// it is, and synced, before anything builds on it. Rewriting the same bytes can't tear.

import { VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteOffset, divCeil, formatBytes } from "../../foundations/units.ts";
import type { Geometry, SegmentHeader, Superblock } from "./format.ts";
import {
	decodeHeader,
	decodeSuperblock,
	FORMAT_VERSION,
	geometryOf,
	KIND_DATA,
	KIND_DROP,
	offsetOfPlace,
	RUN_BLOCKS_MAX,
	SEGMENTS_AT,
	Summary,
} from "./format.ts";
import type { HostFile } from "./host-file.ts";
import type { Safeguards } from "./state.ts";

/** A segment of the log as found, before its entries are read. */
export interface FoundSegment {
	readonly place: number;
	readonly header: SegmentHeader;
}

/** Segments whose headers and summaries are fetched ahead of the one that is read. */
const READ_AHEAD = 32;

/** Takes the recovered log, in order. */
export interface RecoveryTarget {
	segment(found: FoundSegment): void;
	/** `summary` holds the entry; its segment is the one told last. */
	entry(summary: Summary, entry: number): void;
}

/** What recovery found, apart from what it told its target. */
export interface Recovered {
	/** Number of entries in the log's prefix: the number of the next entry. */
	readonly entries: number;
	/** Highest sequence and epoch seen anywhere. */
	readonly lastSequence: number;
	readonly lastEpoch: number;
	/** Segments of the log; the last one has entries. */
	readonly chain: readonly FoundSegment[];
	/** Segments without entries that came after it: their headers hold the cut until the new epoch's header does. */
	readonly emptyTail: readonly FoundSegment[];
}

/** The superblock that counts. */
export interface FoundSuperblock {
	readonly superblock: Superblock;
	readonly copy: 0 | 1;
	/** A whole copy is of an older version, which an older vmsweep would go by. */
	readonly outdated: boolean;
}

/** Reads both superblocks. Throws LOG_DAMAGED or DISK_WRONG_VERSION where there is none to go by. */
export function readSuperblock(file: HostFile, name: string): FoundSuperblock {
	const record = new Uint8Array(BLOCK_SIZE);
	const results = ([0, 1] as const).map((copy) => {
		file.read(byteOffset(copy * BLOCK_SIZE), record);
		return { copy, result: decodeSuperblock(record) };
	});
	const whole = results.flatMap(({ copy, result }) =>
		result.kind === "ok" ? [{ copy, superblock: result.superblock, version: result.version }] : [],
	);
	const outdated = whole.some(({ version }) => version < FORMAT_VERSION);
	const newest = whole.sort((a, b) => b.superblock.generation - a.superblock.generation)[0];
	for (const { result } of results) {
		if (result.kind === "features")
			throw new VmsweepError(
				"DISK_WRONG_VERSION",
				`${name}: uses unknown features 0x${result.features.toString(16)}; open it with the newer vmsweep that wrote it`,
			);
		if (result.kind === "version" && !newest)
			throw new VmsweepError(
				"DISK_WRONG_VERSION",
				`${name}: format version ${result.version}, this vmsweep knows 1 to ${FORMAT_VERSION}; open it with the vmsweep that wrote it`,
			);
	}
	if (newest) return { superblock: newest.superblock, copy: newest.copy, outdated };
	const why = results.every(({ result }) => result.kind === "missing")
		? "is no first image"
		: "both superblocks are damaged";
	throw new VmsweepError(
		"LOG_DAMAGED",
		`${name}: ${why} (bytes 0 to 8191). Nothing was changed; check that the path is right`,
	);
}

/** Recovers the log in `file`, then makes what it found durable. Throws LOG_DAMAGED, IO, NO_SPACE. */
export class Recovery {
	/** Places in the file; the last one may be cut short. */
	readonly placeCount: number;
	readonly #file: HostFile;
	readonly #name: string;
	readonly #superblock: Superblock;
	readonly #geometry: Geometry;
	readonly #checksum: (bytes: Uint8Array) => number;
	readonly #safeguards: Safeguards;
	readonly #summaryBytes: Uint8Array;
	readonly #summary: Summary;
	/** Checksums of the segment that is looked at, by slot. */
	readonly #sums: Uint32Array;
	#summaryPlace = -1;

	constructor(
		file: HostFile,
		name: string,
		superblock: Superblock,
		checksum: (bytes: Uint8Array) => number,
		safeguards: Safeguards,
	) {
		this.#file = file;
		this.#name = name;
		this.#superblock = superblock;
		this.#geometry = geometryOf(superblock.segmentBytes, superblock.summaryBytes);
		this.#checksum = checksum;
		this.#safeguards = safeguards;
		this.#summaryBytes = new Uint8Array(superblock.summaryBytes);
		this.#summary = new Summary(this.#summaryBytes);
		this.#sums = new Uint32Array(this.#geometry.slotsPerSegment);
		this.placeCount = divCeil(Math.max(0, file.size() - SEGMENTS_AT), this.#geometry.segmentBytes);
	}

	run(copy: 0 | 1, target: RecoveryTarget): Recovered {
		const { found, lastSequence, lastEpoch } = this.#readHeaders();
		const chain = chainOf(found, this.#superblock.freedSequence);
		const durableEntries = this.#durableEntries(found);
		const { entries, segments, whole } = this.#replay(chain, durableEntries, target);
		if (entries < durableEntries) this.#refuse(chain, segments, entries, durableEntries);
		const kept = chain.slice(0, whole);
		const emptyTail = chain.slice(whole, segments);
		this.#writeAgain(copy, [...kept, ...emptyTail], durableEntries, entries);
		return { entries, lastSequence, lastEpoch, chain: kept, emptyTail };
	}

	#readHeaders(): { found: FoundSegment[]; lastSequence: number; lastEpoch: number } {
		const record = new Uint8Array(BLOCK_SIZE);
		const found: FoundSegment[] = [];
		let lastSequence = this.#superblock.freedSequence;
		let lastEpoch = this.#superblock.epoch;
		for (let place = 0; place < this.placeCount; place++) {
			if (place % READ_AHEAD === 0)
				for (let next = place; next < Math.min(place + 2 * READ_AHEAD, this.placeCount); next++) this.#willNeed(next);
			this.#file.read(byteOffset(offsetOfPlace(this.#geometry, place)), record);
			const header = decodeHeader(record, this.#superblock.uuid);
			if (!header) continue;
			lastSequence = Math.max(lastSequence, header.sequence);
			lastEpoch = Math.max(lastEpoch, header.epoch);
			if (header.sequence > this.#superblock.freedSequence) found.push({ place, header });
		}
		return { found, lastSequence, lastEpoch };
	}

	/** A header and its summary, which lie side by side, are fetched at once: one seek. */
	#willNeed(place: number): void {
		this.#file.willNeed?.(byteOffset(offsetOfPlace(this.#geometry, place)), BLOCK_SIZE + this.#geometry.summaryBytes);
	}

	/**
	 * The highest number of durable entries that any header or entry notes. Later entries never note less than earlier
	 * ones, so the newest segment that has an entry is enough; it's looked at as a whole, past damaged entries.
	 */
	#durableEntries(found: readonly FoundSegment[]): number {
		let durable = this.#superblock.durableEntries;
		for (const { header } of found) durable = Math.max(durable, header.durableEntries);
		for (const segment of [...found].sort((a, b) => b.header.sequence - a.header.sequence)) {
			this.#load(segment);
			let any = false;
			for (let entry = 0; entry < this.#geometry.entriesPerSegment; entry++) {
				if (!this.#summary.intact(entry)) continue;
				any = true;
				durable = Math.max(durable, this.#summary.durable(entry));
			}
			if (any) break;
		}
		return durable;
	}

	/** Tells the target all entries of the prefix. `segments` were looked at, the first `whole` of them up to the last entry. */
	#replay(chain: readonly FoundSegment[], durableEntries: number, target: RecoveryTarget) {
		let entries = this.#superblock.freedEntries;
		let segments = 0;
		let whole = 0;
		for (const segment of chain) {
			if (segment.header.firstEntry !== entries) break;
			if (segments % READ_AHEAD === 0)
				for (const { place } of chain.slice(segments, segments + 2 * READ_AHEAD)) this.#willNeed(place);
			segments++;
			const successor = chain[segments]?.header;
			const count = this.#replaySegment(segment, successor, durableEntries, target);
			entries += count;
			if (count > 0) whole = segments;
			// An empty segment among others keeps its place in the chain: its successor names it.
			if (successor && successor.firstEntry !== entries) break;
		}
		return { entries, segments, whole };
	}

	#replaySegment(
		segment: FoundSegment,
		successor: SegmentHeader | undefined,
		durableEntries: number,
		target: RecoveryTarget,
	): number {
		const { entriesPerSegment } = this.#geometry;
		const firstEntry = segment.header.firstEntry;
		const limit = Math.min(entriesPerSegment, successor ? successor.firstEntry - firstEntry : entriesPerSegment);
		this.#load(segment);
		target.segment(segment);
		let slot = 0;
		let entry = 0;
		while (entry < limit) {
			if (!this.#isWhole(entry, slot, limit)) return entry;
			if (firstEntry + entry >= durableEntries && !this.#dataIsRight(segment.place, entry)) return entry;
			if (this.#summary.kind(entry) === KIND_DATA) slot += this.#summary.count(entry);
			target.entry(this.#summary, entry);
			entry += this.#summary.records(entry);
		}
		return entry;
	}

	/** Checksums and ranges of an entry and its further records, `slot` being the next free slot of the segment. */
	#isWhole(entry: number, slot: number, limit: number): boolean {
		const summary = this.#summary;
		if (this.#safeguards.entryChecksums && !summary.intactThrough(entry, limit)) return false;
		const count = summary.count(entry);
		const kind = summary.kind(entry);
		if (count === 0 || kind === 0 || kind > KIND_DROP || summary.slot(entry) !== slot) return false;
		if (summary.block(entry) + count > divCeil(this.#superblock.largestDiskBytes, BLOCK_SIZE)) return false;
		if (kind !== KIND_DATA) return true;
		if (slot + count > this.#geometry.slotsPerSegment) return false;
		if (summary.version > 1 && count > RUN_BLOCKS_MAX) return false;
		return entry + summary.records(entry) <= limit;
	}

	#dataIsRight(place: number, entry: number): boolean {
		const summary = this.#summary;
		if (summary.kind(entry) !== KIND_DATA || !this.#safeguards.dataChecksums) return true;
		const data = this.#readData(place, entry);
		if (summary.version === 1) return this.#checksum(data) >>> 0 === summary.dataCrc(entry);
		summary.copySums(entry, this.#sums);
		const slot = summary.slot(entry);
		for (let i = 0; i < summary.count(entry); i++) {
			const block = data.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
			if (this.#checksum(block) >>> 0 !== this.#sums[slot + i]) return false;
		}
		return true;
	}

	#readData(place: number, entry: number): Uint8Array {
		const data = new Uint8Array(this.#summary.count(entry) * BLOCK_SIZE);
		this.#file.read(this.#offsetOfData(place, entry), data);
		return data;
	}

	#offsetOfData(place: number, entry: number) {
		const lead = this.#geometry.leadBlocks + this.#summary.slot(entry);
		return byteOffset(offsetOfPlace(this.#geometry, place) + lead * BLOCK_SIZE);
	}

	#load(segment: FoundSegment): void {
		this.#summary.bind(this.#superblock.uuid, segment.header);
		if (this.#summaryPlace === segment.place) return;
		this.#file.read(byteOffset(offsetOfPlace(this.#geometry, segment.place) + BLOCK_SIZE), this.#summaryBytes);
		this.#summaryPlace = segment.place;
	}

	/** Writes what isn't surely on disk once more, as it is, and waits until all of the log is there. */
	#writeAgain(copy: 0 | 1, chain: readonly FoundSegment[], durableEntries: number, entries: number): void {
		const record = new Uint8Array(BLOCK_SIZE);
		this.#rewrite(copy * BLOCK_SIZE, record);
		chain.forEach((segment, index) => {
			const end = chain[index + 1]?.header.firstEntry ?? entries;
			if (end < durableEntries) return;
			this.#load(segment);
			const at = offsetOfPlace(this.#geometry, segment.place);
			this.#rewrite(at, record);
			this.#file.write(this.#summaryBytes, byteOffset(at + BLOCK_SIZE));
			const last = end - segment.header.firstEntry;
			let entry = Math.max(0, durableEntries - segment.header.firstEntry);
			for (; entry < last; entry += this.#summary.records(entry))
				if (this.#summary.kind(entry) === KIND_DATA)
					this.#file.write(this.#readData(segment.place, entry), this.#offsetOfData(segment.place, entry));
		});
		this.#file.datasync();
	}

	#rewrite(at: number, into: Uint8Array): void {
		this.#file.read(byteOffset(at), into);
		this.#file.write(into, byteOffset(at));
	}

	#refuse(chain: readonly FoundSegment[], segments: number, entries: number, durableEntries: number): never {
		const last = chain[segments - 1];
		const where = last
			? `segment ${last.header.sequence} (at ${formatBytes(offsetOfPlace(this.#geometry, last.place))})`
			: "its first segment";
		throw new VmsweepError(
			"LOG_DAMAGED",
			`${this.#name}: entry ${entries} in or after ${where} is damaged, but ${durableEntries} entries were durable. ` +
				"Nothing was changed; restore this file from where it was stored",
		);
	}
}

/** The headers that follow one another from the first segment after the freed ones. */
function chainOf(found: readonly FoundSegment[], freedSequence: number): FoundSegment[] {
	const successors = new Map<number, FoundSegment>();
	for (const segment of found) {
		const { previousSequence, epoch, sequence } = segment.header;
		// Sequences grow along the chain, so it can't be a ring.
		if (sequence <= previousSequence) continue;
		const other = successors.get(previousSequence)?.header;
		if (!other || epoch > other.epoch || (epoch === other.epoch && sequence > other.sequence))
			successors.set(previousSequence, segment);
	}
	const chain: FoundSegment[] = [];
	for (let next = successors.get(freedSequence); next; next = successors.get(next.header.sequence)) chain.push(next);
	return chain;
}
