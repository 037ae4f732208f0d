// Keys of btrfs's trees, compared where they lie, as stored: they are 17 bytes, sorted as objectid, type, offset, and
// objectids and offsets use all of their 64 bits (−4 is a large one), so they are never turned into numbers here.

import { Key } from "./layout.ts";

/** A key somewhere in a tree block or in a buffer of its own. */
export interface KeyPlace {
	readonly view: DataView;
	readonly at: number;
}

/** Keys from `from` to `to`, both included. */
export interface KeyRange {
	readonly from: KeyPlace;
	readonly to: KeyPlace;
}

/** Negative, zero or positive, as the first key sorts before, with or behind the second. */
export function compareKeys(a: DataView, aAt: number, b: DataView, bAt: number): number {
	return (
		a.getUint32(aAt + 4, true) - b.getUint32(bAt + 4, true) ||
		a.getUint32(aAt, true) - b.getUint32(bAt, true) ||
		a.getUint8(aAt + 8) - b.getUint8(bAt + 8) ||
		a.getUint32(aAt + 13, true) - b.getUint32(bAt + 13, true) ||
		a.getUint32(aAt + 9, true) - b.getUint32(bAt + 9, true)
	);
}

/** All keys with this objectid and one of the types from `firstType` to `lastType`, whatever their offsets. */
export function keysOf(objectid: number | bigint, firstType: number, lastType = firstType): KeyRange {
	return { from: makeKey(objectid, firstType, 0n), to: makeKey(objectid, lastType, -1n) };
}

/** All keys of a tree. */
export const allKeys = (): KeyRange => ({ from: makeKey(0, 0, 0n), to: makeKey(-1n, 0xff, -1n) });

function makeKey(objectid: number | bigint, type: number, offset: bigint): KeyPlace {
	const view = new DataView(new ArrayBuffer(Key.size));
	view.setBigInt64(Key.offset.objectid, BigInt.asIntN(64, BigInt(objectid)), true);
	view.setUint8(Key.offset.type, type);
	view.setBigInt64(Key.offset.offset, offset, true);
	return { view, at: 0 };
}
