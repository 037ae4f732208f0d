// Reads the guest map of a disk: its volumes, what each one uses, and one list of extents over all of it.
//
//   identifyVolumes ─▶ volumes ─▶ their readers ─▶ free runs of each ─▶ extents of the disk
//
// Each volume is read by itself and with a budget of bytes: a damaged or hostile volume is kept whole, and never
// spoils the next one. Overlapping partitions are kept whole, all of them.

import { isVolumeError } from "../core/filesystems/kept-volume.ts";
import type { Area } from "../core/volumes/areas.ts";
import { cutOut } from "../core/volumes/pieces.ts";
import type { ByteRange, GuestMap, VolumeMap } from "../foundations/guest-map.ts";
import type { ByteSource } from "../foundations/source.ts";
import { metered } from "../foundations/source.ts";
import type { ByteCount } from "../foundations/units.ts";
import { byteCount, byteOffset } from "../foundations/units.ts";
import type { Content, Piece } from "./disk-extents.ts";
import { walkExtents } from "./disk-extents.ts";
import { fileSystemReaders } from "./file-systems.ts";
import type { IdentifiedVolume } from "./identify-volumes.ts";
import { contentOf, identifyVolumes } from "./identify-volumes.ts";

export interface GuestMapOptions {
	/** See {@link ReadOptions}. Default: false. */
	readonly vmOff?: boolean;
	/** Bytes that one volume's metadata may cost. Default: by size, generous for the smallest blocks and a large journal. */
	readonly volumeBudget?: ByteCount;
	/**
	 * Do not count the extents of a volume group as free that no logical volume has. Without them `vgcfgrestore` brings
	 * back a removed logical volume's name, but not its content. Default: false.
	 */
	readonly keepFreeExtents?: boolean;
}

/** A volume with what its reader found out. */
interface Found {
	readonly volume: VolumeMap;
	/** See {@link FileSystemMap.isAsleep}. */
	readonly isAsleep: boolean;
	readonly content: Content;
	readonly areas: readonly Area[];
	readonly children: readonly Found[];
}

/**
 * Reads the map of a whole disk. Reads metadata only and changes nothing. Throws IO where the disk cannot be read;
 * what is damaged, hostile or not understood is kept, and said in `kept` and `warnings`.
 */
export async function readGuestMap(disk: ByteSource, options: GuestMapOptions = {}): Promise<GuestMap> {
	const meter = metered(disk, byteCount(Number.MAX_SAFE_INTEGER));
	const { table, volumes, warnings, identity } = await identifyVolumes(meter);
	const found = keptForSleeper(await readAll(meter, volumes, options));
	const pieces = piecesOf(found);
	return {
		size: disk.size,
		table,
		volumes: found.map(({ volume }) => volume),
		warnings,
		extents: { [Symbol.iterator]: () => walkExtents(pieces, disk.size) },
		identity,
		bytesRead: meter.bytesRead,
		reads: meter.reads,
	};
}

/** A hibernated system has all its file systems in memory, not only the one in which it sleeps. */
function keptForSleeper(found: readonly Found[]): readonly Found[] {
	const sleeper = allFound(found).find(({ isAsleep }) => isAsleep);
	if (sleeper === undefined) return found;
	const why = `a hibernated system lies in ${sleeper.volume.id}; start the guest and shut it down`;
	const keep = (each: Found): Found => {
		const children = each.children.map(keep);
		const { neverUsedBytes: _, ...facts } = each.volume;
		const volume = { ...facts, children: children.map((child) => child.volume) };
		if (volume.kept !== null) return { ...each, volume, children };
		const content = { id: volume.id, known: 0, freeRuns: () => [], neverUsed: undefined };
		return { ...each, volume: { ...volume, usedBytes: null, freeBytes: null, kept: why }, content, children };
	};
	return found.map(keep);
}

const allFound = (found: readonly Found[]): Found[] => found.flatMap((each) => [each, ...allFound(each.children)]);

async function readAll(
	disk: ByteSource,
	volumes: readonly IdentifiedVolume[],
	options: GuestMapOptions,
): Promise<Found[]> {
	const found: Found[] = [];
	for (const volume of volumes) found.push(await readVolume(disk, volume, options));
	return found;
}

/** The metadata of a volume costs a bit per block and its journal; eight times that and a large journal stop only hostile ones. */
const budgetOf = (size: number): ByteCount => byteCount(Math.ceil(size / 1024) + 3 * 2 ** 30);

async function readVolume(disk: ByteSource, identified: IdentifiedVolume, options: GuestMapOptions): Promise<Found> {
	if (identified.type === "lvm-pv") return await readPhysicalVolume(disk, identified, options);
	if (identified.kept !== null) return keptWhole(identified, identified.type, identified.kept);
	const source = metered(contentOf(disk, identified), options.volumeBudget ?? budgetOf(identified.size));
	try {
		const map = await fileSystemReaders.get(identified.type)!(source, { vmOff: options.vmOff ?? false });
		if (map === null) return keptWhole(identified, "unknown", "its superblock disappeared while it was read");
		const { freeRuns, neverUsed, size: covered, isAsleep = false, ...facts } = map;
		const { id, offset, size, areas } = identified;
		const neverUsedBytes = neverUsed === undefined || map.kept !== null ? 0 : neverUsed.bytes;
		return {
			volume: {
				id,
				offset,
				...facts,
				size,
				...(neverUsedBytes > 0 ? { neverUsedBytes: byteCount(neverUsedBytes) } : {}),
				children: [],
			},
			isAsleep,
			content: { id, known: map.kept === null ? covered : 0, freeRuns, neverUsed },
			areas,
			children: [],
		};
	} catch (error) {
		// What the metadata leads to, not what the disk fails at: keep this volume and go on with the next.
		if (isVolumeError(error)) return keptWhole(identified, "unknown", error.message);
		throw error;
	}
}

/** A physical volume of LVM: its free space is what no logical volume has, and those are volumes of their own. */
async function readPhysicalVolume(
	disk: ByteSource,
	identified: IdentifiedVolume,
	options: GuestMapOptions,
): Promise<Found> {
	const children = await readAll(disk, identified.children, options);
	const wish = options.keepFreeExtents === true ? "its free extents are kept, as asked" : null;
	const kept = identified.kept ?? wish;
	const whole = keptWhole(identified, identified.type, kept ?? "");
	const inside = { ...whole.volume, children: children.map(({ volume }) => volume) };
	if (kept !== null) return { ...whole, volume: inside, children };
	const { id, size, unallocated } = identified;
	const freeBytes = unallocated.reduce((sum, { length }) => sum + length, 0);
	const freeRuns: Content["freeRuns"] = (from, to) => within(unallocated, from, to);
	return {
		volume: {
			...inside,
			state: "clean",
			usedBytes: byteCount(size - freeBytes),
			freeBytes: byteCount(freeBytes),
			kept,
		},
		isAsleep: false,
		content: { id, known: size, freeRuns, neverUsed: undefined },
		areas: identified.areas,
		children,
	};
}

/** The parts of sorted ranges inside `[from, to)`. */
function* within(ranges: readonly ByteRange[], from: number, to: number): Generator<ByteRange> {
	for (const { start, length } of ranges) {
		const first = Math.max(start, from);
		const end = Math.min(start + length, to);
		if (end > first) yield { start: byteOffset(first), length: byteCount(end - first) };
	}
}

function keptWhole(identified: IdentifiedVolume, type: string, kept: string): Found {
	const { id, offset, size, label, uuid, areas } = identified;
	const unknown = {
		state: "unknown",
		blockSize: null,
		usedBytes: null,
		freeBytes: null,
		children: [],
		warnings: [],
	} as const;
	return {
		volume: { id, offset, size, type, uuid, label, ...unknown, kept },
		isAsleep: false,
		content: { id, known: 0, freeRuns: () => [], neverUsed: undefined },
		areas,
		children: [],
	};
}

/** The volumes' parts in the disk's order. Those of inner volumes are cut out of the volume that holds them. */
function piecesOf(found: readonly Found[]): Piece[] {
	const inner = found.flatMap(({ children }) => children).flatMap(ownPieces);
	inner.sort(byPlace);
	const holes = inner.map(({ area }) => area);
	const outer = found.flatMap(({ content, areas }) => cutOut(areas, holes).map((area) => ({ content, area })));
	return [...inner, ...outer].sort(byPlace);
}

const byPlace = (a: Piece, b: Piece): number => a.area.diskStart - b.area.diskStart;

const ownPieces = ({ content, areas }: Found): Piece[] => areas.map((area) => ({ content, area }));
