// The root directory, as far as it is needed: which record a name has.
//
//   $INDEX_ROOT: entries (in the record) ─┐
//   $INDEX_ALLOCATION: | block | block | … ├─▶ every entry of every block in use ($BITMAP says which)
//
// All blocks are looked at instead of walking the tree: no order of names to know, no depth, no rings.

import { viewOf } from "../../../foundations/struct.ts";
import { isPowerOfTwo } from "../../../foundations/units.ts";
import type { Files } from "./files.ts";
import {
	AttributeType,
	DirectoryEntry,
	ENTRY_LAST,
	ENTRY_NAME_AT,
	ENTRY_NAME_LENGTH_AT,
	INDEX_BLOCK_HEADER_AT,
	IndexHeader,
	IndexRoot,
	MAGIC_INDEX,
	SystemFile,
} from "./layout.ts";
import { damaged } from "./open.ts";
import { applyFixups, nameOf } from "./records.ts";

/** Two hundred thousand names at the root of a volume; more are refused. */
const MAX_INDEX_BYTES = 64 << 20;
const READ_BYTES = 1 << 20;

/** Where a name leads. */
export interface NamedRecord {
	readonly record: number;
	readonly sequence: number;
}

/** The records that a name has in the root directory, upper and lower case alike (`name` is in lower case). Throws VOLUME_DAMAGED. */
export async function findInRoot(files: Files, name: string): Promise<readonly NamedRecord[]> {
	const root = await files.record(SystemFile.root);
	const index = (type: number) => files.content(root, { type, name: "$I30" });
	const top = await index(AttributeType.indexRoot);
	if (top?.where.kind !== "resident" || top.size < IndexRoot.size + IndexHeader.size) throw wrong();
	const found: NamedRecord[] = [];
	const blockSize = IndexRoot.read.blockSize(viewOf(top.where.value), 0);
	collect(top.where.value, IndexRoot.size, name, found);

	const blocks = await index(AttributeType.indexAllocation);
	if (blocks === null || blocks.size === 0) return found;
	const bitmap = await index(AttributeType.bitmap);
	if (!isPowerOfTwo(blockSize) || blockSize < 512 || blockSize > 65536 || bitmap === null) throw wrong();
	if (blocks.size > MAX_INDEX_BYTES) throw damaged("its root directory is too large to be searched for hiberfil.sys");
	const count = Math.floor(blocks.size / blockSize);
	const inUse = await files.read(bitmap, 0, Math.ceil(count / 8));
	const perRead = READ_BYTES / blockSize;
	for (let first = 0; first < count; first += perRead) {
		const part = await files.read(blocks, first * blockSize, Math.min(perRead, count - first) * blockSize);
		for (let at = 0; at < part.length; at += blockSize) {
			const block = first + at / blockSize;
			if ((inUse[block >> 3]! & (1 << (block & 7))) === 0) continue;
			const raw = part.subarray(at, at + blockSize);
			if (!applyFixups(raw, MAGIC_INDEX)) throw wrong();
			collect(raw, INDEX_BLOCK_HEADER_AT, name, found);
		}
	}
	return found;
}

/** Adds the entries with that name behind the index header at `headerAt`. */
function collect(raw: Uint8Array, headerAt: number, name: string, found: NamedRecord[]): void {
	const view = viewOf(raw);
	const { firstEntry, length } = IndexHeader.at(view, headerAt);
	const end = headerAt + length;
	if (end > raw.length || firstEntry < IndexHeader.size) throw wrong();
	for (let at = headerAt + firstEntry; ; ) {
		if (at + DirectoryEntry.size > end) throw wrong();
		const entry = DirectoryEntry.at(view, at);
		if ((entry.flags & ENTRY_LAST) !== 0) return;
		if (entry.length < ENTRY_NAME_AT || entry.length % 8 !== 0 || at + entry.length > end) throw wrong();
		const text = nameOf(raw.subarray(at, at + entry.length), ENTRY_NAME_AT, raw[at + ENTRY_NAME_LENGTH_AT]!);
		if (text.toLowerCase() === name)
			found.push({ record: entry.recordHigh * 2 ** 32 + entry.recordLow, sequence: entry.sequence });
		at += entry.length;
	}
}

const wrong = (): Error => damaged("its root directory is damaged; run chkdsk in the guest");
