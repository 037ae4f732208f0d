// A volume group of LVM2 as its metadata text describes it (lvm2 source tree: lib/format_text/import_vsn1.c).
//
//   vg0 { extent_size  physical_volumes { pv0 { id pe_start pe_count } }
//         logical_volumes { root { status  segment1 { start_extent extent_count type = "striped" stripes = [ "pv0", 7 ] } } } }
//
// Invariants
//  - a logical volume is readable only where it is visible, all of it lies on extents of physical volumes in linear or
//    striped segments, and no other logical volume has anything to do with it. A snapshot reads its origin's blocks,
//    a thin pool or a mirror has its own idea of what they mean; all those are kept.
//  - an extent is free only where everything in the text was understood; one unknown kind of segment keeps them all
//  - each area of a segment is on a volume that the text knows: else its extents would seem to belong to nobody
//  - no extent belongs to two; where one does, the text is damaged and nothing of the group is believed
//
// Sizes in the text are sectors of 512 bytes or extents; results are extents, and bytes where the name says so.

import { VmsweepError } from "../../../foundations/errors.ts";
import { SECTOR } from "./layout.ts";
import { isSection, listAt, numberAt, parseText, type Section, sectionAt, stringAt, type Value } from "./text.ts";

export interface VolumeGroup {
	readonly id: string;
	readonly name: string;
	readonly extentBytes: number;
	/** The host that it belongs to (`system_id`); empty where it belongs to whoever sees it. */
	readonly systemId: string;
	/** By the keys that the text's segments use. */
	readonly physicalVolumes: ReadonlyMap<string, GroupMember>;
	readonly logicalVolumes: readonly LogicalVolumeText[];
	/** Why all of the group is kept, or null. */
	readonly kept: string | null;
	/** Why its free extents are kept, or null. */
	readonly freeKept: string | null;
}

/** A physical volume as its group knows it. */
export interface GroupMember {
	readonly key: string;
	readonly uuid: string;
	/** Bytes from the physical volume's start to its first extent. */
	readonly startBytes: number;
	readonly extentCount: number;
	/** Extents that logical volumes have, sorted, disjoint. */
	readonly allocated: readonly Extents[];
}

/** A run of extents of a physical volume. */
export interface Extents {
	readonly start: number;
	readonly end: number;
}

export interface LogicalVolumeText {
	readonly name: string;
	readonly uuid: string;
	/** `lvm-` and its kind where it is kept; null where its content says. */
	readonly type: string | null;
	readonly kept: string | null;
	readonly extentCount: number;
	/** Segments that lie on physical volumes; all of them, in order, where `kept` is null. */
	readonly segments: readonly Segment[];
}

export interface Segment {
	/** Of the logical volume. */
	readonly startExtent: number;
	/** Of one stripe. */
	readonly stripeExtents: number;
	readonly stripeBytes: number;
	/** One per stripe. */
	readonly areas: readonly { readonly member: string; readonly extent: number }[];
}

const damaged = (what: string): VmsweepError => new VmsweepError("VOLUME_DAMAGED", `its LVM metadata ${what}`);

/** Kinds of segments that lie on other logical volumes only. Those of RAID have many names; each is tried in one way. */
const STACKED = /^(?:snapshot|thin|thin-pool|cache|cache-pool|writecache|integrity|vdo|vdo-pool|raid\d\w*)$/;
const USUAL_GROUP_STATUS = new Set(["RESIZEABLE", "READ", "WRITE", "NOAUTOACTIVATE"]);
const USUAL_MEMBER_STATUS = new Set(["ALLOCATABLE"]);
const USUAL_STATUS = new Set(["READ", "WRITE", "VISIBLE", "FIXED_MINOR", "ACTIVATION_SKIP", "NOAUTOACTIVATE"]);
/** Words that keep a volume, but say nothing about who has which extents. */
const HARMLESS_STATUS = new Set(["CACHE_VOL", "ERROR_WHEN_FULL", "NOTSYNCED"]);
/** Flags that LVM hangs on a segment's kind, so that older versions of it keep their hands off. */
const KIND_FLAGS = /\+(?:METADATA_FORMAT|CACHE_USES_CACHEVOL|CROP_METADATA)/g;
/** What every segment may have; `error` and `zero`, which lie nowhere, have nothing else. */
const USUAL_KEYS = new Set(["start_extent", "extent_count", "type", "tags"]);
/** Keys of segments whose words are no names of volumes. */
const WORDS = new Set(["type", "tags", "discards", "cache_mode", "policy"]);
/** What LVM allows in names; checked, since names become volume ids. */
const NAME = /^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,127}$/;

/** Parses a group's text. Throws VOLUME_DAMAGED. */
export function parseGroup(text: string): VolumeGroup {
	const root = parseText(text);
	if (root.get("contents") !== "Text Format Volume Group" || root.get("version") !== 1)
		throw damaged("is of an unknown kind");
	const groups = [...root].filter((entry): entry is [string, Section] => isSection(entry[1]));
	if (groups.length !== 1) throw damaged(`describes ${groups.length} volume groups`);
	const [name, group] = groups[0]!;
	return new GroupParser(checkedName(name), group).parse();
}

function checkedName(name: string): string {
	if (!NAME.test(name)) throw damaged("has a name that LVM does not allow");
	return name;
}

/** A logical volume while the group is put together. */
interface Draft {
	readonly name: string;
	readonly uuid: string;
	readonly unusual: readonly string[];
	readonly isVisible: boolean;
	readonly kinds: readonly string[];
	readonly segments: Segment[];
	/** The name that users know a snapshot by: that of the volume with its changes. Null for all else. */
	readonly snapshot: string | null;
	extentCount: number;
	/** Where a segment lies on other logical volumes. */
	isStacked: boolean;
	/** Who uses it, and as what: the key in that one's segment. */
	readonly users: { readonly name: string; readonly as: string }[];
}

class GroupParser {
	readonly #name: string;
	readonly #group: Section;
	readonly #drafts = new Map<string, Draft>();
	readonly #members: ReadonlyMap<string, Section>;
	readonly #volumes: ReadonlyMap<string, Section>;
	readonly #allocated = new Map<string, Extents[]>();
	#freeKept: string | null = null;

	constructor(name: string, group: Section) {
		this.#name = name;
		this.#group = group;
		this.#members = sections(sectionAt(group, "physical_volumes"));
		this.#volumes = sections(sectionAt(group, "logical_volumes"));
		for (const key of this.#members.keys()) this.#allocated.set(key, []);
	}

	parse(): VolumeGroup {
		const extentBytes = numberAt(this.#group, "extent_size") * SECTOR;
		if (extentBytes === 0 || !Number.isSafeInteger(extentBytes)) throw damaged("has extents without a size");
		for (const name of this.#volumes.keys())
			if (this.#members.has(name)) throw damaged(`calls a physical and a logical volume ${name}`);
		for (const [name, volume] of this.#volumes) this.#drafts.set(name, this.#readVolume(checkedName(name), volume));
		for (const [name, volume] of this.#volumes) this.#readUses(name, volume);
		return {
			id: stringAt(this.#group, "id"),
			name: this.#name,
			extentBytes,
			systemId: listAt(this.#group, "system_id").join(),
			physicalVolumes: this.#readMembers(),
			logicalVolumes: this.#listed(),
			kept: this.#whyKept(),
			freeKept: this.#freeKept,
		};
	}

	#whyKept(): string | null {
		const known = new Set(["physical_volumes", "logical_volumes", "historical_logical_volumes"]);
		for (const name of sections(this.#group).keys())
			if (!known.has(name)) return `its volume group ${this.#name} has a section ${name}, which is not known here`;
		const status = unusual(this.#group, USUAL_GROUP_STATUS);
		if (status.length > 0) return `its volume group ${this.#name} is ${status.join(" and ")}`;
		if (this.#group.has("lock_type") && this.#group.get("lock_type") !== "none")
			return `its volume group ${this.#name} is shared between hosts`;
		for (const [key, member] of this.#members) {
			const words = unusual(member, USUAL_MEMBER_STATUS);
			if (words.length > 0) return `its volume group ${this.#name} says that ${key} is ${words.join(" and ")}`;
		}
		return null;
	}

	#readMembers(): ReadonlyMap<string, GroupMember> {
		const members = new Map<string, GroupMember>();
		for (const [key, member] of this.#members) {
			const extentCount = numberAt(member, "pe_count");
			const startBytes = numberAt(member, "pe_start") * SECTOR;
			const allocated = this.#allocated.get(key)!.sort((a, b) => a.start - b.start);
			for (const [index, { start, end }] of allocated.entries()) {
				if (end > extentCount) throw damaged(`uses extents behind the end of ${key}`);
				if (index > 0 && start < allocated[index - 1]!.end) throw damaged(`uses extent ${start} of ${key} twice`);
			}
			members.set(key, { key, uuid: stringAt(member, "id"), startBytes, extentCount, allocated });
		}
		return members;
	}

	#readVolume(name: string, volume: Section): Draft {
		const draft: Draft = {
			name,
			uuid: stringAt(volume, "id"),
			unusual: unusual(volume, USUAL_STATUS),
			isVisible: listAt(volume, "status").includes("VISIBLE"),
			kinds: segmentsOf(volume).map(kindOf),
			segments: [],
			snapshot: snapshotName(volume),
			extentCount: 0,
			isStacked: false,
			users: [],
		};
		const count = numberAt(volume, "segment_count");
		if (draft.kinds.length !== count || count === 0 || sections(volume).size !== count)
			throw damaged(`has not the segments of ${name} that it says`);
		if (draft.unusual.some((word) => !HARMLESS_STATUS.has(word)))
			this.#keepFree(`${name} is ${draft.unusual.join(" and ")}`);
		for (const segment of segmentsOf(volume)) {
			if (numberAt(segment, "start_extent") !== draft.extentCount) throw damaged(`has a gap in ${name}`);
			this.#readSegment(draft, segment);
			draft.extentCount += numberAt(segment, "extent_count");
			if (!Number.isSafeInteger(draft.extentCount)) throw damaged(`has no size for ${name}`);
		}
		return draft;
	}

	/** Takes up a segment, and the extents that it has. */
	#readSegment(draft: Draft, segment: Section): void {
		const kind = kindOf(segment);
		const count = numberAt(segment, "extent_count");
		if (kind !== "striped" && kind !== "linear" && kind !== "mirror") {
			draft.isStacked = true;
			if (!this.#isStacked(draft.name, segment)) this.#keepFree(`${draft.name} is of the kind ${kind}`);
			return;
		}
		const key = kind === "mirror" ? "mirrors" : "stripes";
		const areas = pairs(listAt(segment, key));
		if (areas.length === 0 || areas.length !== numberAt(segment, kind === "mirror" ? "mirror_count" : "stripe_count"))
			throw damaged(`has a segment of ${draft.name} without its stripes`);
		const stripeExtents = kind === "mirror" ? count : count / areas.length;
		if (!Number.isSafeInteger(stripeExtents) || stripeExtents === 0)
			throw damaged(`divides a segment of ${draft.name} unevenly`);
		for (const { member, extent } of areas) {
			const allocated = this.#allocated.get(member);
			if (allocated === undefined && (member === draft.name || !this.#volumes.has(member)))
				throw damaged(`has a part of ${draft.name} on itself or on a volume that it doesn't know`);
			if (allocated === undefined) draft.isStacked = true;
			else allocated.push({ start: extent, end: extent + stripeExtents });
		}
		const strays = [...segment].some(([name, value]) => name !== key && !WORDS.has(name) && this.#namesMember(value));
		if (strays) this.#keepFree(`${draft.name} uses a physical volume in a way that is not known here`);
		const onMembers = areas.filter(({ member }) => this.#allocated.has(member));
		const stripeBytes = areas.length > 1 && kind !== "mirror" ? numberAt(segment, "stripe_size") * SECTOR : 0;
		if (kind === "mirror" || onMembers.length < areas.length) {
			draft.isStacked = true;
			for (const area of onMembers)
				draft.segments.push({ startExtent: draft.extentCount, stripeExtents, stripeBytes: 0, areas: [area] });
		} else draft.segments.push({ startExtent: draft.extentCount, stripeExtents, stripeBytes, areas });
	}

	/** Whether a segment takes no extents of physical volumes: it lies on other logical volumes, or on nothing at all. */
	#isStacked(name: string, segment: Section): boolean {
		const kind = kindOf(segment);
		if (kind === "error" || kind === "zero") return [...segment.keys()].every((key) => USUAL_KEYS.has(key));
		// These lists lead to physical volumes, even where they now name none.
		if (!STACKED.test(kind) || segment.has("stripes") || segment.has("mirrors")) return false;
		const places = [...segment].filter(([key]) => !WORDS.has(key)).map(([, value]) => value);
		if (places.some((value) => this.#namesMember(value))) return false;
		return places.some((value) => wordsOf(value).some((word) => word !== name && this.#volumes.has(word)));
	}

	#namesMember(value: Value | Section): boolean {
		return wordsOf(value).some((word) => this.#members.has(word));
	}

	/** Notes which other volumes a volume's segments name. */
	#readUses(name: string, volume: Section): void {
		for (const segment of segmentsOf(volume))
			for (const [key, value] of segment) {
				if (WORDS.has(key)) continue;
				for (const word of wordsOf(value)) if (word !== name) this.#drafts.get(word)?.users.push({ name, as: key });
			}
	}

	#keepFree(why: string): void {
		this.#freeKept ??= `its free extents are kept: ${why}`;
	}

	/** What is shown: visible volumes with what is hidden below them, and hidden ones that nobody visible has. */
	#listed(): LogicalVolumeText[] {
		const owners = this.#owners();
		const hidden = new Map<string, Segment[]>();
		for (const [name, owner] of owners) {
			if (owner === null || owner === name) continue;
			const segments = hidden.get(owner) ?? [];
			for (const segment of this.#drafts.get(name)!.segments) segments.push(segment);
			hidden.set(owner, segments);
		}
		const listed: LogicalVolumeText[] = [];
		for (const draft of this.#drafts.values()) {
			const owner = owners.get(draft.name);
			if (owner !== null && owner !== draft.name) continue;
			const { name: ownName, uuid, extentCount } = draft;
			const segments = [...draft.segments, ...(hidden.get(ownName) ?? [])];
			if (!draft.isVisible && segments.length === 0) continue;
			const state = whyKept(draft);
			const name = draft.snapshot ?? ownName;
			listed.push({ name, uuid, extentCount, segments, type: state?.type ?? null, kept: state?.kept ?? null });
		}
		return listed;
	}

	/**
	 * The visible volume that each one is a part of: up along its users, as long as there is one only; null where that
	 * leads nowhere. All on the way there have the same, so each is looked at once: a text may have a chain of thousands.
	 */
	#owners(): ReadonlyMap<string, string | null> {
		const owners = new Map<string, string | null>();
		for (const name of this.#drafts.keys()) {
			const way: string[] = [];
			let at: string | undefined = name;
			while (at !== undefined && !owners.has(at)) {
				const draft = this.#drafts.get(at)!;
				// Null also for a way that comes back to itself.
				owners.set(at, draft.isVisible ? at : null);
				way.push(at);
				if (draft.isVisible) break;
				at = soleUser(draft);
			}
			const owner = at === undefined ? null : owners.get(at)!;
			for (const each of way) owners.set(each, owner);
		}
		return owners;
	}
}

/** The one volume that uses another; undefined where there is none, or several. */
function soleUser({ users }: Draft): string | undefined {
	const first = users[0]?.name;
	return users.every(({ name }) => name === first) ? first : undefined;
}

/** Why a logical volume is kept, and what to call it; null where it may be read. */
function whyKept({ unusual: words, isVisible, isStacked, kinds, users }: Draft): { type: string; kept: string } | null {
	const kind = kinds.find((each) => each !== "striped" && each !== "linear") ?? "linear";
	const type = `lvm-${kind}`;
	if (kind !== "linear") return { type, kept: `logical volumes of the kind ${kind} are not read` };
	const isUsedAs = (...keys: string[]): boolean => users.some((user) => keys.includes(user.as));
	if (isUsedAs("cow_store", "merging_store"))
		return { type: "lvm-snapshot", kept: "it holds what a snapshot needs beside its origin" };
	if (isUsedAs("origin", "external_origin"))
		return {
			type: "lvm-origin",
			kept: "it is a snapshot's origin, and the snapshot reads blocks that are free here; remove the snapshot",
		};
	if (users.length > 0) return { type, kept: "it is a part of another logical volume" };
	if (!isVisible) return { type, kept: "LVM has it for itself" };
	if (isStacked) return { type, kept: "it lies on other logical volumes" };
	if (words.length > 0) return { type, kept: `LVM says that it is ${words.join(" and ")}` };
	return null;
}

const kindOf = (segment: Section): string => stringAt(segment, "type").replaceAll(KIND_FLAGS, "");

function snapshotName(volume: Section): string | null {
	const segment = volume.get("segment1");
	if (!isSection(segment) || segment.get("type") !== "snapshot") return null;
	const name = segment.get("cow_store") ?? segment.get("merging_store");
	return typeof name === "string" && NAME.test(name) ? name : null;
}

/** The words of `status` and `flags` that are not usual. */
const unusual = (section: Section, usual: ReadonlySet<string>): string[] =>
	[...listAt(section, "status"), ...listAt(section, "flags")].map(String).filter((word) => !usual.has(word));

/** The strings of a value; a section has none. */
function wordsOf(value: Value | Section): string[] {
	if (isSection(value)) return [];
	const words = typeof value === "object" ? value : [value];
	return words.filter((word) => typeof word === "string");
}

const sections = (section: Section): ReadonlyMap<string, Section> =>
	new Map([...section].filter((entry): entry is [string, Section] => isSection(entry[1])));

/** A volume's segments, in the order of their numbers. */
function segmentsOf(volume: Section): Section[] {
	const segments: Section[] = [];
	for (let number = 1; ; number++) {
		const segment = volume.get(`segment${number}`);
		if (!isSection(segment)) return segments;
		segments.push(segment);
	}
}

/** `[ "pv0", 7, "pv1", 12 ]` */
function pairs(list: readonly (string | number)[]): { member: string; extent: number }[] {
	const result: { member: string; extent: number }[] = [];
	for (let at = 0; at < list.length; at += 2) {
		const [member, extent] = [list[at], list[at + 1]];
		if (typeof member !== "string" || typeof extent !== "number" || !Number.isSafeInteger(extent) || extent < 0)
			throw damaged("has a list of stripes that makes no sense");
		result.push({ member, extent });
	}
	return result;
}
