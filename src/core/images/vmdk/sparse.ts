// Sparse extent: the VMDK file with grains. See layout.ts for the picture.
//
// Where the directory leads outside of the file and the extent has a redundant one, that one is followed; it is there
// for this. Both name the same grains.

import { byteCount, isPowerOfTwo } from "../../../foundations/units.ts";
import { BoundedCache } from "../bounded-cache.ts";
import type { ImageFile } from "../image-file.ts";
import {
	ABSENT,
	blockPieces,
	checkInside,
	type DiskMap,
	damaged,
	readRecord,
	unsupported,
	ZERO,
} from "../mapped-disk.ts";
import {
	compression,
	DIRECTORY_IN_FOOTER,
	ENTRY_BYTES,
	GrainMarker,
	Header,
	headerFlag,
	LINE_ENDS,
	MAGIC,
	Marker,
	markerType,
	NO_GRAIN,
	SECTOR_BYTES,
	VERSION_MAX,
	ZERO_GRAIN,
} from "./layout.ts";

type HeaderFields = ReturnType<typeof Header.at>;

/** Unpacks a zlib stream (RFC 1950) into at most `length` bytes; rejects where it is damaged or unpacks to more. */
export type Inflate = (packed: Uint8Array, length: number) => Promise<Uint8Array>;

/** A sparse extent, and its embedded descriptor where it has one. */
export interface SparseExtent {
	readonly map: DiskMap;
	readonly descriptor: Uint8Array | null;
}

const GRAIN_SECTORS_MAX = (16 << 20) / SECTOR_BYTES;
const TABLE_ENTRIES_MAX = 64 * 1024;
const CAPACITY_MAX = 2 ** 43;
const DESCRIPTOR_SECTORS_MAX = 2048;

/** Opens a sparse extent. `name` is for messages. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openSparse(file: ImageFile, name: string, inflate: Inflate): Promise<SparseExtent> {
	const first = Header.at(await readRecord(file, 0, Header.size, `${name}: the sparse extent's header`));
	checkVersion(first, name);
	const header = isInFooter(first.directory) ? await readFooter(file, name) : first;
	checkHeader(header, name);
	const { descriptorOffset, descriptorSize } = first;
	let descriptor: Uint8Array | null = null;
	if (descriptorOffset > 0 && descriptorSize > 0) {
		const what = `${name}: the descriptor`;
		if (descriptorSize > DESCRIPTOR_SECTORS_MAX) throw damaged(what, `has ${descriptorSize} sectors`);
		const length = descriptorSize * SECTOR_BYTES;
		const { buffer, byteOffset } = await readRecord(file, descriptorOffset * SECTOR_BYTES, length, what);
		descriptor = new Uint8Array(buffer, byteOffset, length);
	}
	return { map: sparseMap(new Grains(file, name, header, inflate), header), descriptor };
}

const isInFooter = (directory: number): boolean => directory >= DIRECTORY_IN_FOOTER * 0x1_0000_0000;

function checkVersion({ magic, version, flags, lineEnds }: HeaderFields, name: string): void {
	if (magic !== MAGIC) throw damaged(`${name}:`, "has no sparse extent's mark");
	if (version < 1 || version > VERSION_MAX)
		throw unsupported(name, `version ${version} of VMDK's sparse extents isn't known`);
	if ((flags & headerFlag.VALID_LINE_ENDS) !== 0 && lineEnds !== LINE_ENDS)
		throw damaged(`${name}: the header`, "has changed line ends: the file was transferred as text");
}

/** The footer: a header, between a marker and the end's sector. */
async function readFooter(file: ImageFile, name: string): Promise<HeaderFields> {
	const what = `${name}: the footer`;
	const at = file.size - Header.size - 2 * Marker.size;
	const view = await readRecord(file, at, Header.size + 2 * Marker.size, what);
	const marker = Marker.at(view, 0);
	const footer = Header.at(view, Marker.size);
	const end = Marker.at(view, Marker.size + Header.size);
	const isWhole =
		marker.type === markerType.FOOTER && marker.length === 0 && end.type === markerType.END && end.length === 0;
	if (!isWhole || footer.magic !== MAGIC) throw damaged(what, "is missing: the file was cut");
	checkVersion(footer, name);
	if (isInFooter(footer.directory)) throw damaged(what, "names no grain directory");
	return footer;
}

function checkHeader(header: HeaderFields, name: string): void {
	const what = `${name}: the header`;
	const { flags, capacity, grainSize, entriesPerTable } = header;
	const isCompressed = (flags & headerFlag.COMPRESSED) !== 0;
	if (isCompressed && (header.compression !== compression.DEFLATE || (flags & headerFlag.MARKERS) === 0))
		throw unsupported(name, "its grains are compressed in a way that isn't known");
	if (capacity === 0) throw unsupported(name, "its sparse extent has no grains, only a descriptor");
	if (capacity > CAPACITY_MAX) throw damaged(what, `gives a capacity of ${capacity} sectors`);
	if (!isPowerOfTwo(grainSize) || grainSize > GRAIN_SECTORS_MAX)
		throw damaged(what, `gives grains of ${grainSize} sectors`);
	if (!isPowerOfTwo(entriesPerTable) || entriesPerTable > TABLE_ENTRIES_MAX)
		throw damaged(what, `gives tables of ${entriesPerTable} entries`);
}

function sparseMap(grains: Grains, { capacity, grainSize, entriesPerTable, flags, ...header }: HeaderFields): DiskMap {
	const size = byteCount(capacity * SECTOR_BYTES);
	const table = {
		size,
		blockSize: grainSize * SECTOR_BYTES,
		pageBlocks: entriesPerTable,
		file: grains.file,
		page: (index: number) => grains.table(index),
	};
	const isCompressed = (flags & headerFlag.COMPRESSED) !== 0;
	const blocks = isCompressed ? { ...table, unpack: (grain: number, at: number) => grains.unpack(grain, at) } : table;
	const warnings = header.uncleanShutdown === 0 ? [] : ["it was not closed cleanly by the program that wrote it last"];
	return { size, warnings, pieces: (from, to) => blockPieces(blocks, from, to) };
}

const TABLE_CACHE_BYTES = 4 << 20;
const GRAIN_CACHE_BYTES = 4 << 20;
const DIRECTORY_PAGE_ENTRIES = 4096;

/** Tables and packed grains of one extent. */
class Grains {
	readonly file: ImageFile;
	readonly #name: string;
	readonly #header: HeaderFields;
	readonly #inflate: Inflate;
	readonly #grainBytes: number;
	readonly #tableCount: number;
	readonly #directories: readonly number[];
	readonly #directoryPages = new BoundedCache<DataView>(TABLE_CACHE_BYTES);
	readonly #tables = new BoundedCache<DataView>(TABLE_CACHE_BYTES);
	readonly #unpacked = new BoundedCache<Uint8Array>(GRAIN_CACHE_BYTES);

	constructor(file: ImageFile, name: string, header: HeaderFields, inflate: Inflate) {
		this.file = file;
		this.#name = name;
		this.#header = header;
		this.#inflate = inflate;
		this.#grainBytes = header.grainSize * SECTOR_BYTES;
		this.#tableCount = Math.ceil(header.capacity / (header.grainSize * header.entriesPerTable));
		const hasRedundant = (header.flags & headerFlag.REDUNDANT_TABLES) !== 0;
		const places = [header.directory, ...(hasRedundant ? [header.redundantDirectory] : [])];
		const inside = places.filter((sector) => this.#isInside(sector * SECTOR_BYTES, this.#tableCount * ENTRY_BYTES));
		if (inside.length === 0)
			checkInside(
				file,
				header.directory * SECTOR_BYTES,
				this.#tableCount * ENTRY_BYTES,
				`${name}: the grain directory`,
			);
		this.#directories = inside;
	}

	/** Places of the grains that one table names. */
	async table(index: number): Promise<(grain: number, length: number) => number> {
		const { entriesPerTable, flags, overhead } = this.#header;
		const bytes = entriesPerTable * ENTRY_BYTES;
		const at = await this.#tableAt(index, bytes);
		if (at === 0) return () => ABSENT;
		const view = await this.#tables.get(at, bytes, () => readRecord(this.file, at, bytes, this.#tableName(index)));
		const hasZeroGrains = (flags & headerFlag.ZERO_GRAINS) !== 0;
		const isPacked = (flags & headerFlag.COMPRESSED) !== 0;
		return (grain, length) => {
			const entry = view.getUint32((grain - index * entriesPerTable) * ENTRY_BYTES, true);
			if (entry === NO_GRAIN) return ABSENT;
			if (entry === ZERO_GRAIN && hasZeroGrains) return ZERO;
			const place = entry * SECTOR_BYTES;
			const what = `${this.#name}: grain ${grain}`;
			if (entry < Math.max(1, overhead)) throw damaged(what, "should lie in the header or in the tables");
			checkInside(this.file, place, isPacked ? GrainMarker.size : length, what);
			return place;
		};
	}

	/** The content of a compressed grain; shorter than a grain only at the disk's end. */
	unpack(grain: number, at: number): Promise<Uint8Array> {
		return this.#unpacked.get(grain, this.#grainBytes, () => this.#readPacked(grain, at));
	}

	async #readPacked(grain: number, at: number): Promise<Uint8Array> {
		const what = `${this.#name}: compressed grain ${grain}`;
		const { capacity, grainSize } = this.#header;
		const marker = GrainMarker.at(await readRecord(this.file, at, GrainMarker.size, what));
		if (marker.sector !== grain * grainSize) throw damaged(what, `is marked as sector ${marker.sector}`);
		// Deflate makes incompressible data longer by 5 bytes per 16 KiB block; nobody needs twice a grain.
		if (marker.length === 0 || marker.length > 2 * this.#grainBytes + SECTOR_BYTES)
			throw damaged(what, `has ${marker.length} bytes`);
		const packed = await readRecord(this.file, at + GrainMarker.size, marker.length, what);
		const content = await this.#inflate(
			new Uint8Array(packed.buffer, packed.byteOffset, packed.byteLength),
			this.#grainBytes,
		).catch(() => {
			throw damaged(what, "can't be decompressed");
		});
		const needed = Math.min(this.#grainBytes, (capacity - grain * grainSize) * SECTOR_BYTES);
		if (content.length < needed || content.length > this.#grainBytes)
			throw damaged(what, `holds ${content.length} bytes`);
		return content;
	}

	/** Byte position of a table, 0 where there is none. */
	async #tableAt(index: number, bytes: number): Promise<number> {
		let sector = 0;
		for (const directory of this.#directories) {
			sector = await this.#directoryEntry(directory, index);
			if (sector === 0 || this.#isInside(sector * SECTOR_BYTES, bytes)) return sector * SECTOR_BYTES;
		}
		checkInside(this.file, sector * SECTOR_BYTES, bytes, this.#tableName(index));
		return sector * SECTOR_BYTES;
	}

	async #directoryEntry(directory: number, index: number): Promise<number> {
		const first = index - (index % DIRECTORY_PAGE_ENTRIES);
		const bytes = Math.min(DIRECTORY_PAGE_ENTRIES, this.#tableCount - first) * ENTRY_BYTES;
		const at = directory * SECTOR_BYTES + first * ENTRY_BYTES;
		const read = (): Promise<DataView> => readRecord(this.file, at, bytes, `${this.#name}: the grain directory`);
		// Two directories may overlap in a damaged image, with pages of different lengths at one place.
		const key = at * 2 + (directory === this.#directories[0] ? 0 : 1);
		return (await this.#directoryPages.get(key, bytes, read)).getUint32((index - first) * ENTRY_BYTES, true);
	}

	#tableName(index: number): string {
		return `${this.#name}: grain table ${index}`;
	}

	#isInside(at: number, bytes: number): boolean {
		return at > 0 && at + bytes <= this.file.size;
	}
}
