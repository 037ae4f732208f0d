// A qcow2 image that is written in place while it is in use: the second image of a disk.
//
//   prepare (room for a write) ─┐                            ┌─▶ reads of this store see it at once
//   punch                       ┴─▶ tables in memory changed ┴─▶ … ─▶ flush: in the file, durable
//
// What a flush writes, and in which order
//
//   1  new L2 tables, refcount blocks, counts of what was taken      (data was written before, by whoever prepared)
//   2  ── durable ──   3  new refcount blocks become reachable ── durable ── (seldom)
//   4  entries of L2 and L1 tables, the header's fields
//   5  ── durable ──   6  counts of what was released, holes
//
// Invariants, also after a power cut at any point
//  - an entry leads only to what is durable: content, tables and counts; so whatever a cut leaves has no errors. What it
//    may have is leaks, from 1 without 4 or 4 without 6: the next change gives them back, after the image was verified
//  - a block that nobody writes or punches keeps its bytes: where its cluster can't be written in place (shared with a
//    snapshot, compressed, not there yet), all of the cluster is copied before an entry leads to the copy, and the old
//    one is not touched before 5
//  - blocks that are being written or punched hold old, new or mixed bytes until the flush; their owner knows that
//  - tables are changed in place only where nothing shares them; snapshots keep their own
//
// Sectors of 512 bytes are written whole or not at all; no entry crosses one. QEMU counts on the same.
//
// The steps are idempotent: one that failed for lack of space is repeated by the next flush. After any other failure
// nothing is written any more.

import { assert, VmsweepError } from "../../../foundations/errors.ts";
import { checkRange, readBytes } from "../../../foundations/source.ts";
import { bytesOf, viewOf } from "../../../foundations/struct.ts";
import {
	type ByteCount,
	type ByteOffset,
	byteCount,
	byteOffset,
	divCeil,
	roundUp,
} from "../../../foundations/units.ts";
import type { WritableImageFile } from "../image-file.ts";
import type { VirtualDisk } from "../virtual-disk.ts";
import { ClusterAllocator } from "./allocator.ts";
import { type Decompress, Qcow2Disk } from "./disk.ts";
import { clearUnknownAutoclear, type Qcow2Header, readHeader } from "./header.ts";
import * as layout from "./layout.ts";
import { Holds } from "./refcounts.ts";
import { readSnapshots } from "./snapshots.ts";
import { Qcow2Sweep } from "./sweep.ts";
import { absentRun, compressedPlace, damagedImage, type StoredRun, TableEntries } from "./tables.ts";
import { type VerifiedImage, verifyImage } from "./verify.ts";

/** The file of a store. */
export interface StoreFile extends WritableImageFile {
	/** The range, which lies inside the file, reads as zeros afterwards, and takes no space where the host can do that. */
	zero(at: ByteOffset, length: ByteCount): Promise<void>;
}

/** Bytes for tables that can be reached; see `WriteTables` in adapters/images/second-layout.ts. */
export interface TableWrite {
	readonly pieces: readonly { readonly at: number; readonly bytes: Uint8Array }[];
	readonly header?: Qcow2Header;
	readonly frees: boolean;
}

/** What a store is made of. */
export interface Qcow2StoreParts {
	/** For messages. */
	readonly path: string;
	readonly file: StoreFile;
	/** The unit in which the host gives space back, in bytes. */
	readonly hostBlock: number;
	/** The image below, which nobody changes. */
	readonly below: VirtualDisk | null;
	readonly decompress: Decompress;
	/** Writes tables that can be reached, where somebody else reads by them, too. Default: straight to the file. */
	readonly writeTables?: (write: TableWrite) => Promise<void>;
}

/** A range of the disk. */
export interface GuestRange {
	readonly start: number;
	readonly length: number;
}

/** Where a part of a prepared range is to be written: `length` bytes at byte `host` of the file. */
export interface Place extends GuestRange {
	readonly host: number;
}

/** Memory for L2 tables that are only read, in bytes; at least four tables. */
const TABLES_BYTES = 32 << 20;
/** Changed tables, and clusters taken or released, that wait for a flush at most; more are written before. */
const CHANGED_TABLES_BYTES = 16 << 20;
const CHANGES_MAX = 2 ** 18;
/** Finest part of a cluster that is left out of a copy where it is zeros. In bytes. */
const COPY_UNIT = 4096;
const SECTOR = 512;

interface Table {
	readonly l1Index: number;
	readonly offset: number;
	readonly view: DataView;
	/** Not in the file yet. */
	isNew: boolean;
	/** Sectors of the table that differ from the file's. */
	readonly changed: Set<number>;
}

/** How a whole cluster is mapped. */
type Mapping =
	/** `partly`: only some subclusters are stored. */
	| { readonly kind: "data"; readonly host: number; readonly partly: boolean }
	| { readonly kind: "compressed"; readonly host: number; readonly length: number }
	/** `host`: a place that it has all the same, or 0. */
	| { readonly kind: "zero"; readonly host: number }
	| { readonly kind: "absent" };

/** Changes one image. `read` may be called at any time; calls that change must not overlap with each other. */
export class Qcow2Store implements VirtualDisk {
	readonly #parts: Qcow2StoreParts;
	readonly #path: string;
	readonly #file: StoreFile;
	readonly #image: VerifiedImage;
	#header: Qcow2Header;
	#entries: TableEntries;
	#disk: Qcow2Disk;
	#l1: DataView;
	/** By L1 index; the one used last is the last. Changed ones stay. */
	readonly #tables = new Map<number, Table>();
	readonly #loading = new Map<number, Promise<Table>>();
	readonly #changedTables = new Set<Table>();
	readonly #changedL1 = new Set<number>();
	/** To be written with the entries: the header's new fields. */
	#newHeader: { readonly at: number; readonly bytes: Uint8Array; readonly header: Qcow2Header } | undefined;
	/** From the first change on. */
	#clusters: ClusterAllocator | undefined;
	readonly #reads = new Set<Promise<void>>();
	#failed = false;

	private constructor(parts: Qcow2StoreParts, header: Qcow2Header, image: VerifiedImage) {
		this.#parts = parts;
		this.#path = parts.path;
		this.#file = parts.file;
		this.#image = image;
		this.#header = header;
		this.#l1 = image.l1;
		this.#entries = new TableEntries(header, parts.path, () => parts.file.size);
		this.#disk = this.#diskOf(header);
	}

	/**
	 * Verifies the whole image, and changes nothing yet. Throws IMAGE_UNSUPPORTED, with what to do, where it can't be
	 * changed safely; IMAGE_DAMAGED or IO.
	 */
	static async open(parts: Qcow2StoreParts): Promise<Qcow2Store> {
		const { file, path } = parts;
		const header = await readHeader(file, path);
		if (header.dataFile !== null)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${path} keeps its data in another file (${header.dataFile.name ?? "unnamed"}). Use that file itself if it is raw, or copy the image into one file: qemu-img convert -O qcow2 ${path} NEW.`,
			);
		if ((header.backing === null) !== (parts.below === null))
			throw damagedImage(path, "the image below it was not opened");
		const image = await verifyImage(file, header, path, await readSnapshots(file, header, path));
		return new Qcow2Store(parts, header, image);
	}

	get size(): ByteCount {
		return this.#header.size;
	}

	/** As it is in the file; what waits for a flush is not in it. */
	get header(): Qcow2Header {
		return this.#header;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		const reading = this.#disk.read(at, into);
		const done = reading.catch(() => {}).finally(() => this.#reads.delete(done));
		this.#reads.add(done);
		await reading;
	}

	runs(from: ByteOffset, to: ByteOffset): ReturnType<VirtualDisk["runs"]> {
		return this.#disk.runs(from, to);
	}

	/** How this image itself stores `[from, to)`, in order and without gap. */
	stored(from: number, to: number): AsyncGenerator<StoredRun> {
		return this.#disk.stored(from, to);
	}

	// ---- Changing -----------------------------------------------------------------------------------------

	/**
	 * Makes room for writes to ranges of whole blocks, sorted and without overlap. The caller then writes to the places
	 * that are returned, before the next flush; until then the ranges read as anything. Throws OUT_OF_RANGE, NO_SPACE, IO.
	 */
	async prepare(ranges: readonly GuestRange[]): Promise<Place[]> {
		for (const { start, length } of ranges) checkRange(this.size, start, length, this.#path);
		await this.#begin();
		const places: Place[] = [];
		for (const { cluster, parts } of this.#byCluster(ranges)) {
			const host = await this.#writable(this.#clusters!, cluster, parts);
			for (const { start, length } of parts)
				appendPlace(places, { start, length, host: host + (start - cluster * this.#header.clusterSize) });
		}
		return places;
	}

	/** Writes blocks. As {@link prepare}, and the bytes are written when it resolves. */
	async write(start: ByteOffset, bytes: Uint8Array): Promise<void> {
		for (const place of await this.prepare([{ start, length: bytes.length }])) {
			const from = place.start - start;
			await this.#file.write(byteOffset(place.host), bytes.subarray(from, from + place.length));
		}
	}

	/** Whole blocks read as zeros from now on, and take as little space as the format allows. Throws as {@link prepare}. */
	async punch(start: ByteOffset, length: ByteCount): Promise<void> {
		checkRange(this.size, start, length, this.#path);
		await this.#begin();
		await this.#punch(start, length);
	}

	/** Resolves once all that was done before the call would survive a power cut. Throws NO_SPACE (may be repeated), IO. */
	async flush(): Promise<void> {
		this.#checkUsable();
		if (this.#clusters === undefined || !this.#hasChanges) await this.#file.flush();
		else await this.#commit(this.#clusters);
	}

	/** Throws IMAGE_UNSUPPORTED where `resize` would. */
	checkResize(size: ByteCount): void {
		if (size !== this.size && this.#header.snapshotCount > 0)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.#path} has internal snapshots of its present size. Delete them first: qemu-img snapshot -d NAME ${this.#path}.`,
			);
	}

	/**
	 * Sets the size of the disk, durably; a multiple of 512 bytes. What is added reads as zeros. Where it shrinks, the
	 * caller has no use any more for what is cut off. Throws IMAGE_UNSUPPORTED, NO_SPACE or IO.
	 */
	async resize(size: ByteCount): Promise<void> {
		assert(size % SECTOR === 0 && size > 0, `a disk of ${size} bytes`);
		const old = this.size;
		if (size === old) return;
		this.checkResize(size);
		await this.#begin();
		await this.flush();
		if (size > old) {
			await this.#growL1(this.#clusters!, size);
			// Also in what the last cluster holds behind the old end, and where the image below is longer.
			await this.#punch(old, size - old);
		} else await this.#punch(size, old - size);
		await this.flush();
		const bytes = new Uint8Array(8);
		viewOf(bytes).setBigUint64(0, BigInt(size));
		const l1Needed = divCeil(size, this.#entries.tableBytes);
		this.#newHeader = { at: layout.HeaderV2.offset.size, bytes, header: { ...this.#header, size, l1Needed } };
		await this.flush();
	}

	/** Before the first change: what the header says about the image must stay true, and what was leaked is given back. */
	async #begin(): Promise<void> {
		this.#checkUsable();
		if (this.#clusters === undefined) {
			const { hostBlock } = this.#parts;
			const { counts, blocks } = this.#image;
			this.#failed = true;
			if (this.#header.unknownAutoclear) await clearUnknownAutoclear(this.#file, this.#header);
			const file = this.#tableFile();
			await this.#file.truncate(byteCount(roundUp(this.#file.size, this.#header.clusterSize)));
			const sweep = new Qcow2Sweep(
				{ path: this.#path, header: { ...this.#header, unknownAutoclear: false }, image: this.#image, hostBlock },
				this.#file,
			);
			await sweep.commit(file);
			await Promise.all(this.#reads);
			this.#tables.clear();
			this.#clusters = new ClusterAllocator(this.#file, this.#path, this.#header, { counts, blocks, hostBlock });
			this.#failed = false;
		}
		const tables = this.#changedTables.size * this.#header.clusterSize;
		if (tables > CHANGED_TABLES_BYTES || this.#clusters.waiting > CHANGES_MAX) await this.flush();
	}

	/** The file, with writes that go where writes of tables go. */
	#tableFile(): WritableImageFile {
		const file = this.#file;
		const write = (at: ByteOffset, bytes: Uint8Array): Promise<void> =>
			this.#writeTables({ pieces: [{ at, bytes }], frees: false });
		return {
			get size() {
				return file.size;
			},
			read: (at, into) => file.read(at, into),
			write,
			punch: (at, length) => file.punch(at, length),
			truncate: (size) => file.truncate(size),
			flush: () => file.flush(),
		};
	}

	async #writeTables(write: TableWrite): Promise<void> {
		if (this.#parts.writeTables !== undefined) await this.#parts.writeTables(write);
		else for (const { at, bytes } of write.pieces) await this.#file.write(byteOffset(at), bytes);
	}

	#checkUsable(): void {
		if (this.#failed)
			throw new VmsweepError(
				"IO",
				`${this.#path}: an earlier write failed, so what it holds is unknown. Stop the disk and check the host's storage.`,
			);
	}

	/** The parts of ranges, by the cluster that they are in. */
	*#byCluster(ranges: Iterable<GuestRange>): Generator<{ readonly cluster: number; readonly parts: GuestRange[] }> {
		const { clusterSize } = this.#header;
		let cluster = -1;
		let parts: GuestRange[] = [];
		for (const range of ranges) {
			const end = range.start + range.length;
			for (let start = range.start; start < end; ) {
				const index = Math.floor(start / clusterSize);
				if (index !== cluster) {
					assert(index > cluster, `${this.#path}: ranges are not in order`);
					if (parts.length > 0) yield { cluster, parts };
					cluster = index;
					parts = [];
				}
				const length = Math.min(end, (index + 1) * clusterSize) - start;
				parts.push({ start, length });
				start += length;
			}
		}
		if (parts.length > 0) yield { cluster, parts };
	}

	/** Where a cluster is that may be written in place: there already, or a copy but for the parts to be written. */
	async #writable(clusters: ClusterAllocator, cluster: number, parts: readonly GuestRange[]): Promise<number> {
		const old = await this.#mapping(cluster);
		if (old.kind === "data" && !old.partly && !clusters.isShared(old.host)) return old.host;
		const { clusterSize } = this.#header;
		const taken = await clusters.take(Holds.DATA);
		try {
			let at = cluster * clusterSize;
			for (const { start, length } of parts) {
				await this.#copy(old, at, start, taken, cluster);
				at = start + length;
			}
			// Behind the disk's end, too: the disk may grow.
			await this.#copy(old, at, (cluster + 1) * clusterSize, taken, cluster);
			await this.#remap(clusters, cluster, old, taken.host, "data");
		} catch (error) {
			clusters.release(taken.host, clusterSize);
			throw error;
		}
		return taken.host;
	}

	/** Fills `[from, to)` of a new cluster with what the disk holds there. */
	async #copy(
		old: Mapping,
		from: number,
		to: number,
		{ host, fresh }: { readonly host: number; readonly fresh: boolean },
		cluster: number,
	): Promise<void> {
		if (from === to) return;
		const { clusterSize } = this.#header;
		const target = host + (from - cluster * clusterSize);
		const isZero = old.kind === "zero" || (old.kind === "absent" && this.#parts.below === null);
		if (!fresh) await this.#file.zero(byteOffset(target), byteCount(to - from));
		const there = Math.min(to, this.#disk.size) - from;
		if (isZero || there <= 0) return;
		const bytes = await readBytes(this.#disk, byteOffset(from), there);
		for (const [start, end] of nonZeroParts(bytes))
			await this.#file.write(byteOffset(target + start), bytes.subarray(start, end));
	}

	async #punch(start: number, length: number): Promise<void> {
		for (const { cluster, parts } of this.#byCluster([{ start, length }])) {
			const part = parts[0]!;
			const clusterStart = cluster * this.#header.clusterSize;
			const clusterEnd = clusterStart + this.#header.clusterSize;
			// Behind the disk's end is nothing to be kept.
			const isWhole = part.start === clusterStart && part.start + part.length >= Math.min(clusterEnd, this.size);
			await this.#punchIn(this.#clusters!, cluster, part, isWhole);
		}
	}

	async #punchIn(clusters: ClusterAllocator, cluster: number, part: GuestRange, isWhole: boolean): Promise<void> {
		const { clusterSize, version } = this.#header;
		const { below } = this.#parts;
		const old = await this.#mapping(cluster);
		if (old.kind === "zero" && (old.host === 0 || !isWhole)) return;
		if (old.kind === "absent" && (below === null || (await readsAsZeros(below, part.start, part.length)))) return;
		// Version 2 can't say "zeros": without an entry, the image below would show.
		const saysZero = below === null || version === 3;
		if (isWhole && saysZero) return await this.#remap(clusters, cluster, old, 0, below === null ? "absent" : "zero");
		const host = await this.#writable(clusters, cluster, [part]);
		await this.#file.zero(byteOffset(host + (part.start - cluster * clusterSize)), byteCount(part.length));
	}

	// ---- Tables -------------------------------------------------------------------------------------------

	/** The longest stretch of one kind from `at` on, with all that waits for a flush. */
	async run(at: number, to: number): Promise<StoredRun> {
		const { tableBytes } = this.#entries;
		const l1Index = Math.floor(at / tableBytes);
		const end = Math.min(to, (l1Index + 1) * tableBytes);
		const table = await this.#table(l1Index);
		return table === undefined ? absentRun(at, end) : this.#entries.run(table.view, l1Index * tableBytes, at, end);
	}

	async #mapping(cluster: number): Promise<Mapping> {
		const { l2Entries, l2EntryBytes, extendedL2 } = this.#header;
		const table = await this.#table(Math.floor(cluster / l2Entries));
		if (table === undefined) return { kind: "absent" };
		const at = (cluster % l2Entries) * l2EntryBytes;
		const high = table.view.getUint32(at);
		const low = table.view.getUint32(at + 4);
		if ((high & layout.COMPRESSED) !== 0) return { kind: "compressed", ...compressedPlace(this.#header, high, low) };
		const host = layout.entryOffset(high, low);
		if (!extendedL2) {
			if ((low & layout.ZERO) !== 0) return { kind: "zero", host };
			return host === 0 ? { kind: "absent" } : { kind: "data", host, partly: false };
		}
		const zeros = table.view.getUint32(at + 8);
		const stored = table.view.getUint32(at + 12);
		if (host !== 0) return { kind: "data", host, partly: stored !== ALL_SUBCLUSTERS };
		// Some subclusters may say nothing, so that the image below shows.
		return zeros === ALL_SUBCLUSTERS ? { kind: "zero", host: 0 } : { kind: "absent" };
	}

	/** Lets a cluster's entry say something else, and gives up what it said before. In memory. */
	async #remap(
		clusters: ClusterAllocator,
		cluster: number,
		old: Mapping,
		host: number,
		kind: "data" | "zero" | "absent",
	): Promise<void> {
		const { l2Entries, l2EntryBytes, extendedL2, clusterSize } = this.#header;
		const table = await this.#ownTable(clusters, Math.floor(cluster / l2Entries));
		const at = (cluster % l2Entries) * l2EntryBytes;
		table.view.setUint32(at, kind === "data" ? layout.COPIED + Math.floor(host / 0x1_0000_0000) : 0);
		table.view.setUint32(at + 4, kind === "zero" && !extendedL2 ? layout.ZERO : host % 0x1_0000_0000);
		if (extendedL2) {
			table.view.setUint32(at + 8, kind === "zero" ? ALL_SUBCLUSTERS : 0);
			table.view.setUint32(at + 12, kind === "data" ? ALL_SUBCLUSTERS : 0);
		}
		table.changed.add(Math.floor(at / SECTOR));
		this.#changedTables.add(table);
		if (old.kind === "data" || (old.kind === "zero" && old.host !== 0)) clusters.release(old.host, clusterSize);
		else if (old.kind === "compressed") clusters.release(old.host, old.length);
	}

	/** A table that may be changed: a new one where there is none, a copy where snapshots share it. */
	async #ownTable(clusters: ClusterAllocator, l1Index: number): Promise<Table> {
		const table = await this.#table(l1Index);
		if (table !== undefined && !clusters.isShared(table.offset)) {
			// It may have been let go of since it was found: what is changed stays.
			this.#tables.set(l1Index, table);
			return table;
		}
		const { host } = await clusters.take(Holds.L2_TABLE);
		const bytes = table === undefined ? new Uint8Array(this.#header.clusterSize) : bytesOf(table.view).slice();
		const own: Table = { l1Index, offset: host, view: viewOf(bytes), isNew: true, changed: new Set() };
		this.#tables.set(l1Index, own);
		this.#changedTables.add(own);
		this.#l1.setUint32(l1Index * layout.ENTRY_BYTES, layout.COPIED + Math.floor(host / 0x1_0000_0000));
		this.#l1.setUint32(l1Index * layout.ENTRY_BYTES + 4, host % 0x1_0000_0000);
		this.#changedL1.add(l1Index);
		if (table !== undefined) clusters.release(table.offset, this.#header.clusterSize);
		return own;
	}

	async #table(l1Index: number): Promise<Table | undefined> {
		const cached = this.#tables.get(l1Index);
		if (cached !== undefined) {
			this.#tables.delete(l1Index);
			this.#tables.set(l1Index, cached);
			return cached;
		}
		const at = l1Index * layout.ENTRY_BYTES;
		const offset = layout.entryOffset(this.#l1.getUint32(at), this.#l1.getUint32(at + 4));
		if (offset === 0) return undefined;
		// All who want a table get the same one: what is changed in it would be lost in a second.
		let loading = this.#loading.get(l1Index);
		if (loading === undefined) {
			loading = this.#load(l1Index, offset).finally(() => this.#loading.delete(l1Index));
			this.#loading.set(l1Index, loading);
		}
		return await loading;
	}

	async #load(l1Index: number, offset: number): Promise<Table> {
		const view = viewOf(await readBytes(this.#file, byteOffset(offset), this.#header.clusterSize));
		const present = this.#tables.get(l1Index);
		if (present !== undefined) return present;
		const table: Table = { l1Index, offset, view, isNew: false, changed: new Set() };
		this.#tables.set(l1Index, table);
		const max = Math.max(4, TABLES_BYTES / this.#header.clusterSize) + this.#changedTables.size;
		if (this.#tables.size > max)
			for (const [index, each] of this.#tables) {
				if (this.#changedTables.has(each) || each === table) continue;
				this.#tables.delete(index);
				break;
			}
		return table;
	}

	// ---- Flushing -----------------------------------------------------------------------------------------

	get #hasChanges(): boolean {
		const clusters = this.#clusters!;
		const tables = this.#changedTables.size > 0 || this.#changedL1.size > 0 || this.#newHeader !== undefined;
		return tables || clusters.hasRaised || clusters.hasReleased;
	}

	/** What fails before, in memory or in what nothing leads to yet, changes nothing that counts; what fails here may. */
	async #commit(clusters: ClusterAllocator): Promise<void> {
		try {
			await this.#writeChanges(clusters);
		} catch (error) {
			if (!(error instanceof VmsweepError && mayRepeat.has(error.code))) this.#failed = true;
			throw error;
		}
	}

	async #writeChanges(clusters: ClusterAllocator): Promise<void> {
		for (const table of this.#changedTables)
			if (table.isNew) await this.#file.write(byteOffset(table.offset), bytesOf(table.view));
		await clusters.raise();
		await this.#file.flush();
		if (await clusters.reach()) await this.#file.flush();
		// From here on the file may lead to all of it: none of it can be taken back without a flush.
		clusters.reached();
		for (const table of this.#changedTables)
			if (table.isNew) {
				table.isNew = false;
				table.changed.clear();
			}
		await this.#writeTables(this.#tableWrite(clusters.hasReleased));
		await this.#file.flush();
		for (const table of this.#changedTables) table.changed.clear();
		this.#changedTables.clear();
		this.#changedL1.clear();
		this.#applyHeader();
		// Reads of this store that began by the old tables end before what they read is given away.
		await Promise.all(this.#reads);
		await clusters.lower();
	}

	#tableWrite(frees: boolean): TableWrite {
		const pieces: { at: number; bytes: Uint8Array }[] = [];
		for (const { offset, view, changed } of this.#changedTables) pieces.push(...sectorPieces(view, offset, changed));
		const sectors = new Set([...this.#changedL1].map((index) => Math.floor((index * layout.ENTRY_BYTES) / SECTOR)));
		pieces.push(...sectorPieces(this.#l1, this.#header.l1Offset, sectors));
		if (this.#newHeader === undefined) return { pieces, frees };
		const { at, bytes, header } = this.#newHeader;
		return { pieces: [...pieces, { at, bytes }], frees, header };
	}

	#applyHeader(): void {
		if (this.#newHeader === undefined) return;
		this.#header = this.#newHeader.header;
		this.#newHeader = undefined;
		this.#entries = new TableEntries(this.#header, this.#path, () => this.#file.size);
		this.#disk = this.#diskOf(this.#header);
	}

	#diskOf(header: Qcow2Header): Qcow2Disk {
		const { path, file, below, decompress } = this.#parts;
		return new Qcow2Disk({ path, file, header, tables: this, dataFile: null, backing: below, decompress });
	}

	/** Moves the L1 table to where there is room for a disk of `size` bytes. Nothing else may wait for a flush. */
	async #growL1(clusters: ClusterAllocator, size: number): Promise<void> {
		const needed = divCeil(size, this.#entries.tableBytes);
		if (needed * layout.ENTRY_BYTES > layout.L1_BYTES_MAX)
			throw new VmsweepError(
				"IMAGE_UNSUPPORTED",
				`${this.#path}: its clusters are too small for a disk of ${size} bytes. Convert it to larger ones: qemu-img convert -O qcow2 -o cluster_size=2M.`,
			);
		if (needed <= this.#header.l1Entries) return;
		const { clusterSize, l1Entries, l1Offset } = this.#header;
		const l1Clusters = divCeil(needed * layout.ENTRY_BYTES, clusterSize);
		const { host } = await clusters.take(Holds.OTHER, l1Clusters);
		const l1 = new Uint8Array(l1Clusters * clusterSize);
		try {
			l1.set(bytesOf(this.#l1));
			await this.#file.write(byteOffset(host), l1);
		} catch (error) {
			clusters.release(host, l1Clusters * clusterSize);
			throw error;
		}
		const place = new Uint8Array(12);
		viewOf(place).setUint32(0, needed);
		viewOf(place).setBigUint64(4, BigInt(host));
		this.#newHeader = {
			at: layout.HeaderV2.offset.l1Size,
			bytes: place,
			header: { ...this.#header, l1Entries: needed, l1Offset: host },
		};
		clusters.release(l1Offset, l1Entries * layout.ENTRY_BYTES);
		// Where this fails half way, it's open which of the two tables the file has.
		this.#failed = true;
		await this.#commit(clusters);
		this.#failed = false;
		this.#l1 = viewOf(l1.subarray(0, needed * layout.ENTRY_BYTES));
	}
}

const ALL_SUBCLUSTERS = 0xffff_ffff;
/** Failures of a step that may be repeated. */
const mayRepeat: ReadonlySet<string> = new Set(["NO_SPACE", "IMAGE_UNSUPPORTED"]);

function appendPlace(places: Place[], place: Place): void {
	const last = places.at(-1);
	const follows =
		last !== undefined && last.start + last.length === place.start && last.host + last.length === place.host;
	if (follows) places[places.length - 1] = { ...last, length: last.length + place.length };
	else places.push(place);
}

/** Sectors of a table at byte `at` of the file, neighbours in one piece; copied, since the table goes on changing. */
function* sectorPieces(
	table: DataView,
	at: number,
	sectors: ReadonlySet<number>,
): Generator<{ at: number; bytes: Uint8Array }> {
	const sorted = [...sectors].sort((a, b) => a - b);
	for (let index = 0; index < sorted.length; ) {
		const first = sorted[index]!;
		let end = first;
		for (; index < sorted.length && sorted[index] === end; index++) end++;
		const bytes = bytesOf(table).slice(first * SECTOR, Math.min(table.byteLength, end * SECTOR));
		yield { at: at + first * SECTOR, bytes };
	}
}

/** The parts of a copy that aren't zeros, in units of COPY_UNIT. */
function* nonZeroParts(bytes: Uint8Array): Generator<[from: number, to: number]> {
	let from = -1;
	for (let at = 0; at < bytes.length; at += COPY_UNIT) {
		const isZero = isZeros(bytes, at, Math.min(bytes.length, at + COPY_UNIT));
		if (!isZero && from < 0) from = at;
		if (!isZero || from < 0) continue;
		yield [from, at];
		from = -1;
	}
	if (from >= 0) yield [from, bytes.length];
}

function isZeros(bytes: Uint8Array, from: number, to: number): boolean {
	for (let at = from; at < to; at++) if (bytes[at] !== 0) return false;
	return true;
}

/** What an image below lacks reads as zeros, too. */
async function readsAsZeros(below: VirtualDisk, start: number, length: number): Promise<boolean> {
	const end = Math.min(start + length, below.size);
	if (start >= end) return true;
	for await (const { kind } of below.runs(byteOffset(start), byteOffset(end))) if (kind === "data") return false;
	return true;
}
