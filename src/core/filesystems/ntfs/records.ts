// Records with fixups, and the attributes in MFT records.
//
//   | header | fixups: number, word, word, … | attribute | attribute | … | end |
//
// Every 512 bytes of a record end in the same number; the words that belong there are kept in the header. A
// record that was only half written shows two numbers, and is refused.

import { viewOf } from "../../../foundations/struct.ts";
import {
	ATTRIBUTE_NOT_PLAIN,
	Attribute,
	AttributeType,
	FIXUP_STRIDE,
	FileRecord,
	MAGIC_FILE,
	NonResidentAttribute,
	RECORD_IN_USE,
	ResidentAttribute,
} from "./layout.ts";
import { damaged } from "./open.ts";

/** Which attribute is meant: type and name. */
export interface AttributeKey {
	readonly type: number;
	readonly name: string;
}

/** One attribute of a record; `raw` is the whole of it. */
export interface FoundAttribute {
	readonly raw: Uint8Array;
	/** First cluster of the content that a non-resident attribute describes; 0 for a resident one. */
	readonly lowestCluster: number;
	/** Neither compressed nor encrypted nor sparse. */
	readonly plain: boolean;
	readonly content:
		| { readonly kind: "resident"; readonly value: Uint8Array }
		| {
				readonly kind: "runs";
				/** Clusters described here. */
				readonly clusters: number;
				readonly runs: Uint8Array;
				/** Valid where `lowestCluster` is 0. */
				readonly dataSize: number;
				readonly initializedSize: number;
		  };
}

/**
 * Puts the words back that fixups replaced, in place. False where the record is torn, or no record with `magic`.
 * Its length must be a multiple of 512.
 */
export function applyFixups(raw: Uint8Array, magic: number): boolean {
	const view = viewOf(raw);
	const offset = FileRecord.read.fixupOffset(view, 0);
	const count = raw.length / FIXUP_STRIDE;
	if (FileRecord.read.magic(view, 0) !== magic || FileRecord.read.fixupCount(view, 0) !== count + 1) return false;
	if (offset % 2 !== 0 || offset < 8 || offset + 2 * (count + 1) > FIXUP_STRIDE - 2) return false;
	const number = view.getUint16(offset, true);
	for (let i = 1; i <= count; i++) if (view.getUint16(i * FIXUP_STRIDE - 2, true) !== number) return false;
	for (let i = 1; i <= count; i++) view.setUint16(i * FIXUP_STRIDE - 2, view.getUint16(offset + 2 * i, true), true);
	return true;
}

/** An MFT record whose header is right. Attributes are checked when they are looked for. */
export class MftRecord {
	readonly number: number;
	readonly raw: Uint8Array;
	readonly sequence: number;
	/** Number of the record that this one extends, or 0. */
	readonly base: number;

	/** Takes over `raw`. Throws VOLUME_DAMAGED where it is torn or not in use. */
	constructor(number: number, raw: Uint8Array) {
		const wrong = (what: string): Error => damaged(`MFT record ${number} ${what}; run chkdsk in the guest`);
		if (!applyFixups(raw, MAGIC_FILE)) throw wrong("is damaged");
		const record = FileRecord.at(viewOf(raw));
		if ((record.flags & RECORD_IN_USE) === 0) throw wrong("is not in use");
		if (
			record.bytesInUse > raw.length ||
			record.bytesAllocated !== raw.length ||
			record.firstAttribute % 8 !== 0 ||
			record.firstAttribute < FileRecord.size - 8 ||
			record.firstAttribute > record.bytesInUse
		)
			throw wrong("has a damaged header");
		this.number = number;
		this.raw = raw.subarray(0, record.bytesInUse);
		this.sequence = record.sequence;
		this.base = record.baseRecordHigh * 2 ** 32 + record.baseRecordLow;
	}

	/** All attributes, or those with that type and name. */
	*attributes(key?: AttributeKey): Generator<FoundAttribute> {
		const view = viewOf(this.raw);
		let at = FileRecord.read.firstAttribute(view, 0);
		for (;;) {
			if (at + 4 > this.raw.length) throw this.#wrong();
			const type = Attribute.read.type(view, at);
			if (type === AttributeType.end) return;
			if (at + Attribute.size > this.raw.length) throw this.#wrong();
			const length = Attribute.read.length(view, at);
			if (length < ResidentAttribute.size || length % 8 !== 0 || at + length > this.raw.length) throw this.#wrong();
			const raw = this.raw.subarray(at, at + length);
			if (
				key === undefined ||
				(type === key.type &&
					nameOf(raw, Attribute.read.nameOffset(view, at), Attribute.read.nameLength(view, at)) === key.name)
			)
				yield this.#parse(raw);
			at += length;
		}
	}

	/** The one attribute with that type and name that starts at the content's first cluster, or null. */
	find(key: AttributeKey, lowestCluster = 0): FoundAttribute | null {
		for (const found of this.attributes(key)) if (found.lowestCluster === lowestCluster) return found;
		return null;
	}

	#parse(raw: Uint8Array): FoundAttribute {
		const view = viewOf(raw);
		const plain = (Attribute.read.flags(view, 0) & ATTRIBUTE_NOT_PLAIN) === 0;
		if (Attribute.read.nonResident(view, 0) === 0) {
			const { valueOffset, valueLength } = ResidentAttribute.at(view);
			if (valueOffset < ResidentAttribute.size || valueOffset + valueLength > raw.length) throw this.#wrong();
			const value = raw.subarray(valueOffset, valueOffset + valueLength);
			return { raw, lowestCluster: 0, plain, content: { kind: "resident", value } };
		}
		if (raw.length < NonResidentAttribute.size) throw this.#wrong();
		const { lowestCluster, highestCluster, runsOffset, dataSize, initializedSize } = NonResidentAttribute.at(view);
		// An empty one has 2^64 - 1 as its highest cluster.
		const clusters = highestCluster >= 2 ** 63 ? 0 : highestCluster + 1 - lowestCluster;
		if (clusters < 0 || runsOffset < NonResidentAttribute.size || runsOffset > raw.length) throw this.#wrong();
		const runs = raw.subarray(runsOffset);
		return { raw, lowestCluster, plain, content: { kind: "runs", clusters, runs, dataSize, initializedSize } };
	}

	#wrong(): Error {
		return damaged(`MFT record ${this.number} has a damaged attribute; run chkdsk in the guest`);
	}
}

/** A name of `length` UTF-16 units at `at`; what lies outside `raw` is cut off. */
export const nameOf = (raw: Uint8Array, at: number, length: number): string =>
	length === 0 ? "" : new TextDecoder("utf-16le").decode(raw.subarray(at, at + 2 * length));
