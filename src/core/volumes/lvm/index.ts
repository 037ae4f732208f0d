// LVM2: which logical volumes a disk's physical volumes hold, where their bytes lie, and which extents nobody has.
//
//   physical volumes of the disk ─▶ labels, texts ─▶ groups whose members are all here ─▶ areas of logical volumes
//
// Invariants
//  - a group is read only where all of its physical volumes are on this disk, each once, and say the same: what lies
//    on another disk may have changed while this one was away
//  - where anything about a group is in doubt, its logical volumes are named and kept, and its free extents too
//  - labels, metadata areas, what lies before the first extent and behind the last one are never free

import { isVmsweepError } from "../../../foundations/errors.ts";
import type { ByteRange } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../../foundations/units.ts";
import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { Area } from "../areas.ts";
import { type PhysicalVolumeHeader, readPhysicalVolume } from "./physical-volume.ts";
import { type GroupMember, type LogicalVolumeText, parseGroup, type VolumeGroup } from "./volume-group.ts";

/** A volume with LVM's mark, and where it lies. */
export interface PhysicalVolumeAt {
	readonly id: string;
	/** Byte position on the disk. */
	readonly offset: ByteOffset;
	readonly source: ByteSource;
}

/** What a physical volume holds. Ranges count from its start. */
export interface PhysicalVolume {
	readonly id: string;
	readonly uuid: string | null;
	/** The name of its volume group. */
	readonly group: string | null;
	/** Its group's metadata as it holds it; null where it holds none. Tells one state of LVM from every other. */
	readonly text: string | null;
	/** Where its metadata areas start: a header there is what commits a text. */
	readonly headers: readonly ByteOffset[];
	/** Why its free extents are kept while the VM runs, or null; `kept` comes first. */
	readonly keptLive: string | null;
	/** Why its free extents are kept (and with a damaged group all else), or null. */
	readonly kept: string | null;
	/** Extents that no logical volume has, merged, in order. Also told where they are to be kept. */
	readonly free: readonly ByteRange[];
	readonly identity: readonly ByteRange[];
	/** Those whose first byte lies here. */
	readonly logicalVolumes: readonly LogicalVolume[];
}

export interface LogicalVolume {
	/** `vg0/root` */
	readonly name: string;
	readonly uuid: string;
	readonly size: ByteCount;
	/** `lvm-thin`, `lvm-raid1`, …; null where its content says what it is. */
	readonly type: string | null;
	/** Why nobody may look inside, or null. */
	readonly kept: string | null;
	/** Where it lies; all of it where `kept` is null. */
	readonly areas: readonly Area[];
}

/** A physical volume while its group is looked for. */
interface Candidate extends PhysicalVolumeAt {
	readonly header: PhysicalVolumeHeader | null;
	readonly damage: string | null;
}

/** A physical volume in the place that its group gave it. */
interface Placed {
	readonly candidate: Candidate;
	readonly member: GroupMember;
}

/** Reads all volumes of a disk that have LVM's mark. Throws only what the disk throws (IO, READ_BUDGET). */
export async function readLvm(volumes: readonly PhysicalVolumeAt[]): Promise<PhysicalVolume[]> {
	const candidates: Candidate[] = [];
	for (const volume of volumes) candidates.push(await readCandidate(volume));
	const groups = readGroups(candidates);
	return candidates.map((candidate) => describe(candidate, candidates, groups));
}

async function readCandidate(volume: PhysicalVolumeAt): Promise<Candidate> {
	try {
		return { ...volume, header: await readPhysicalVolume(volume.source), damage: null };
	} catch (error) {
		return { ...volume, header: null, damage: damageOf(error) };
	}
}

/** The sentence of an error that the bytes caused; others are thrown on. */
function damageOf(error: unknown): string {
	if (isVmsweepError(error) && (error.kind === "corrupt" || error.kind === "unsupported")) return error.message;
	throw error;
}

/** The groups by their text; words where a text makes no sense. */
function readGroups(candidates: readonly Candidate[]): ReadonlyMap<string, VolumeGroup | string> {
	const groups = new Map<string, VolumeGroup | string>();
	for (const { header } of candidates) {
		const text = header?.text;
		if (text == null || groups.has(text)) continue;
		try {
			groups.set(text, parseGroup(text));
		} catch (error) {
			groups.set(text, damageOf(error));
		}
	}
	return groups;
}

function describe(
	candidate: Candidate,
	candidates: readonly Candidate[],
	groups: ReadonlyMap<string, VolumeGroup | string>,
): PhysicalVolume {
	const { id, header } = candidate;
	const alone = (kept: string, group: string | null = null): PhysicalVolume => ({
		id,
		uuid: header?.uuid ?? null,
		group,
		text: header?.text ?? null,
		headers: [],
		keptLive: null,
		kept,
		free: [],
		identity: header?.identity ?? [],
		logicalVolumes: [],
	});
	if (header === null) return alone(candidate.damage!);
	const group = groupOf(header, groups);
	if (group === null)
		return alone(
			header.inGroup
				? "its volume group's metadata is not on this disk"
				: "it is a physical volume of LVM without a volume group",
		);
	if (typeof group === "string") return alone(group);
	const placed = placeMembers(group, candidates);
	const own = placed.find((each) => each.candidate === candidate);
	if (own === undefined) return alone(`its volume group ${group.name} does not know it`, group.name);
	const misplaced = whyMisplaced(group, placed, groups);
	const kept = misplaced ?? group.kept;
	const logicalVolumes = group.logicalVolumes
		.map((volume) => locate(group, volume, misplaced === null ? placed : [], kept))
		.filter(({ areas }) => homeOf(areas, placed) === own);
	return {
		id,
		uuid: header.uuid,
		group: group.name,
		text: header.text,
		headers: header.metadataAreas.map(({ start }) => start),
		keptLive: whyKeptLive(group),
		kept: kept ?? group.freeKept,
		free: misplaced === null ? freeExtents(own.member, group.extentBytes) : [],
		identity: header.identity,
		logicalVolumes,
	};
}

/** Where metadata areas of several disks, or of several hosts, say what is free, the order of their writes proves nothing here. */
function whyKeptLive({ name, physicalVolumes, systemId }: VolumeGroup): string | null {
	if (physicalVolumes.size > 1)
		return `its volume group ${name} has several physical volumes, whose free extents are kept while the VM runs`;
	return systemId === "" ? null : `its volume group ${name} belongs to the host ${systemId}`;
}

/** The group that a physical volume is in; null where its text is not on this disk. */
function groupOf(
	{ text, uuid }: PhysicalVolumeHeader,
	groups: ReadonlyMap<string, VolumeGroup | string>,
): VolumeGroup | string | null {
	if (text !== null) return groups.get(text)!;
	for (const group of groups.values())
		if (typeof group !== "string" && [...group.physicalVolumes.values()].some((member) => member.uuid === uuid))
			return group;
	return null;
}

/** Finds a group's members among the disk's physical volumes. */
function placeMembers(group: VolumeGroup, candidates: readonly Candidate[]): Placed[] {
	const placed: Placed[] = [];
	for (const member of group.physicalVolumes.values())
		for (const candidate of candidates) if (candidate.header?.uuid === member.uuid) placed.push({ candidate, member });
	return placed;
}

/** Why nothing can be said about where the group's extents lie, or null. */
function whyMisplaced(
	group: VolumeGroup,
	placed: readonly Placed[],
	groups: ReadonlyMap<string, VolumeGroup | string>,
): string | null {
	const same = [...groups.values()].filter((each) => typeof each !== "string" && each.id === group.id);
	if (same.length > 1) return `its volume group ${group.name} is described in two ways; run vgck --updatemetadata`;
	if (placed.length < group.physicalVolumes.size)
		return `its volume group ${group.name} has physical volumes that are not on this disk`;
	if (new Set(placed.map(({ member }) => member)).size < placed.length)
		return `its volume group ${group.name} has a physical volume that is on this disk twice`;
	for (const { candidate, member } of placed) {
		const { header, source } = candidate;
		if (groupOf(header!, groups) !== group) return `${candidate.id} is in two volume groups`;
		const end = member.startBytes + member.extentCount * group.extentBytes;
		if (header!.dataStart !== member.startBytes) return `${candidate.id} and its volume group disagree on its extents`;
		if (!(end <= source.size)) return `the extents of ${candidate.id} reach past its end`;
		for (const { start, length } of header!.identity)
			if (start < end && member.startBytes < start + length)
				return `the extents of ${candidate.id} overlap its LVM metadata`;
	}
	return null;
}

/** A logical volume with its place on the disk. Where `placed` is empty, it has none. */
function locate(
	group: VolumeGroup,
	text: LogicalVolumeText,
	placed: readonly Placed[],
	groupKept: string | null,
): LogicalVolume {
	const { extentBytes } = group;
	const areas: Area[] = [];
	let kept = groupKept ?? text.kept;
	for (const segment of placed.length === 0 ? [] : text.segments) {
		const length = segment.stripeExtents * extentBytes;
		const stripes = segment.areas.length;
		if (stripes > 1 && !(segment.stripeBytes > 0 && length % segment.stripeBytes === 0))
			kept ??= `its stripes of ${segment.stripeBytes} bytes do not fit its extents`;
		for (const [stripeIndex, { member, extent }] of segment.areas.entries()) {
			const { candidate, member: at } = placed.find((each) => each.member.key === member)!;
			areas.push({
				diskStart: byteOffset(candidate.offset + at.startBytes + extent * extentBytes),
				length: byteCount(length),
				volumeStart: byteOffset(segment.startExtent * extentBytes),
				stripes,
				stripeIndex,
				stripeBytes: segment.stripeBytes,
			});
		}
	}
	const size = byteCount(text.extentCount * extentBytes);
	if (!Number.isSafeInteger(size)) kept ??= "it is larger than any disk";
	const type = kept === null ? null : (text.type ?? "lvm-linear");
	return { name: `${group.name}/${text.name}`, uuid: text.uuid, size, type, kept, areas };
}

/** The physical volume under which a logical volume is listed: that of its first area, else the first of the group. */
function homeOf(areas: readonly Area[], placed: readonly Placed[]): Placed {
	const first = areas[0];
	const home = placed.find(
		({ candidate: { offset, source } }) =>
			first !== undefined && offset <= first.diskStart && first.diskStart < offset + source.size,
	);
	return home ?? placed[0]!;
}

function freeExtents({ startBytes, extentCount, allocated }: GroupMember, extentBytes: number): ByteRange[] {
	const free: ByteRange[] = [];
	let cursor = 0;
	for (const { start, end } of [...allocated, { start: extentCount, end: extentCount }]) {
		if (start > cursor)
			free.push({
				start: byteOffset(startBytes + cursor * extentBytes),
				length: byteCount((start - cursor) * extentBytes),
			});
		cursor = end;
	}
	return free;
}
