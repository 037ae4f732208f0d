// Changes MFT records of an NTFS image in memory, with right fixups and the copy in $MFTMirr: for layouts that no tool
// here makes, and for mutations. The MFT must lie in one run, as mkntfs leaves it.

import {
	Attribute,
	AttributeType,
	FIXUP_STRIDE,
	FileRecord,
	ListEntry,
	MAGIC_FILE,
	NonResidentAttribute,
} from "../../src/core/filesystems/ntfs/layout.ts";
import type { Geometry } from "../../src/core/filesystems/ntfs/open.ts";
import { parseBootSector } from "../../src/core/filesystems/ntfs/open.ts";
import { applyFixups } from "../../src/core/filesystems/ntfs/records.ts";
import { RunList } from "../../src/core/filesystems/ntfs/runs.ts";
import { viewOf } from "../../src/foundations/struct.ts";

/** Takes the words at the ends of strides back into the fixups: the opposite of `applyFixups`. */
export function protect(raw: Uint8Array): void {
	const view = viewOf(raw);
	const offset = FileRecord.read.fixupOffset(view, 0);
	const count = raw.length / FIXUP_STRIDE;
	if (offset + 2 * (count + 1) > FIXUP_STRIDE - 2) return;
	const number = (view.getUint16(offset, true) % 0xfffe) + 1;
	view.setUint16(offset, number, true);
	for (let i = 1; i <= count; i++) {
		view.setUint16(offset + 2 * i, view.getUint16(i * FIXUP_STRIDE - 2, true), true);
		view.setUint16(i * FIXUP_STRIDE - 2, number, true);
	}
}

export class NtfsEditor {
	readonly bytes: Uint8Array;
	readonly geometry: Geometry;

	constructor(bytes: Uint8Array) {
		this.bytes = bytes;
		this.geometry = parseBootSector(bytes.slice(0, 512), bytes.length);
	}

	/** Where a record lies; `copy` for its place in $MFTMirr. */
	placeOf(number: number, copy = false): number {
		const { clusterSize, mftCluster, mftMirrorCluster, recordSize } = this.geometry;
		return (copy ? mftMirrorCluster : mftCluster) * clusterSize + number * recordSize;
	}

	/** A record with its fixups undone. */
	record(number: number): Uint8Array {
		const raw = this.bytes.slice(this.placeOf(number), this.placeOf(number) + this.geometry.recordSize);
		if (!applyFixups(raw, MAGIC_FILE)) throw new Error(`record ${number} is damaged`);
		return raw;
	}

	write(number: number, raw: Uint8Array, mirror = true): void {
		const record = raw.slice();
		protect(record);
		this.bytes.set(record, this.placeOf(number));
		if (number < 4 && mirror) this.bytes.set(record, this.placeOf(number, true));
	}

	/** Where the first run of a non-resident attribute lies, in bytes. */
	firstRun(number: number, type: number): number {
		const found = attributesOf(this.record(number)).find((each) => Attribute.read.type(viewOf(each), 0) === type)!;
		return runsIn(found, this.geometry)[0]!.cluster * this.geometry.clusterSize;
	}

	/**
	 * Cuts a record's $DATA in two behind `clusters`: the second part goes to record `extension`, and the record gets an
	 * attribute list, non-resident at cluster `listAt` where given (which must be in use in $Bitmap).
	 */
	split(number: number, clusters: number, extension: number, listAt: number | null = null): void {
		const raw = this.record(number);
		const attributes = attributesOf(raw);
		const index = attributes.findIndex((each) => Attribute.read.type(viewOf(each), 0) === AttributeType.data);
		const data = attributes[index]!;
		const runs = runsIn(data, this.geometry);
		const [before, after] = [cut(runs, 0, clusters), cut(runs, clusters, Number.POSITIVE_INFINITY)];
		attributes[index] = nonResident(data, 0, before);
		const second = nonResident(data, clusters, after);

		const other = this.record(extension);
		const sequence = FileRecord.read.sequence(viewOf(other), 0);
		const baseSequence = FileRecord.read.sequence(viewOf(raw), 0);
		FileRecord.put(viewOf(other), 0, { baseRecordLow: number, baseRecordHigh: 0, baseSequence });
		viewOf(other).setUint16(0x12, 0, true); // it has no names
		viewOf(second).setUint16(0xe, 0, true);
		this.write(extension, rebuilt(other, [second]));

		const list = attributes
			.flatMap((each) => [
				listEntry(each, 0, number, baseSequence),
				...(each === attributes[index] ? [listEntry(second, clusters, extension, sequence)] : []),
			])
			.reduce((all, entry) => concatenated(all, entry), new Uint8Array());
		const at = attributes.findIndex((each) => Attribute.read.type(viewOf(each), 0) > AttributeType.list);
		attributes.splice(at, 0, listAt === null ? resident(AttributeType.list, list) : this.#listElsewhere(list, listAt));
		this.write(number, rebuilt(raw, attributes));
	}

	#listElsewhere(list: Uint8Array, cluster: number): Uint8Array {
		this.bytes.set(list, cluster * this.geometry.clusterSize);
		const count = Math.ceil(list.length / this.geometry.clusterSize);
		const empty = new Uint8Array(NonResidentAttribute.size);
		const view = viewOf(empty);
		Attribute.put(view, 0, { type: AttributeType.list, nonResident: 1 });
		view.setUint16(0xe, 99, true);
		const sizes = { allocatedSize: count * this.geometry.clusterSize, dataSize: list.length };
		NonResidentAttribute.put(view, 0, { ...sizes, initializedSize: list.length });
		return nonResident(empty, 0, [{ cluster, count }]);
	}
}

interface Piece {
	readonly cluster: number;
	readonly count: number;
}

/** All attributes of a record, each as a copy. */
export function attributesOf(raw: Uint8Array): Uint8Array[] {
	const view = viewOf(raw);
	const all: Uint8Array[] = [];
	let at = FileRecord.read.firstAttribute(view, 0);
	while (Attribute.read.type(view, at) !== AttributeType.end) {
		const length = Attribute.read.length(view, at);
		all.push(raw.slice(at, at + length));
		at += length;
	}
	return all;
}

function rebuilt(raw: Uint8Array, attributes: readonly Uint8Array[]): Uint8Array {
	const record = raw.slice();
	const view = viewOf(record);
	let at = FileRecord.read.firstAttribute(view, 0);
	record.fill(0, at);
	for (const attribute of attributes) {
		record.set(attribute, at);
		at += attribute.length;
	}
	view.setUint32(at, AttributeType.end, true);
	FileRecord.write.bytesInUse(view, 0, at + 8);
	return record;
}

const runsIn = (attribute: Uint8Array, { clusterCount }: Geometry): Piece[] => {
	const { runsOffset, highestCluster } = NonResidentAttribute.at(viewOf(attribute));
	const list = new RunList();
	list.append(attribute.subarray(runsOffset), highestCluster + 1, clusterCount);
	return [...list].map(({ cluster, count }) => ({ cluster: cluster!, count }));
};

/** The part `[from, to)` of a list of runs, in clusters of content. */
function cut(runs: readonly Piece[], from: number, to: number): Piece[] {
	const part: Piece[] = [];
	let at = 0;
	for (const { cluster, count } of runs) {
		const start = Math.max(from, at);
		const end = Math.min(to, at + count);
		if (end > start) part.push({ cluster: cluster + start - at, count: end - start });
		at += count;
	}
	return part;
}

/** A copy of a nameless non-resident attribute with other runs, stored with four bytes per number. */
function nonResident(attribute: Uint8Array, lowestCluster: number, runs: readonly Piece[]): Uint8Array {
	const stored = new Uint8Array(runs.length * 9 + 1);
	let before = 0;
	for (const [index, { cluster, count }] of runs.entries()) {
		stored[index * 9] = 0x44;
		viewOf(stored).setInt32(index * 9 + 1, count, true);
		viewOf(stored).setInt32(index * 9 + 5, cluster - before, true);
		before = cluster;
	}
	const length = Math.ceil((NonResidentAttribute.size + stored.length) / 8) * 8;
	const copy = concatenated(
		attribute.slice(0, NonResidentAttribute.size),
		new Uint8Array(length - NonResidentAttribute.size),
	);
	copy.set(stored, NonResidentAttribute.size);
	const total = runs.reduce((sum, { count }) => sum + count, 0);
	Attribute.put(viewOf(copy), 0, { length, nameLength: 0, nameOffset: NonResidentAttribute.size });
	const places = { lowestCluster, highestCluster: lowestCluster + total - 1, runsOffset: NonResidentAttribute.size };
	NonResidentAttribute.put(viewOf(copy), 0, places);
	if (lowestCluster > 0) copy.fill(0, NonResidentAttribute.offset.allocatedSize, NonResidentAttribute.size);
	return copy;
}

function resident(type: number, value: Uint8Array): Uint8Array {
	const raw = new Uint8Array(Math.ceil((0x18 + value.length) / 8) * 8);
	const view = viewOf(raw);
	Attribute.put(view, 0, { type, length: raw.length });
	view.setUint16(0xe, 99, true);
	view.setUint32(0x10, value.length, true);
	view.setUint16(0x14, 0x18, true);
	raw.set(value, 0x18);
	return raw;
}

function listEntry(attribute: Uint8Array, lowestCluster: number, record: number, sequence: number): Uint8Array {
	const { type, nameLength, nameOffset } = Attribute.at(viewOf(attribute));
	const raw = new Uint8Array(Math.ceil((ListEntry.size + 2 * nameLength) / 8) * 8);
	const view = viewOf(raw);
	const place = { recordLow: record, recordHigh: 0, sequence };
	ListEntry.put(view, 0, { type, length: raw.length, nameLength, nameOffset: ListEntry.size, lowestCluster, ...place });
	view.setUint16(0x18, viewOf(attribute).getUint16(0xe, true), true);
	raw.set(attribute.subarray(nameOffset, nameOffset + 2 * nameLength), ListEntry.size);
	return raw;
}

function concatenated(a: Uint8Array, b: Uint8Array): Uint8Array {
	const both = new Uint8Array(a.length + b.length);
	both.set(a);
	both.set(b, a.length);
	return both;
}
