// Mapped disk: a virtual disk whose format says, block by block, where in which file the guest's bytes lie.
//
//   guest bytes ──▶ pieces (a format's part) ──▶ data    at a place of a file
//                                            ──▶ packed  compressed, at a place of a file
//                                            ──▶ zero, absent
//
// A format only has to cut a range into pieces; reading, runs, and what a piece takes on the host follow from them.
//
// Invariants
//  - pieces cover the range that was asked for, in order and without gap
//  - a data piece lies inside its file: formats check every position before they hand it out

import { assert, VmsweepError } from "../../foundations/errors.ts";
import { checkRange } from "../../foundations/source.ts";
import { viewOf } from "../../foundations/struct.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../../foundations/units.ts";
import type { ImageFile } from "./image-file.ts";
import type { DiskRun, VirtualDisk } from "./virtual-disk.ts";

/** Guest bytes that lie in a file as they are. */
export interface DataPiece {
	readonly kind: "data";
	readonly start: number;
	readonly length: number;
	readonly file: ImageFile;
	/** Byte position in `file`. */
	readonly at: number;
}

/** Guest bytes inside a compressed block. */
export interface PackedPiece {
	readonly kind: "packed";
	readonly start: number;
	readonly length: number;
	/** Bytes of the unpacked block before `start`. */
	readonly skip: number;
	readonly unpack: () => Promise<Uint8Array>;
}

/** Guest bytes that are stored nowhere. */
export interface EmptyPiece {
	readonly kind: "zero" | "absent";
	readonly start: number;
	readonly length: number;
}

export type DiskPiece = DataPiece | PackedPiece | EmptyPiece;

/** What a format makes of an image. */
export interface DiskMap {
	/** Bytes that the guest sees. */
	readonly size: ByteCount;
	/** What an operator should know. */
	readonly warnings: readonly string[];
	/** Pieces of `[from, to)`. Throws IMAGE_DAMAGED where the format's records lead nowhere, and IO. */
	pieces(from: number, to: number): AsyncIterable<DiskPiece>;
}

/** A disk over a format's map, and over the image below it where there is one. `name` is for messages. */
export class MappedDisk implements VirtualDisk {
	readonly size: ByteCount;
	readonly warnings: readonly string[];
	readonly #name: string;
	readonly #map: DiskMap;
	readonly #below: MappedDisk | null;

	constructor(name: string, map: DiskMap, below: MappedDisk | null = null) {
		this.#name = name;
		this.#map = map;
		this.#below = below;
		this.size = map.size;
		this.warnings = map.warnings;
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		checkRange(this.size, at, into.length, this.#name);
		for await (const piece of this.visiblePieces(at, at + into.length)) {
			const target = into.subarray(piece.start - at, piece.start - at + piece.length);
			switch (piece.kind) {
				case "data":
					await piece.file.read(byteOffset(piece.at), target);
					break;
				case "packed":
					target.set((await piece.unpack()).subarray(piece.skip, piece.skip + piece.length));
					break;
				case "zero":
				case "absent":
					target.fill(0);
					break;
				default:
					piece satisfies never;
			}
		}
	}

	async *runs(from: ByteOffset, to: ByteOffset): AsyncGenerator<DiskRun> {
		checkRange(this.size, from, to - from, this.#name);
		let pending: DiskRun | undefined;
		for await (const { kind: pieceKind, start, length } of this.visiblePieces(from, to)) {
			const kind = pieceKind === "packed" ? "data" : pieceKind;
			if (pending?.kind === kind) {
				pending = { ...pending, length: byteCount(pending.length + length) };
				continue;
			}
			if (pending !== undefined) yield pending;
			pending = { start: byteOffset(start), length: byteCount(length), kind };
		}
		if (pending !== undefined) yield pending;
	}

	/** What the guest sees: the pieces of `[from, to)`, where this image has none those of the images below it. */
	async *visiblePieces(from: number, to: number): AsyncGenerator<DiskPiece> {
		const below = this.#below;
		for await (const piece of this.pieces(from, to)) {
			// An image below that is smaller ends in zeros.
			const shared = Math.min(piece.start + piece.length, below?.size ?? 0);
			if (piece.kind !== "absent" || below === null || shared <= piece.start) {
				yield piece;
				continue;
			}
			yield* below.visiblePieces(piece.start, shared);
			const rest = piece.start + piece.length - shared;
			if (rest > 0) yield { kind: "absent", start: shared, length: rest };
		}
	}

	/** This image's own pieces of `[from, to)`; neighbours that follow each other in one file are one. */
	async *pieces(from: number, to: number): AsyncGenerator<DiskPiece> {
		if (to <= from) return;
		let pending: DiskPiece | undefined;
		let end = from;
		for await (const piece of this.#map.pieces(from, to)) {
			assert(piece.start === end && piece.length > 0, `${this.#name}: pieces don't follow each other`);
			end += piece.length;
			const joined = pending === undefined ? undefined : join(pending, piece);
			if (joined === undefined && pending !== undefined) yield pending;
			pending = joined ?? piece;
		}
		if (pending !== undefined) yield pending;
		assert(end === to, `${this.#name}: pieces don't cover what was asked for`);
	}
}

/** One piece for both where they follow each other, else undefined. */
function join(first: DiskPiece, next: DiskPiece): DiskPiece | undefined {
	const length = first.length + next.length;
	switch (first.kind) {
		case "data":
			if (next.kind !== "data" || next.file !== first.file || next.at !== first.at + first.length) return undefined;
			return { ...first, length };
		case "packed":
			return undefined;
		default:
			return next.kind === first.kind ? { ...first, length } : undefined;
	}
}

/** A block that its image says nothing about; see {@link BlockTable}. */
export const ABSENT = -1;
/** A block that reads as zeros; see {@link BlockTable}. */
export const ZERO = -2;

/** A format's table of blocks of one size, read page by page. */
export interface BlockTable {
	readonly size: ByteCount;
	/** Guest bytes per block. */
	readonly blockSize: number;
	/** Blocks whose places one page tells. */
	readonly pageBlocks: number;
	/** The file that the blocks lie in. */
	readonly file: ImageFile;
	/**
	 * Places of the page's blocks: given a block's number, its byte position in the file, or {@link ABSENT}, or
	 * {@link ZERO}. `length` is how many bytes of the block the guest sees: the last one may be cut.
	 */
	page(index: number): Promise<(block: number, length: number) => number>;
	/** Only where blocks are compressed: the content of the block at a place. */
	readonly unpack?: (block: number, at: number) => Promise<Uint8Array>;
}

/** Cuts a range into pieces by a table of blocks. Blocks that follow each other in the file are one piece. */
export async function* blockPieces(table: BlockTable, from: number, to: number): AsyncGenerator<DiskPiece> {
	const { size, blockSize, pageBlocks, file, unpack } = table;
	for (let at = from; at < to; ) {
		const page = Math.floor(at / (blockSize * pageBlocks));
		const placeOf = await table.page(page);
		const pageEnd = Math.min(to, (page + 1) * pageBlocks * blockSize);
		const placeOfBlock = (block: number): number => placeOf(block, Math.min(blockSize, size - block * blockSize));
		while (at < pageEnd) {
			const first = Math.floor(at / blockSize);
			const skip = at - first * blockSize;
			const place = placeOfBlock(first);
			let block = first + 1;
			const follows = (): boolean => {
				const next = placeOfBlock(block);
				return place < 0 ? next === place : unpack === undefined && next === place + (block - first) * blockSize;
			};
			while (block * blockSize < pageEnd && follows()) block++;
			const length = Math.min(block * blockSize, pageEnd) - at;
			if (place < 0) yield { kind: place === ZERO ? "zero" : "absent", start: at, length };
			else if (unpack === undefined) yield { kind: "data", start: at, length, file, at: place + skip };
			else yield { kind: "packed", start: at, length, skip, unpack: () => unpack(first, place) };
			at += length;
		}
	}
}

/** Reads a record of `length` bytes. Throws IMAGE_DAMAGED where it lies outside of the file. */
export async function readRecord(file: ImageFile, at: number, length: number, what: string): Promise<DataView> {
	checkInside(file, at, length, what);
	const bytes = new Uint8Array(length);
	await file.read(byteOffset(at), bytes);
	return viewOf(bytes);
}

/** Throws IMAGE_DAMAGED unless `[at, at + length)` lies in the file. `what` names the image and the record. */
export function checkInside(file: ImageFile, at: number, length: number, what: string): void {
	if (at >= 0 && length >= 0 && at + length <= file.size) return;
	throw damaged(what, `should lie at byte ${at}, but the file ends at byte ${file.size}`);
}

/** IMAGE_DAMAGED: what is wrong with which record of which image, and what to do. */
export const damaged = (what: string, why: string): VmsweepError =>
	new VmsweepError("IMAGE_DAMAGED", `${what} ${why}. The image is damaged; restore it from a copy.`);

/** IMAGE_UNSUPPORTED: what isn't understood, and what to do. */
export const unsupported = (
	name: string,
	why: string,
	advice = "Convert it with qemu-img or its own tool.",
): VmsweepError => new VmsweepError("IMAGE_UNSUPPORTED", `${name}: ${why}. ${advice}`);
