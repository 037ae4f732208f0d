// VHDX: Hyper-V's disk image. A table gives each block of the disk a state, and a place where it has one.
//
//   identification ─▶ newest whole header ─▶ log, replayed in memory ─▶ regions ─▶ metadata ─▶ table of blocks
//
// The table has one entry per block, and after each "chunk" of blocks one for a bitmap of sectors, which only images
// with a parent use; those are refused. A chunk is 2^23 sectors.
//
// Unknown regions and metadata items are skipped unless they are marked as required.

import { crc32cWithout } from "../../../foundations/crc.ts";
import { bytesOf } from "../../../foundations/struct.ts";
import { byteCount, isPowerOfTwo } from "../../../foundations/units.ts";
import { BoundedCache } from "../bounded-cache.ts";
import type { ImageFile } from "../image-file.ts";
import {
	ABSENT,
	blockPieces,
	checkInside,
	damaged,
	MappedDisk,
	readRecord,
	unsupported,
	ZERO,
} from "../mapped-disk.ts";
import {
	ALIGNMENT,
	BAT_ENTRY_BYTES,
	blockState,
	ENTRIES_MAX,
	guid,
	guidText,
	HAS_PARENT,
	HEADER_PLACES,
	HEADER_SIGNATURE,
	Header,
	IDENTIFIER,
	METADATA_ENTRIES_AT,
	METADATA_REQUIRED,
	METADATA_SIGNATURE,
	MetadataEntry,
	MetadataTable,
	REGION_ENTRIES_AT,
	REGION_REQUIRED,
	REGION_SIGNATURE,
	REGION_TABLE_PLACES,
	RegionEntry,
	RegionTable,
	STATE_MASK,
} from "./layout.ts";
import { replayLog } from "./log.ts";

/** Opens a VHDX image. `name` is for messages. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openVhdx(stored: ImageFile, name: string): Promise<MappedDisk> {
	const identifier = await readRecord(stored, 0, IDENTIFIER.length, `${name}: the file type identifier`);
	if (text(identifier) !== IDENTIFIER) throw damaged(`${name}:`, "has no VHDX file type identifier");
	const header = await newestHeader(stored, name);
	if (header.version !== 1) throw unsupported(name, `VHDX version ${header.version} isn't known, only 1`);
	const file = await replayLog(stored, header, name);
	const warnings =
		file === stored ? [] : ["it was not closed cleanly; it is read as if its log were replayed, and left as it is"];
	const regions = await readRegions(file, name);
	const geometry = await readMetadata(file, regions.metadata, name);
	return new MappedDisk(name, blockMap(file, regions.table, geometry, name, warnings));
}

type HeaderFields = ReturnType<typeof Header.at>;

async function newestHeader(file: ImageFile, name: string): Promise<HeaderFields> {
	let newest: HeaderFields | undefined;
	for (const place of HEADER_PLACES) {
		const view = await readRecord(file, place, Header.size, `${name}: a VHDX header`);
		const header = Header.at(view);
		if (header.signature !== HEADER_SIGNATURE || header.checksum !== checksumOf(view, Header.offset.checksum)) continue;
		if (newest === undefined || header.sequence > newest.sequence) newest = header;
	}
	if (newest === undefined) throw damaged(`${name}:`, "has no whole VHDX header");
	return newest;
}

/** A part of the file. In bytes. */
interface Region {
	readonly at: number;
	readonly length: number;
}

async function readRegions(file: ImageFile, name: string): Promise<{ table: Region; metadata: Region }> {
	const view = await wholeRegionTable(file, name);
	const { entryCount } = RegionTable.at(view);
	if (entryCount > ENTRIES_MAX) throw damaged(`${name}: the region table`, `has ${entryCount} entries`);
	const regions = new Map<string, Region>();
	for (let index = 0; index < entryCount; index++) {
		const entry = RegionEntry.at(view, REGION_ENTRIES_AT + index * RegionEntry.size);
		const id = guidText(entry.guid);
		const known = id === guid.blockAllocationTable || id === guid.metadataRegion;
		if (!known && (entry.flags & REGION_REQUIRED) !== 0)
			throw unsupported(name, `it has a region ${id}, which is required and isn't known`);
		if (!known) continue;
		const { fileOffset: at, length } = entry;
		if (regions.has(id)) throw damaged(`${name}: the region table`, `has the region ${id} twice`);
		if (at < ALIGNMENT || at % ALIGNMENT !== 0) throw damaged(`${name}: region ${id}`, `should lie at byte ${at}`);
		checkInside(file, at, length, `${name}: region ${id}`);
		regions.set(id, { at, length });
	}
	const table = regions.get(guid.blockAllocationTable);
	const metadata = regions.get(guid.metadataRegion);
	if (table === undefined || metadata === undefined)
		throw damaged(`${name}: the region table`, `names no ${table === undefined ? "table of blocks" : "metadata"}`);
	return { table, metadata };
}

async function wholeRegionTable(file: ImageFile, name: string): Promise<DataView> {
	for (const place of REGION_TABLE_PLACES) {
		const view = await readRecord(file, place, RegionTable.size, `${name}: a region table`);
		const { signature, checksum } = RegionTable.at(view);
		if (signature === REGION_SIGNATURE && checksum === checksumOf(view, RegionTable.offset.checksum)) return view;
	}
	throw damaged(`${name}:`, "has no whole region table");
}

/** All in bytes. */
interface Geometry {
	readonly blockSize: number;
	readonly size: number;
	readonly sectorSize: number;
}

const BLOCK_BYTES_MAX = 256 * ALIGNMENT;
const DISK_BYTES_MAX = 64 * 2 ** 40;

async function readMetadata(file: ImageFile, region: Region, name: string): Promise<Geometry> {
	const what = `${name}: the metadata table`;
	if (region.length < MetadataTable.size) throw damaged(what, `has a region of ${region.length} bytes`);
	const view = await readRecord(file, region.at, MetadataTable.size, what);
	const { signature, entryCount } = MetadataTable.at(view);
	if (String.fromCharCode(...signature) !== METADATA_SIGNATURE) throw damaged(what, "is missing");
	if (entryCount > ENTRIES_MAX) throw damaged(what, `has ${entryCount} entries`);
	const known = new Set<string>(Object.values(guid));
	const items = new Map<string, Region>();
	for (let index = 0; index < entryCount; index++) {
		const { itemId, offset, length, flags } = MetadataEntry.at(view, METADATA_ENTRIES_AT + index * MetadataEntry.size);
		const id = guidText(itemId);
		if (!known.has(id) && (flags & METADATA_REQUIRED) !== 0)
			throw unsupported(name, `it has metadata ${id}, which is required and isn't known`);
		if (!known.has(id)) continue;
		if (offset < MetadataTable.size || offset + length > region.length || items.has(id))
			throw damaged(what, `has a wrong entry ${index}`);
		items.set(id, { at: region.at + offset, length });
	}
	const item = async (id: string, length: number): Promise<DataView> => {
		const found = items.get(id);
		if (found === undefined || found.length < length) throw damaged(what, `lacks item ${id}`);
		return await readRecord(file, found.at, length, `${name}: metadata item ${id}`);
	};
	const parameters = await item(guid.fileParameters, 8);
	if ((parameters.getUint32(4, true) & HAS_PARENT) !== 0)
		throw unsupported(
			name,
			"this VHDX image only holds what differs from a parent image",
			"Merge it into its parent first.",
		);
	const size = await item(guid.virtualDiskSize, 8);
	const sector = await item(guid.logicalSectorSize, 4);
	return checkGeometry(
		{
			blockSize: parameters.getUint32(0, true),
			size: size.getUint32(4, true) * 0x1_0000_0000 + size.getUint32(0, true),
			sectorSize: sector.getUint32(0, true),
		},
		what,
	);
}

function checkGeometry(geometry: Geometry, what: string): Geometry {
	const { blockSize, size, sectorSize } = geometry;
	if (sectorSize !== 512 && sectorSize !== 4096) throw damaged(what, `gives sectors of ${sectorSize} bytes`);
	if (!isPowerOfTwo(blockSize) || blockSize < ALIGNMENT || blockSize > BLOCK_BYTES_MAX)
		throw damaged(what, `gives a block size of ${blockSize} bytes`);
	if (size === 0 || size > DISK_BYTES_MAX || size % sectorSize !== 0)
		throw damaged(what, `gives a disk of ${size} bytes`);
	return geometry;
}

const PAGE_BLOCKS = 4096;
const TABLE_CACHE_BYTES = 4 << 20;

function blockMap(
	file: ImageFile,
	region: Region,
	{ size, blockSize, sectorSize }: Geometry,
	name: string,
	warnings: readonly string[],
): ConstructorParameters<typeof MappedDisk>[1] {
	const chunkBlocks = (2 ** 23 * sectorSize) / blockSize;
	const blockCount = Math.ceil(size / blockSize);
	/** A bitmap's entry follows each whole chunk. */
	const entryOf = (block: number): number => block + Math.floor(block / chunkBlocks);
	if ((entryOf(blockCount - 1) + 1) * BAT_ENTRY_BYTES > region.length)
		throw damaged(`${name}: the table of blocks`, `is too short for ${blockCount} blocks`);
	const pages = new BoundedCache<DataView>(TABLE_CACHE_BYTES);

	const page = async (index: number): Promise<(block: number, length: number) => number> => {
		const first = index * PAGE_BLOCKS;
		const firstEntry = entryOf(first);
		const last = Math.min(first + PAGE_BLOCKS, blockCount) - 1;
		const bytes = (entryOf(last) - firstEntry + 1) * BAT_ENTRY_BYTES;
		const at = region.at + firstEntry * BAT_ENTRY_BYTES;
		const view = await pages.get(index, bytes, () => readRecord(file, at, bytes, `${name}: the table of blocks`));
		return (block, length) => {
			const entryAt = (entryOf(block) - firstEntry) * BAT_ENTRY_BYTES;
			const low = view.getUint32(entryAt, true);
			const high = view.getUint32(entryAt + 4, true);
			switch (low & STATE_MASK) {
				case blockState.NOT_PRESENT:
					return ABSENT;
				case blockState.UNDEFINED:
				case blockState.ZERO:
				case blockState.UNMAPPED:
				case blockState.UNMAPPED_DRAFT:
					return ZERO;
				case blockState.FULLY_PRESENT: {
					const place = (high * 4096 + (low >>> 20)) * ALIGNMENT;
					if (place < ALIGNMENT) throw damaged(`${name}: block ${block}`, "should lie in the file's headers");
					checkInside(file, place, length, `${name}: block ${block}`);
					return place;
				}
				default:
					throw damaged(
						`${name}: block ${block}`,
						`has state ${low & STATE_MASK}, which an image without parent can't have`,
					);
			}
		};
	};
	const table = { size: byteCount(size), blockSize, pageBlocks: PAGE_BLOCKS, file, page };
	return { size: table.size, warnings, pieces: (from, to) => blockPieces(table, from, to) };
}

/** CRC-32C of a record whose checksum field at `at` counts as zeros. */
const checksumOf = (view: DataView, at: number): number => ~crc32cWithout(~0, bytesOf(view), at) >>> 0;

const text = ({ buffer, byteOffset, byteLength }: DataView): string =>
	String.fromCharCode(...new Uint8Array(buffer, byteOffset, byteLength));
