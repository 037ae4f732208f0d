// Records of the log: a ring of 512-byte sectors that every write passes through once per cycle.
//
//   | head 1…8 sectors | data, up to 256 KiB | head | data | …            each record is one write
//
// Every sector of the log starts with the number of the cycle that wrote it, which is how the end is found: cycle
// numbers fall there. For that, the first word of each data sector is replaced and kept in the record's head. A head's
// first sector starts with a magic number that is no cycle, with the cycle behind it. The checksum is over the sectors
// as they are on the disk. ("The Journaling Log"; `xlog_unpack_data`, `xlog_cksum` in Linux.)

import { crc32c, crc32cWithout } from "../../../foundations/crc.ts";
import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, divCeil } from "../../../foundations/units.ts";
import {
	BASIC_BLOCK,
	LOG_BYTES_PER_HEADER,
	LOG_EXTENSION_SUMMED,
	LOG_EXTENSION_WORDS_AT,
	LOG_FORMAT_LINUX_LITTLE_ENDIAN,
	LOG_HEADER_SUMMED,
	LOG_RECORD_MAGIC,
	LOG_RECORD_MAX_BYTES,
	LogRecordHeader,
} from "./layout.ts";
import type { LogPlace } from "./open.ts";

const READ_AHEAD_SECTORS = (1 << 20) / BASIC_BLOCK;

/** The log as a ring of sectors. Positions are sectors from its start. */
export class LogRing {
	readonly length: number;
	readonly #volume: ByteSource;
	readonly #start: number;
	readonly #aheadSectors: number;
	/** What was read last for a walk: its first sector and bytes. */
	#held: { first: number; bytes: Uint8Array } = { first: 0, bytes: new Uint8Array(0) };

	/** @param aheadSectors how far `readAhead` reads at once */
	constructor(volume: ByteSource, place: LogPlace, aheadSectors: number = READ_AHEAD_SECTORS) {
		this.#aheadSectors = aheadSectors;
		this.length = place.basicBlocks;
		this.#volume = volume;
		this.#start = place.start;
	}

	wrap(sector: number): number {
		return ((sector % this.length) + this.length) % this.length;
	}

	/** Sectors from `from` forward to `to`, 0 … length - 1. */
	distance(from: number, to: number): number {
		return this.wrap(to - from);
	}

	/** Reads `count` sectors from `sector` on, around the ring's end where needed. */
	async read(sector: number, count: number): Promise<Uint8Array> {
		const bytes = new Uint8Array(count * BASIC_BLOCK);
		for (let done = 0; done < count; ) {
			const at = this.wrap(sector + done);
			const part = Math.min(count - done, this.length - at);
			const into = bytes.subarray(done * BASIC_BLOCK, (done + part) * BASIC_BLOCK);
			await this.#volume.read(byteOffset(this.#start + at * BASIC_BLOCK), into);
			done += part;
		}
		return bytes;
	}

	/** Like {@link read}, for walks from sector to sector: reads far ahead, once. The result is the caller's. */
	async readAhead(sector: number, count: number): Promise<Uint8Array> {
		const at = this.wrap(sector);
		if (at + count > this.length) return await this.read(at, count);
		let offset = (at - this.#held.first) * BASIC_BLOCK;
		if (offset < 0 || offset + count * BASIC_BLOCK > this.#held.bytes.length) {
			const ahead = Math.min(Math.max(count, this.#aheadSectors), this.length - at);
			const start = byteOffset(this.#start + at * BASIC_BLOCK);
			this.#held = { first: at, bytes: await readBytes(this.#volume, start, ahead * BASIC_BLOCK) };
			offset = 0;
		}
		return this.#held.bytes.slice(offset, offset + count * BASIC_BLOCK);
	}
}

/** The cycle that wrote the log sector at byte `at` of `bytes`. */
export function cycleAt(bytes: Uint8Array, at: number): number {
	const view = viewOf(bytes);
	const word = view.getUint32(at);
	return word === LOG_RECORD_MAGIC ? view.getUint32(at + 4) : word;
}

/** A record by its head. */
export interface LogRecord {
	/** Its first sector. */
	readonly sector: number;
	/** Sectors of its head. */
	readonly headSectors: number;
	readonly dataBytes: number;
	/** Sectors in all: the next record starts right behind. */
	readonly sectors: number;
	readonly cycle: number;
	readonly lsn: bigint;
	readonly tailLsn: bigint;
	/** First sector of the record before it. */
	readonly previousSector: number;
	readonly operationCount: number;
	readonly checksum: number;
	/** Byte order and layout of what it holds. */
	readonly format: number;
	readonly uuid: Uint8Array;
}

export const isRecordHead = (bytes: Uint8Array, at: number): boolean =>
	viewOf(bytes).getUint32(at) === LOG_RECORD_MAGIC;

/** Reads a record's head from its first sector; null where it is none, or its lengths or its place are impossible. */
export function parseRecordHead(bytes: Uint8Array, sector: number, isLogVersion2: boolean): LogRecord | null {
	const head = LogRecordHeader.at(viewOf(bytes));
	if (head.magic !== LOG_RECORD_MAGIC || (head.version !== 1 && head.version !== 2)) return null;
	const isLong = isLogVersion2 && head.version === 2;
	if (head.length === 0 || head.length > LOG_RECORD_MAX_BYTES) return null;
	if (isLong && head.bufferSize > LOG_RECORD_MAX_BYTES) return null;
	if (head.lsn !== lsnOf(head.cycle, sector)) return null;
	const headSectors = isLong ? Math.max(1, divCeil(head.bufferSize, LOG_BYTES_PER_HEADER)) : 1;
	return {
		sector,
		headSectors,
		dataBytes: head.length,
		sectors: headSectors + divCeil(head.length, BASIC_BLOCK),
		cycle: head.cycle,
		lsn: head.lsn,
		tailLsn: head.tailLsn,
		previousSector: head.previousSector,
		operationCount: head.operationCount,
		checksum: head.checksum,
		format: head.format,
		uuid: head.uuid,
	};
}

/** Log positions: the cycle above the sector. */
export const lsnOf = (cycle: number, sector: number): bigint => (BigInt(cycle) << 32n) | BigInt(sector);
export const lsnCycle = (lsn: bigint): number => Number(lsn >> 32n);
export const lsnSector = (lsn: bigint): number => Number(lsn & 0xffffffffn);

/** Blocks that were never logged have this log position. */
export const NO_LSN = 0xffff_ffff_ffff_ffffn;

/** Does a block's log position lie behind the log's head? Kernels take such a block for damaged (`xfs_log_check_lsn`). */
export const isBehindHead = (lsn: bigint, head: bigint): boolean => lsn > head && lsn !== NO_LSN;

/** Does a whole record, `bytes`, have the checksum that its head says? */
export function isRecordChecksumRight(record: LogRecord, bytes: Uint8Array): boolean {
	return LOG_HEADER_SUMMED.some((summed) => recordChecksum(record, bytes, summed) === record.checksum);
}

/** Checksum of a record whose head counts with `summed` bytes of its first sector. */
export function recordChecksum(record: LogRecord, bytes: Uint8Array, summed: number): number {
	let crc = crc32cWithout(0xffffffff, bytes.subarray(0, summed), LogRecordHeader.offset.checksum);
	for (let i = 1; i < divCeil(record.dataBytes, LOG_BYTES_PER_HEADER) && i < record.headSectors; i++)
		crc = crc32c(crc, bytes.subarray(i * BASIC_BLOCK, i * BASIC_BLOCK + LOG_EXTENSION_SUMMED));
	const dataAt = record.headSectors * BASIC_BLOCK;
	return ~crc32c(crc, bytes.subarray(dataAt, dataAt + record.dataBytes)) >>> 0;
}

/** The data of a whole record, with the replaced words put back; null where its head is too short for them. */
export function recordData(record: LogRecord, bytes: Uint8Array): Uint8Array | null {
	const dataAt = record.headSectors * BASIC_BLOCK;
	const data = bytes.slice(dataAt, dataAt + record.dataBytes);
	const wordsPerSector = LOG_BYTES_PER_HEADER / BASIC_BLOCK;
	for (let sector = 0; sector * BASIC_BLOCK < data.length; sector++) {
		const headSector = Math.floor(sector / wordsPerSector);
		if (headSector >= record.headSectors) return null;
		const words = headSector === 0 ? LogRecordHeader.offset.cycleData : LOG_EXTENSION_WORDS_AT;
		const at = headSector * BASIC_BLOCK + words + (sector % wordsPerSector) * 4;
		data.set(bytes.subarray(at, at + Math.min(4, data.length - sector * BASIC_BLOCK)), sector * BASIC_BLOCK);
	}
	return data;
}

/** A record whose checksum is right. */
export interface WholeRecord {
	readonly record: LogRecord;
	/** What it holds, with the replaced words put back. */
	readonly data: Uint8Array;
}

/** The record that must start at a place, within the next `sectorsMax` sectors; or an error that says why none does. */
export async function readWholeRecord(
	ring: LogRing,
	uuid: Uint8Array,
	{ sector, cycle }: { readonly sector: number; readonly cycle: number },
	sectorsMax: number,
): Promise<WholeRecord | VmsweepError> {
	const record = parseRecordHead(await ring.readAhead(sector, 1), sector, true);
	if (record === null || record.sectors > sectorsMax) return damaged(`no record starts at its sector ${sector}`);
	if (record.format !== LOG_FORMAT_LINUX_LITTLE_ENDIAN)
		return new VmsweepError(
			"VOLUME_UNSUPPORTED",
			"its log was written by a big-endian machine; mount it there, then try again",
		);
	if (!uuid.every((byte, at) => byte === record.uuid[at]))
		return damaged(`the record at sector ${sector} belongs to another file system`);
	if (record.lsn !== lsnOf(cycle, sector)) return damaged(`the record at sector ${sector} is of another cycle`);
	const bytes = await ring.readAhead(sector, record.sectors);
	if (!isRecordChecksumRight(record, bytes)) return damaged(`the record at sector ${sector} has a wrong checksum`);
	const data = recordData(record, bytes);
	return data === null ? damaged(`the record at sector ${sector} is longer than its head allows`) : { record, data };
}

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its log is damaged: ${what}; mount it in the guest, then try again`);
