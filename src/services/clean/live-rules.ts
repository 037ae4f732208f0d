// Live rules: how a volume of each type is followed while its guest runs (docs/live-safety.md).

import { type AtRestKind, AtRestVolume } from "../../core/filesystems/at-rest.ts";
import { Ext4LiveVolume } from "../../core/filesystems/ext4/live.ts";
import type { LiveVolume } from "../../core/filesystems/live.ts";
import { XfsLiveVolume } from "../../core/filesystems/xfs/live.ts";
import type { ByteSource } from "../../foundations/source.ts";
import type { CleaningPolicy } from "./policy.ts";

/** Starts to follow a volume in a view; throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED where it can't be followed. */
type OpenLiveVolume = (view: ByteSource) => Promise<LiveVolume>;

/** A kind that is judged at rest only; its code is loaded when a disk has such a volume. */
const atRest =
	(load: () => Promise<AtRestKind>): OpenLiveVolume =>
	async (view) =>
		AtRestVolume.open(view, await load());

/** By the type that identification finds. */
const liveRules: ReadonlyMap<string, OpenLiveVolume> = new Map<string, OpenLiveVolume>([
	["btrfs", atRest(async () => (await import("../../core/filesystems/btrfs/at-rest.ts")).btrfsAtRest)],
	["exfat", atRest(async () => (await import("../../core/filesystems/exfat/at-rest.ts")).exfatAtRest)],
	["ext", (view) => Ext4LiveVolume.open(view)],
	["f2fs", atRest(async () => (await import("../../core/filesystems/f2fs/at-rest.ts")).f2fsAtRest)],
	["ntfs", atRest(async () => (await import("../../core/filesystems/ntfs/at-rest.ts")).ntfsAtRest)],
	["vfat", atRest(async () => (await import("../../core/filesystems/fat/at-rest.ts")).fatAtRest)],
	["xfs", (view) => XfsLiveVolume.open(view)],
]);

const mountedBtrfs = atRest(async () => (await import("../../core/filesystems/btrfs/at-rest.ts")).btrfsMounted);

/** How volumes of this type are followed; undefined where they aren't. */
export const liveRuleOf = (type: string, { btrfsMounted }: CleaningPolicy): OpenLiveVolume | undefined =>
	type === "btrfs" && btrfsMounted === "drop" ? mountedBtrfs : liveRules.get(type);
