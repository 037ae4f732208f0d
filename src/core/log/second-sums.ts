// Second sums: a checksum for every block of the second image that vmsweep wrote there, in a file of the disk's own.
//
//   0        4 KiB
//   | header | sector 0: blocks 0 to 126 | sector 1: blocks 127 to 253 | …
//
// A plain image has no room for checksums, so bit rot in it would be served as if it were data. A sector is 127 checksums
// (CRC-32, 4 bytes each) and one over them, so that it is written whole or not at all. A checksum of 0 means "nothing is
// known of this block": it was there before the disk was, or it was punched. So does a sector that is damaged itself.
//
// The order that keeps a crash from making good data look rotten (`ABSENT` blocks are read from the second image and
// compared; all others are in the log, whatever stands here)
//   block copied   copy, new checksum, both durable ─▶ only then the index points at the second image
//   block punched  checksum forgotten, durable ─▶ punch ─▶ only then the index points at the second image
//
// Memory is bounded: a direct-mapped cache of 4 KiB pages, written through.

import { VmsweepError } from "../../foundations/errors.ts";
import { bytes, struct, u16le, u32le } from "../../foundations/struct.ts";
import { byteOffset, divFloor } from "../../foundations/units.ts";
import { recordChecksum } from "./format.ts";
import type { HostFile } from "./host-file.ts";

/** Checksums of a sector; the last word of its 512 bytes is their own checksum. */
const SUMS_PER_SECTOR = 127;
const SECTOR_WORDS = 128;
const SECTOR_BYTES = 512;
const PAGE_SECTORS = 8;
const PAGE_WORDS = PAGE_SECTORS * SECTOR_WORDS;
const PAGE_BYTES = PAGE_SECTORS * SECTOR_BYTES;
const HEADER_BYTES = 4096;
/** 16 MiB of memory at most: the checksums of 16 GiB of the disk. */
const CACHE_PAGES = 4096;
export const SECOND_SUMS_VERSION = 1;

const magic = new TextEncoder().encode("VMSWPSUM");

const HeaderRecord = struct("second image checksums header", SECTOR_BYTES, {
	magic: bytes(0x00, 8),
	version: u16le(0x08),
	uuid: bytes(0x10, 16),
	checksum: u32le(0x1fc),
});

/** Makes `file` know nothing: an empty file, or one whose image others have changed. Not durable yet. */
export function formatSecondSums(file: HostFile, uuid: Uint8Array): void {
	file.truncate(0);
	const header = new Uint8Array(HEADER_BYTES);
	const view = new DataView(header.buffer);
	HeaderRecord.put(view, 0, { magic, version: SECOND_SUMS_VERSION, uuid });
	HeaderRecord.write.checksum(view, 0, recordChecksum(header.subarray(0, SECTOR_BYTES)));
	file.write(header, byteOffset(0));
}

export class SecondSums {
	readonly #file: HostFile;
	/** Page number of each place of the cache, or -1. */
	readonly #tags: Int32Array;
	readonly #words: Uint32Array;
	readonly #bytes: Uint8Array;
	/** Sectors changed since the last `write`, in the order in which they were changed. */
	readonly #changed = new Set<number>();
	/** Sectors behind these were never written. */
	#sectors: number;
	/** Sectors that were found damaged: their blocks can't be verified. */
	damagedSectors = 0;

	/**
	 * Opens the checksums of the disk `uuid`. A file that holds none (new, of another disk, damaged) begins as one that
	 * knows nothing. Throws DISK_WRONG_VERSION or IO.
	 */
	constructor(file: HostFile, uuid: Uint8Array, name: string, cachePages = CACHE_PAGES) {
		this.#file = file;
		this.#tags = new Int32Array(cachePages).fill(-1);
		this.#words = new Uint32Array(cachePages * PAGE_WORDS);
		this.#bytes = new Uint8Array(this.#words.buffer);
		const header = new Uint8Array(SECTOR_BYTES);
		file.read(byteOffset(0), header);
		const fields = HeaderRecord.at(new DataView(header.buffer));
		const isOurs = fields.checksum === recordChecksum(header) && fields.magic.every((byte, i) => byte === magic[i]);
		if (isOurs && fields.version !== SECOND_SUMS_VERSION)
			throw new VmsweepError(
				"DISK_WRONG_VERSION",
				`${name}: format version ${fields.version}, this vmsweep knows ${SECOND_SUMS_VERSION}; open the disk with the vmsweep that wrote it`,
			);
		if (!isOurs || !fields.uuid.every((byte, i) => byte === uuid[i])) formatSecondSums(file, uuid);
		this.#sectors = Math.ceil((file.size() - HEADER_BYTES) / SECTOR_BYTES);
	}

	/** CRC-32 of a block as it was written to the second image, or 0 where nothing is known. Throws IO. */
	get(block: number): number {
		const sector = divFloor(block, SUMS_PER_SECTOR);
		return this.#words[this.#wordsOf(sector) + (block - sector * SUMS_PER_SECTOR)]!;
	}

	/** Notes the checksum of a block; 0 forgets it. In the file after `write`. Throws IO. */
	set(block: number, sum: number): void {
		const sector = divFloor(block, SUMS_PER_SECTOR);
		const word = this.#wordsOf(sector) + (block - sector * SUMS_PER_SECTOR);
		if (this.#words[word] === sum) return;
		this.#words[word] = sum;
		this.#changed.add(sector);
		this.#sectors = Math.max(this.#sectors, sector + 1);
	}

	/** Forgets the checksums of `count` blocks, whole sectors at a time. In the file after `write`. Throws IO. */
	forget(block: number, count: number): void {
		const end = Math.min(block + count, this.#sectors * SUMS_PER_SECTOR);
		for (let at = block; at < end; ) {
			const sector = divFloor(at, SUMS_PER_SECTOR);
			const sectorEnd = Math.min(end, (sector + 1) * SUMS_PER_SECTOR);
			const word = this.#wordsOf(sector) + (at - sector * SUMS_PER_SECTOR);
			const sums = this.#words.subarray(word, word + (sectorEnd - at));
			if (sums.some((sum) => sum !== 0)) {
				sums.fill(0);
				this.#changed.add(sector);
			}
			at = sectorEnd;
		}
	}

	/** Writes what was changed; durable after the file's next datasync. Throws IO, NO_SPACE. */
	write(): void {
		const sectors = [...this.#changed].sort((a, b) => a - b);
		for (let from = 0; from < sectors.length; ) {
			let to = from + 1;
			// Neighbours in one write; a page lies in one piece of the cache.
			while (to < sectors.length && sectors[to] === sectors[to - 1]! + 1 && sectors[to]! % PAGE_SECTORS !== 0) to++;
			const first = sectors[from]!;
			for (let i = from; i < to; i++) this.#seal(sectors[i]!);
			const at = this.#wordsOf(first) * 4;
			this.#file.write(
				this.#bytes.subarray(at, at + (to - from) * SECTOR_BYTES),
				byteOffset(HEADER_BYTES + first * SECTOR_BYTES),
			);
			from = to;
		}
		this.#changed.clear();
	}

	/** The checksums of a run of blocks will be asked for soon. */
	willNeed(block: number, count: number): void {
		const first = divFloor(block, SUMS_PER_SECTOR);
		const last = divFloor(block + count - 1, SUMS_PER_SECTOR);
		this.#file.willNeed?.(byteOffset(HEADER_BYTES + first * SECTOR_BYTES), (last - first + 1) * SECTOR_BYTES);
	}

	/** First word of a sector in the cache. */
	#wordsOf(sector: number): number {
		const page = divFloor(sector, PAGE_SECTORS);
		const place = page % this.#tags.length;
		if (this.#tags[place] !== page) this.#load(page, place);
		return place * PAGE_WORDS + (sector - page * PAGE_SECTORS) * SECTOR_WORDS;
	}

	#load(page: number, place: number): void {
		// It takes the place of another page, which may have been changed.
		if (this.#changed.size > 0) this.write();
		this.#tags[place] = -1;
		const at = place * PAGE_BYTES;
		this.#file.read(byteOffset(HEADER_BYTES + page * PAGE_BYTES), this.#bytes.subarray(at, at + PAGE_BYTES));
		for (let sector = 0; sector < PAGE_SECTORS; sector++) this.#check(place, sector);
		this.#tags[place] = page;
	}

	/** A sector that isn't whole knows nothing; one of zeros was never written. */
	#check(place: number, sector: number): void {
		const at = place * PAGE_WORDS + sector * SECTOR_WORDS;
		const words = this.#words.subarray(at, at + SECTOR_WORDS);
		if (words[SUMS_PER_SECTOR] === this.#checksum(at)) return;
		if (words.some((word) => word !== 0)) this.damagedSectors++;
		words.fill(0);
	}

	#seal(sector: number): void {
		const at = this.#wordsOf(sector);
		this.#words[at + SUMS_PER_SECTOR] = this.#checksum(at);
	}

	#checksum(at: number): number {
		return recordChecksum(this.#bytes.subarray(at * 4, (at + SECTOR_WORDS) * 4));
	}
}
