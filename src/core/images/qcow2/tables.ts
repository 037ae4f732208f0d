// The mapping tables of a qcow2 image: guest byte → host byte.
//
//   L1 table (in memory) ──▶ L2 table (a cluster each, some of them cached) ──▶ cluster
//
// `run` answers for the longest stretch from a guest byte on that has one kind and lies in one piece in the file, but
// at most to the end of its L2 table. Reading the map of a whole disk costs one read per L2 table.

import { VmsweepError } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, formatBytes } from "../../../foundations/units.ts";
import type { ImageFile } from "../image-file.ts";
import type { Qcow2Header } from "./header.ts";
import { COMPRESSED, COPIED, ENTRY_BYTES, entryOffset, L1_BYTES_MAX, SUBCLUSTERS, ZERO } from "./layout.ts";

/** How a stretch of guest bytes is stored. `compressed`: exactly one cluster, or the disk's last part of one. */
export type StoredKind = "data" | "zero" | "absent" | "compressed";

/** A stretch of guest bytes. */
export interface StoredRun {
	readonly kind: StoredKind;
	readonly start: number;
	readonly length: number;
	/** Where it lies in the host file (a zero cluster may have a place, too), or -1. */
	readonly host: number;
	/** Bytes from `host` on that hold a compressed cluster; 0 otherwise. */
	readonly compressedLength: number;
}

/** A stretch that nothing is said about. */
export const absentRun = (at: number, end: number): StoredRun => ({
	kind: "absent",
	start: at,
	length: end - at,
	host: -1,
	compressedLength: 0,
});

/** Memory for L2 tables, in bytes; at least two tables. */
const CACHE_BYTES = 16 << 20;

/** The tables of one L1 table: the disk's present state, or a snapshot's. */
export class MappingTables {
	readonly #file: ImageFile;
	readonly #header: Qcow2Header;
	readonly #path: string;
	readonly #entries: TableEntries;
	#l1Offset: number;
	#l1: DataView;
	readonly #cache = new Map<number, Promise<DataView> | DataView>();
	readonly #cacheMax: number;

	private constructor(file: ImageFile, header: Qcow2Header, path: string, l1Offset: number, l1: DataView) {
		this.#file = file;
		this.#header = header;
		this.#path = path;
		this.#entries = new TableEntries(header, path, () => file.size);
		this.#l1Offset = l1Offset;
		this.#l1 = l1;
		this.#cacheMax = Math.max(2, CACHE_BYTES / header.clusterSize);
	}

	/** Reads the L1 table at `l1Offset`. Throws IMAGE_DAMAGED or IO. */
	static async open(
		file: ImageFile,
		header: Qcow2Header,
		path: string,
		{ l1Offset, l1Entries }: { readonly l1Offset: number; readonly l1Entries: number },
	): Promise<MappingTables> {
		const length = l1Entries * ENTRY_BYTES;
		if (l1Offset % header.clusterSize !== 0 || length > L1_BYTES_MAX || l1Offset + length > file.size)
			throw damagedImage(path, `its L1 table is at byte ${l1Offset}, ${l1Entries} entries long`);
		return new MappingTables(file, header, path, l1Offset, viewOf(await readBytes(file, byteOffset(l1Offset), length)));
	}

	/** Forgets what it knows, after the tables in the file have changed. Reads that are under way may see either. */
	async reload(l1Offset = this.#l1Offset): Promise<void> {
		this.#l1 = viewOf(await readBytes(this.#file, byteOffset(l1Offset), this.#l1.byteLength));
		this.#l1Offset = l1Offset;
		this.#cache.clear();
	}

	/** Number of L2 tables that the L1 table has room for. */
	get l1Entries(): number {
		return this.#l1.byteLength / ENTRY_BYTES;
	}

	/** Host offset of an L2 table, 0 where there is none. */
	l2Offset(l1Index: number): number {
		return entryOffset(this.#l1.getUint32(l1Index * ENTRY_BYTES), this.#l1.getUint32(l1Index * ENTRY_BYTES + 4));
	}

	/** The longest stretch of one kind from `at` on; never past `to`, which lies inside the disk. */
	async run(at: number, to: number): Promise<StoredRun> {
		const { tableBytes } = this.#entries;
		const l1Index = Math.floor(at / tableBytes);
		const tableStart = l1Index * tableBytes;
		const end = Math.min(to, tableStart + tableBytes);
		const l2Offset = this.l2Offset(l1Index);
		if (l2Offset === 0) return absentRun(at, end);
		const cached = this.#cache.get(l1Index);
		const table = cached === undefined || cached instanceof Promise ? await this.#table(l1Index, l2Offset) : cached;
		return this.#entries.run(table, tableStart, at, end);
	}

	async #table(l1Index: number, offset: number): Promise<DataView> {
		const cached = this.#cache.get(l1Index);
		if (cached !== undefined) {
			this.#cache.delete(l1Index);
			this.#cache.set(l1Index, cached);
			return await cached;
		}
		const { clusterSize } = this.#header;
		if (offset % clusterSize !== 0)
			throw damagedImage(this.#path, `its L2 table ${l1Index} is at byte ${offset}, inside a cluster`);
		if (offset + clusterSize > this.#file.size) throw behindTheEnd(this.#path, undefined, offset, this.#file.size);
		const reading = readBytes(this.#file, byteOffset(offset), clusterSize).then(viewOf);
		this.#cache.set(l1Index, reading);
		if (this.#cache.size > this.#cacheMax) this.#cache.delete(this.#cache.keys().next().value!);
		try {
			const table = await reading;
			// Kept only if nothing newer took its place meanwhile.
			if (this.#cache.get(l1Index) === reading) this.#cache.set(l1Index, table);
			return table;
		} catch (error) {
			this.#cache.delete(l1Index);
			throw error;
		}
	}
}

/** Reads the entries of L2 tables that are in memory already. */
export class TableEntries {
	readonly #header: Qcow2Header;
	readonly #path: string;
	readonly #fileSize: () => number;

	/** `path` is for messages. `fileSize`: where the image's file ends now, which bounds what an entry may lead to. */
	constructor(header: Qcow2Header, path: string, fileSize: () => number) {
		this.#header = header;
		this.#path = path;
		this.#fileSize = fileSize;
	}

	/** Guest bytes of one table. */
	get tableBytes(): number {
		return this.#header.l2Entries * this.#header.clusterSize;
	}

	/** The longest stretch of one kind from `at` on, of the table that begins at guest byte `tableStart`. Throws IMAGE_DAMAGED. */
	run(table: DataView, tableStart: number, at: number, end: number): StoredRun {
		return this.#header.extendedL2
			? this.#extendedRun(table, tableStart, at, end)
			: this.#plainRun(table, tableStart, at, end);
	}

	#plainRun(table: DataView, tableStart: number, at: number, end: number): StoredRun {
		const { clusterSize } = this.#header;
		let index = Math.floor((at - tableStart) / clusterSize); // up to 512 GiB: no shift
		let clusterStart = tableStart + index * clusterSize;
		const first = this.#plainEntry(table, index, clusterStart);
		if (first.kind === "compressed") return this.#compressedRun(table, index * ENTRY_BYTES, clusterStart, at, end);
		const host = first.host < 0 ? -1 : first.host + (at - clusterStart);
		let expected = first.host;
		for (;;) {
			index++;
			clusterStart += clusterSize;
			if (clusterStart >= end) break;
			if (expected >= 0) expected += clusterSize;
			const next = this.#plainEntry(table, index, clusterStart);
			if (next.kind !== first.kind || next.host !== expected) break;
		}
		const length = Math.min(clusterStart, end) - at;
		this.#checkHost(first.kind, host, length);
		return { kind: first.kind, start: at, length, host, compressedLength: 0 };
	}

	#plainEntry(table: DataView, index: number, guest: number): Entry {
		const high = table.getUint32(index * ENTRY_BYTES);
		const low = table.getUint32(index * ENTRY_BYTES + 4);
		if ((high & COMPRESSED) !== 0) return compressedEntry;
		const zero = (low & ZERO) !== 0;
		if (zero && this.#header.version === 2)
			throw damagedImage(this.#path, `guest byte ${guest}: a zero cluster in an image of version 2`);
		const host = this.#hostOf(high, low, guest);
		if (zero) return host < 0 ? zeroEntry : { kind: "zero", host };
		return host < 0 ? absentEntry : { kind: "data", host };
	}

	/** Where an uncompressed entry points; -1 for nowhere. */
	#hostOf(high: number, low: number, guest: number): number {
		const host = entryOffset(high, low);
		if (this.#header.dataFile !== null) {
			// Byte 0 of a data file is a place like others; the flag tells it from "nowhere".
			if (host === 0 && (high & COPIED) === 0) return -1;
			if (host !== guest)
				throw damagedImage(this.#path, `guest byte ${guest} is mapped to byte ${host} of the data file`);
			return host;
		}
		if (host === 0) return -1;
		if (host % this.#header.clusterSize !== 0)
			throw damagedImage(this.#path, `guest byte ${guest} is mapped to byte ${host}, inside a cluster`);
		return host;
	}

	/** Subclusters: the first bitmap says which are stored, the second which read as zeros. */
	#extendedRun(table: DataView, tableStart: number, at: number, end: number): StoredRun {
		const { clusterSize } = this.#header;
		const subclusterSize = clusterSize / SUBCLUSTERS;
		let index = Math.floor((at - tableStart) / clusterSize); // up to 512 GiB: no shift
		let clusterStart = tableStart + index * clusterSize;
		const first = this.#extendedEntry(table, index, clusterStart);
		if (first === undefined) return this.#compressedRun(table, index * 2 * ENTRY_BYTES, clusterStart, at, end);
		let subcluster = Math.floor((at - clusterStart) / subclusterSize);
		const kind = kindOfSubcluster(first, subcluster);
		const host = first.host < 0 ? -1 : first.host + (at - clusterStart);
		let entry: ExtendedEntry | undefined = first;
		let expected = first.host;
		let stop = clusterStart + subcluster * subclusterSize;
		while (
			entry !== undefined &&
			stop < end &&
			entry.host === expected &&
			kindOfSubcluster(entry, subcluster) === kind
		) {
			stop += subclusterSize;
			if (++subcluster < SUBCLUSTERS || stop >= end) continue;
			subcluster = 0;
			index++;
			clusterStart += clusterSize;
			if (expected >= 0) expected += clusterSize;
			entry = this.#extendedEntry(table, index, clusterStart);
		}
		const length = Math.min(stop, end) - at;
		this.#checkHost(kind, host, length);
		return { kind, start: at, length, host, compressedLength: 0 };
	}

	/** Undefined for a compressed cluster. */
	#extendedEntry(table: DataView, index: number, guest: number): ExtendedEntry | undefined {
		const base = index * 2 * ENTRY_BYTES;
		const high = table.getUint32(base);
		if ((high & COMPRESSED) !== 0) return undefined;
		const host = this.#hostOf(high, table.getUint32(base + 4), guest);
		const zeros = table.getUint32(base + 8);
		const stored = table.getUint32(base + 12);
		if ((zeros & stored) !== 0 || (host < 0 && stored !== 0))
			throw damagedImage(this.#path, `guest byte ${guest}: the bitmaps of its subclusters contradict each other`);
		return { host, zeros, stored };
	}

	#compressedRun(table: DataView, base: number, clusterStart: number, at: number, end: number): StoredRun {
		const { host, length } = compressedPlace(this.#header, table.getUint32(base), table.getUint32(base + 4));
		if (this.#header.dataFile !== null)
			throw damagedImage(this.#path, `guest byte ${clusterStart}: a compressed cluster in an image with a data file`);
		if (host >= this.#fileSize()) throw behindTheEnd(this.#path, clusterStart, host, this.#fileSize());
		const stop = Math.min(end, clusterStart + this.#header.clusterSize);
		return { kind: "compressed", start: at, length: stop - at, host, compressedLength: length };
	}

	/** The last cluster of a file may be short: what is missing of it reads as zeros. A data file has its own rule. */
	#checkHost(kind: StoredKind, host: number, length: number): void {
		if (kind !== "data" || this.#header.dataFile !== null) return;
		const { clusterSize } = this.#header;
		const last = Math.floor((host + length - 1) / clusterSize) * clusterSize;
		if (last >= this.#fileSize()) throw behindTheEnd(this.#path, undefined, last, this.#fileSize());
	}
}

interface Entry {
	readonly kind: StoredKind;
	readonly host: number;
}
const compressedEntry: Entry = { kind: "compressed", host: -1 };
const zeroEntry: Entry = { kind: "zero", host: -1 };
const absentEntry: Entry = { kind: "absent", host: -1 };

interface ExtendedEntry {
	readonly host: number;
	/** Bit n: subcluster n. */
	readonly zeros: number;
	readonly stored: number;
}

function kindOfSubcluster({ zeros, stored }: ExtendedEntry, subcluster: number): StoredKind {
	if (((stored >>> subcluster) & 1) !== 0) return "data";
	return ((zeros >>> subcluster) & 1) !== 0 ? "zero" : "absent";
}

/**
 * Where the compressed bytes of a cluster lie (section "Cluster mapping", compressed clusters descriptor): from a byte
 * on to the end of a 512-byte sector.
 */
export function compressedPlace(
	{ clusterBits }: Pick<Qcow2Header, "clusterBits">,
	high: number,
	low: number,
): { readonly host: number; readonly length: number } {
	const offsetHighBits = 62 - (clusterBits - 8) - 32;
	const host = (high & (2 ** offsetHighBits - 1)) * 0x1_0000_0000 + low;
	const sectors = ((high & 0x3fff_ffff) >>> offsetHighBits) + 1;
	return { host, length: sectors * 512 - (host % 512) };
}

export const damagedImage = (path: string, what: string): VmsweepError =>
	new VmsweepError("IMAGE_DAMAGED", `${path}: ${what}. Restore it from a copy, or try qemu-img check.`);

const behindTheEnd = (path: string, guest: number | undefined, host: number, size: number): VmsweepError =>
	damagedImage(
		path,
		`${guest === undefined ? "a part of it" : `guest byte ${guest}`} is at byte ${host} of the file, which ends at byte ${size} (${formatBytes(size)}): it has been cut off`,
	);
