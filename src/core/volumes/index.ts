// Volumes: finds out how a disk is divided. GPT behind a protective MBR, MBR with logical partitions, or nothing.
//
// A disk whose table is damaged or ambiguous is not divided at all: `refused` says why, and all of it is kept. The
// guest's kernel may see volumes there that this reader does not, and a wrong division could prove the wrong blocks free.

import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { readBytes } from "../../foundations/source.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import type { GptTable } from "./gpt.ts";
import { readGpt } from "./gpt.ts";
import { type MbrTableEntry, PROTECTIVE_TYPE, parseMbr, readMbr } from "./mbr.ts";
import type { Partition, PartitionTable } from "./partition.ts";

export type { Partition, PartitionTable } from "./partition.ts";

const SECTOR_SIZES = [512, 4096] as const;
const FIRST_SECTOR: ByteRange = { start: byteOffset(0), length: byteCount(512) };
/** First bytes of a disk: where both tables' first sectors lie, whatever the sector size. */
const HEAD_BYTES = 8192;

/** Reads the partition table of `disk`. Throws only what `disk` throws. */
export async function readPartitionTable(disk: ByteSource): Promise<PartitionTable> {
	const head: ByteRange = { start: byteOffset(0), length: byteCount(Math.min(HEAD_BYTES, disk.size)) };
	const none = (refused: string | null): PartitionTable => ({
		table: "none",
		partitions: [],
		refused,
		warnings: [],
		identity: [head],
		occupied: [],
	});
	if (disk.size < 1024) return none(null);

	const entries = parseMbr(await readBytes(disk, byteOffset(0), 512));
	const protective = entries?.some((entry) => entry.type === PROTECTIVE_TYPE) ?? false;
	const found: GptTable[] = [];
	let damage: string | null = null;
	for (const sectorSize of SECTOR_SIZES) {
		const gpt = await readGpt(disk, sectorSize);
		if (typeof gpt === "string") damage ??= gpt;
		else if (gpt !== null) found.push(gpt);
	}
	if (protective) {
		if (found.length === 0)
			return none(
				`the disk has a protective MBR but no valid GPT (${damage ?? "no signature"}); repair it with sgdisk or gdisk`,
			);
		if (found.length > 1)
			return none("the disk holds valid GPTs for sectors of both 512 and 4096 bytes; wipe the stale one");
		const gpt = found[0]!;
		const hybrid = (
			await readMbr(
				disk,
				entries!.filter((entry) => entry.type !== PROTECTIVE_TYPE),
			)
		).partitions;
		return {
			table: "gpt",
			refused: null,
			...besideHybrid(gpt, hybrid),
			identity: [head, ...gpt.identity],
			occupied: [FIRST_SECTOR, ...gpt.occupied],
		};
	}
	// Without a protective MBR kernels ignore a GPT; one whose first header is valid is more than a leftover at the end.
	if (found.some(({ isFirstValid }) => isFirstValid))
		return none(
			"the disk holds a GPT without a protective MBR; remove the stale table with wipefs, or repair it with gdisk",
		);
	const used = entries?.filter((entry) => entry.type !== 0 && entry.sectorCount > 0) ?? [];
	if (used.length === 0 || isPretence(used, disk.size)) return none(null);
	const mbr = await readMbr(disk, entries!);
	return {
		table: "mbr",
		partitions: mbr.partitions,
		refused: null,
		warnings: mbr.warnings,
		identity: [head, ...mbr.identity],
		occupied: mbr.identity,
	};
}

/** Sectors of a track, the most that an MBR can tell. mkfs.fat makes file systems of whole tracks. */
const TRACK_SECTORS = 63;

/**
 * True where a table divides nothing: one partition that begins with the table itself and has all of the disk but for a
 * part of a track. mkfs.fat (by itself on a disk that is no removable one) and isohybrid write one into the boot sector of a file
 * system that lies straight on the disk, for systems that insist on a table; either way of reading it leads to the same bytes.
 */
const isPretence = (used: readonly MbrTableEntry[], diskSize: number): boolean =>
	used.length === 1 && used[0]!.firstSector === 0 && used[0]!.sectorCount > diskSize / 512 - TRACK_SECTORS;

/** Entries of a hybrid MBR must repeat GPT partitions; any other is added, so that the overlap check keeps both whole. */
function besideHybrid(
	gpt: GptTable,
	hybrid: readonly Partition[],
): { partitions: readonly Partition[]; warnings: readonly string[] } {
	const foreign = hybrid.filter(
		(entry) => !gpt.partitions.some((p) => p.offset === entry.offset && p.size === entry.size),
	);
	if (foreign.length === 0) return { partitions: gpt.partitions, warnings: gpt.warnings };
	return {
		partitions: [...gpt.partitions, ...foreign.map((entry) => ({ ...entry, id: `mbr-${entry.id}` }))],
		warnings: [...gpt.warnings, "the MBR lists partitions that the GPT does not; what they overlap is kept"],
	};
}
