// Live rules: how a volume of each type is followed while its guest runs (docs/live-safety.md).

import { Ext4LiveVolume } from "../../core/filesystems/ext4/live.ts";
import type { LiveVolume } from "../../core/filesystems/live.ts";
import { XfsLiveVolume } from "../../core/filesystems/xfs/live.ts";
import type { ByteSource } from "../../foundations/source.ts";

/** Starts to follow a volume in a view; throws VOLUME_UNSUPPORTED or VOLUME_DAMAGED where it can't be followed. */
type OpenLiveVolume = (view: ByteSource) => Promise<LiveVolume>;

/** By the type that identification finds. */
export const liveRules: ReadonlyMap<string, OpenLiveVolume> = new Map<string, OpenLiveVolume>([
	["ext", (view) => Ext4LiveVolume.open(view)],
	["xfs", (view) => XfsLiveVolume.open(view)],
]);
