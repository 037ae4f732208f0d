// Where the tables of a qcow2 image lie, and who refers to which cluster, after the format's document alone: so that
// mutated images get reference counts that are right again. It shares no code with the product but the names of fields.

import { HeaderV2, HeaderV3, SnapshotEntry } from "../../src/core/images/qcow2/layout.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import type { Random } from "../support/randomness.ts";
import type { SparseImage } from "./sparse-image.ts";

/** Positions in bytes of the file. */
export interface Qcow2Layout {
	readonly version: number;
	readonly clusterSize: number;
	/** Bytes of an entry of an L2 table. */
	readonly entryBytes: number;
	/** Clusters of the file, the last one may be cut. */
	readonly clusters: number;
	readonly hasDataFile: boolean;
	readonly l1Tables: readonly { readonly at: number; readonly entries: number; readonly isActive: boolean }[];
	/** L2 tables, and whether the disk's present state uses them. */
	readonly l2Tables: ReadonlyMap<number, { readonly isActive: boolean }>;
	readonly snapshotEntries: readonly number[];
	readonly refcountTable: { readonly at: number; readonly entries: number };
	readonly refcountBits: number;
	/** Per cluster. */
	readonly references: ReadonlyMap<number, number>;
}

const TABLE_MAX = 4 << 20;

/** Undefined where the header makes so little sense that there is nothing to walk. */
export function layoutOf(image: SparseImage): Qcow2Layout | undefined {
	if (image.size < 512) return undefined;
	const head = viewOf(image.bytes(0, 512));
	const v2 = HeaderV2.at(head);
	const isV3 = v2.version === 3;
	const clusterSize = 2 ** v2.clusterBits;
	const refcountBits = isV3 ? 2 ** HeaderV3.read.refcountOrder(head, 0) : 16;
	if (v2.clusterBits < 9 || v2.clusterBits > 21 || refcountBits > 64) return undefined;
	const incompatible = isV3 ? HeaderV3.read.incompatibleLow(head, 0) : 0;
	return new Walk(image, {
		version: v2.version,
		clusterSize,
		entryBytes: (incompatible & 16) !== 0 ? 16 : 8,
		clusters: Math.ceil(image.size / clusterSize),
		hasDataFile: (incompatible & 4) !== 0,
		refcountBits,
		refcountTable: { at: v2.refcountTableOffset, entries: (v2.refcountTableClusters * clusterSize) / 8 },
	}).layout(v2);
}

type Fixed = Omit<Qcow2Layout, "l1Tables" | "l2Tables" | "snapshotEntries" | "references">;

class Walk {
	readonly #image: SparseImage;
	readonly #fixed: Fixed;
	readonly #references = new Map<number, number>();
	readonly #l2Tables = new Map<number, { isActive: boolean; times: number }>();

	constructor(image: SparseImage, fixed: Fixed) {
		this.#image = image;
		this.#fixed = fixed;
	}

	layout({ l1TableOffset, l1Size, snapshotCount, snapshotsOffset }: ReturnType<typeof HeaderV2.at>): Qcow2Layout {
		const { refcountTable, clusterSize, hasDataFile, entryBytes } = this.#fixed;
		this.#refer(0, 1);
		this.#refer(refcountTable.at, refcountTable.entries * 8);
		for (const block of this.#offsets(refcountTable.at, refcountTable.entries)) this.#refer(block, clusterSize);
		const l1Tables = [{ at: l1TableOffset, entries: l1Size, isActive: true }];
		const snapshotEntries: number[] = [];
		let at = snapshotsOffset;
		for (let index = 0; index < Math.min(snapshotCount, 100) && at + SnapshotEntry.size <= this.#image.size; index++) {
			const entry = SnapshotEntry.at(viewOf(this.#image.bytes(at, SnapshotEntry.size)));
			snapshotEntries.push(at);
			l1Tables.push({ at: entry.l1TableOffset, entries: entry.l1Size, isActive: false });
			const texts = entry.idLength + entry.nameLength + entry.extraLength;
			at += SnapshotEntry.size + Math.ceil(texts / 8) * 8;
		}
		if (at > snapshotsOffset && snapshotCount > 0) this.#refer(snapshotsOffset, at - snapshotsOffset);
		for (const { at, entries, isActive } of l1Tables) {
			this.#refer(at, entries * 8);
			for (const table of this.#offsets(at, entries)) {
				this.#refer(table, clusterSize);
				const known = this.#l2Tables.get(table);
				if (known === undefined) this.#l2Tables.set(table, { isActive, times: 1 });
				else known.times++;
			}
		}
		for (const [table, { times }] of this.#l2Tables)
			for (const { high, low } of words(this.#bytes(table, clusterSize), entryBytes)) {
				if ((high & 0x4000_0000) !== 0) {
					const { host, length } = packedPlace(this.#fixed, high, low);
					this.#refer(host, length, times);
				} else if (!hasDataFile) this.#refer(offsetOf(high, low), clusterSize, times);
			}
		return { ...this.#fixed, l1Tables, l2Tables: this.#l2Tables, snapshotEntries, references: this.#references };
	}

	/** Byte 0, where the header is, stands for nowhere. What is longer than any table is refused, whatever counts it has. */
	#refer(at: number, length: number, times = 1): void {
		const { clusterSize, clusters } = this.#fixed;
		if (at === 0 && length !== 1) return;
		const last = Math.min(clusters, Math.ceil((at + Math.min(length, TABLE_MAX)) / clusterSize)) - 1;
		for (let cluster = Math.floor(at / clusterSize); cluster <= last; cluster++)
			this.#references.set(cluster, (this.#references.get(cluster) ?? 0) + times);
	}

	#offsets(at: number, entries: number): number[] {
		return [...words(this.#bytes(at, entries * 8), 8)].map(({ high, low }) => offsetOf(high, low)).filter(Boolean);
	}

	/** As much of a table as there is. */
	#bytes(at: number, length: number): Uint8Array {
		const there = Math.min(length, this.#image.size - at, TABLE_MAX);
		return this.#image.bytes(there > 0 ? at : 0, Math.max(0, there - (there % 8)));
	}
}

const offsetOf = (high: number, low: number): number => (high & 0x00ff_ffff) * 2 ** 32 + ((low & 0xffff_fe00) >>> 0);

/** The first words of all entries that are not 0. */
function* words(bytes: Uint8Array, entryBytes: number): Generator<{ at: number; high: number; low: number }> {
	const view = viewOf(bytes);
	for (let at = 0; at + 8 <= bytes.length; at += entryBytes) {
		const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
		if (high !== 0 || low !== 0) yield { at, high, low };
	}
}

/** Bytes that a compressed cluster may take. */
export function packedPlace(
	{ clusterSize }: { readonly clusterSize: number },
	high: number,
	low: number,
): { readonly host: number; readonly length: number } {
	const entry = BigInt(high & 0x3fff_ffff) * 2n ** 32n + BigInt(low);
	const shift = BigInt(62 - (Math.log2(clusterSize) - 8));
	const host = Number(entry & ((1n << shift) - 1n));
	return { host, length: (Number(entry >> shift) + 1) * 512 - (host % 512) };
}

/** Makes all reference counts, and mostly the flags that follow from them, right again but for some that are too high. */
export function settleCounts(image: SparseImage, random: Random): string {
	const layout = layoutOf(image);
	if (layout === undefined) return "counts as they are";
	const { references, clusters, refcountBits } = layout;
	// QEMU has room for more in 64 bits, but nothing refers to a cluster that often.
	const most = 2 ** Math.min(32, refcountBits) - 1;
	const leaks = new Map<number, number>();
	// A file with a large hole has more clusters than anybody would look at.
	const unused = Array.from({ length: Math.min(clusters, 5000) }, (_, cluster) => cluster).filter(
		(cluster) => !references.has(cluster),
	);
	for (let index = random.pick([0, 0, 1, 4]); index > 0; index--) {
		const some = unused.length > 0 && random.chance(0.5) ? unused : [...references.keys()];
		leaks.set(random.pick(some), random.between(1, 2));
	}
	const countOf = (cluster: number): number =>
		Math.min(most, (references.get(cluster) ?? 0) + (leaks.get(cluster) ?? 0));
	writeCounts(image, layout, countOf);
	if (random.chance(0.95)) setFlags(image, layout, countOf);
	return `counts right but for ${leaks.size}`;
}

function writeCounts(image: SparseImage, layout: Qcow2Layout, countOf: (cluster: number) => number): void {
	for (const { at, bytes, first, count } of countBlocks(image, layout)) {
		for (let each = 0; each < count; each++) putCount(bytes, each, layout.refcountBits, countOf(first + each));
		image.write(at, bytes);
	}
}

/** The blocks of counts, as far as they are about clusters of the file. */
function* countBlocks(
	image: SparseImage,
	{ clusterSize, clusters, refcountBits, refcountTable }: Qcow2Layout,
): Generator<{ at: number; bytes: Uint8Array; first: number; count: number }> {
	const perBlock = (clusterSize * 8) / refcountBits;
	// A longer table is refused, whatever it says.
	const entries = Math.min(refcountTable.entries, TABLE_MAX / 8);
	for (let index = 0; index < entries && index * perBlock < clusters; index++) {
		const entryAt = refcountTable.at + index * 8;
		if (entryAt + 8 > image.size) return;
		const word = viewOf(image.bytes(entryAt, 8));
		const at = offsetOf(word.getUint32(0), word.getUint32(4));
		const first = index * perBlock;
		const count = Math.min(perBlock, clusters - first);
		const length = Math.ceil((count * refcountBits) / 8);
		if (at > 0 && at + length <= image.size) yield { at, bytes: image.bytes(at, length), first, count };
	}
}

/** What is wrong with an image's counts: clusters with too low ones, and pointers with a flag that doesn't fit them. */
export interface CountErrors {
	readonly tooLow: readonly number[];
	readonly flags: readonly number[];
}

export function countErrors(image: SparseImage): CountErrors {
	const layout = layoutOf(image);
	if (layout === undefined) return { tooLow: [0], flags: [] };
	const counts = countsOf(image, layout);
	const countOf = (cluster: number): number => counts.get(cluster) ?? 0;
	const tooLow = [...layout.references].filter(([cluster, references]) => countOf(cluster) < references);
	const flags: number[] = [];
	eachFlagged(image, layout, ({ at, host, isSet }) => {
		if (isSet !== (countOf(host / layout.clusterSize) === 1)) flags.push(at);
		return isSet;
	});
	return { tooLow: tooLow.map(([cluster]) => cluster), flags };
}

/** Counts in the file that are not 0. */
export function countsOf(image: SparseImage, layout: Qcow2Layout): ReadonlyMap<number, number> {
	const counts = new Map<number, number>();
	for (const { bytes, first, count } of countBlocks(image, layout))
		for (let each = 0; each < count; each++) {
			const value = getCount(bytes, each, layout.refcountBits);
			if (value !== 0) counts.set(first + each, value);
		}
	return counts;
}

function getCount(bytes: Uint8Array, index: number, bits: number): number {
	if (bits < 8) return (bytes[Math.floor((index * bits) / 8)]! >> ((index * bits) % 8)) & (2 ** bits - 1);
	let count = 0;
	for (let byte = 0; byte < bits / 8; byte++) count = count * 256 + bytes[(index * bits) / 8 + byte]!;
	return count;
}

function putCount(bytes: Uint8Array, index: number, bits: number, count: number): void {
	if (bits < 8) {
		const at = Math.floor((index * bits) / 8);
		const shift = (index * bits) % 8;
		bytes[at] = (bytes[at]! & ~((2 ** bits - 1) << shift)) | (count << shift);
		return;
	}
	const width = bits / 8;
	for (let byte = 0; byte < width; byte++)
		bytes[index * width + width - 1 - byte] = byte < 4 ? (count >>> (8 * byte)) & 0xff : 0;
}

/** COPIED stands where the count is exactly 1. */
function setFlags(image: SparseImage, layout: Qcow2Layout, countOf: (cluster: number) => number): void {
	eachFlagged(image, layout, ({ host }) => countOf(host / layout.clusterSize) === 1);
}

interface Flagged {
	readonly at: number;
	readonly host: number;
	readonly isSet: boolean;
}

/** All pointers that have the flag COPIED, in the tables of the present state. `shouldBeSet` says what it will be. */
function eachFlagged(image: SparseImage, layout: Qcow2Layout, shouldBeSet: (flagged: Flagged) => boolean): void {
	const { clusterSize, entryBytes, hasDataFile } = layout;
	const walk = (table: number, length: number, step: number, mayBePacked: boolean): void => {
		if (length <= 0 || length > TABLE_MAX || table + length > image.size) return;
		const bytes = image.bytes(table, length);
		let changed = false;
		for (const { at, high, low } of words(bytes, step)) {
			const host = offsetOf(high, low);
			if (host === 0 || (mayBePacked && (high & 0x4000_0000) !== 0)) continue;
			const isSet = (bytes[at]! & 0x80) !== 0;
			if (shouldBeSet({ at: table + at, host, isSet }) === isSet) continue;
			bytes[at]! ^= 0x80;
			changed = true;
		}
		if (changed) image.write(table, bytes);
	};
	const l1 = layout.l1Tables[0]!;
	walk(l1.at, l1.entries * 8, 8, false);
	if (hasDataFile) return;
	for (const [table, { isActive }] of layout.l2Tables) if (isActive) walk(table, clusterSize, entryBytes, true);
}
