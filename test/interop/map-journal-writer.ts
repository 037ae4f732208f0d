// A small jbd2 and ext4 writer for tests: makes exactly the writes that a kernel would make, and any wrong ones.
//
// It works on an image in memory and hands every write on in order, so that a test can put one anywhere.

import { parseDescriptor, readDescriptors } from "../../src/core/filesystems/ext4/free-space.ts";
import { descriptorBlockAt } from "../../src/core/filesystems/ext4/groups.ts";
import { readJournalInfo } from "../../src/core/filesystems/ext4/journal.ts";
import type { JournalInfo } from "../../src/core/filesystems/ext4/journal-blocks.ts";
import { parseJournalSuperblock, ringStep } from "../../src/core/filesystems/ext4/journal-blocks.ts";
import type { JournalFile } from "../../src/core/filesystems/ext4/journal-file.ts";
import { findJournal } from "../../src/core/filesystems/ext4/journal-file.ts";
import {
	BLOCK_COMMIT,
	BLOCK_DESCRIPTOR,
	BLOCK_REVOKE,
	CommitBlock,
	GroupDescriptor,
	JBD2_MAGIC,
	JournalHeader,
	JournalSuperBlock,
	SUPERBLOCK_AT,
	SuperBlock,
} from "../../src/core/filesystems/ext4/layout.ts";
import type { Geometry } from "../../src/core/filesystems/ext4/open.ts";
import { parseSuperblock } from "../../src/core/filesystems/ext4/open.ts";
import type { MetadataWrite } from "../../src/core/filesystems/live.ts";
import { crc32c, crc32cWithout } from "../../src/foundations/crc.ts";
import type { ByteSource } from "../../src/foundations/source.ts";
import { checkRange } from "../../src/foundations/source.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { BLOCK_SIZE, byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";

/** An array as a source. */
export const memorySource = (bytes: Uint8Array): ByteSource => ({
	size: byteCount(bytes.length),
	async read(at, into) {
		checkRange(byteCount(bytes.length), at, into.length, "memory");
		into.set(bytes.subarray(at, at + into.length));
	},
});

export interface Logged {
	readonly block: number;
	readonly content: Uint8Array;
}

export class JournalWriter {
	readonly disk: Uint8Array;
	readonly geometry: Geometry;
	readonly file: JournalFile;
	info: JournalInfo;
	/** Where the next transaction goes, and its number. */
	head: { position: number; sequence: number };
	/** Log position after the last write. */
	position = 0;
	/** Writes since they were last taken. */
	#writes: MetadataWrite[] = [];

	private constructor(disk: Uint8Array, geometry: Geometry, file: JournalFile, info: JournalInfo) {
		this.disk = disk;
		this.geometry = geometry;
		this.file = file;
		this.info = info;
		this.head = { position: info.first, sequence: info.sequence };
	}

	static async open(disk: Uint8Array): Promise<JournalWriter> {
		const source = memorySource(disk);
		const geometry = parseSuperblock(disk.slice(SUPERBLOCK_AT, SUPERBLOCK_AT + SuperBlock.size), source.size);
		const file = await findJournal(source, geometry);
		return new JournalWriter(disk, geometry, file, await readJournalInfo(source, geometry, file));
	}

	takeWrites(): MetadataWrite[] {
		const taken = this.#writes;
		this.#writes = [];
		return taken;
	}

	/** Any write of the guest. Returns W of its first block. */
	write(at: number, bytes: Uint8Array): number {
		const copy = bytes.slice();
		this.disk.set(copy, at);
		const slots = Math.ceil((at + copy.length) / BLOCK_SIZE) - Math.floor(at / BLOCK_SIZE);
		const position = this.position;
		this.position += slots;
		this.#writes.push({
			at: byteOffset(at),
			length: byteCount(copy.length),
			position: logPosition(position),
			end: logPosition(this.position),
			read: async () => copy,
		});
		return position;
	}

	writeBlock(block: number, content: Uint8Array): number {
		return this.write(block * this.geometry.blockSize, content);
	}

	readBlock(block: number): Uint8Array {
		return this.disk.slice(block * this.geometry.blockSize, (block + 1) * this.geometry.blockSize);
	}

	/** Writes the journal's superblock; `incompat` switches features as a mount does. */
	writeSuperblock(fields: { start: number; sequence: number; incompat?: number }): void {
		const at = this.file.locate(0).physical;
		const block = this.readBlock(at);
		const view = viewOf(block);
		JournalSuperBlock.put(view, 0, { start: fields.start, sequence: fields.sequence });
		if (fields.incompat !== undefined)
			JournalSuperBlock.put(view, 0, { featureIncompat: fields.incompat, checksumType: 4 });
		const sum = crc32cWithout(0xffffffff, block.subarray(0, 1024), JournalSuperBlock.offset.checksum);
		JournalSuperBlock.write.checksum(view, 0, (JournalSuperBlock.read.featureIncompat(view, 0) & 0x18) !== 0 ? sum : 0);
		this.info = parseJournalSuperblock(block, this.geometry.blockSize, this.file.blockCount);
		this.writeBlock(at, block);
	}

	/** What a mount writes before its first commit: RECOVER set, and a journal that starts at `position`. */
	mount(position: number, sequence: number, incompat = 0): void {
		this.writeExtSuperblock({ recover: true });
		this.head = { position, sequence };
		this.writeSuperblock({ start: position, sequence, incompat });
	}

	/** What an unmount writes last, once the journal's blocks are home. */
	async unmount(): Promise<void> {
		this.writeSuperblock({ start: 0, sequence: this.head.sequence });
		const descriptors = await readDescriptors(memorySource(this.disk), this.geometry);
		let freeClusters = 0;
		for (let group = 0; group < this.geometry.groupCount; group++)
			freeClusters += parseDescriptor(descriptors, this.geometry, group).freeClusters;
		this.writeExtSuperblock({ recover: false, freeBlocks: freeClusters * this.geometry.clusterRatio });
	}

	writeExtSuperblock({ recover, freeBlocks }: { recover: boolean; freeBlocks?: number }): void {
		const raw = this.disk.slice(SUPERBLOCK_AT, SUPERBLOCK_AT + SuperBlock.size);
		const view = viewOf(raw);
		const incompat = SuperBlock.read.featureIncompat(view, 0);
		SuperBlock.put(view, 0, { featureIncompat: recover ? incompat | 4 : incompat & ~4 });
		if (freeBlocks !== undefined) SuperBlock.put(view, 0, { freeBlocksCountLow: freeBlocks });
		if (this.geometry.has.metadataChecksum)
			SuperBlock.put(view, 0, { checksum: crc32c(0xffffffff, raw.subarray(0, 0x3fc)) });
		this.write(SUPERBLOCK_AT, raw);
	}

	/** Descriptor, logged blocks and revokes of a transaction, one write each; moves nothing yet. Returns where its commit belongs. */
	writeTransaction(logged: readonly Logged[], revoked: readonly number[] = []): number {
		const { blockSize } = this.geometry;
		let at = this.head.position;
		const put = (block: Uint8Array): void => {
			this.writeBlock(this.file.locate(at).physical, block);
			at = ringStep(this.info, at, 1);
		};
		if (revoked.length > 0) {
			const block = this.#control(BLOCK_REVOKE);
			const view = viewOf(block);
			const size = this.info.has.is64Bit ? 8 : 4;
			view.setUint32(12, 16 + revoked.length * size);
			for (const [i, home] of revoked.entries()) view.setUint32(16 + i * size + size - 4, home);
			put(this.#withTail(block));
		}
		if (logged.length > 0) {
			const block = this.#control(BLOCK_DESCRIPTOR);
			const view = viewOf(block);
			const contents: Uint8Array[] = [];
			let tagAt = 12;
			for (const [i, { block: home, content }] of logged.entries()) {
				const escaped = viewOf(content).getUint32(0) === JBD2_MAGIC;
				const stored = content.slice();
				if (escaped) stored.fill(0, 0, 4);
				const flags = (escaped ? 1 : 0) | (i > 0 ? 2 : 0) | (i === logged.length - 1 ? 8 : 0);
				view.setUint32(tagAt, home);
				if (this.info.has.checksum === 3) {
					const number = new Uint8Array(4);
					viewOf(number).setUint32(0, this.head.sequence);
					view.setUint32(tagAt + 4, flags);
					view.setUint32(tagAt + 12, crc32c(crc32c(this.info.checksumSeed, number), stored));
				} else view.setUint16(tagAt + 6, flags);
				tagAt += this.info.tagSize + (i > 0 ? 0 : 16);
				contents.push(stored.subarray(0, blockSize));
			}
			put(this.#withTail(block));
			for (const content of contents) put(content);
		}
		return at;
	}

	/** The commit block of the transaction at the head, at journal block `at`. Returns its write's position. */
	writeCommit(at: number, change: (block: Uint8Array) => void = () => {}): number {
		const block = this.#control(BLOCK_COMMIT);
		if (this.info.has.checksum !== 0)
			CommitBlock.write.checksum(viewOf(block), 0, crc32cWithout(this.info.checksumSeed, block, 0x10));
		change(block);
		const position = this.writeBlock(this.file.locate(at).physical, block);
		this.head = { position: ringStep(this.info, at, 1), sequence: this.head.sequence + 1 };
		return position;
	}

	/** A whole transaction. Returns its commit's position. */
	commit(logged: readonly Logged[], revoked: readonly number[] = []): number {
		return this.writeCommit(this.writeTransaction(logged, revoked));
	}

	/** The blocks that a transaction logs when it marks a block of the volume used or free: bitmap and descriptors. */
	async mark(block: number, used: boolean, view: ByteSource): Promise<Logged[]> {
		const { geometry } = this;
		const group = Math.floor((block - geometry.firstDataBlock) / geometry.blocksPerGroup);
		const descriptors = await readDescriptors(view, geometry);
		const { blockBitmap, freeClusters } = parseDescriptor(descriptors, geometry, group);
		const bitmap = new Uint8Array(geometry.blockSize);
		await view.read(byteOffset(blockBitmap * geometry.blockSize), bitmap);
		const bit = Math.floor((block - geometry.firstDataBlock - group * geometry.blocksPerGroup) / geometry.clusterRatio);
		const mask = 1 << (bit % 8);
		const was = (bitmap[bit >> 3]! & mask) !== 0;
		bitmap[bit >> 3] = used ? bitmap[bit >> 3]! | mask : bitmap[bit >> 3]! & ~mask;
		const index = Math.floor(group / geometry.descriptorsPerBlock);
		const home = descriptorBlockAt(geometry, index);
		const content = new Uint8Array(geometry.blockSize);
		await view.read(byteOffset(home * geometry.blockSize), content);
		const at = (group % geometry.descriptorsPerBlock) * geometry.descriptorSize;
		GroupDescriptor.write.freeBlocksLow(viewOf(content), at, freeClusters + (was === used ? 0 : used ? -1 : 1));
		return [
			{ block: blockBitmap, content: bitmap },
			{ block: home, content },
		];
	}

	#control(type: number): Uint8Array {
		const block = new Uint8Array(this.geometry.blockSize);
		JournalHeader.put(viewOf(block), 0, { magic: JBD2_MAGIC, blockType: type, sequence: this.head.sequence });
		return block;
	}

	#withTail(block: Uint8Array): Uint8Array {
		if (this.info.has.checksum !== 0)
			viewOf(block).setUint32(block.length - 4, crc32cWithout(this.info.checksumSeed, block, block.length - 4));
		return block;
	}
}
