// VHD: the disk image of Virtual PC, early Hyper-V, Azure and XenServer; QEMU calls it `vpc`.
//
// Each block of a dynamic disk starts with a bitmap of its sectors; a sector whose bit is clear was never written and
// reads as zeros ("Data Block" of the specification).
//
// Which size the guest sees is not said in one place. The footer has the size in bytes, and a geometry that may round
// it down. Virtual PC shows the geometry; so does QEMU, which rounds the size to it when it makes an image. All others
// show the size in bytes. QEMU takes the geometry for every program that it doesn't know; here the size in bytes
// counts then, because nothing of the disk is lost by showing more.
//
// A fixed disk has nothing in front to tell it by, and its last sector could have been written by a raw image's guest.
// So it counts as VHD only where its name says so, too: see `isFixedVhd`.

import { bytesOf, viewOf } from "../../../foundations/struct.ts";
import { byteCount, byteOffset, isPowerOfTwo, roundUp } from "../../../foundations/units.ts";
import { BoundedCache } from "../bounded-cache.ts";
import type { ImageFile } from "../image-file.ts";
import {
	checkInside,
	type DiskMap,
	type DiskPiece,
	damaged,
	MappedDisk,
	readRecord,
	unsupported,
} from "../mapped-disk.ts";
import {
	checksumOf,
	DynamicHeader,
	diskType,
	FOOTER_COOKIE,
	Footer,
	HEADER_COOKIE,
	SECTOR_BYTES,
	UNUSED_ENTRY,
} from "./layout.ts";

type FooterFields = ReturnType<typeof Footer.at>;

/** Opens a VHD image, dynamic or fixed. `name` is for messages. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openVhd(file: ImageFile, name: string): Promise<MappedDisk> {
	const { footer, warnings } = await findFooter(file, name);
	if (footer.version >>> 16 !== 1)
		throw unsupported(name, `VHD version ${footer.version >>> 16}.${footer.version & 0xffff} isn't known, only 1.0`);
	if (footer.savedState !== 0)
		warnings.push("the VM was suspended, not shut down: what it held in memory is not in the image");
	const size = visibleSize(footer);
	switch (footer.diskType) {
		case diskType.FIXED:
			checkInside(file, 0, size + Footer.size, `${name}: the disk and the footer behind it`);
			return new MappedDisk(name, fixedMap(file, size, warnings));
		case diskType.DYNAMIC:
			return new MappedDisk(name, await openDynamic(file, name, footer, size, warnings));
		case diskType.DIFFERENCING:
			throw unsupported(
				name,
				"this VHD image only holds what differs from a parent image",
				"Merge it into its parent first.",
			);
		default:
			throw unsupported(name, `VHD disk type ${footer.diskType} isn't known`);
	}
}

/**
 * True for a fixed VHD by a whole footer with a right checksum behind the disk. Ask only where the file's name says so,
 * too (.vhd, .vpc): a raw image's guest can write such a footer, but doesn't choose the name.
 */
export async function isFixedVhd(file: ImageFile): Promise<boolean> {
	if (file.size < 2 * Footer.size) return false;
	const footer = await footerAt(file, file.size - Footer.size);
	return footer !== null && footer.diskType === diskType.FIXED && visibleSize(footer) + Footer.size <= file.size;
}

/** The footer at `at` where it is whole, else null. */
async function footerAt(file: ImageFile, at: number): Promise<FooterFields | null> {
	if (at < 0 || at + Footer.size > file.size) return null;
	const bytes = new Uint8Array(Footer.size);
	await file.read(byteOffset(at), bytes);
	const footer = Footer.at(viewOf(bytes));
	const whole = text(footer.cookie) === FOOTER_COOKIE && footer.checksum === checksumOf(bytes, Footer.offset.checksum);
	return whole ? footer : null;
}

/** The copy in front counts, as it does for QEMU; the footer where the copy is damaged or there is none (fixed). */
async function findFooter(file: ImageFile, name: string): Promise<{ footer: FooterFields; warnings: string[] }> {
	const front = await footerAt(file, 0);
	if (front !== null && front.diskType !== diskType.FIXED) return { footer: front, warnings: [] };
	const back = await footerAt(file, file.size - Footer.size);
	if (back === null) throw damaged(`${name}: the VHD footer`, "is missing or has a wrong checksum");
	const lost = back.diskType !== diskType.FIXED;
	return { footer: back, warnings: lost ? ["the copy of the footer in front is damaged; the footer counts"] : [] };
}

/** Programs that show the geometry's size: Virtual PC, and QEMU without `force_size`. */
const geometryCreators: readonly string[] = ["vpc ", "qemu"];
const LARGEST_GEOMETRY = 65_535 * 16 * 255;

function visibleSize({ creator, cylinders, heads, sectorsPerTrack, currentSize }: FooterFields): number {
	const sectors = cylinders * heads * sectorsPerTrack;
	// The largest geometry stands for any larger disk.
	const byGeometry = geometryCreators.includes(text(creator)) && sectors > 0 && sectors !== LARGEST_GEOMETRY;
	return byGeometry ? sectors * SECTOR_BYTES : Math.floor(currentSize / SECTOR_BYTES) * SECTOR_BYTES;
}

function fixedMap(file: ImageFile, size: number, warnings: readonly string[]): DiskMap {
	async function* pieces(from: number, to: number): AsyncGenerator<DiskPiece> {
		yield { kind: "data", start: from, length: to - from, file, at: from };
	}
	return { size: byteCount(size), warnings, pieces };
}

const ENTRY_BYTES = 4;
const PAGE_ENTRIES = 4096;
const TABLE_CACHE_BYTES = 4 << 20;
const BLOCK_BYTES_MAX = 256 << 20;

async function openDynamic(
	file: ImageFile,
	name: string,
	footer: FooterFields,
	size: number,
	warnings: readonly string[],
): Promise<DiskMap> {
	const what = `${name}: the dynamic disk header`;
	const view = await readRecord(file, footer.dataOffset, DynamicHeader.size, what);
	const header = DynamicHeader.at(view);
	const record = bytesOf(view);
	if (text(header.cookie) !== HEADER_COOKIE) throw damaged(what, "is missing");
	const checksum = checksumOf(record, DynamicHeader.offset.checksum);
	if (header.checksum !== checksum)
		throw damaged(what, `has checksum 0x${header.checksum.toString(16)}, expected 0x${checksum.toString(16)}`);
	if (header.version >>> 16 !== 1) throw unsupported(name, `dynamic disk header version ${header.version} isn't known`);
	const { blockSize, tableOffset, tableEntries } = header;
	if (!isPowerOfTwo(blockSize) || blockSize < SECTOR_BYTES || blockSize > BLOCK_BYTES_MAX)
		throw damaged(what, `gives a block size of ${blockSize} bytes`);
	// Behind 2^53 positions are no longer exact.
	if (size > tableEntries * blockSize || !Number.isSafeInteger(size))
		throw damaged(what, `gives ${tableEntries} blocks of ${blockSize} bytes to a disk of ${size} bytes`);
	const entries = Math.ceil(size / blockSize);
	checkInside(file, tableOffset, entries * ENTRY_BYTES, `${name}: the table of blocks`);
	const blocks = new DynamicBlocks(file, name, { blockSize, tableOffset, entries, size });
	return { size: byteCount(size), warnings, pieces: (from, to) => blocks.pieces(from, to) };
}

interface Geometry {
	readonly blockSize: number;
	readonly tableOffset: number;
	readonly entries: number;
	readonly size: number;
}

class DynamicBlocks {
	readonly #file: ImageFile;
	readonly #name: string;
	readonly #geometry: Geometry;
	readonly #bitmapBytes: number;
	readonly #pages = new BoundedCache<DataView>(TABLE_CACHE_BYTES);
	/** By their position in the file; a cache of its own, since in a damaged image one may lie in the table. */
	readonly #bitmaps = new BoundedCache<DataView>(TABLE_CACHE_BYTES);

	constructor(file: ImageFile, name: string, geometry: Geometry) {
		this.#file = file;
		this.#name = name;
		this.#geometry = geometry;
		// One bit per sector, filled up to whole sectors.
		this.#bitmapBytes = roundUp(geometry.blockSize / SECTOR_BYTES / 8, SECTOR_BYTES);
	}

	async *pieces(from: number, to: number): AsyncGenerator<DiskPiece> {
		const { blockSize } = this.#geometry;
		for (let at = from; at < to; ) {
			const block = Math.floor(at / blockSize);
			const end = Math.min(to, (block + 1) * blockSize);
			const place = await this.#placeOf(block);
			if (place === null) yield { kind: "absent", start: at, length: end - at };
			else yield* this.#sectors(place, block * blockSize, at, end);
			at = end;
		}
	}

	/** Position of a block's bitmap, or null where the block isn't there. */
	async #placeOf(block: number): Promise<number | null> {
		const { tableOffset, entries, blockSize, size } = this.#geometry;
		const first = block - (block % PAGE_ENTRIES);
		const length = Math.min(PAGE_ENTRIES, entries - first) * ENTRY_BYTES;
		const at = tableOffset + first * ENTRY_BYTES;
		const table = await this.#pages.get(first, length, () => this.#record(at, length, "the table of blocks"));
		const entry = table.getUint32((block - first) * ENTRY_BYTES);
		if (entry === UNUSED_ENTRY) return null;
		const place = entry * SECTOR_BYTES;
		const visible = Math.min(blockSize, size - block * blockSize);
		checkInside(this.#file, place, this.#bitmapBytes + visible, `${this.#name}: block ${block}`);
		return place;
	}

	/** Runs of written and of untouched sectors of one block. */
	async *#sectors(place: number, blockStart: number, from: number, to: number): AsyncGenerator<DiskPiece> {
		const length = this.#bitmapBytes;
		const bitmap = await this.#bitmaps.get(place, length, () => this.#record(place, length, "a block's bitmap"));
		const isWritten = (at: number): boolean => {
			const sector = Math.floor((at - blockStart) / SECTOR_BYTES);
			return (bitmap.getUint8(sector >> 3) & (0x80 >> (sector & 7))) !== 0;
		};
		for (let at = from; at < to; ) {
			const written = isWritten(at);
			let end = Math.min(to, nextSector(at));
			while (end < to && isWritten(end) === written) end = Math.min(to, nextSector(end));
			const dataAt = place + this.#bitmapBytes + at - blockStart;
			if (written) yield { kind: "data", start: at, length: end - at, file: this.#file, at: dataAt };
			else yield { kind: "zero", start: at, length: end - at };
			at = end;
		}
	}

	#record(at: number, length: number, what: string): Promise<DataView> {
		return readRecord(this.#file, at, length, `${this.#name}: ${what}`);
	}
}

const nextSector = (at: number): number => (Math.floor(at / SECTOR_BYTES) + 1) * SECTOR_BYTES;

const text = (bytes: Uint8Array): string => String.fromCharCode(...bytes);
