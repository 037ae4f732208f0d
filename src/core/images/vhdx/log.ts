// The log of a VHDX file, replayed in memory: what a crash left there counts as written, but the file stays as it is.
//
//   log (a ring) | … old … | entry 7 | entry 8 | entry 9 | … old … |      entry = header, descriptors, data sectors
//                            ▲ tail               ▲ head
//   file as the disk's tables see it  =  what the entries from tail to head write, over the file
//
// Which entries count ([MS-VHDX] "Log Replay"): a sequence is entries that follow each other in place and by sequence
// number, all whole and with the header's GUID, whose last one names a tail inside it. The sequence with the greatest
// number is the active one; it is replayed from its last entry's tail on.
//
// Invariants
//  - nothing is believed before its checksum was compared; the whole search reads each log byte a bounded number of
//    times
//  - where the header says that there is a log, and no sequence is whole, the file is damaged: what its tables say may
//    be half of a change

import { crc32cWithout } from "../../../foundations/crc.ts";
import { checkRange } from "../../../foundations/source.ts";
import { bytesOf, viewOf } from "../../../foundations/struct.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { ImageFile } from "../image-file.ts";
import { damaged, readRecord, unsupported } from "../mapped-disk.ts";
import {
	ALIGNMENT,
	DATA_SECTOR_SIGNATURE,
	DATA_SIGNATURE,
	guidText,
	type Header,
	LOG_ENTRY_SIGNATURE,
	LOG_SECTOR,
	LogData,
	LogDescriptor,
	LogEntry,
	ZERO_SIGNATURE,
	ZeroLength,
} from "./layout.ts";
import { type Overwrite, paint } from "./overwrites.ts";

type HeaderFields = ReturnType<typeof Header.at>;
type EntryFields = ReturnType<typeof LogEntry.at>;

/** Hyper-V and QEMU make logs of 1 MiB. A log is held in memory. */
const LOG_BYTES_MAX = 32 * ALIGNMENT;
/** Checksums are computed over at most this many times the log: a hostile log has an "entry" at every sector. */
const CHECKSUM_PASSES = 16;
const ZERO_GUID = "00000000-0000-0000-0000-000000000000";

/** The file as it is after its log is replayed; the file itself where there is nothing to replay. */
export async function replayLog(file: ImageFile, header: HeaderFields, name: string): Promise<ImageFile> {
	if (guidText(header.logGuid) === ZERO_GUID || header.logLength === 0) return file;
	const { logOffset, logLength, logVersion } = header;
	if (logVersion !== 0) throw unsupported(name, `VHDX log version ${logVersion} isn't known`);
	if (logOffset < ALIGNMENT || logOffset % ALIGNMENT !== 0 || logLength % ALIGNMENT !== 0)
		throw damaged(`${name}: the log`, `should lie at byte ${logOffset} and have ${logLength} bytes`);
	if (logLength > LOG_BYTES_MAX)
		throw unsupported(name, `it has a log of ${logLength} bytes to replay`, "Open it once in Hyper-V.");
	const view = await readRecord(file, logOffset, logLength, `${name}: the log`);
	const log = bytesOf(view);
	const entries = new LogReader(log, guidText(header.logGuid), name).activeSequence();
	const head = entries.at(-1)!.header;
	if (file.size < head.flushedFileOffset)
		throw damaged(
			`${name}: the file`,
			`ends at byte ${file.size}, but had ${head.flushedFileOffset} bytes when its log was written`,
		);
	const size = Math.max(file.size, head.lastFileOffset);
	return overlay(file, size, paint(entries.flatMap(({ bytes, header }) => overwritesOf(bytes, header, name))));
}

interface Entry {
	/** All of it, in one piece even where the ring's end cuts it. */
	readonly bytes: Uint8Array;
	readonly header: EntryFields;
	/** Position in the log. */
	readonly at: number;
}

class LogReader {
	readonly #log: Uint8Array;
	readonly #guid: string;
	readonly #name: string;
	#budget: number;

	constructor(log: Uint8Array, guid: string, name: string) {
		this.#log = log;
		this.#guid = guid;
		this.#name = name;
		this.#budget = log.length * CHECKSUM_PASSES;
	}

	/** The entries to replay, oldest first; at least one. */
	activeSequence(): readonly Entry[] {
		let active: readonly Entry[] = [];
		for (let tail = 0; tail < this.#log.length; ) {
			const { entries, end } = this.#sequenceFrom(tail);
			const last = entries.at(-1);
			const from = entries.findIndex(({ at }) => at === last?.header.tail);
			const isNewer = last !== undefined && last.header.sequence > (active.at(-1)?.header.sequence ?? 0);
			if (from >= 0 && isNewer) active = entries.slice(from);
			tail = from >= 0 ? end : tail + LOG_SECTOR;
		}
		if (active.length > 0) return active;
		throw damaged(`${this.#name}: the log`, "should be replayed, but has no whole entry");
	}

	/** Entries that follow each other from `tail` on, around the ring's end; `end` is beyond the ring then. */
	#sequenceFrom(tail: number): { readonly entries: readonly Entry[]; readonly end: number } {
		const entries: Entry[] = [];
		let end = tail;
		for (;;) {
			const room = tail + this.#log.length - end;
			const entry = room < LOG_SECTOR ? undefined : this.#entryAt(end % this.#log.length, room);
			const before = entries.at(-1);
			if (entry === undefined || (before !== undefined && entry.header.sequence !== before.header.sequence + 1))
				return { entries, end };
			entries.push(entry);
			end += entry.bytes.length;
		}
	}

	/** The entry at `at` where a whole one is there that takes at most `room` bytes. */
	#entryAt(at: number, room: number): Entry | undefined {
		const header = LogEntry.at(viewOf(this.#log), at);
		const { signature, entryLength, descriptorCount, sequence, logGuid, checksum } = header;
		if (signature !== LOG_ENTRY_SIGNATURE || guidText(logGuid) !== this.#guid) return undefined;
		if (entryLength < LOG_SECTOR || entryLength % LOG_SECTOR !== 0 || entryLength > room) return undefined;
		if (!(sequence > 0 && sequence < Number.MAX_SAFE_INTEGER)) return undefined;
		if (descriptorSectors(descriptorCount) * LOG_SECTOR > entryLength) return undefined;
		this.#budget -= entryLength;
		if (this.#budget < 0) throw damaged(`${this.#name}: the log`, "has entries that lie in each other");
		const bytes = new Uint8Array(entryLength);
		const first = Math.min(entryLength, this.#log.length - at);
		bytes.set(this.#log.subarray(at, at + first));
		bytes.set(this.#log.subarray(0, entryLength - first), first);
		if (~crc32cWithout(~0, bytes, LogEntry.offset.checksum) >>> 0 !== checksum) return undefined;
		return { bytes, header, at };
	}
}

const descriptorSectors = (count: number): number =>
	Math.ceil((LogEntry.size + count * LogDescriptor.size) / LOG_SECTOR);

/** What one whole entry writes, in its order. An entry whose checksum is right but whose content isn't, is damage. */
function overwritesOf(entry: Uint8Array, header: EntryFields, name: string): Overwrite[] {
	const view = viewOf(entry);
	const what = `${name}: log entry ${header.sequence}`;
	const overwrites: Overwrite[] = [];
	let dataAt = descriptorSectors(header.descriptorCount) * LOG_SECTOR;
	for (let index = 0; index < header.descriptorCount; index++) {
		const base = LogEntry.size + index * LogDescriptor.size;
		const { signature, leading, trailing, fileOffset, sequence } = LogDescriptor.at(view, base);
		if (sequence !== header.sequence || fileOffset % LOG_SECTOR !== 0 || !Number.isSafeInteger(fileOffset))
			throw damaged(what, `has a wrong descriptor ${index}`);
		if (signature === ZERO_SIGNATURE) {
			const length = ZeroLength.read.zeroLength(view, base);
			if (length % LOG_SECTOR !== 0 || !Number.isSafeInteger(fileOffset + length))
				throw damaged(what, `has a wrong descriptor ${index}`);
			if (length > 0) overwrites.push({ start: fileOffset, end: fileOffset + length, bytes: null });
			continue;
		}
		if (signature !== DATA_SIGNATURE || dataAt + LOG_SECTOR > entry.length)
			throw damaged(what, `has a wrong descriptor ${index}`);
		const data = LogData.at(view, dataAt);
		if (
			data.signature !== DATA_SECTOR_SIGNATURE ||
			data.sequenceHigh * 0x1_0000_0000 + data.sequenceLow !== header.sequence
		)
			throw damaged(what, `has a wrong data sector for descriptor ${index}`);
		const bytes = new Uint8Array(LOG_SECTOR);
		bytes.set(leading);
		bytes.set(data.data, leading.length);
		bytes.set(trailing, LOG_SECTOR - trailing.length);
		overwrites.push({ start: fileOffset, end: fileOffset + LOG_SECTOR, bytes });
		dataAt += LOG_SECTOR;
	}
	return overwrites;
}

/** The file with `overwrites` (disjoint, in order) over it; past the file's end it reads as zeros up to `size`. */
function overlay(file: ImageFile, size: number, overwrites: readonly Overwrite[]): ImageFile {
	return {
		size: byteCount(size),
		async read(at, into) {
			checkRange(byteCount(size), at, into.length, "VHDX file with its log");
			const end = at + into.length;
			const stored = Math.max(0, Math.min(end, file.size) - at);
			if (stored > 0) await file.read(byteOffset(at), into.subarray(0, stored));
			into.fill(0, stored);
			for (let index = firstEndingAfter(overwrites, at); index < overwrites.length; index++) {
				const { start: overwriteStart, end: overwriteEnd, bytes } = overwrites[index]!;
				if (overwriteStart >= end) break;
				const from = Math.max(overwriteStart, at);
				const target = into.subarray(from - at, Math.min(overwriteEnd, end) - at);
				if (bytes === null) target.fill(0);
				else target.set(bytes.subarray(from - overwriteStart, from - overwriteStart + target.length));
			}
		},
	};
}

function firstEndingAfter(overwrites: readonly Overwrite[], at: number): number {
	let low = 0;
	let high = overwrites.length;
	while (low < high) {
		const middle = (low + high) >>> 1;
		if (overwrites[middle]!.end > at) high = middle;
		else low = middle + 1;
	}
	return low;
}
