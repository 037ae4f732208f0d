// Identifies volumes: how a disk is divided, and by their marks, what its volumes seem to be. No file system is read.
//
//   partition table ─▶ partitions ─▶ marks: exactly one owner? ─▶ LVM ─▶ logical volumes ─▶ marks again
//
// Volumes lie inside each other to one level: logical volumes in a partition, or in the disk. What is divided once
// more (a partition table in a logical volume, LVM in LVM) is named and kept whole.

import { readOwnerNames } from "../core/filesystems/owner-names.ts";
import { findMarks, findSignatures, signatureRanges } from "../core/filesystems/signatures.ts";
import type { Area } from "../core/volumes/areas.ts";
import { assembled, linearArea, rangesOnDisk } from "../core/volumes/areas.ts";
import type { Partition, PartitionTable } from "../core/volumes/index.ts";
import { readPartitionTable } from "../core/volumes/index.ts";
import type { LogicalVolume } from "../core/volumes/lvm/index.ts";
import { readLvm } from "../core/volumes/lvm/index.ts";
import type { ByteRange, GuestMap } from "../foundations/guest-map.ts";
import type { ByteSource } from "../foundations/source.ts";
import { metered, slice } from "../foundations/source.ts";
import type { ByteCount } from "../foundations/units.ts";
import { byteCount, byteOffset } from "../foundations/units.ts";
import { fileSystemReaders } from "./file-systems.ts";

/** Partition tables are small; this stops a chain that leads all over the disk. */
const TABLE_BUDGET = 16 << 20;
/** The metadata of a physical volume: some copies of a few MiB. */
const LVM_BUDGET = 64 << 20;

/** A volume by its place and the marks in it, its metadata not read yet. */
export interface IdentifiedVolume extends Partition {
	/** Clipped to the disk. */
	readonly size: ByteCount;
	readonly uuid: string | null;
	/** `ext`, or the name of what is known by its mark only, or `unknown`. */
	readonly type: string;
	/** Why the whole volume is kept, in one sentence; null where a reader may look inside. */
	readonly kept: string | null;
	/** Where its bytes lie on the disk; all of them where `kept` is null. */
	readonly areas: readonly Area[];
	/** Logical volumes of a physical volume. */
	readonly children: readonly IdentifiedVolume[];
	/** Of a physical volume: what no logical volume has, in order; counted from its start. */
	readonly unallocated: readonly ByteRange[];
	/** Of a physical volume: LVM's metadata in its own words, which change with every change of it; null for none. */
	readonly metadata: string | null;
}

/** How a disk is divided, and what its volumes seem to be. */
export interface IdentifiedDisk {
	readonly table: GuestMap["table"];
	readonly volumes: readonly IdentifiedVolume[];
	readonly warnings: readonly string[];
	/** See {@link GuestMap.identity}. */
	readonly identity: readonly ByteRange[];
}

/** Reads the partition table and looks for marks; costs some hundred KiB. Throws IO where the disk cannot be read. */
export async function identifyVolumes(disk: ByteSource): Promise<IdentifiedDisk> {
	const table = await readPartitionTable(metered(disk, byteCount(TABLE_BUDGET)));
	const { volumes, identity } = await lookIntoLvm(disk, await topLevel(disk, table));
	return {
		table: table.table,
		volumes,
		warnings: table.warnings,
		identity: [...table.identity, ...betweenPartitions(disk, table), ...volumes.flatMap(identityOf), ...identity],
	};
}

/** Places of marks on the disk itself, as far as they are not in a partition. */
function betweenPartitions(disk: ByteSource, { table, partitions }: PartitionTable): readonly ByteRange[] {
	if (table === "none") return [];
	return signatureRanges(disk.size).filter(
		({ start, length }) => !partitions.some(({ offset, size }) => offset <= start && start + length <= offset + size),
	);
}

/** The bytes of a volume that may be looked into, as a source of their own. */
export const contentOf = (disk: ByteSource, { areas, size }: Pick<IdentifiedVolume, "areas" | "size">): ByteSource =>
	areas.length === 1 && areas[0]!.stripes === 1 ? slice(disk, areas[0]!.diskStart, size) : assembled(disk, areas, size);

async function topLevel(disk: ByteSource, table: PartitionTable): Promise<IdentifiedVolume[]> {
	const whole: Partition = { id: "disk", offset: byteOffset(0), size: byteCount(disk.size), label: null, owner: null };
	const refused = table.refused ?? tooMany(table.partitions);
	if (refused !== null) return [keptAt(whole, refused)];
	if (table.table === "none") return disk.size > 0 ? [await classify(disk, placed(whole))] : [];
	const volumes: IdentifiedVolume[] = [];
	const straight = await findStraight(disk, table.partitions);
	for (const [index, partition] of table.partitions.entries()) {
		const clipped = { ...partition, size: byteCount(sizeOnDisk(partition, disk.size)) };
		const why =
			straight.length > 0
				? `the disk also has the marks of ${named(straight)} outside its partitions; wipe the stale one with wipefs`
				: misplaced(table, index, disk.size);
		volumes.push(why === null ? ownedBy(partition, await classify(disk, placed(clipped))) : keptAt(clipped, why));
	}
	return volumes;
}

/** What the partition's type says goes before what the marks inside say. */
const ownedBy = ({ owner }: Partition, volume: IdentifiedVolume): IdentifiedVolume =>
	owner === null || volume.kept !== null
		? volume
		: { ...volume, kept: `the partition's type says that it belongs to ${owner}, whose volumes are not read` };

/** Owners straight on a partitioned disk, outside of all partitions: those or the table are stale, and nothing says which. */
async function findStraight(disk: ByteSource, partitions: readonly Partition[]): Promise<string[]> {
	const outside = (await findMarks(disk)).filter(
		({ start, length }) => !partitions.some(({ offset, size }) => offset <= start && start + length <= offset + size),
	);
	return [...new Set(outside.map(({ type }) => type))];
}

/** How much of a partition lies on the disk. */
const sizeOnDisk = (partition: Partition, diskSize: number): number =>
	Math.max(0, Math.min(partition.size, diskSize - partition.offset));

/** Why a partition's place forbids to look inside, or null. */
function misplaced({ partitions, occupied }: PartitionTable, index: number, diskSize: number): string | null {
	const partition = partitions[index]!;
	if (partition.offset + partition.size > diskSize)
		return "it reaches past the end of the disk; repair the partition table";
	const other = partitions.find((each, at) => at !== index && overlap(each.offset, each.size, partition));
	if (other !== undefined) return `it overlaps ${other.id}; repair the partition table`;
	return occupied.some(({ start, length }) => overlap(start, length, partition))
		? "it overlaps the partition table itself; repair that"
		: null;
}

const overlap = (start: number, length: number, { offset, size }: Partition): boolean =>
	start < offset + size && offset < start + length;

/** Linux shows no more partitions than this (`DISK_MAX_PARTS`). */
const MAX_PARTITIONS = 256;
const tooMany = ({ length }: readonly Partition[]): string | null =>
	length > MAX_PARTITIONS ? `its partition table lists ${length} partitions; at most ${MAX_PARTITIONS} are read` : null;

type Unclassified = Omit<IdentifiedVolume, "type" | "kept">;

const placed = (partition: Partition): Unclassified => ({
	...partition,
	uuid: null,
	areas: partition.size > 0 ? [linearArea(partition.offset, partition.size)] : [],
	children: [],
	unallocated: [],
	metadata: null,
});

const keptAt = (partition: Partition, kept: string): IdentifiedVolume => ({
	...placed(partition),
	type: "unknown",
	kept,
});

/** Whose marks are in a volume. Exactly one owner is believed. */
async function classify(disk: ByteSource, volume: Unclassified): Promise<IdentifiedVolume> {
	const content = contentOf(disk, volume);
	const owners = await findSignatures(content);
	const [owner] = owners;
	if (owner === undefined) {
		const divided = volume.id !== "disk" && (await isDivided(content));
		const kept = divided ? "a partition table is inside, and partitions there are not read" : "nothing known is in it";
		return { ...volume, type: "unknown", kept };
	}
	if (owners.length > 1)
		return {
			...volume,
			type: "unknown",
			kept: `it has the marks of ${named(owners)}; wipe the stale one with wipefs`,
		};
	if (!BOOT_SECTOR_OWNERS.has(owner) && volume.id !== "disk" && (await isDivided(content)))
		return {
			...volume,
			type: "unknown",
			kept: `it has the marks of ${named(owners)}, and a partition table is inside`,
		};
	if (owner === LVM || fileSystemReaders.has(owner)) return { ...volume, type: owner, kept: null };
	const { uuid, label } = await readOwnerNames(content, owner);
	return {
		...volume,
		uuid: uuid ?? volume.uuid,
		label: label ?? volume.label,
		type: owner,
		kept: `the content of ${owner} is not read`,
	};
}

const LVM = "lvm-pv";
/** Their first sector carries boot code where a table would be, and ends as one does. */
const BOOT_SECTOR_OWNERS: ReadonlySet<string> = new Set(["vfat", "ntfs", "exfat", "refs", "bitlocker"]);

/** True where a partition table is in a volume, be it damaged. */
async function isDivided(content: ByteSource): Promise<boolean> {
	const { table, refused } = await readPartitionTable(metered(content, byteCount(TABLE_BUDGET)));
	return table !== "none" || refused !== null;
}

const named = (types: readonly string[]): string =>
	types.map((type) => (type === "ext" ? "ext2/3/4" : type)).join(" and ");

/** Finds the logical volumes of all physical volumes together, since a group may have several. */
async function lookIntoLvm(
	disk: ByteSource,
	volumes: readonly IdentifiedVolume[],
): Promise<{ volumes: readonly IdentifiedVolume[]; identity: readonly ByteRange[] }> {
	const candidates = volumes.filter(({ type, kept }) => type === LVM && kept === null);
	if (candidates.length === 0) return { volumes, identity: [] };
	const physical = await readLvm(
		candidates.map((volume) => ({
			id: volume.id,
			offset: volume.offset,
			source: metered(contentOf(disk, volume), byteCount(LVM_BUDGET)),
		})),
	);
	const found = new Map<string, IdentifiedVolume>();
	for (const [index, { uuid, group, kept, free, text, logicalVolumes }] of physical.entries()) {
		const volume = candidates[index]!;
		const children: IdentifiedVolume[] = [];
		for (const logical of logicalVolumes) children.push(await identifyLogical(disk, volume, logical));
		const label = group ?? volume.label;
		found.set(volume.id, { ...volume, uuid, label, kept, children, unallocated: free, metadata: text });
	}
	return {
		volumes: volumes.map((volume) => found.get(volume.id) ?? volume),
		identity: physical.flatMap(({ identity }, index) =>
			identity.flatMap((range) => rangesOnDisk(candidates[index]!.areas, range)),
		),
	};
}

async function identifyLogical(
	disk: ByteSource,
	home: IdentifiedVolume,
	{ name, uuid, size, type, kept, areas }: LogicalVolume,
): Promise<IdentifiedVolume> {
	const first = areas.find(({ volumeStart, stripeIndex }) => volumeStart === 0 && stripeIndex === 0);
	const volume: Unclassified = {
		id: `${home.id}/${name}`,
		offset: first?.diskStart ?? home.offset,
		size,
		label: null,
		owner: null,
		uuid,
		areas,
		children: [],
		unallocated: [],
		metadata: null,
	};
	if (kept !== null) return { ...volume, type: type ?? "unknown", kept };
	const identified = await classify(disk, volume);
	return identified.type === LVM ? { ...identified, kept: "LVM inside a logical volume is not read" } : identified;
}

/** Where the marks of a volume and of those inside it may stand, on the disk. */
function identityOf({ size, areas, children }: IdentifiedVolume): ByteRange[] {
	const own = size <= 0 ? [] : signatureRanges(size).flatMap((range) => rangesOnDisk(areas, range));
	return [...own, ...children.flatMap(identityOf)];
}
