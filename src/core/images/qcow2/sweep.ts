// Giving unused clusters of a qcow2 image back, in place.
//
//   drop ─▶ L2 entries cleared in memory ─▶ … ─▶ commit:   L2 and L1 entries ─▶ flush ─▶ counts, holes
//
// Invariants, also after a power cut at any point
//  - a cluster's count is lowered, and its bytes are punched, only when no entry in the file can lead to it any more:
//    the flush stands between. So a cut leaves the old entry with its data, or clusters that are only leaked; the next
//    sweep finds those and gives them back
//  - an entry is changed only in a table that nothing else shares; a cluster that a snapshot shares stays
//  - what is counted, but not referred to by anything known, is leaked and given back; but not where the header has
//    parts that aren't known, since those may refer to it
//  - nothing is changed before the whole image was verified (verify.ts)
//
// A dry run does the same in memory, asks what the punched ranges take on the host, and forgets what it gathered.

import { assert, VmsweepError } from "../../../foundations/errors.ts";
import { checkRange, readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { UnderWay } from "../../../foundations/under-way.ts";
import { byteCount, byteOffset, roundDown, roundUp } from "../../../foundations/units.ts";
import type { ImageFile, WritableImageFile } from "../image-file.ts";
import { clearUnknownAutoclear, type Qcow2Header } from "./header.ts";
import * as layout from "./layout.ts";
import { type ClusterCounts, Holds, SATURATED, writeSectors } from "./refcounts.ts";
import { compressedPlace } from "./tables.ts";
import type { VerifiedImage } from "./verify.ts";

/** A range of bytes of the host file. */
export interface HostRange {
	readonly start: number;
	readonly end: number;
}

/** What a sweep works on. */
export interface SweepTarget {
	readonly path: string;
	readonly header: Qcow2Header;
	readonly image: VerifiedImage;
	/** The unit in which the host gives space back, in bytes. */
	readonly hostBlock: number;
}

/** Changed L2 tables that are gathered before they are written, in bytes; at least two tables. */
const GATHERED_BYTES = 32 << 20;
/** Clusters whose count changes that are gathered: tables that were emptied wholly leave only these behind. */
const GATHERED_CLUSTERS = 2 ** 20;
/** Longest punch in one call, in bytes: bounds how long an interruption waits. */
const PUNCH_BYTES_MAX = 256 << 20;
const PUNCHES_AT_ONCE = 8;

interface L2Table {
	readonly l1Index: number;
	readonly offset: number;
	readonly view: DataView;
	/** Byte range with changed entries; empty where nothing changed. */
	changedFrom: number;
	changedTo: number;
	/** Entries that say something. */
	inUse: number;
}

/** Drops clusters of one image. Calls must not overlap. */
export class Qcow2Sweep {
	readonly #target: SweepTarget;
	readonly #file: ImageFile;
	/** Changed tables by L1 index, and the one that was looked at last. */
	readonly #changed = new Map<number, L2Table>();
	#last: L2Table | undefined;
	/** By cluster: what is to be added to its count in the file. */
	#countChanges = new Map<number, number>();
	/** Clusters whose last reference went. The first of them have been told to the caller of `drop`. */
	#freed: number[] = [];
	#freedTold = 0;
	/** Changed L1 entries. */
	readonly #changedL1 = new Set<number>();
	/** Clusters whose count comes down to one: see {@link #flagSoleReferences}. */
	readonly #soleReferences = new Set<number>();
	#headerToWrite: boolean;
	#failed = false;
	#forgot = false;

	constructor(target: SweepTarget, file: ImageFile) {
		this.#target = target;
		this.#file = file;
		this.#headerToWrite = target.header.unknownAutoclear;
		const { counts, leaks } = target.image;
		for (const [cluster, excess] of leaks) {
			if (target.header.hasUnknownParts) {
				// As if something referred to it that is never dropped: neither the count nor the bytes may change.
				counts.set(cluster, SATURATED);
				continue;
			}
			this.#countChanges.set(cluster, -excess);
			const holds = counts.holds(cluster);
			if (counts.count(cluster) === 0) this.#freed.push(cluster);
			else if (counts.count(cluster) === 1 && (holds === Holds.DATA || holds === Holds.L2_TABLE))
				this.#soleReferences.add(cluster);
		}
	}

	/** True where `commit` has something to do. */
	get hasChanges(): boolean {
		return this.#changed.size > 0 || this.#changedL1.size > 0 || this.#countChanges.size > 0;
	}

	/** True where so much was gathered that it should be written. */
	get shouldCommit(): boolean {
		const tablesMax = Math.max(2, GATHERED_BYTES / this.#target.header.clusterSize);
		return this.#changed.size > tablesMax || this.#countChanges.size > GATHERED_CLUSTERS;
	}

	/**
	 * Clears the entries of all clusters that lie wholly in a range of guest bytes, in memory. Returns the ranges of
	 * the file that will be given back because of it, and the first time also what was leaked. Throws OUT_OF_RANGE, IO.
	 */
	async drop(start: number, length: number): Promise<readonly HostRange[]> {
		const { header, path } = this.#target;
		this.#checkUsable();
		checkRange(header.size, start, length, path);
		const { clusterSize, l2Entries } = header;
		const first = Math.ceil(start / clusterSize);
		const end =
			start + length === header.size
				? Math.ceil(header.size / clusterSize)
				: Math.floor((start + length) / clusterSize);
		for (let cluster = first; cluster < end; ) {
			const l1Index = Math.floor(cluster / l2Entries);
			const tableEnd = Math.min(end, (l1Index + 1) * l2Entries);
			const table = await this.#table(l1Index);
			if (table !== undefined) {
				this.#dropIn(table, cluster - l1Index * l2Entries, tableEnd - l1Index * l2Entries);
				if (table.inUse === 0) this.#freeTable(table);
			}
			cluster = tableEnd;
		}
		const freed = this.#freed.slice(this.#freedTold);
		this.#freedTold = this.#freed.length;
		return this.#freeRanges(freed);
	}

	/**
	 * For a dry run: lets go of what was gathered, so that it takes no more memory than a sweep. Ranges behind those
	 * that were dropped can be dropped then, but nothing can be committed any more.
	 */
	forget(): void {
		this.#changed.clear();
		this.#changedL1.clear();
		this.#countChanges = new Map();
		this.#freed = [];
		this.#freedTold = 0;
		this.#forgot = true;
	}

	/** Writes what was gathered, and gives the clusters back. Durable after the next flush. Throws IO, NO_SPACE. */
	async commit(file: WritableImageFile): Promise<void> {
		this.#checkUsable();
		assert(!this.#forgot, "a dry run is committed");
		if (!this.hasChanges) return;
		// After a failure what is in the file is unknown, and what is here is no longer true.
		this.#failed = true;
		const { header, image } = this.#target;
		if (this.#headerToWrite) await clearUnknownAutoclear(file, header);
		this.#headerToWrite = false;
		if (this.#soleReferences.size > 0) await this.#flagSoleReferences(file);
		for (const { offset, view, changedFrom, changedTo } of this.#changed.values())
			await writeSectors(file, offset, view, changedFrom, changedTo);
		if (this.#changedL1.size > 0) {
			const [from, to] = bounds(this.#changedL1);
			await writeSectors(file, header.l1Offset, image.l1, from * layout.ENTRY_BYTES, to * layout.ENTRY_BYTES);
		}
		await file.flush();
		await image.blocks.change(file, this.#countChanges);
		await punchAll(file, this.#freeRanges(this.#freed));
		this.#changed.clear();
		this.#changedL1.clear();
		this.#last = undefined;
		this.#countChanges = new Map();
		this.#freed = [];
		this.#freedTold = 0;
		this.#failed = false;
	}

	#freeRanges(clusters: readonly number[]): HostRange[] {
		const { header, hostBlock, image } = this.#target;
		const where = { counts: image.counts, clusterSize: header.clusterSize, hostBlock };
		return freeHostRanges(clusters, where, this.#file.size);
	}

	#checkUsable(): void {
		if (this.#failed)
			throw new VmsweepError(
				"IO",
				`${this.#target.path}: an earlier write failed. Check the host's storage, then run the command again.`,
			);
	}

	/** Undefined where there is no table, or one that a snapshot shares. */
	async #table(l1Index: number): Promise<L2Table | undefined> {
		if (this.#last?.l1Index === l1Index) return this.#last;
		const changed = this.#changed.get(l1Index);
		if (changed !== undefined) return changed;
		const { header, image } = this.#target;
		const at = l1Index * layout.ENTRY_BYTES;
		const offset = layout.entryOffset(image.l1.getUint32(at), image.l1.getUint32(at + 4));
		if (offset === 0 || image.counts.count(offset / header.clusterSize) !== 1) return undefined;
		const view = viewOf(await readBytes(this.#file, byteOffset(offset), header.clusterSize));
		let inUse = 0;
		for (let entry = 0; entry < header.clusterSize; entry += header.l2EntryBytes)
			if (!isEmpty(view, entry, header.extendedL2)) inUse++;
		this.#last = { l1Index, offset, view, changedFrom: header.clusterSize, changedTo: 0, inUse };
		return this.#last;
	}

	/** Clears entries `[from, to)` of a table. */
	#dropIn(table: L2Table, from: number, to: number): void {
		const { header } = this.#target;
		const { l2EntryBytes, extendedL2, clusterSize } = header;
		for (let at = from * l2EntryBytes; at < to * l2EntryBytes; at += l2EntryBytes) {
			const high = table.view.getUint32(at);
			const low = table.view.getUint32(at + 4);
			if (high === 0 && low === 0) continue;
			const compressed = (high & layout.COMPRESSED) !== 0;
			const place = compressed
				? compressedPlace(header, high, low)
				: { host: layout.entryOffset(high, low), length: clusterSize };
			if (place.host === 0) continue;
			const first = Math.floor(place.host / clusterSize);
			const last = Math.floor((place.host + place.length - 1) / clusterSize);
			if (!this.#mayRelease(first, last, compressed)) continue;
			for (let cluster = first; cluster <= last; cluster++) this.#release(cluster);
			this.#clear(table, at, extendedL2);
		}
	}

	#mayRelease(first: number, last: number, compressed: boolean): boolean {
		const { header, image } = this.#target;
		// Version 2 can't say "zeros": without the entry, the image below would show.
		if (header.version === 2 && header.backing !== null) return false;
		// Compressed clusters share a host cluster, so there a higher count doesn't mean a snapshot.
		if (!compressed) return image.counts.count(first) === 1;
		for (let cluster = first; cluster <= last; cluster++) if (image.counts.count(cluster) === SATURATED) return false;
		return true;
	}

	#release(cluster: number): void {
		const { counts } = this.#target.image;
		counts.release(cluster);
		this.#countChanges.set(cluster, (this.#countChanges.get(cluster) ?? 0) - 1);
		if (counts.count(cluster) === 0) this.#freed.push(cluster);
	}

	/** From now on the cluster reads as zeros: by saying nothing, or where an image is below, by saying so. */
	#clear(table: L2Table, at: number, extendedL2: boolean): void {
		const { view } = table;
		const sayZero = this.#target.header.backing !== null;
		view.setUint32(at, 0);
		view.setUint32(at + 4, sayZero && !extendedL2 ? layout.ZERO : 0);
		if (extendedL2) {
			view.setUint32(at + 8, sayZero ? 0xffff_ffff : 0);
			view.setUint32(at + 12, 0);
		}
		if (!sayZero) table.inUse--;
		table.changedFrom = Math.min(table.changedFrom, at);
		table.changedTo = Math.max(table.changedTo, at + this.#target.header.l2EntryBytes);
		this.#changed.set(table.l1Index, table);
	}

	/** A table that says nothing goes, too: an L1 entry without a table says the same. */
	#freeTable({ l1Index, offset }: L2Table): void {
		const { header, image } = this.#target;
		image.l1.setUint32(l1Index * layout.ENTRY_BYTES, 0);
		image.l1.setUint32(l1Index * layout.ENTRY_BYTES + 4, 0);
		this.#changed.delete(l1Index);
		this.#last = undefined;
		this.#changedL1.add(l1Index);
		this.#release(offset / header.clusterSize);
	}

	/**
	 * Sets the flag that goes with a count of one in the entries that lead to a cluster whose count comes down to it.
	 * QEMU's check calls a missing one an error. Before the counts: it has been the only reference all the time, so a
	 * flag that comes too early does no harm, and after an interruption the leak still says what is to be done.
	 */
	async #flagSoleReferences(file: WritableImageFile): Promise<void> {
		const { header, image } = this.#target;
		const isSole = (high: number, low: number): boolean =>
			this.#soleReferences.has(layout.entryOffset(high, low) / header.clusterSize);
		for (let l1Index = 0; l1Index < header.l1Entries; l1Index++) {
			const at = l1Index * layout.ENTRY_BYTES;
			const l1High = image.l1.getUint32(at);
			if (isSole(l1High, image.l1.getUint32(at + 4))) {
				image.l1.setUint32(at, (l1High | layout.COPIED) >>> 0);
				this.#changedL1.add(l1Index);
			}
			// A table that several share has no only references.
			const table = await this.#table(l1Index);
			if (table === undefined) continue;
			let [from, to] = [header.clusterSize, 0];
			for (let entry = 0; entry < header.clusterSize; entry += header.l2EntryBytes) {
				const high = table.view.getUint32(entry);
				if ((high & layout.COMPRESSED) !== 0 || !isSole(high, table.view.getUint32(entry + 4))) continue;
				table.view.setUint32(entry, (high | layout.COPIED) >>> 0);
				from = Math.min(from, entry);
				to = entry + header.l2EntryBytes;
			}
			if (to > from) await writeSectors(file, table.offset, table.view, from, to);
		}
		this.#soleReferences.clear();
	}
}

/** Whole host blocks of `hostBlock` bytes in which nothing is used any more, around the given clusters. In order. */
export function freeHostRanges(
	clusters: readonly number[],
	{ counts, clusterSize, hostBlock }: { counts: ClusterCounts; clusterSize: number; hostBlock: number },
	fileSize: number,
): HostRange[] {
	const perBlock = Math.max(1, hostBlock / clusterSize);
	const ranges: { start: number; end: number }[] = [];
	for (const cluster of Float64Array.from(clusters).sort()) {
		const first = roundDown(cluster, perBlock);
		let free = true;
		for (let each = first; each < first + perBlock; each++) if (counts.count(each) !== 0) free = false;
		if (!free) continue;
		const start = first * clusterSize;
		const end = Math.min(roundUp((first + perBlock) * clusterSize, clusterSize), fileSize);
		const last = ranges.at(-1);
		if (last !== undefined && last.end >= start) last.end = Math.max(last.end, end);
		else if (end > start) ranges.push({ start, end });
	}
	return ranges;
}

/** From the smallest number to behind the largest. */
function bounds(numbers: ReadonlySet<number>): [from: number, to: number] {
	let [from, to] = [Number.POSITIVE_INFINITY, 0];
	for (const each of numbers) {
		from = Math.min(from, each);
		to = Math.max(to, each + 1);
	}
	return [from, to];
}

/** In any order, some at once. */
export async function punchAll(file: WritableImageFile, ranges: Iterable<HostRange>): Promise<void> {
	const punches = new UnderWay(PUNCHES_AT_ONCE);
	for (const { start, end } of ranges)
		for (let at = start; at < end; at += PUNCH_BYTES_MAX)
			await punches.add(file.punch(byteOffset(at), byteCount(Math.min(end - at, PUNCH_BYTES_MAX))));
	await punches.settled();
}

function isEmpty(view: DataView, at: number, extendedL2: boolean): boolean {
	if (view.getUint32(at) !== 0 || view.getUint32(at + 4) !== 0) return false;
	return !extendedL2 || (view.getUint32(at + 8) === 0 && view.getUint32(at + 12) === 0);
}
