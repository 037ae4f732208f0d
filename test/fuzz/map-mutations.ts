// Mutations of real ext4 images, partition tables and journals, with checksums put right again afterwards, so that
// a reader's deeper parts are reached and not only its checksum tests.

import { parseDescriptor, readDescriptors } from "../../src/core/filesystems/ext4/free-space.ts";
import { descriptorBlockAt } from "../../src/core/filesystems/ext4/groups.ts";
import { readJournalInfo } from "../../src/core/filesystems/ext4/journal.ts";
import type { JournalInfo } from "../../src/core/filesystems/ext4/journal-blocks.ts";
import { controlHeader } from "../../src/core/filesystems/ext4/journal-blocks.ts";
import type { JournalFile } from "../../src/core/filesystems/ext4/journal-file.ts";
import { findJournal } from "../../src/core/filesystems/ext4/journal-file.ts";
import {
	GroupDescriptor,
	JournalSuperBlock,
	SUPERBLOCK_AT,
	SuperBlock,
} from "../../src/core/filesystems/ext4/layout.ts";
import type { Geometry } from "../../src/core/filesystems/ext4/open.ts";
import { parseSuperblock } from "../../src/core/filesystems/ext4/open.ts";
import { GptHeader } from "../../src/core/volumes/gpt.ts";
import { crc16, crc32, crc32c, crc32cWithout } from "../../src/foundations/crc.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { byteCount } from "../../src/foundations/units.ts";
import { memorySource } from "../interop/map-journal-writer.ts";
import type { Random } from "../support/randomness.ts";

/** An image to mutate, and where its structures lie. */
export interface Target {
	readonly name: string;
	readonly bytes: Uint8Array;
	/** Where the ext4 volume starts. */
	readonly volumeAt: number;
	readonly volumeSize: number;
	readonly geometry: Geometry;
	readonly bitmaps: readonly number[];
	readonly journal: {
		readonly file: JournalFile;
		readonly info: JournalInfo;
		readonly controlBlocks: readonly number[];
	} | null;
	readonly table: "gpt" | "mbr" | "none";
}

export async function describeTarget(
	name: string,
	bytes: Uint8Array,
	volumeAt: number,
	volumeSize: number,
	table: Target["table"],
): Promise<Target> {
	const volume = memorySource(bytes.subarray(volumeAt, volumeAt + volumeSize));
	const geometry = parseSuperblock(
		bytes.slice(volumeAt + SUPERBLOCK_AT, volumeAt + SUPERBLOCK_AT + SuperBlock.size),
		byteCount(volumeSize),
	);
	const descriptors = await readDescriptors(volume, geometry);
	const bitmaps = Array.from(
		{ length: geometry.groupCount },
		(_, group) => parseDescriptor(descriptors, geometry, group).blockBitmap,
	);
	let journal: Target["journal"] = null;
	if (geometry.has.journal) {
		const file = await findJournal(volume, geometry);
		const info = await readJournalInfo(volume, geometry, file);
		const controlBlocks: number[] = [];
		for (let logical = 1; logical < file.blockCount; logical++) {
			const at = volumeAt + file.locate(logical).physical * geometry.blockSize;
			if (controlHeader(bytes.subarray(at, at + geometry.blockSize)) !== null) controlBlocks.push(logical);
		}
		journal = { file, info, controlBlocks };
	}
	return { name, bytes, volumeAt, volumeSize, geometry, bitmaps, journal, table };
}

/** Changes made to a target, to be taken back. */
export class Mutation {
	readonly #target: Target;
	readonly #before: { at: number; bytes: Uint8Array }[] = [];
	readonly steps: string[] = [];
	constructor(target: Target) {
		this.#target = target;
	}

	undo(): void {
		for (const { at, bytes } of this.#before.reverse()) this.#target.bytes.set(bytes, at);
	}

	/** The part of the image at `at`, to be written to. */
	#open(at: number, length: number, step: string): Uint8Array {
		this.steps.push(step);
		const part = this.#target.bytes.subarray(at, at + length);
		this.#before.push({ at, bytes: part.slice() });
		return part;
	}

	/** One random change of one random structure. */
	apply(random: Random): void {
		const { table, journal } = this.#target;
		const kinds = ["superblock", "superblock", "descriptor", "bitmap", "raw"];
		if (journal !== null) kinds.push("inode", "journal superblock");
		if (journal !== null && journal.controlBlocks.length > 0) kinds.push("journal", "journal", "journal");
		if (table !== "none") kinds.push(table);
		const kind = random.pick(kinds);
		if (kind === "superblock") this.#superblock(random);
		else if (kind === "descriptor") this.#descriptor(random);
		else if (kind === "bitmap") this.#bitmap(random);
		else if (kind === "inode") this.#inode(random);
		else if (kind === "journal superblock") this.#journalSuperblock(random);
		else if (kind === "journal") this.#journalBlock(random);
		else if (kind === "gpt") this.#gpt(random);
		else if (kind === "mbr") this.#mbr(random);
		else scramble(this.#open(random.below(this.#target.bytes.length - 64), 64, "raw"), random);
	}

	/** The first sector's entries, or those of any other sector: logical partitions are found somewhere. */
	#mbr(random: Random): void {
		const sector = random.chance(0.7) ? 0 : random.below(this.#target.bytes.length >> 9);
		scramble(this.#open(sector * 512 + 0x1be, 64, "MBR"), random);
	}

	#volume(at: number, length: number, step: string): Uint8Array {
		const { volumeAt, volumeSize } = this.#target;
		return this.#open(volumeAt + Math.min(at, volumeSize - length), length, step);
	}

	#superblock(random: Random): void {
		const raw = this.#volume(SUPERBLOCK_AT, SuperBlock.size, "superblock");
		const fields = Object.values(SuperBlock.offset);
		const at = random.chance(0.8) ? random.pick(fields) : random.below(1020);
		scramble(raw.subarray(at, Math.min(1020, at + 4)), random);
		SuperBlock.write.checksum(viewOf(raw), 0, crc32c(0xffffffff, raw.subarray(0, 0x3fc)));
	}

	#descriptor(random: Random): void {
		const { geometry } = this.#target;
		const group = random.below(geometry.groupCount);
		this.#changeDescriptor(group, (raw) => scramble(raw.subarray(random.below(raw.length / 2) * 2), random, 4));
	}

	#changeDescriptor(group: number, change: (raw: Uint8Array) => void): void {
		const { geometry } = this.#target;
		const block = descriptorBlockAt(geometry, Math.floor(group / geometry.descriptorsPerBlock));
		const at = block * geometry.blockSize + (group % geometry.descriptorsPerBlock) * geometry.descriptorSize;
		const raw = this.#volume(at, geometry.descriptorSize, `descriptor ${group}`);
		change(raw);
		GroupDescriptor.write.checksum(viewOf(padded(raw)), 0, 0);
		const number = new Uint8Array(4);
		viewOf(number).setUint32(0, group, true);
		let sum: number;
		if (geometry.has.metadataChecksum) {
			sum = crc32c(crc32c(geometry.checksumSeed, number), raw.subarray(0, 0x1e));
			sum = crc32c(crc32c(sum, new Uint8Array(2)), raw.subarray(0x20)) & 0xffff;
		} else {
			sum = crc16(crc16(crc16(0xffff, geometry.uuidBytes), number), raw.subarray(0, 0x1e));
			if (geometry.has.is64Bit) sum = crc16(sum, raw.subarray(0x20));
		}
		viewOf(raw).setUint16(0x1e, sum, true);
	}

	#bitmap(random: Random): void {
		const { geometry, bitmaps } = this.#target;
		const group = random.below(bitmaps.length);
		const bitmap = this.#volume(bitmaps[group]! * geometry.blockSize, geometry.blockSize, `bitmap ${group}`);
		scramble(bitmap.subarray(random.below(bitmap.length)), random, 16);
		const sum = crc32c(geometry.checksumSeed, bitmap.subarray(0, geometry.clustersPerGroup / 8));
		this.#changeDescriptor(group, (raw) => {
			viewOf(raw).setUint16(0x18, sum & 0xffff, true);
			if (raw.length >= 64) viewOf(raw).setUint16(0x38, sum >>> 16, true);
		});
	}

	#inode(random: Random): void {
		const { geometry, bytes, volumeAt } = this.#target;
		const table = viewOf(bytes).getUint32(volumeAt + descriptorBlockAt(geometry, 0) * geometry.blockSize + 8, true);
		const at = table * geometry.blockSize + (geometry.journalInode - 1) * geometry.inodeSize;
		const raw = this.#volume(at, geometry.inodeSize, "journal inode");
		scramble(raw.subarray(random.chance(0.7) ? 0x28 + random.below(60) : random.below(0x70)), random, 4);
		if (!geometry.has.metadataChecksum) return;
		const tag = new Uint8Array(8);
		viewOf(tag).setUint32(0, geometry.journalInode, true);
		viewOf(tag).setUint32(4, viewOf(raw).getUint32(0x64, true), true);
		viewOf(raw).setUint16(0x7c, 0, true);
		const wide = raw.length > 128;
		if (wide) viewOf(raw).setUint16(0x82, 0, true);
		const sum = crc32c(crc32c(geometry.checksumSeed, tag), raw);
		viewOf(raw).setUint16(0x7c, sum & 0xffff, true);
		if (wide) viewOf(raw).setUint16(0x82, sum >>> 16, true);
	}

	#journalSuperblock(random: Random): void {
		const { journal, geometry } = this.#target;
		const raw = this.#volume(journal!.file.locate(0).physical * geometry.blockSize, 1024, "journal superblock");
		scramble(raw.subarray(random.pick(Object.values(JournalSuperBlock.offset))), random, 4);
		if (journal!.info.has.checksum !== 0) viewOf(raw).setUint32(0xfc, crc32cWithout(0xffffffff, raw, 0xfc));
	}

	#journalBlock(random: Random): void {
		const { journal, geometry } = this.#target;
		const logical = random.pick(journal!.controlBlocks);
		const raw = this.#volume(
			journal!.file.locate(logical).physical * geometry.blockSize,
			geometry.blockSize,
			`journal block ${logical}`,
		);
		const type = controlHeader(raw)?.blockType;
		scramble(raw.subarray(random.chance(0.9) ? random.below(80) : random.below(raw.length)), random, 4);
		if (journal!.info.has.checksum === 0) return;
		const at = type === 2 ? 0x10 : raw.length - 4;
		viewOf(raw).setUint32(at, crc32cWithout(journal!.info.checksumSeed, raw, at));
	}

	#gpt(random: Random): void {
		const { bytes } = this.#target;
		const isCopy = random.chance(0.3);
		const headerAt = isCopy ? bytes.length - 512 : 512;
		const header = this.#open(headerAt, 512, isCopy ? "GPT copy" : "GPT");
		const entriesAt = viewOf(header).getUint32(0x48, true) * 512;
		if (random.chance(0.6) && entriesAt + 16384 <= bytes.length) {
			const entries = this.#open(entriesAt, 16384, "GPT entries");
			scramble(entries.subarray(random.below(4) * 128 + random.pick([0, 0x20, 0x24, 0x28, 0x2c])), random, 4);
			GptHeader.write.entriesChecksum(viewOf(header), 0, crc32(entries));
		} else scramble(header.subarray(random.pick(Object.values(GptHeader.offset))), random, 4);
		GptHeader.write.headerChecksum(viewOf(header), 0, 0);
		GptHeader.write.headerChecksum(viewOf(header), 0, crc32(header.subarray(0, 92)));
	}
}

const padded = (raw: Uint8Array): Uint8Array => (raw.length >= 64 ? raw : new Uint8Array(64));

/** As in reader-fuzz.ts, but by the numbers that the seeds of kept failures lead to (map.test.ts). */
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
		case 3:
			bytes[0] = (bytes[0]! + random.pick([1, 255])) & 0xff;
			return;
		default:
			bytes[random.below(length)] = random.below(256);
	}
}
