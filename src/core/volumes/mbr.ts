// MBR: the partition table in a disk's first sector, with a chain of extended boot records for logical partitions.
//
//   sector 0  | boot code 446 | entry × 4 (16 bytes) | 55 aa |
//   EBR       | unused    446 | logical | link to the next EBR | … | 55 aa |    link counts from the extended
//                                                                              partition's start, logical from its EBR
//
// Invariants
//  - the chain is followed at most 124 links and never to a sector seen before, so a ring ends
//  - a sector whose entries make no sense is no table: boot sectors of file systems carry 55 aa, too
//
// Sectors are 512 bytes: an MBR does not say, and a wrong guess finds no file system, so keeps everything.

import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { struct, u8, u16le, u32le, viewOf } from "../../foundations/struct.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import type { Partition } from "./partition.ts";
import { ownerByMbrType } from "./partition-types.ts";

const SECTOR = 512;
const ENTRIES_AT = 0x1be;
const MAX_LOGICAL = 124;

/** One entry of the table. */
export const MbrEntry = struct("MBR partition entry", 16, {
	status: u8(0x0),
	type: u8(0x4),
	firstSector: u32le(0x8),
	sectorCount: u32le(0xc),
});
const Signature = struct("MBR signature", SECTOR, { magic: u16le(0x1fe) });

/** Types that hold a chain of logical partitions. */
const isExtended = (type: number): boolean => type === 0x05 || type === 0x0f || type === 0x85;
/** The type of the one entry that a GPT disk shows to old tools. */
export const PROTECTIVE_TYPE = 0xee;

/** An entry of the table, as far as it counts here. */
export interface MbrTableEntry {
	readonly status: number;
	readonly type: number;
	readonly firstSector: number;
	readonly sectorCount: number;
}

/** The four entries of a table sector, or null where the sector is no partition table. */
export function parseMbr(sector: Uint8Array): readonly MbrTableEntry[] | null {
	const view = viewOf(sector);
	if (Signature.read.magic(view, 0) !== 0xaa55) return null;
	const entries = [0, 1, 2, 3].map((index) => MbrEntry.at(view, ENTRIES_AT + index * MbrEntry.size));
	if (entries.some((entry) => entry.status !== 0 && entry.status !== 0x80)) return null;
	return entries;
}

export interface MbrTable {
	readonly partitions: readonly Partition[];
	readonly warnings: readonly string[];
	readonly identity: readonly ByteRange[];
}

/** Reads the partitions of a table sector, following its extended partitions. */
export async function readMbr(disk: ByteSource, entries: readonly MbrTableEntry[]): Promise<MbrTable> {
	const partitions: Partition[] = [];
	const warnings: string[] = [];
	const identity: ByteRange[] = [{ start: byteOffset(0), length: byteCount(SECTOR) }];
	const partition = (number: number, first: number, { type, sectorCount }: MbrTableEntry): Partition => ({
		id: `p${number}`,
		offset: byteOffset(first * SECTOR),
		size: byteCount(sectorCount * SECTOR),
		label: null,
		owner: ownerByMbrType(type),
	});
	const visited = new Set<number>([0]);
	let logicalNumber = 5;
	const followChain = async (number: number, extended: MbrTableEntry): Promise<void> => {
		let at = extended.firstSector;
		for (let links = 0; links <= MAX_LOGICAL; links++) {
			if (visited.has(at)) {
				warnings.push(`the chain of logical partitions in p${number} comes back to sector ${at}; what follows is kept`);
				return;
			}
			visited.add(at);
			if (
				(at + 1) * SECTOR > disk.size ||
				at < extended.firstSector ||
				at >= extended.firstSector + extended.sectorCount
			) {
				warnings.push(`the chain of logical partitions in p${number} leaves it at sector ${at}; what follows is kept`);
				return;
			}
			identity.push({ start: byteOffset(at * SECTOR), length: byteCount(SECTOR) });
			const links2 = parseMbr(await readBytes(disk, byteOffset(at * SECTOR), SECTOR));
			if (links2 === null) {
				// An extended partition that was just made holds no boot record yet: empty, not damaged.
				if (at !== extended.firstSector)
					warnings.push(`the chain of logical partitions in p${number} ends at sector ${at} without a boot record`);
				return;
			}
			for (const logical of links2)
				if (logical.type !== 0 && logical.sectorCount > 0 && !isExtended(logical.type))
					partitions.push(partition(logicalNumber++, at + logical.firstSector, logical));
			const next = links2.find((link) => isExtended(link.type) && link.sectorCount > 0);
			if (next === undefined) return;
			at = extended.firstSector + next.firstSector;
		}
		warnings.push(`p${number} holds more than ${MAX_LOGICAL} logical partitions; the rest is kept`);
	};
	for (const [index, entry] of entries.entries()) {
		if (entry.type === 0 || entry.sectorCount === 0) continue;
		if (isExtended(entry.type)) await followChain(index + 1, entry);
		else partitions.push(partition(index + 1, entry.firstSector, entry));
	}
	return { partitions, warnings, identity };
}
