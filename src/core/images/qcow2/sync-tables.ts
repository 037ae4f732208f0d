// The mapping tables of a qcow2 image for a thread that doesn't wait for promises: the data plane's.
//
//   L1 table (in memory) ──▶ L2 table (the ones used last are kept) ──▶ cluster
//
// Whoever changes tables in the file says so by `written`, in this thread and between two calls: so a `run` sees a table
// as it was before a change or after it, never in between.

import { bytesOf, viewOf } from "../../../foundations/struct.ts";
import type { Qcow2Header } from "./header.ts";
import { ENTRY_BYTES, entryOffset } from "./layout.ts";
import { absentRun, damagedImage, type StoredRun, TableEntries } from "./tables.ts";

/** The file under the tables. Whether a cluster lies inside of it is for whoever reads it to find out. */
export interface SyncFile {
	/** Fills all of `into`, or throws where the file ends before. */
	read(at: number, into: Uint8Array): void;
}

interface Table {
	readonly offset: number;
	readonly view: DataView;
}

export class SyncTables {
	readonly #file: SyncFile;
	readonly #path: string;
	readonly #tablesMax: number;
	#header: Qcow2Header;
	#entries: TableEntries;
	#l1: DataView;
	/** By L1 index; the one used last is the last. */
	readonly #cache = new Map<number, Table>();
	/** L1 index by where the cached table is. */
	readonly #cachedAt = new Map<number, number>();

	/** Reads the L1 table. `path` is for messages, `cacheBytes` for L2 tables, of which two at least are kept. Throws IO. */
	constructor(file: SyncFile, header: Qcow2Header, path: string, cacheBytes: number) {
		this.#file = file;
		this.#path = path;
		this.#tablesMax = Math.max(2, Math.floor(cacheBytes / header.clusterSize));
		this.#header = header;
		this.#entries = new TableEntries(header, path, anySize);
		this.#l1 = this.#readL1();
	}

	get size(): number {
		return this.#header.size;
	}

	/** The longest stretch of one kind from `at` on; never past `to`, which lies inside the disk. Throws IMAGE_DAMAGED, IO. */
	run(at: number, to: number): StoredRun {
		const { tableBytes } = this.#entries;
		const l1Index = Math.floor(at / tableBytes);
		const tableStart = l1Index * tableBytes;
		const end = Math.min(to, tableStart + tableBytes);
		const offset = this.#l2Offset(l1Index);
		if (offset === 0) return absentRun(at, end);
		return this.#entries.run(this.#table(l1Index, offset), tableStart, at, end);
	}

	/** These bytes are in the file now; they lie inside one table, or in none that is known. */
	written(at: number, bytes: Uint8Array): void {
		const { l1Offset, clusterSize } = this.#header;
		const l1End = l1Offset + this.#l1.byteLength;
		if (at < l1End && at + bytes.length > l1Offset) {
			const from = Math.max(at, l1Offset);
			const to = Math.min(at + bytes.length, l1End);
			const first = Math.floor((from - l1Offset) / ENTRY_BYTES);
			const end = Math.ceil((to - l1Offset) / ENTRY_BYTES);
			bytesOf(this.#l1).set(bytes.subarray(from - at, to - at), from - l1Offset);
			// A table's place may be given to another table and come back: what is kept of it is not.
			for (let index = first; index < end; index++) this.#forget(index);
			return;
		}
		const table = at - (at % clusterSize);
		const index = this.#cachedAt.get(table);
		if (index !== undefined) bytesOf(this.#cache.get(index)!.view).set(bytes, at - table);
	}

	/** The header says something else now. Throws IO. */
	reload(header: Qcow2Header): void {
		this.#header = header;
		this.#entries = new TableEntries(header, this.#path, anySize);
		this.#cache.clear();
		this.#cachedAt.clear();
		this.#l1 = this.#readL1();
	}

	#readL1(): DataView {
		const bytes = new Uint8Array(this.#header.l1Needed * ENTRY_BYTES);
		this.#file.read(this.#header.l1Offset, bytes);
		return viewOf(bytes);
	}

	#l2Offset(index: number): number {
		return entryOffset(this.#l1.getUint32(index * ENTRY_BYTES), this.#l1.getUint32(index * ENTRY_BYTES + 4));
	}

	#table(index: number, offset: number): DataView {
		const cached = this.#cache.get(index);
		if (cached?.offset === offset) {
			this.#cache.delete(index);
			this.#cache.set(index, cached);
			return cached.view;
		}
		const { clusterSize } = this.#header;
		if (offset % clusterSize !== 0)
			throw damagedImage(this.#path, `its L2 table ${index} is at byte ${offset}, inside a cluster`);
		const bytes = new Uint8Array(clusterSize);
		this.#file.read(offset, bytes);
		this.#forget(index);
		// Two entries of a damaged image may lead to one table: then changes to it are not followed, and it's not kept.
		if (this.#cachedAt.has(offset)) return viewOf(bytes);
		if (this.#cache.size >= this.#tablesMax) this.#forget(this.#cache.keys().next().value!);
		this.#cache.set(index, { offset, view: viewOf(bytes) });
		this.#cachedAt.set(offset, index);
		return viewOf(bytes);
	}

	#forget(index: number): void {
		const table = this.#cache.get(index);
		if (table === undefined) return;
		this.#cache.delete(index);
		this.#cachedAt.delete(table.offset);
	}
}

/** A file that is still growing: to ask where it ends would cost a system call for every run. */
const anySize = (): number => Number.POSITIVE_INFINITY;
