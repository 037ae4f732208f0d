// Verification of a qcow2 image as a whole, before anything in it is changed: every reference is followed and counted,
// and the sums are compared with the image's own reference counts.
//
//   header, L1 and L2 tables, snapshots, refcount structures ─▶ references per cluster ─┬─▶ equal: fine
//                                                                  refcount blocks ─────┘   fewer: leaked
//                                                                                           more: damaged
//
// Invariants of an image that passes
//  - every cluster that anything refers to has a count of at least that many references, and lies inside the file
//  - no cluster holds two different things; so writing or freeing one of them harms no other
//
// Costs one read of all tables and three bytes of memory per cluster.

import { VmsweepError } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, divCeil, formatBytes } from "../../../foundations/units.ts";
import type { ImageFile } from "../image-file.ts";
import type { Qcow2Header } from "./header.ts";
import * as layout from "./layout.ts";
import { ClusterCounts, Holds, RefcountBlocks, SATURATED } from "./refcounts.ts";
import type { SnapshotTable } from "./snapshots.ts";
import { compressedPlace } from "./tables.ts";

/** What is known about an image that passed. */
export interface VerifiedImage {
	/** References per cluster; leaked ones are not among them. */
	readonly counts: ClusterCounts;
	readonly blocks: RefcountBlocks;
	/** The disk's whole L1 table, as it is in the file. */
	readonly l1: DataView;
	/** By cluster: how much its count in the file is too high. */
	readonly leaks: ReadonlyMap<number, number>;
}

/** Tables of a hostile image may claim any size in a sparse file; real ones of 16 TiB take 2 GiB. In bytes. */
const TABLES_BYTES_MAX = 16 * 2 ** 30;
/** L2 tables that are read at once. */
const TABLES_AT_ONCE = 16;
/** Refcount blocks for what is behind the file's end that are looked at. */
const BLOCKS_BEHIND_MAX = 256;
/** Leaks that are remembered; what is beyond stays leaked. */
const LEAKS_MAX = 2 ** 20;

/** Verifies an image. Changes nothing. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function verifyImage(
	file: ImageFile,
	header: Qcow2Header,
	path: string,
	snapshotTable: SnapshotTable,
): Promise<VerifiedImage> {
	refuseUnsafe(header, path);
	const blocks = await RefcountBlocks.open(file, header, path);
	const verifier = new Verifier(file, header, path);
	verifier.refer(0, 1, Holds.OTHER, "the header");
	verifier.refer(header.refcountTableOffset, header.refcountTableClusters, Holds.OTHER, "the refcount table");
	for (let index = 0; index < blocks.length; index++)
		if (blocks.offset(index) !== 0) verifier.refer(blocks.offset(index), 1, Holds.OTHER, `refcount block ${index}`);
	const l1 = await verifier.walk(header.l1Offset, header.l1Entries, "the L1 table");
	if (snapshotTable.length > 0)
		verifier.refer(header.snapshotsOffset, divCeil(snapshotTable.length, header.clusterSize), Holds.OTHER, "snapshots");
	for (const { l1Offset, l1Entries, id } of snapshotTable.snapshots)
		await verifier.walk(l1Offset, l1Entries, `the L1 table of snapshot ${id}`);
	await verifier.countTables();
	const leaks = await verifier.compare(blocks);
	return { counts: verifier.counts, blocks, l1, leaks };
}

function refuseUnsafe(header: Qcow2Header, path: string): void {
	const repair = `Repair it first: qemu-img check -r all ${path}.`;
	if (header.corrupt) throw new VmsweepError("IMAGE_DAMAGED", `${path} is marked as damaged. ${repair}`);
	if (header.dirty)
		throw new VmsweepError(
			"IMAGE_DAMAGED",
			`${path} was not closed cleanly, its reference counts are out of date. ${repair}`,
		);
	if (header.bitmapCount > 0)
		throw new VmsweepError(
			"IMAGE_UNSUPPORTED",
			`${path} has ${header.bitmapCount} stored dirty bitmaps, which changes would make wrong. Remove them first: qemu-img bitmap --remove ${path} NAME.`,
		);
}

class Verifier {
	readonly counts: ClusterCounts;
	readonly #file: ImageFile;
	readonly #header: Qcow2Header;
	readonly #path: string;
	/** By offset: how many L1 entries lead to it. Snapshots share L2 tables, so each is read once. */
	readonly #l2Tables = new Map<number, number>();
	#bytes = 0;

	constructor(file: ImageFile, header: Qcow2Header, path: string) {
		this.#file = file;
		this.#header = header;
		this.#path = path;
		this.counts = new ClusterCounts(divCeil(file.size, header.clusterSize), path);
	}

	/** Counts a reference to each of `clusters` clusters from `offset` on. */
	refer(offset: number, clusters: number, what: Holds, name: string, times = 1): void {
		const first = offset / this.#header.clusterSize;
		if (!Number.isInteger(first)) throw this.#damaged(`${name} is at byte ${offset}, inside a cluster`);
		if (first + clusters > this.counts.clusters)
			throw this.#damaged(`${name} is at byte ${offset}, but the file ends at byte ${this.#file.size}`);
		for (let cluster = first; cluster < first + clusters; cluster++) {
			// Only L2 tables and data are ever shared.
			const shared = what === Holds.OTHER && this.counts.count(cluster) !== 0;
			if (shared || !this.counts.refer(cluster, what, times))
				throw this.#damaged(`${name} is at byte ${offset}, where something else is, too`);
		}
	}

	/** Counts what an L1 table refers to, and notes its L2 tables. Returns the L1 table. */
	async walk(l1Offset: number, l1Entries: number, name: string): Promise<DataView> {
		const { clusterSize } = this.#header;
		const length = l1Entries * layout.ENTRY_BYTES;
		if (length > layout.L1_BYTES_MAX || l1Offset + length > this.#file.size)
			throw this.#damaged(`${name} is at byte ${l1Offset}, ${l1Entries} entries long`);
		this.refer(l1Offset, divCeil(length, clusterSize), Holds.OTHER, name);
		const l1 = viewOf(await this.#read(l1Offset, length));
		for (let index = 0; index < l1Entries; index++) {
			const high = l1.getUint32(index * layout.ENTRY_BYTES);
			const low = l1.getUint32(index * layout.ENTRY_BYTES + 4);
			const offset = layout.entryOffset(high, low);
			if ((high & layout.L1_RESERVED_HIGH) !== 0 || (low & layout.L1_RESERVED_LOW) !== 0)
				throw this.#damaged(`${name}, entry ${index}: reserved bits are set`);
			if (offset === 0) continue;
			if (offset + clusterSize > this.#file.size)
				throw this.#damaged(`${name}, entry ${index}: byte ${offset} is behind the file's end`);
			this.refer(offset, 1, Holds.L2_TABLE, `L2 table ${index}`);
			this.#l2Tables.set(offset, (this.#l2Tables.get(offset) ?? 0) + 1);
		}
		return l1;
	}

	/** Counts what all L2 tables refer to. */
	async countTables(): Promise<void> {
		const tables = [...this.#l2Tables];
		for (let index = 0; index < tables.length; index += TABLES_AT_ONCE) {
			const some = tables.slice(index, index + TABLES_AT_ONCE);
			const contents = await Promise.all(some.map(([offset]) => this.#read(offset, this.#header.clusterSize)));
			for (const [each, content] of contents.entries()) this.#countTable(viewOf(content), some[each]![1]);
		}
	}

	async #read(offset: number, length: number): Promise<Uint8Array> {
		this.#bytes += length;
		if (this.#bytes > TABLES_BYTES_MAX)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.#path}: its tables are larger than ${formatBytes(TABLES_BYTES_MAX)}.`,
			);
		return await readBytes(this.#file, byteOffset(offset), length);
	}

	#countTable(table: DataView, times: number): void {
		const { clusterSize, l2EntryBytes, extendedL2, version, dataFile } = this.#header;
		for (let at = 0; at < clusterSize; at += l2EntryBytes) {
			const high = table.getUint32(at);
			const low = table.getUint32(at + 4);
			if (extendedL2) this.#checkBitmaps(table, at, high, low);
			if (high === 0 && low === 0) continue;
			if ((high & layout.COMPRESSED) !== 0) {
				if (dataFile !== null) throw this.#damaged("a compressed cluster in an image with a data file");
				this.#countCompressed(high, low, times);
				continue;
			}
			const forbidsZero = version === 2 || extendedL2;
			if (
				(high & layout.L2_RESERVED_HIGH) !== 0 ||
				(low & layout.L2_RESERVED_LOW) !== 0 ||
				(forbidsZero && (low & layout.ZERO) !== 0)
			)
				throw this.#damaged("an entry of an L2 table has reserved bits set");
			const host = layout.entryOffset(high, low);
			if (host !== 0 && dataFile === null) this.refer(host, 1, Holds.DATA, "a guest's cluster", times);
		}
	}

	#checkBitmaps(table: DataView, at: number, high: number, low: number): void {
		const zeros = table.getUint32(at + 8);
		const stored = table.getUint32(at + 12);
		if (zeros === 0 && stored === 0) return;
		const compressed = (high & layout.COMPRESSED) !== 0;
		const nowhere =
			layout.entryOffset(high, low) === 0 && !(this.#header.dataFile !== null && (high & layout.COPIED) !== 0);
		if (compressed || (zeros & stored) !== 0 || (nowhere && stored !== 0))
			throw this.#damaged("the bitmaps of subclusters in an L2 table contradict each other");
	}

	#countCompressed(high: number, low: number, times: number): void {
		const { clusterBits, clusterSize } = this.#header;
		const { host, length } = compressedPlace({ clusterBits }, high, low);
		const first = Math.floor(host / clusterSize);
		const last = Math.floor((host + length - 1) / clusterSize);
		this.refer(first * clusterSize, last - first + 1, Holds.COMPRESSED, "a compressed cluster", times);
	}

	/** Compares with the counts in the file; returns what is leaked. */
	async compare(blocks: RefcountBlocks): Promise<Map<number, number>> {
		const leaks = new Map<number, number>();
		const inFile = divCeil(this.counts.clusters, blocks.perBlock);
		// Behind the file's end nothing is referred to. A power cut may have kept the counts, but not the file's new size.
		const blocksEnd = Math.max(inFile, Math.min(blocks.length, inFile + BLOCKS_BEHIND_MAX));
		for (let index = 0; index < blocksEnd; index++) {
			const first = index * blocks.perBlock;
			const block = index < blocks.length && blocks.offset(index) !== 0 ? await blocks.read(index) : undefined;
			if (block === undefined && index >= inFile) continue;
			const end = first + blocks.perBlock;
			for (let cluster = first; cluster < end; cluster++) {
				const count = block === undefined ? 0 : blocks.get(block, cluster - first);
				const references = this.counts.count(cluster);
				if (count === references) continue;
				if (count < references)
					throw this.#damaged(
						`cluster ${cluster} (byte ${cluster * this.#header.clusterSize}) has ${references} references, but a count of ${count}`,
					);
				if (references === SATURATED) continue;
				if (leaks.size < LEAKS_MAX && count < SATURATED) leaks.set(cluster, count - references);
				else this.counts.set(cluster, SATURATED);
			}
		}
		return leaks;
	}

	#damaged(what: string): VmsweepError {
		return new VmsweepError(
			"IMAGE_DAMAGED",
			`${this.#path}: ${what}. Nothing was changed. Restore it from a copy, or see what qemu-img check ${this.#path} says.`,
		);
	}
}
