// VDI: VirtualBox's disk image. A table gives each block of the disk a block of the file.
//
// A static image is a dynamic one with all blocks allocated. Differencing images, and images that were made as a
// snapshot's child, need another file, which the format names only by a UUID: they are refused.

import { viewOf } from "../../../foundations/struct.ts";
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
import { entry, Header, imageType, SIGNATURE, VERSION_1_1 } from "./layout.ts";

/** Entries read at once. */
const PAGE_BLOCKS = 4096;
const ENTRY_BYTES = 4;
const TABLE_CACHE_BYTES = 4 << 20;

/** Opens a VDI image. `name` is for messages. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openVdi(file: ImageFile, name: string): Promise<MappedDisk> {
	const header = Header.at(await readRecord(file, 0, Header.size, `${name}: the VDI header`));
	checkHeader(header, name);
	const { tableOffset, dataOffset, blockSize, blockCount, diskSize } = header;
	const size = byteCount(diskSize);
	checkInside(file, tableOffset, blockCount * ENTRY_BYTES, `${name}: the table of blocks`);
	const pages = new BoundedCache<DataView>(TABLE_CACHE_BYTES);

	const page = async (index: number): Promise<(block: number, length: number) => number> => {
		const first = index * PAGE_BLOCKS;
		const bytes = Math.min(PAGE_BLOCKS, blockCount - first) * ENTRY_BYTES;
		const at = tableOffset + first * ENTRY_BYTES;
		const view = await pages.get(index, bytes, () => readRecord(file, at, bytes, `${name}: the table of blocks`));
		return (block, length) => {
			const number = view.getUint32((block - first) * ENTRY_BYTES, true);
			if (number === entry.UNALLOCATED) return ABSENT;
			if (number === entry.DISCARDED) return ZERO;
			const place = dataOffset + number * blockSize;
			checkInside(file, place, length, `${name}: block ${block}`);
			return place;
		};
	};
	const table = { size, blockSize, pageBlocks: PAGE_BLOCKS, file, page };
	return new MappedDisk(name, { size, warnings: [], pieces: (from, to) => blockPieces(table, from, to) });
}

const BLOCK_BYTES_MIN = 4096;
const BLOCK_BYTES_MAX = 256 << 20;

function checkHeader(header: ReturnType<typeof Header.at>, name: string): void {
	const { signature, version, type, tableOffset, sectorSize, diskSize, blockSize, blockExtra, blockCount } = header;
	if (signature !== SIGNATURE) throw damaged(`${name}:`, "has no VDI signature");
	if (version !== VERSION_1_1)
		throw unsupported(name, `VDI version ${version >>> 16}.${version & 0xffff} isn't known, only 1.1`);
	if (type === imageType.UNDO || type === imageType.DIFFERENCING || isSet(header.parentUuid) || isSet(header.linkUuid))
		throw unsupported(
			name,
			"this VDI image only holds what differs from a parent image",
			"Merge it first: VBoxManage clonemedium.",
		);
	if (type !== imageType.DYNAMIC && type !== imageType.STATIC)
		throw unsupported(name, `VDI image type ${type} isn't known`);
	if (blockExtra !== 0) throw unsupported(name, `it has ${blockExtra} extra bytes per block`);
	if (sectorSize !== 512) throw unsupported(name, `its sectors have ${sectorSize} bytes, not 512`);
	if (!isPowerOfTwo(blockSize) || blockSize < BLOCK_BYTES_MIN || blockSize > BLOCK_BYTES_MAX)
		throw damaged(`${name}: the VDI header`, `gives a block size of ${blockSize} bytes`);
	if (tableOffset < Header.size) throw damaged(`${name}: the VDI header`, "puts the table of blocks into itself");
	// Behind 2^53 positions are no longer exact.
	if (diskSize > blockCount * blockSize || diskSize % sectorSize !== 0 || !Number.isSafeInteger(diskSize))
		throw damaged(`${name}: the VDI header`, `gives a disk of ${diskSize} bytes ${blockCount} blocks of ${blockSize}`);
}

function isSet(uuid: Uint8Array): boolean {
	const view = viewOf(uuid);
	return view.getBigUint64(0) !== 0n || view.getBigUint64(8) !== 0n;
}
