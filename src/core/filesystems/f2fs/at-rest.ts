// F2FS at rest: the last thing that an unmount writes is a checkpoint that says so, and the last thing that a freeze writes is
// one as well. Mounting writes nothing, so a volume as it was found may be in use whatever its checkpoint says.

import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { AtRestKind } from "../at-rest.ts";
import { readF2fs, readFrozenF2fs } from "./index.ts";
import { BLOCKS_PER_SEGMENT, F2FS_BLOCK } from "./layout.ts";
import { openVolume, readSuperblocks } from "./open.ts";

export const f2fsAtRest: AtRestKind = {
	type: "f2fs",
	whileMounted: "F2FS is cleaned when it is unmounted or frozen",
	read: readF2fs,
	async marks(view) {
		const superblocks = await readSuperblocks(view);
		if (superblocks === null) return [];
		const { checkpointAt } = openVolume(superblocks, view.size);
		const packs = byteCount(2 * BLOCKS_PER_SEGMENT * F2FS_BLOCK);
		return [{ start: byteOffset(checkpointAt * F2FS_BLOCK), length: packs }];
	},
	showsUnmount: true,
	marksMounts: false,
	neverReusesEarly: false,
	readFrozen: readFrozenF2fs,
};
