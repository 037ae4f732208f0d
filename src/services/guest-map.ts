// Reads the guest map of a disk: partition table, then each volume, then one list of extents over all of it.
//
//   readPartitionTable ─▶ volumes ─▶ signatures: one owner? ─▶ its reader ─▶ free runs ─┐
//                                                                extents of the disk ◀─┘
//
// Each volume is read by itself and with a budget of bytes: a damaged or hostile volume is kept whole, and never
// spoils the next one. Overlapping partitions are kept whole, all of them.

import { findSignatures, signatureRanges } from "../core/filesystems/signatures.ts";
import type { Partition } from "../core/volumes/index.ts";
import { readPartitionTable } from "../core/volumes/index.ts";
import { isVmsweepError } from "../foundations/errors.ts";
import type { ByteRange, Extent, FileSystemMap, GuestMap, VolumeMap } from "../foundations/guest-map.ts";
import type { ByteSource } from "../foundations/source.ts";
import { metered, slice } from "../foundations/source.ts";
import type { ByteCount } from "../foundations/units.ts";
import { byteCount, byteOffset } from "../foundations/units.ts";
import { fileSystemReaders } from "./file-systems.ts";

/** Partition tables are small; this stops a chain that leads all over the disk. */
const TABLE_BUDGET = 16 << 20;

export interface GuestMapOptions {
	/** See {@link ReadOptions}. Default: false. */
	readonly vmOff?: boolean;
	/** Bytes that one volume's metadata may cost. Default: by size, generous for the smallest blocks and a large journal. */
	readonly volumeBudget?: ByteCount;
}

/** A volume with the free runs that its reader found. */
interface Found {
	readonly volume: VolumeMap;
	/** Bytes from the volume's start in which `used` and `free` are known; behind it, `unknown`. */
	readonly known: number;
	readonly freeRuns: FileSystemMap["freeRuns"];
}

/** A volume by its place and the marks in it, its metadata not read yet. */
export interface IdentifiedVolume extends Partition {
	/** Clipped to the disk. */
	readonly size: ByteCount;
	/** `ext`, or the name of what is known by its mark only, or `unknown`. */
	readonly type: string;
	/** Why the whole volume is kept, in one sentence; null where a reader may look inside. */
	readonly kept: string | null;
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
	const whole: Partition = { id: "disk", offset: byteOffset(0), size: byteCount(disk.size), label: null };
	const volumes: IdentifiedVolume[] = [];
	if (table.refused !== null) volumes.push({ ...whole, type: "unknown", kept: table.refused });
	else if (table.table === "none") {
		if (disk.size > 0) volumes.push(await classify(disk, whole));
	} else {
		// A file system straight on a partitioned disk: one of the two is stale, and nothing says which.
		const straight = (await findSignatures(disk)).includes("ext");
		for (const [index, partition] of table.partitions.entries()) {
			const why = straight
				? "the disk also holds a file system of its own outside the partitions; wipe the stale one"
				: misplaced(table.partitions, index, disk.size);
			const size = clipped(partition, disk.size);
			volumes.push(why === null ? await classify(disk, partition) : { ...partition, size, type: "unknown", kept: why });
		}
	}
	return {
		table: table.table,
		volumes,
		warnings: table.warnings,
		identity: [...table.identity, ...volumes.flatMap(identityOf)],
	};
}

/** Whose marks are in a volume. Exactly one owner is believed. */
async function classify(disk: ByteSource, partition: Partition): Promise<IdentifiedVolume> {
	const [owner, ...others] = await findSignatures(slice(disk, partition.offset, partition.size));
	if (owner === undefined) return { ...partition, type: "unknown", kept: "nothing known is in it" };
	if (others.length > 0) {
		const all = [owner, ...others].map((type) => (type === "ext" ? "ext2/3/4" : type)).join(" and ");
		return { ...partition, type: "unknown", kept: `it has the marks of ${all}; wipe the stale one with wipefs` };
	}
	return { ...partition, type: owner, kept: fileSystemReaders.has(owner) ? null : `${owner} is not read yet` };
}

/**
 * Reads the map of a whole disk. Reads metadata only and changes nothing. Throws IO where the disk cannot be read;
 * what is damaged, hostile or not understood is kept, and said in `kept` and `warnings`.
 */
export async function readGuestMap(disk: ByteSource, options: GuestMapOptions = {}): Promise<GuestMap> {
	const meter = metered(disk, byteCount(Number.MAX_SAFE_INTEGER));
	const { table, volumes, warnings, identity } = await identifyVolumes(meter);
	const found: Found[] = [];
	for (const volume of volumes) found.push(await readVolume(meter, volume, options));
	const ordered = [...found].sort((a, b) => a.volume.offset - b.volume.offset);
	return {
		size: disk.size,
		table,
		volumes: found.map(({ volume }) => volume),
		warnings,
		extents: { [Symbol.iterator]: () => walkExtents(ordered, disk.size) },
		identity,
		bytesRead: meter.bytesRead,
		reads: meter.reads,
	};
}

/** How much of a partition lies on the disk. */
const clipped = (partition: Partition, diskSize: number): ByteCount =>
	byteCount(Math.max(0, Math.min(partition.size, diskSize - partition.offset)));

/** Why a partition's place forbids to look inside, or null. */
function misplaced(partitions: readonly Partition[], index: number, diskSize: number): string | null {
	const partition = partitions[index]!;
	if (partition.offset + partition.size > diskSize)
		return "it reaches past the end of the disk; repair the partition table";
	const other = partitions.find(
		(each, at) =>
			at !== index && each.offset < partition.offset + partition.size && partition.offset < each.offset + each.size,
	);
	return other === undefined ? null : `it overlaps ${other.id}; repair the partition table`;
}

/** The metadata of a volume costs a bit per block and its journal; eight times that and a large journal stop only hostile ones. */
const budgetOf = (size: number): ByteCount => byteCount(Math.ceil(size / 1024) + 3 * 2 ** 30);

async function readVolume(disk: ByteSource, identified: IdentifiedVolume, options: GuestMapOptions): Promise<Found> {
	if (identified.kept !== null) return keptWhole(identified, identified.type, identified.kept);
	const budget = options.volumeBudget ?? budgetOf(identified.size);
	const source = metered(slice(disk, identified.offset, identified.size), budget);
	try {
		const map = await fileSystemReaders.get(identified.type)!(source, { vmOff: options.vmOff ?? false });
		if (map === null) return keptWhole(identified, "unknown", "its superblock disappeared while it was read");
		const { freeRuns, size, ...facts } = map;
		const { id, offset } = identified;
		const volume: VolumeMap = { id, offset, ...facts, size: identified.size, children: [] };
		return { volume, known: map.kept === null ? size : 0, freeRuns };
	} catch (error) {
		// What the metadata leads to, not what the disk fails at: keep this volume and go on with the next.
		if (
			isVmsweepError(error) &&
			(error.kind === "corrupt" || error.kind === "unsupported" || error.code === "OUT_OF_RANGE")
		)
			return keptWhole(identified, "unknown", error.message);
		throw error;
	}
}

function keptWhole({ id, offset, size, label }: IdentifiedVolume, type: string, kept: string): Found {
	const unknown = {
		uuid: null,
		label,
		state: "unknown",
		blockSize: null,
		usedBytes: null,
		freeBytes: null,
		children: [],
	} as const;
	return { volume: { id, offset, size, type, ...unknown, kept, warnings: [] }, known: 0, freeRuns: () => [] };
}

const identityOf = ({ offset, size }: IdentifiedVolume): ByteRange[] =>
	size <= 0 ? [] : signatureRanges(size).map(({ start, length }) => ({ start: byteOffset(offset + start), length }));

/** Walks the disk once: gaps and kept volumes as `unknown`, the others as alternating used and free runs. */
function* walkExtents(found: readonly Found[], diskSize: number): Generator<Extent> {
	let cursor = 0;
	const extent = (end: number, state: Extent["state"], volume: string | null): Extent => {
		const start = cursor;
		cursor = end;
		return { start: byteOffset(start), length: byteCount(end - start), state, volume };
	};
	for (const { volume, known, freeRuns } of found) {
		const start = Math.max(cursor, volume.offset);
		const end = Math.min(diskSize, volume.offset + volume.size);
		if (end <= start) continue;
		if (start > cursor) yield extent(start, "unknown", null);
		const knownEnd = Math.min(end, volume.offset + known);
		if (knownEnd > start) {
			for (const run of freeRuns(byteOffset(start - volume.offset), byteOffset(knownEnd - volume.offset))) {
				const freeStart = volume.offset + run.start;
				if (freeStart > cursor) yield extent(freeStart, "used", volume.id);
				yield extent(freeStart + run.length, "free", volume.id);
			}
			if (knownEnd > cursor) yield extent(knownEnd, "used", volume.id);
		}
		if (end > cursor) yield extent(end, "unknown", volume.id);
	}
	if (cursor < diskSize) yield extent(diskSize, "unknown", null);
}
