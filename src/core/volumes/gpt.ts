// GPT: the partition table of UEFI (specification 2.10, chapter 5), with sectors of 512 or 4096 bytes.
//
//   | protective MBR | header | entries … | partitions … | entries (copy) | header (copy) |
//     sector 0         1        2 …                                          last sector
//
// Invariants
//  - a header counts only if its checksum, its own position and its entries' checksum are right
//  - the copy is used where the first is damaged, and that is said; where both are, nothing is known
//
// Each header names the place of its own entries, so either half is enough.

import { crc32 } from "../../foundations/crc.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { bytes, struct, u32le, u64le, viewOf } from "../../foundations/struct.ts";
import { byteCount, byteOffset, isPowerOfTwo } from "../../foundations/units.ts";
import type { Partition } from "./partition.ts";
import { ownerByGptType } from "./partition-types.ts";

/** GPT header (UEFI 2.10, table 5.5). Little-endian. */
export const GptHeader = struct("GPT header", 92, {
	signature: bytes(0x00, 8),
	revision: u32le(0x08),
	headerSize: u32le(0x0c),
	headerChecksum: u32le(0x10),
	ownSector: u64le(0x18),
	otherSector: u64le(0x20),
	firstUsableSector: u64le(0x28),
	lastUsableSector: u64le(0x30),
	diskId: bytes(0x38, 16),
	entriesSector: u64le(0x48),
	entryCount: u32le(0x50),
	entrySize: u32le(0x54),
	entriesChecksum: u32le(0x58),
});

/** GPT entry (UEFI 2.10, table 5.6). */
export const GptEntry = struct("GPT entry", 128, {
	type: bytes(0x00, 16),
	id: bytes(0x10, 16),
	firstSector: u64le(0x20),
	lastSector: u64le(0x28),
	name: bytes(0x38, 72),
});

const SIGNATURE = "EFI PART";
/** Far above the 128 entries that every tool writes. */
const MAX_ENTRIES_BYTES = 1 << 20;

export interface GptTable {
	readonly sectorSize: number;
	readonly partitions: readonly Partition[];
	readonly warnings: readonly string[];
	readonly identity: readonly ByteRange[];
	/** Headers and entries. */
	readonly occupied: readonly ByteRange[];
	/** False where only the copy at the end is valid. */
	readonly isFirstValid: boolean;
}

interface Half {
	readonly header: ReturnType<typeof GptHeader.at>;
	readonly entries: Uint8Array;
}

/** What one header says, null where its signature is missing, or words for what is wrong with it. */
async function readHalf(disk: ByteSource, sectorSize: number, sector: number): Promise<Half | string | null> {
	if (sector < 1 || (sector + 1) * sectorSize > disk.size) return null;
	const block = await readBytes(disk, byteOffset(sector * sectorSize), sectorSize);
	const view = viewOf(block);
	const header = GptHeader.at(view);
	if (String.fromCharCode(...header.signature) !== SIGNATURE) return null;
	if (header.headerSize < GptHeader.size || header.headerSize > sectorSize) return `header size ${header.headerSize}`;
	const checked = block.slice(0, header.headerSize);
	GptHeader.write.headerChecksum(viewOf(checked), 0, 0);
	if (crc32(checked) !== header.headerChecksum) return "wrong header checksum";
	if (header.ownSector !== sector) return `it says that it lies at sector ${header.ownSector}`;
	if (header.entrySize < GptEntry.size || !isPowerOfTwo(header.entrySize))
		return `entries of ${header.entrySize} bytes`;
	const entriesBytes = header.entryCount * header.entrySize;
	if (entriesBytes > MAX_ENTRIES_BYTES) return `${header.entryCount} entries`;
	if (header.entriesSector * sectorSize + entriesBytes > disk.size) return "its entries lie outside the disk";
	const entries = await readBytes(disk, byteOffset(header.entriesSector * sectorSize), entriesBytes);
	if (crc32(entries) !== header.entriesChecksum) return "wrong checksum of the entries";
	return { header, entries };
}

function parseEntries(half: Half, sectorSize: number, warnings: string[]): Partition[] {
	const partitions: Partition[] = [];
	const view = viewOf(half.entries);
	for (let index = 0; index < half.header.entryCount; index++) {
		const entry = GptEntry.at(view, index * half.header.entrySize);
		if (entry.type.every((byte) => byte === 0)) continue;
		if (entry.lastSector < entry.firstSector) {
			warnings.push(`partition ${index + 1} ends before it starts; it is ignored and its place kept`);
			continue;
		}
		partitions.push({
			id: `p${index + 1}`,
			offset: byteOffset(entry.firstSector * sectorSize),
			size: byteCount((entry.lastSector - entry.firstSector + 1) * sectorSize),
			label: utf16(entry.name),
			owner: ownerByGptType(guidText(entry.type)),
		});
	}
	return partitions;
}

/** The first three parts are little-endian (UEFI 2.10, appendix A). */
function guidText(raw: Uint8Array): string {
	const hex = (...order: number[]): string => order.map((at) => raw[at]!.toString(16).padStart(2, "0")).join("");
	return [hex(3, 2, 1, 0), hex(5, 4), hex(7, 6), hex(8, 9), hex(10, 11, 12, 13, 14, 15)].join("-");
}

function utf16(raw: Uint8Array): string | null {
	const view = viewOf(raw);
	let text = "";
	for (let at = 0; at + 1 < raw.length; at += 2) {
		const unit = view.getUint16(at, true);
		if (unit === 0) break;
		text += String.fromCharCode(unit);
	}
	return text === "" ? null : text;
}

/**
 * Reads the GPT of a disk with `sectorSize` sectors. Null where neither place holds its signature; a string says
 * what is wrong where a signature is there but no valid table.
 */
export async function readGpt(disk: ByteSource, sectorSize: number): Promise<GptTable | string | null> {
	const lastSector = Math.floor(disk.size / sectorSize) - 1;
	const first = await readHalf(disk, sectorSize, 1);
	// A disk that grew has its copy where the old end was; only the first header knows that place.
	const copySector = first !== null && typeof first !== "string" ? first.header.otherSector : lastSector;
	const copy = await readHalf(disk, sectorSize, copySector);
	const good = [first, copy].find((half) => half !== null && typeof half !== "string") as Half | undefined;
	if (good === undefined)
		return typeof first === "string" ? first : typeof copy === "string" ? `${copy} (copy at the disk's end)` : null;
	const warnings: string[] = [];
	if (good !== first) {
		const damage = typeof first === "string" ? first : "no signature";
		warnings.push(`the first partition table is damaged (${damage}); its copy at the disk's end is used`);
	} else if (copy === null || typeof copy === "string")
		warnings.push(`the partition table's copy at sector ${copySector} is damaged (${copy ?? "no signature"})`);
	const partitions = parseEntries(good, sectorSize, warnings);
	const halves = [first, copy].filter((half): half is Half => half !== null && typeof half !== "string");
	if (halves.length === 2 && !sameBytes(halves[0]!.entries, halves[1]!.entries))
		warnings.push("the partition table and its copy differ; the first is used");
	const sectorAt = (sector: number): ByteRange => ({
		start: byteOffset(sector * sectorSize),
		length: byteCount(sectorSize),
	});
	const occupied = halves.flatMap((half) => [
		sectorAt(half.header.ownSector),
		{ start: byteOffset(half.header.entriesSector * sectorSize), length: byteCount(half.entries.length) },
	]);
	const identity = [sectorAt(1), ...occupied, sectorAt(lastSector)];
	return { sectorSize, partitions, warnings, identity, occupied, isFirstValid: good === first };
}

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean =>
	a.length === b.length && a.every((byte, at) => byte === b[at]);
