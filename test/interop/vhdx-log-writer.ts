// Writes a log into a VHDX file, as a program leaves it that was killed before it could apply its log.
//
// Written after [MS-VHDX] "Log": entries of a header, descriptors, and data sectors, each entry with its checksum; the
// newest header then names the log by its GUID.

import assert from "node:assert/strict";
import {
	guid,
	guidText,
	HEADER_PLACES,
	Header,
	LOG_ENTRY_SIGNATURE,
	LOG_SECTOR,
	LogData,
	LogDescriptor,
	LogEntry,
	REGION_ENTRIES_AT,
	REGION_TABLE_PLACES,
	RegionEntry,
	RegionTable,
	ZeroLength,
} from "../../src/core/images/vhdx/layout.ts";
import { crc32cWithout } from "../../src/foundations/crc.ts";
import { viewOf } from "../../src/foundations/struct.ts";

/** A change that an entry holds: 4 KiB of data, or zeros. Positions in the file. */
export type LoggedWrite =
	| { readonly at: number; readonly data: Uint8Array }
	| { readonly at: number; readonly zeros: number };

export interface EntryOptions {
	readonly sequence: number;
	readonly writes: readonly LoggedWrite[];
	/** Position of the oldest entry to replay, from the log's start. */
	readonly tail: number;
	/** Size that the file must have and will have. */
	readonly fileSize: number;
	readonly lastFileOffset?: number;
	readonly guid?: Uint8Array;
}

export const LOG_GUID = Uint8Array.from({ length: 16 }, (_, index) => index + 1);

/** One entry's bytes. */
export function logEntry(options: EntryOptions): Uint8Array {
	const { sequence, writes, tail, fileSize, lastFileOffset = fileSize } = options;
	const data = writes.flatMap((write) => ("data" in write ? [write] : []));
	const descriptorBytes = Math.ceil((LogEntry.size + writes.length * LogDescriptor.size) / LOG_SECTOR) * LOG_SECTOR;
	const bytes = new Uint8Array(descriptorBytes + data.length * LOG_SECTOR);
	const view = viewOf(bytes);
	LogEntry.put(view, 0, {
		signature: LOG_ENTRY_SIGNATURE,
		entryLength: bytes.length,
		tail,
		sequence,
		descriptorCount: writes.length,
		logGuid: options.guid ?? LOG_GUID,
		flushedFileOffset: fileSize,
		lastFileOffset,
	});
	for (const [index, write] of writes.entries()) {
		const at = LogEntry.size + index * LogDescriptor.size;
		LogDescriptor.put(view, at, { fileOffset: write.at, sequence });
		bytes.set(new TextEncoder().encode("data" in write ? "desc" : "zero"), at);
		if ("zeros" in write) ZeroLength.write.zeroLength(view, at, write.zeros);
		else {
			assert.equal(write.data.length, LOG_SECTOR);
			LogDescriptor.put(view, at, { leading: write.data.subarray(0, 8), trailing: write.data.subarray(4092) });
		}
	}
	for (const [index, write] of data.entries()) {
		const at = descriptorBytes + index * LOG_SECTOR;
		bytes.set(new TextEncoder().encode("data"), at);
		LogData.put(view, at, {
			sequenceHigh: Math.floor(sequence / 2 ** 32),
			data: write.data.subarray(8, 4092),
			sequenceLow: sequence % 2 ** 32,
		});
	}
	return withChecksum(bytes, LogEntry.offset.checksum);
}

/** Puts the checksum of a record at `at` right. Returns the record. */
export function withChecksum(record: Uint8Array, at: number): Uint8Array {
	viewOf(record).setUint32(at, ~crc32cWithout(~0, record, at) >>> 0, true);
	return record;
}

/** A whole VHDX file in memory, of which parts are changed. */
export class VhdxBytes {
	readonly bytes: Uint8Array;
	readonly view: DataView;

	constructor(bytes: Uint8Array) {
		this.bytes = Uint8Array.from(bytes);
		this.view = viewOf(this.bytes);
	}

	/** Where the header lies that counts. */
	get headerAt(): number {
		const [first, second] = HEADER_PLACES as [number, number];
		return Header.read.sequence(this.view, second) > Header.read.sequence(this.view, first) ? second : first;
	}

	get log(): { readonly at: number; readonly length: number } {
		const { logOffset, logLength } = Header.at(this.view, this.headerAt);
		return { at: logOffset, length: logLength };
	}

	/** Position of a region in the file. */
	region(id: string): number {
		const at = REGION_TABLE_PLACES[0]!;
		for (let index = 0; index < RegionTable.read.entryCount(this.view, at); index++) {
			const entry = RegionEntry.at(this.view, at + REGION_ENTRIES_AT + index * RegionEntry.size);
			if (guidText(entry.guid) === id) return entry.fileOffset;
		}
		throw new Error(`no region ${id}`);
	}

	get tableAt(): number {
		return this.region(guid.blockAllocationTable);
	}

	/** Changes the header that counts. */
	putHeader(values: Parameters<typeof Header.put>[2]): void {
		const at = this.headerAt;
		Header.put(this.view, at, values);
		withChecksum(this.bytes.subarray(at, at + Header.size), Header.offset.checksum);
	}

	/** Puts an entry into the log at `at`, around its end where it must, and the log into the header. Returns its end. */
	putEntry(at: number, entry: Uint8Array): number {
		const { at: logAt, length } = this.log;
		for (let done = 0; done < entry.length; done += LOG_SECTOR)
			this.bytes.set(entry.subarray(done, done + LOG_SECTOR), logAt + ((at + done) % length));
		this.putHeader({ logGuid: LOG_GUID });
		return (at + entry.length) % length;
	}
}
