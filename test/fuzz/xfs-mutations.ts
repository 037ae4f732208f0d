// Mutations of real XFS images, with checksums put right again afterwards, so that a reader's deeper parts are reached
// and not only its checksum tests.

import { Agf, BASIC_BLOCK, BtreeBlock, LogRecordHeader, SuperBlock } from "../../src/core/filesystems/xfs/layout.ts";
import type { LogRecord } from "../../src/core/filesystems/xfs/log-records.ts";
import { isRecordHead, parseRecordHead, recordChecksum } from "../../src/core/filesystems/xfs/log-records.ts";
import { crc32cOf, type Geometry, parseSuperblock, readSuperblock } from "../../src/core/filesystems/xfs/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { memorySource } from "../interop/map-journal-writer.ts";
import type { Random } from "../support/randomness.ts";

/** An image to mutate, and where its structures lie, in bytes. */
export interface Target {
	readonly name: string;
	readonly bytes: Uint8Array;
	readonly geometry: Geometry;
	readonly agfs: readonly number[];
	/** Blocks of the trees of free space by block number. */
	readonly treeBlocks: readonly number[];
	/** Records of the log that don't go round its end. */
	readonly records: readonly LogRecord[];
}

export async function describeTarget(name: string, bytes: Uint8Array): Promise<Target> {
	const volume = memorySource(bytes);
	const geometry = parseSuperblock((await readSuperblock(volume))!, volume.size);
	const { agCount, agBlocks, blockSize, sectorSize, log } = geometry;
	const agfs = Array.from({ length: agCount }, (_, group) => group * agBlocks * blockSize + sectorSize);
	const magics = ["AB3B", "ABTB"].map((text) => viewOf(new TextEncoder().encode(text)).getUint32(0));
	const view = viewOf(bytes);
	const treeBlocks: number[] = [];
	for (let at = 0; at < geometry.dataBlocks * blockSize; at += blockSize)
		if (magics.includes(view.getUint32(at))) treeBlocks.push(at);
	const records: LogRecord[] = [];
	for (let sector = 0; sector < log!.basicBlocks; sector++) {
		const at = log!.start + sector * BASIC_BLOCK;
		if (!isRecordHead(bytes, at)) continue;
		const record = parseRecordHead(bytes.slice(at, at + BASIC_BLOCK), sector, geometry.isLogVersion2);
		if (record !== null && sector + record.sectors <= log!.basicBlocks) records.push(record);
	}
	return { name, bytes, geometry, agfs, treeBlocks, records };
}

/** Changes made to a target, to be taken back. */
export class Mutation {
	readonly #target: Target;
	readonly #before: { at: number; bytes: Uint8Array }[] = [];
	readonly steps: string[] = [];
	/** Could the geometry have changed? */
	touchesSuperblock = false;
	/** Was a block of metadata outside the log changed with its checksum put right, or one that has none? */
	forges = false;
	touchesLog = false;

	constructor(target: Target) {
		this.#target = target;
	}

	undo(): void {
		for (const { at, bytes } of this.#before.reverse()) this.#target.bytes.set(bytes, at);
	}

	/** The part of the image at `at`, to be written to. */
	#open(at: number, length: number, step: string): Uint8Array {
		this.steps.push(`${step} at ${at}`);
		const part = this.#target.bytes.subarray(at, at + length);
		this.#before.push({ at, bytes: part.slice() });
		const log = this.#target.geometry.log!;
		if (at < log.start + log.basicBlocks * BASIC_BLOCK && at + length > log.start) this.touchesLog = true;
		return part;
	}

	/** One random change of one random structure. */
	apply(random: Random): void {
		const { geometry, bytes, agfs, treeBlocks, records } = this.#target;
		if (geometry.version === 4) this.forges = true;
		const kinds = ["superblock", "agf", "agf", "tree", "tree", "tree", "stale", "raw"];
		if (records.length > 0) kinds.push("record head", "record", "record", "record");
		const kind = random.pick(kinds);
		if (kind === "superblock") {
			this.touchesSuperblock = true;
			const raw = this.#open(0, geometry.sectorSize, kind);
			scramble(raw.subarray(random.pick(Object.values(SuperBlock.offset))), random, 4);
			if (geometry.version === 5) viewOf(raw).setUint32(SuperBlock.offset.checksum, crc32cOf(raw), true);
		} else if (kind === "agf") {
			this.forges = true;
			const raw = this.#open(random.pick(agfs), geometry.sectorSize, kind);
			scramble(raw.subarray(random.pick(Object.values(Agf.offset))), random, 4);
			putChecksum(raw, Agf.offset.checksum, geometry);
		} else if (kind === "tree") {
			this.forges = true;
			const raw = this.#open(random.pick(treeBlocks), geometry.blockSize, kind);
			const header = Object.values(BtreeBlock.offset);
			const at = random.chance(0.5) ? random.pick(header) : random.below(Math.min(raw.length, 400));
			scramble(raw.subarray(at), random, 4);
			putChecksum(raw, BtreeBlock.offset.checksum, geometry);
		} else if (kind === "stale") {
			const [at, length] = random.chance(0.5)
				? [random.pick(agfs), geometry.sectorSize]
				: [random.pick(treeBlocks), geometry.blockSize];
			scramble(this.#open(at + random.below(length - 64), 64, kind), random);
		} else if (kind === "raw") {
			const at = random.below(bytes.length - 64);
			if (at < geometry.sectorSize) this.touchesSuperblock = true;
			scramble(this.#open(at, 64, kind), random);
		} else this.#record(random, kind === "record head");
	}

	/** Changes a log record's head or data, mostly with a right checksum. */
	#record(random: Random, isHead: boolean): void {
		const { records, geometry } = this.#target;
		const record = random.chance(0.5)
			? records.at(-1 - random.below(Math.min(4, records.length)))!
			: random.pick(records);
		const at = geometry.log!.start + record.sector * BASIC_BLOCK;
		const raw = this.#open(at, record.sectors * BASIC_BLOCK, `record ${record.sector}`);
		if (isHead) scramble(raw.subarray(random.pick(Object.values(LogRecordHeader.offset))), random, 4);
		else {
			const dataAt = record.headSectors * BASIC_BLOCK;
			const reach = random.chance(0.4) ? Math.min(300, record.dataBytes) : record.dataBytes;
			scramble(raw.subarray(dataAt + random.below(reach)), random, 4);
		}
		if (random.chance(0.1)) return;
		const changed = parseRecordHead(raw.slice(0, BASIC_BLOCK), record.sector, geometry.isLogVersion2);
		if (changed === null || changed.sectors > record.sectors) return;
		viewOf(raw).setUint32(LogRecordHeader.offset.checksum, recordChecksum(changed, raw, 328), true);
	}
}

function putChecksum(raw: Uint8Array, at: number, geometry: Geometry): void {
	if (geometry.version === 5) viewOf(raw).setUint32(at, crc32cOf(raw, at), true);
}

/** As reader-fuzz.ts does it, but numbers are big-endian here. */
function scramble(bytes: Uint8Array, random: Random, limit = bytes.length): void {
	const length = Math.min(bytes.length, limit);
	if (length === 0) return;
	switch (random.below(5)) {
		case 0:
			bytes.set(random.bytes(length));
			return;
		case 1:
			bytes.fill(random.pick([0, 0xff, 0x80, 0x7f, 1]), 0, length);
			return;
		case 2:
			bytes[random.below(length)]! ^= 1 << random.below(8);
			return;
		case 3: {
			const last = length - 1;
			bytes[last] = (bytes[last]! + random.pick([1, 255])) & 0xff;
			return;
		}
		default:
			bytes[random.below(length)] = random.below(256);
	}
}
