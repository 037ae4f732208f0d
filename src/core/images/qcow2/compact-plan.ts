// What a round of compacting moves: from the end of the file into its holes, and which pointers lead there.
//
//   | used | hole | used | hole | hole | used | used |          objects from the end ─▶ holes from the start,
//              ▲─────────────────▲────────┴──────┘              as long as the hole lies before the object
//
// An object is what pointers lead to as one: a data cluster, an L2 table, a refcount block (one cluster each), an L1
// table, the snapshot table, the refcount table (as many clusters as they need, in one piece). Every pointer is an
// 8-byte big-endian word with the offset in bits 9 to 55, so all objects are moved in the same way.
//
// Compressed clusters stay: several share a cluster, and one may lie across two. The file can't end before them.

import { assert } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { byteOffset, divCeil } from "../../../foundations/units.ts";
import type { ImageFile } from "../image-file.ts";
import type { Qcow2Header } from "./header.ts";
import * as layout from "./layout.ts";
import { Holds } from "./refcounts.ts";
import type { SnapshotTable } from "./snapshots.ts";
import type { VerifiedImage } from "./verify.ts";

/**
 * Pointers of a kind of object lie in objects of later kinds (or the header). So kinds are moved in this order: then a
 * pointer is where it was found until it has been changed.
 */
export const kindsInOrder = ["data", "l2", "l1", "snapshots", "refcount-block", "refcount-table"] as const;
export type ObjectKind = (typeof kindsInOrder)[number];

/** An object that goes to a better place. Places are cluster numbers. */
export interface Move {
	readonly kind: ObjectKind;
	readonly from: number;
	readonly to: number;
	readonly clusters: number;
	/** Byte positions, in the file, of the words that lead to it. */
	readonly pointers: number[];
	/** References that these words make: a word in an L2 table counts once for each snapshot that shares the table. */
	references: number;
}

/** The image that is compacted, as a verification just found it. */
export interface CompactTarget {
	readonly path: string;
	readonly file: ImageFile;
	readonly header: Qcow2Header;
	readonly snapshotTable: SnapshotTable;
	readonly image: VerifiedImage;
}

/** Fields of the header that lead to tables. */
const L1_TABLE_OFFSET_AT = layout.HeaderV2.offset.l1TableOffset;
const REFCOUNT_TABLE_OFFSET_AT = layout.HeaderV2.offset.refcountTableOffset;
const SNAPSHOTS_OFFSET_AT = layout.HeaderV2.offset.snapshotsOffset;

/** Plans at most about `clustersMax` clusters' moves; none where the file is as short as it can be. */
export async function planMoves(target: CompactTarget, clustersMax: number): Promise<Move[]> {
	const moves = chooseMoves(target, clustersMax);
	if (moves.length > 0) await findPointers(target, moves);
	for (const { kind, from, references } of moves) {
		const expected = target.image.counts.count(from);
		assert(references === expected, `${kind} at cluster ${from}: ${references} references, ${expected} expected`);
	}
	return moves;
}

/** How many clusters would have to move for the shortest file; for progress. */
export function clustersToMove({ image }: CompactTarget): number {
	const { counts } = image;
	let used = 0;
	for (let cluster = 0; cluster < counts.clusters; cluster++) if (counts.count(cluster) !== 0) used++;
	let behind = 0;
	for (let cluster = used; cluster < counts.clusters; cluster++) if (counts.count(cluster) !== 0) behind++;
	return behind;
}

function chooseMoves(target: CompactTarget, clustersMax: number): Move[] {
	const { counts, leaks } = target.image;
	const tables = tablesOf(target);
	const holes = new Holes(target);
	const chosen: { kind: ObjectKind; from: number; clusters: number }[] = [];
	const single: number[] = [];
	const moves: Move[] = [];
	let planned = 0;
	for (let cluster = counts.clusters - 1; cluster > 0 && planned < clustersMax; cluster--) {
		// What is counted but not referred to, and may not be freed, can't be moved either.
		if (leaks.has(cluster)) break;
		if (counts.count(cluster) === 0) continue;
		const table = tables.get(cluster);
		if (table !== undefined) {
			const to = holes.takeRun(table.clusters, table.from);
			if (to === undefined) break;
			moves.push({ ...table, to, pointers: [], references: 0 });
			planned += table.clusters;
			cluster = table.from;
			continue;
		}
		const kind =
			counts.holds(cluster) === Holds.DATA ? "data" : counts.holds(cluster) === Holds.L2_TABLE ? "l2" : undefined;
		if (kind === undefined) break;
		const to = holes.takeRun(1, cluster);
		if (to === undefined) break;
		chosen.push({ kind, from: cluster, clusters: 1 });
		single.push(to);
		planned++;
	}
	// All holes lie before all objects: so what followed each other may go on doing so.
	chosen.reverse();
	single.sort((a, b) => a - b);
	for (const [index, object] of chosen.entries())
		moves.push({ ...object, to: single[index]!, pointers: [], references: 0 });
	return moves;
}

/** Tables that aren't L2 tables, by their last cluster. */
function tablesOf({
	header,
	snapshotTable,
	image,
}: CompactTarget): Map<number, { kind: ObjectKind; from: number; clusters: number }> {
	const { clusterSize } = header;
	const tables = new Map<number, { kind: ObjectKind; from: number; clusters: number }>();
	const add = (kind: ObjectKind, offset: number, bytes: number): void => {
		const clusters = divCeil(bytes, clusterSize);
		if (clusters > 0) tables.set(offset / clusterSize + clusters - 1, { kind, from: offset / clusterSize, clusters });
	};
	add("l1", header.l1Offset, header.l1Entries * layout.ENTRY_BYTES);
	for (const { l1Offset, l1Entries } of snapshotTable.snapshots) add("l1", l1Offset, l1Entries * layout.ENTRY_BYTES);
	add("snapshots", header.snapshotsOffset, snapshotTable.length);
	add("refcount-table", header.refcountTableOffset, header.refcountTableClusters * clusterSize);
	for (let index = 0; index < image.blocks.length; index++)
		if (image.blocks.offset(index) !== 0) add("refcount-block", image.blocks.offset(index), clusterSize);
	return tables;
}

/** Free clusters from the start of the file on, of which a count can be written. */
class Holes {
	readonly #target: CompactTarget;
	readonly #taken = new Set<number>();
	#first = 1;

	constructor(target: CompactTarget) {
		this.#target = target;
	}

	/** The first free clusters in one piece that end at or before cluster `before`; undefined where there are none. */
	takeRun(length: number, before: number): number | undefined {
		while (this.#first < before && !this.#isFree(this.#first)) this.#first++;
		let start = this.#first;
		for (let cluster = start; cluster < before; cluster++) {
			if (!this.#isFree(cluster)) start = cluster + 1;
			else if (cluster + 1 - start === length) {
				for (let each = start; each < start + length; each++) this.#taken.add(each);
				return start;
			}
		}
		return undefined;
	}

	#isFree(cluster: number): boolean {
		const { counts, leaks, blocks } = this.#target.image;
		if (counts.count(cluster) !== 0 || leaks.has(cluster) || this.#taken.has(cluster)) return false;
		const block = Math.floor(cluster / blocks.perBlock);
		return block < blocks.length && blocks.offset(block) !== 0;
	}
}

/** Finds every pointer to what is moved: one walk over all tables. */
async function findPointers(
	{ file, header, snapshotTable, image }: CompactTarget,
	moves: readonly Move[],
): Promise<void> {
	const { clusterSize } = header;
	const byFrom = new Map(moves.map((move) => [move.from, move]));
	const point = (offset: number, position: number, kind: ObjectKind, references = 1): void => {
		const move = byFrom.get(offset / clusterSize);
		if (move?.kind !== kind) return;
		move.pointers.push(position);
		move.references += references;
	};
	point(header.refcountTableOffset, REFCOUNT_TABLE_OFFSET_AT, "refcount-table");
	if (snapshotTable.length > 0) point(header.snapshotsOffset, SNAPSHOTS_OFFSET_AT, "snapshots");
	for (let index = 0; index < image.blocks.length; index++)
		point(image.blocks.offset(index), header.refcountTableOffset + index * layout.ENTRY_BYTES, "refcount-block");

	const l2Tables = new Set<number>();
	const pointFromL1 = async (l1Offset: number, l1Entries: number): Promise<void> => {
		const l1 = viewOf(await readBytes(file, byteOffset(l1Offset), l1Entries * layout.ENTRY_BYTES));
		for (let at = 0; at < l1.byteLength; at += layout.ENTRY_BYTES) {
			const offset = layout.entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
			if (offset === 0) continue;
			l2Tables.add(offset);
			point(offset, l1Offset + at, "l2");
		}
	};
	point(header.l1Offset, L1_TABLE_OFFSET_AT, "l1");
	await pointFromL1(header.l1Offset, header.l1Entries);
	for (const { l1Offset, l1Entries, entryAt } of snapshotTable.snapshots) {
		point(l1Offset, entryAt + layout.SnapshotEntry.offset.l1TableOffset, "l1");
		await pointFromL1(l1Offset, l1Entries);
	}
	for (const offset of l2Tables) {
		const table = viewOf(await readBytes(file, byteOffset(offset), clusterSize));
		const sharedBy = image.counts.count(offset / clusterSize);
		for (let at = 0; at < clusterSize; at += header.l2EntryBytes) {
			const high = table.getUint32(at);
			const host = layout.entryOffset(high, table.getUint32(at + 4));
			if (host !== 0 && (high & layout.COMPRESSED) === 0) point(host, offset + at, "data", sharedBy);
		}
	}
}
