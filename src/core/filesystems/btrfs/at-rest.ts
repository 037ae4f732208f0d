// btrfs at rest: an unmounted volume looks like a mounted one that is idle. What is more, a mounted one may have written
// blocks long ago that no state on the disk knows of yet (docs/live-safety.md). So being unmounted is never believed.
//
// But btrfs never overwrites what its newest superblock leads to: a block that was given up is used again only when a
// superblock that no longer leads there is durable. So what was used at one look, and not written since, belonged to its
// owner of that moment, and where it is free at the next look that owner is gone. Mounted or not makes no difference.
//
// A freeze waits for all that is under way and commits it: its superblocks are the last writes.

import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { AtRestKind } from "../at-rest.ts";
import { readBtrfs, readCommittedBtrfs } from "./index.ts";
import { SUPERBLOCK_PLACES, SuperBlock } from "./layout.ts";

export const btrfsAtRest: AtRestKind = {
	type: "btrfs",
	whileMounted:
		"btrfs is cleaned when it is frozen (serve --qga), or while it is mounted with serve --btrfs-mounted drop",
	read: readBtrfs,
	marks: (view) =>
		Promise.resolve(
			SUPERBLOCK_PLACES.filter((at) => at + SuperBlock.size <= view.size).map((at) => ({
				start: byteOffset(at),
				length: byteCount(SuperBlock.size),
			})),
		),
	showsUnmount: false,
	marksMounts: false,
	neverReusesEarly: false,
	readFrozen: readBtrfs,
};

/** The same where the guest's driver is known to be Linux's, in which the above is true. */
export const btrfsMounted: AtRestKind = {
	...btrfsAtRest,
	whileMounted:
		"btrfs is cleaned of what was in use at one look and is free at the next, and when it is frozen (serve --qga)",
	// Log trees, and the files in them, take what was free: their blocks were used at no look.
	read: readCommittedBtrfs,
	neverReusesEarly: true,
};
