// Clusters of a qcow2 image that is written in place: taking them, letting go of them, and their counts in the file.
//
//   take    ─▶ counted in memory ─▶ raise: counts in the file ─ durable ─▶ something in the file leads to it
//   release ─▶ nothing in the file leads to it any more ─ durable ─▶ lower: counts in the file ─▶ free, punched
//
// Invariants, also after a power cut at any point
//  - what the file's tables lead to is counted in the file: so a cut leaves at worst clusters that are only counted
//  - a cluster is free again only once nothing in the file can lead to it; so its old content stays until then
//  - a refcount block is reachable only once its content, and the count of the block itself, are durable; nothing is
//    referred to by a table before the blocks with its counts are reachable
//
// All steps write what is to stand there, not differences: a step that failed for lack of space is done again.

import { assert, VmsweepError } from "../../../foundations/errors.ts";
import { bytesOf, viewOf } from "../../../foundations/struct.ts";
import { byteCount, byteOffset, divCeil, divFloor, roundUp } from "../../../foundations/units.ts";
import type { WritableImageFile } from "../image-file.ts";
import type { Qcow2Header } from "./header.ts";
import { ENTRY_BYTES, HeaderV2, REFCOUNT_TABLE_BYTES_MAX } from "./layout.ts";
import { CLUSTERS_MAX, type ClusterCounts, Holds, type RefcountBlocks, SATURATED, writeSectors } from "./refcounts.ts";
import { freeHostRanges, punchAll } from "./sweep.ts";

/** Clusters that were taken. */
export interface Taken {
	/** Byte of the file where they begin. */
	readonly host: number;
	/** They read as zeros. */
	readonly fresh: boolean;
}

/** The file grows by this many bytes at once, which take no space until they are written. */
const GROWTH_BYTES = 1 << 20;
/** A refcount table that is full grows by this share. */
const TABLE_GROWTH = 1.5;

export class ClusterAllocator {
	readonly #file: WritableImageFile;
	readonly #path: string;
	readonly #clusterSize: number;
	readonly #hostBlock: number;
	readonly #counts: ClusterCounts;
	readonly #blocks: RefcountBlocks;
	readonly #hasSnapshots: boolean;
	#table: { readonly offset: number; readonly clusters: number };
	/** Clusters that the file has room for. */
	#end: number;
	/** From here on, no cluster was ever used. */
	#freshFrom: number;
	/** Clusters before the end that may be taken, and where to look for them first. */
	#free: number;
	#cursor = 0;
	/** Counted in memory, but not in the file: nothing in the file leads to them. */
	readonly #toRaise = new Set<number>();
	/** Counted too high in the file. */
	readonly #toLower = new Set<number>();
	/** Not in use any more, but the file may still lead to them. */
	readonly #leaving = new Set<number>();
	/** Entries of the refcount table that the file doesn't have yet; all of them where the table moves. */
	readonly #newBlocks = new Set<number>();
	#tableMoves = false;

	/** `counts` and `blocks` as verified, after leaks were given back. The file's size is a whole number of clusters. */
	constructor(
		file: WritableImageFile,
		path: string,
		header: Qcow2Header,
		parts: { readonly counts: ClusterCounts; readonly blocks: RefcountBlocks; readonly hostBlock: number },
	) {
		this.#file = file;
		this.#path = path;
		this.#clusterSize = header.clusterSize;
		this.#hostBlock = parts.hostBlock;
		this.#counts = parts.counts;
		this.#blocks = parts.blocks;
		this.#hasSnapshots = header.snapshotCount > 0;
		this.#table = { offset: header.refcountTableOffset, clusters: header.refcountTableClusters };
		this.#end = divFloor(file.size, header.clusterSize);
		this.#freshFrom = this.#end;
		this.#free = this.#counts.free(this.#end);
	}

	/** Something is counted in memory only. */
	get hasRaised(): boolean {
		return this.#toRaise.size > 0;
	}

	/** Some place that the file leads to is given up. */
	get hasReleased(): boolean {
		return this.#toLower.size > 0;
	}

	/** How many changes wait for a commit. */
	get waiting(): number {
		return this.#toRaise.size + this.#toLower.size;
	}

	isShared(host: number): boolean {
		return this.#counts.count(host / this.#clusterSize) !== 1;
	}

	/** Takes `clusters` clusters in one piece. Throws NO_SPACE, IO, or IMAGE_UNSUPPORTED where no more can be counted. */
	async take(holds: Holds, clusters = 1): Promise<Taken> {
		const first = this.#find(clusters) ?? (await this.#grow(clusters));
		for (let cluster = first; cluster < first + clusters; cluster++) {
			const fits = this.#counts.refer(cluster, holds, 1);
			assert(fits, `cluster ${cluster} is taken twice`);
			this.#toRaise.add(cluster);
		}
		this.#free -= clusters;
		const fresh = first >= this.#freshFrom;
		this.#freshFrom = Math.max(this.#freshFrom, first + clusters);
		return { host: first * this.#clusterSize, fresh };
	}

	/** One reference less to each cluster that holds a part of `length` bytes from `host` on. */
	release(host: number, length: number): void {
		const end = divCeil(host + length, this.#clusterSize);
		for (let cluster = divFloor(host, this.#clusterSize); cluster < end; cluster++) {
			if (this.#counts.count(cluster) === SATURATED) continue;
			this.#counts.release(cluster);
			if (this.#toRaise.delete(cluster)) this.#setFree(cluster);
			else {
				this.#toLower.add(cluster);
				if (this.#counts.count(cluster) === 0) this.#leaving.add(cluster);
			}
		}
	}

	/**
	 * What the file says of a cluster that was given up. Without snapshots, one that is left with one reference has it in the
	 * disk's own tables: several entries shared it, which QEMU never makes. The flag that goes with a count of one is missing
	 * there. So the count stays too high for now, as if leaked, and is put right with the flag when the image is opened the next time.
	 */
	#loweredCount(cluster: number): number {
		const count = this.#counts.count(cluster);
		const holds = this.#counts.holds(cluster);
		const isFlagged = holds === Holds.DATA || holds === Holds.L2_TABLE;
		return !this.#hasSnapshots && isFlagged && count === 1 ? 2 : count;
	}

	/** Writes the counts of all that was taken; to be made durable next. */
	async raise(): Promise<void> {
		// The set grows while it is walked: blocks and tables are clusters, too.
		for (const cluster of this.#toRaise) await this.#makeBlock(divFloor(cluster, this.#blocks.perBlock));
		const counts = new Map<number, number>();
		for (const cluster of this.#toRaise) counts.set(cluster, 1);
		await this.#blocks.set(this.#file, counts);
		if (this.#tableMoves) await this.#file.write(byteOffset(this.#table.offset), bytesOf(this.#blocks.table));
	}

	/** Makes new counts reachable, after they are durable. True where it wrote: that must be durable, too, before the next step. */
	async reach(): Promise<boolean> {
		const entries = [...this.#newBlocks];
		const wrote = this.#tableMoves || entries.length > 0;
		if (this.#tableMoves) {
			const place = new Uint8Array(12);
			viewOf(place).setBigUint64(0, BigInt(this.#table.offset));
			viewOf(place).setUint32(8, this.#table.clusters);
			await this.#file.write(byteOffset(HeaderV2.offset.refcountTableOffset), place);
		} else
			for (const index of entries) {
				const at = index * ENTRY_BYTES;
				await writeSectors(this.#file, this.#table.offset, this.#blocks.table, at, at + ENTRY_BYTES);
			}
		return wrote;
	}

	/** All that was taken is counted in the file, durably: from now on tables may lead there. */
	reached(): void {
		this.#newBlocks.clear();
		this.#tableMoves = false;
		this.#toRaise.clear();
	}

	/** Nothing in the file leads to what was released any more, durably: its counts are lowered, and its space given back. */
	async lower(): Promise<void> {
		const counts = new Map<number, number>();
		for (const cluster of this.#toLower) counts.set(cluster, this.#loweredCount(cluster));
		await this.#blocks.set(this.#file, counts);
		const freed = [...this.#leaving];
		const where = { counts: this.#counts, clusterSize: this.#clusterSize, hostBlock: this.#hostBlock };
		await punchAll(this.#file, freeHostRanges(freed, where, this.#file.size));
		this.#toLower.clear();
		this.#leaving.clear();
		for (const cluster of freed) this.#setFree(cluster);
	}

	#setFree(cluster: number): void {
		if (this.#counts.count(cluster) !== 0) return;
		this.#free++;
		this.#cursor = Math.min(this.#cursor, cluster);
	}

	#isFree(cluster: number): boolean {
		return this.#counts.count(cluster) === 0 && !this.#leaving.has(cluster);
	}

	/** The first free clusters from the cursor on, then from the start. */
	#find(clusters: number): number | undefined {
		if (this.#free < clusters) return undefined;
		for (const start of [this.#cursor, 0]) {
			let length = 0;
			for (let cluster = start; cluster < this.#end; cluster++) {
				length = this.#isFree(cluster) ? length + 1 : 0;
				if (length < clusters) continue;
				if (clusters === 1) this.#cursor = cluster + 1;
				return cluster - clusters + 1;
			}
		}
		return undefined;
	}

	async #grow(clusters: number): Promise<number> {
		const first = this.#end;
		const needed = (first + clusters) * this.#clusterSize;
		if (first + clusters > CLUSTERS_MAX)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.#path} has too many clusters to account for. Convert it to larger ones: qemu-img convert -O qcow2 -o cluster_size=2M.`,
			);
		await this.#file.truncate(byteCount(roundUp(needed, Math.max(GROWTH_BYTES, this.#clusterSize))));
		if (this.#file.size < needed)
			throw new VmsweepError("NO_SPACE", `${this.#path} is full (${this.#file.size} bytes). Make the device larger.`);
		this.#end = divFloor(this.#file.size, this.#clusterSize);
		this.#free += this.#end - first;
		this.#cursor = first;
		return this.#find(clusters)!;
	}

	async #makeBlock(index: number): Promise<void> {
		if (index >= this.#blocks.length) await this.#moveTable(index);
		if (this.#blocks.offset(index) !== 0) return;
		const { host } = await this.take(Holds.OTHER);
		try {
			await this.#file.write(byteOffset(host), new Uint8Array(this.#clusterSize));
		} catch (error) {
			this.release(host, this.#clusterSize);
			throw error;
		}
		this.#blocks.place(index, host);
		this.#newBlocks.add(index);
	}

	/** To where there is room for block `index`, and for the blocks that count the table's own clusters. */
	async #moveTable(index: number): Promise<void> {
		const perCluster = this.#clusterSize / ENTRY_BYTES;
		let clusters = divCeil(Math.max(index + 1, this.#blocks.length * TABLE_GROWTH), perCluster);
		while ((clusters * perCluster - 2) * this.#blocks.perBlock < this.#end + 2 * clusters) clusters++;
		if (clusters * this.#clusterSize > REFCOUNT_TABLE_BYTES_MAX)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.#path} can't have more clusters. Convert it to larger ones: qemu-img convert -O qcow2 -o cluster_size=2M.`,
			);
		const { host } = await this.take(Holds.OTHER, clusters);
		this.release(this.#table.offset, this.#table.clusters * this.#clusterSize);
		this.#table = { offset: host, clusters };
		this.#blocks.grow(clusters * perCluster);
		this.#tableMoves = true;
	}
}
