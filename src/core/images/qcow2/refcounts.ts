// Reference counts of a qcow2 image: how many table entries refer to each host cluster (section "Host cluster
// management").
//
//   refcount table (entries of 8 bytes) ──▶ refcount blocks (a cluster each, counts of 1 to 64 bits)
//
// In memory they are an array of 16-bit counts, in pages that exist only where a count is not 0. A count that does not
// fit is saturated, and a saturated one is never changed.

import { assert, VmsweepError } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { bytesOf, viewOf } from "../../../foundations/struct.ts";
import { byteOffset } from "../../../foundations/units.ts";
import type { ImageFile, WritableImageFile } from "../image-file.ts";
import type { Qcow2Header } from "./header.ts";
import { ENTRY_BYTES, entryOffset, REFCOUNT_TABLE_BYTES_MAX } from "./layout.ts";
import { damagedImage } from "./tables.ts";

const PAGE_BITS = 14;
const PAGE_ENTRIES = 2 ** PAGE_BITS;
/** The largest count in memory; stands for itself and all larger ones. */
export const SATURATED = 0xffff;
/** 48 bytes per 16 clusters; 16 TiB in clusters of the usual size. */
export const CLUSTERS_MAX = 2 ** 28;

/** What a cluster holds. One cluster never holds two of them, except that several compressed clusters may share one. */
export const Holds = { NOTHING: 0, DATA: 1, COMPRESSED: 2, L2_TABLE: 3, OTHER: 4 } as const;
export type Holds = (typeof Holds)[keyof typeof Holds];

interface Page {
	readonly counts: Uint16Array;
	readonly holds: Uint8Array;
}

/** A count and a content per host cluster. */
export class ClusterCounts {
	readonly clusters: number;
	readonly #pages: (Page | undefined)[] = [];

	/** Throws IMAGE_UNSUPPORTED where there are too many to hold them in memory. */
	constructor(clusters: number, path: string) {
		if (clusters > CLUSTERS_MAX)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${path} has ${clusters} clusters, too many to account for in memory. Convert it to larger clusters: qemu-img convert -O qcow2 -o cluster_size=2M.`,
			);
		this.clusters = clusters;
	}

	count(cluster: number): number {
		return this.#pages[cluster >>> PAGE_BITS]?.counts[cluster & (PAGE_ENTRIES - 1)] ?? 0;
	}

	/** How many of the first `end` clusters nothing refers to. */
	free(end: number): number {
		let free = 0;
		for (let first = 0; first < end; first += PAGE_ENTRIES) {
			const counts = this.#pages[first >>> PAGE_BITS]?.counts;
			const entries = Math.min(PAGE_ENTRIES, end - first);
			if (counts === undefined) free += entries;
			else for (let index = 0; index < entries; index++) if (counts[index] === 0) free++;
		}
		return free;
	}

	holds(cluster: number): Holds {
		return (this.#pages[cluster >>> PAGE_BITS]?.holds[cluster & (PAGE_ENTRIES - 1)] ?? Holds.NOTHING) as Holds;
	}

	set(cluster: number, count: number): void {
		if (count === 0 && this.#pages[cluster >>> PAGE_BITS] === undefined) return;
		this.#page(cluster).counts[cluster & (PAGE_ENTRIES - 1)] = Math.min(count, SATURATED);
	}

	/** More references to a cluster. False where it is known to hold something else. */
	refer(cluster: number, what: Holds, times: number): boolean {
		const page = this.#page(cluster);
		const index = cluster & (PAGE_ENTRIES - 1);
		if (page.counts[index] !== 0 && page.holds[index] !== what) return false;
		page.holds[index] = what;
		page.counts[index] = Math.min(SATURATED, page.counts[index]! + times);
		return true;
	}

	/** One reference less. */
	release(cluster: number): void {
		const page = this.#page(cluster);
		const index = cluster & (PAGE_ENTRIES - 1);
		const count = page.counts[index]!;
		assert(count > 0 && count < SATURATED, `cluster ${cluster} is released with a count of ${count}`);
		page.counts[index] = count - 1;
		if (count === 1) page.holds[index] = Holds.NOTHING;
	}

	#page(cluster: number): Page {
		const index = cluster >>> PAGE_BITS;
		let page = this.#pages[index];
		if (page === undefined) {
			page = { counts: new Uint16Array(PAGE_ENTRIES), holds: new Uint8Array(PAGE_ENTRIES) };
			this.#pages[index] = page;
		}
		return page;
	}
}

/** The refcount table, and the counts in its blocks as they are in the file. */
export class RefcountBlocks {
	readonly #file: ImageFile;
	readonly #order: number;
	readonly #clusterSize: number;
	#table: DataView;
	/** How many clusters one block counts. */
	readonly perBlock: number;

	private constructor(file: ImageFile, header: Qcow2Header, table: DataView) {
		this.#file = file;
		this.#order = header.refcountOrder;
		this.#clusterSize = header.clusterSize;
		this.#table = table;
		this.perBlock = (header.clusterSize * 8) / 2 ** header.refcountOrder;
	}

	/** Reads the refcount table. Throws IMAGE_DAMAGED or IO. */
	static async open(file: ImageFile, header: Qcow2Header, path: string): Promise<RefcountBlocks> {
		const { refcountTableOffset: offset, refcountTableClusters, clusterSize } = header;
		const length = refcountTableClusters * clusterSize;
		if (offset === 0 || offset % clusterSize !== 0 || length > REFCOUNT_TABLE_BYTES_MAX || offset + length > file.size)
			throw damagedImage(path, `its refcount table is at byte ${offset}, ${refcountTableClusters} clusters long`);
		const table = viewOf(await readBytes(file, byteOffset(offset), length));
		const blocks = new RefcountBlocks(file, header, table);
		for (let index = 0; index < blocks.length; index++) {
			const at = blocks.offset(index);
			if (at % clusterSize !== 0 || at + clusterSize > file.size)
				throw damagedImage(path, `its refcount block ${index} is at byte ${at}, which can't be`);
		}
		return blocks;
	}

	/** Entries of the table: some of them without a block. */
	get length(): number {
		return this.#table.byteLength / ENTRY_BYTES;
	}

	/** Where a block is, or 0. The low bits of an entry are reserved; a set one makes the offset unaligned. */
	offset(index: number): number {
		const high = this.#table.getUint32(index * ENTRY_BYTES);
		const low = this.#table.getUint32(index * ENTRY_BYTES + 4);
		return entryOffset(high, low) + (low & 0x1ff) + (high >>> 24) * 2 ** 56;
	}

	/** Reads a block; its counts are read with {@link get} and written with {@link put}. */
	async read(index: number): Promise<DataView> {
		return viewOf(await readBytes(this.#file, byteOffset(this.offset(index)), this.#clusterSize));
	}

	/** Count number `index` of a block. */
	get(block: DataView, index: number): number {
		switch (this.#order) {
			case 0:
			case 1:
			case 2: {
				const bits = 1 << this.#order;
				const perByte = 8 / bits;
				return (block.getUint8(Math.floor(index / perByte)) >>> ((index % perByte) * bits)) & ((1 << bits) - 1);
			}
			case 3:
				return block.getUint8(index);
			case 4:
				return block.getUint16(index * 2);
			case 5:
				return block.getUint32(index * 4);
			default:
				return block.getUint32(index * 8) * 0x1_0000_0000 + block.getUint32(index * 8 + 4);
		}
	}

	put(block: DataView, index: number, count: number): void {
		switch (this.#order) {
			case 0:
			case 1:
			case 2: {
				const bits = 1 << this.#order;
				const perByte = 8 / bits;
				const at = Math.floor(index / perByte);
				const shift = (index % perByte) * bits;
				const others = block.getUint8(at) & ~(((1 << bits) - 1) << shift);
				block.setUint8(at, others | (count << shift));
				return;
			}
			case 3:
				block.setUint8(index, count);
				return;
			case 4:
				block.setUint16(index * 2, count);
				return;
			case 5:
				block.setUint32(index * 4, count);
				return;
			default:
				block.setUint32(index * 8, Math.floor(count / 0x1_0000_0000));
				block.setUint32(index * 8 + 4, count % 0x1_0000_0000);
		}
	}

	/**
	 * Adds to counts in the file: `changes` has a number per cluster. Writes only the sectors that change, in no
	 * particular order. Throws where a count would leave its range: then nothing of that block is written.
	 */
	async change(file: WritableImageFile, changes: ReadonlyMap<number, number>): Promise<void> {
		await this.#update(file, changes, (block, index, change) => this.get(block, index) + change);
	}

	/** Sets counts in the file, as {@link change} does: what was done once may be done again. Their blocks must be there. */
	async set(file: WritableImageFile, counts: ReadonlyMap<number, number>): Promise<void> {
		await this.#update(file, counts, (_block, _index, count) => count);
	}

	async #update(
		file: WritableImageFile,
		numbers: ReadonlyMap<number, number>,
		newCount: (block: DataView, index: number, number: number) => number,
	): Promise<void> {
		const clusters = [...numbers.keys()].sort((a, b) => a - b);
		const most = this.#order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** this.#order) - 1;
		for (let index = 0; index < clusters.length; ) {
			const blockIndex = Math.floor(clusters[index]! / this.perBlock);
			const block = await this.read(blockIndex);
			const firstCluster = blockIndex * this.perBlock;
			const first = clusters[index]! - firstCluster;
			let last = first;
			for (; index < clusters.length && clusters[index]! < firstCluster + this.perBlock; index++) {
				last = clusters[index]! - firstCluster;
				const count = newCount(block, last, numbers.get(clusters[index]!)!);
				assert(count >= 0 && count <= most, `cluster ${clusters[index]!} would have ${count} references`);
				this.put(block, last, count);
			}
			const bits = 2 ** this.#order;
			await writeSectors(
				file,
				this.offset(blockIndex),
				block,
				Math.floor((first * bits) / 8),
				Math.ceil(((last + 1) * bits) / 8),
			);
		}
	}

	/** Block `index`, which the table has room for, is at byte `offset` from now on. In memory only. */
	place(index: number, offset: number): void {
		this.#table.setUint32(index * ENTRY_BYTES, Math.floor(offset / 0x1_0000_0000));
		this.#table.setUint32(index * ENTRY_BYTES + 4, offset % 0x1_0000_0000);
	}

	/** Room for `length` blocks. In memory only. */
	grow(length: number): void {
		const larger = new Uint8Array(length * ENTRY_BYTES);
		larger.set(bytesOf(this.#table));
		this.#table = viewOf(larger);
	}

	/** The table as it is in memory. */
	get table(): DataView {
		return this.#table;
	}
}

/** Writes the 512-byte sectors of a table that hold bytes `[from, to)` of it. */
export async function writeSectors(
	file: WritableImageFile,
	tableAt: number,
	table: DataView,
	from: number,
	to: number,
): Promise<void> {
	const start = Math.floor(from / 512) * 512;
	const end = Math.min(table.byteLength, Math.ceil(to / 512) * 512);
	const bytes = new Uint8Array(table.buffer, table.byteOffset + start, end - start);
	await file.write(byteOffset(tableAt + start), bytes);
}
