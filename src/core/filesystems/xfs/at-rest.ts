// XFS at rest: the last thing that an unmount writes is a record in the log that says so, and a mount stamps the log before
// anything else. So it shows on the disk, for both versions of the format.

import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { AtRestKind } from "../at-rest.ts";
import { readXfs } from "./index.ts";
import { BASIC_BLOCK } from "./layout.ts";
import { parseSuperblock, readSuperblock } from "./open.ts";

export const xfsAtRest: AtRestKind = {
	type: "xfs",
	whileMounted: "XFS of this version is cleaned when it is unmounted",
	read: readXfs,
	async marks(view) {
		const raw = await readSuperblock(view);
		const log = raw === null ? null : parseSuperblock(raw, view.size).log;
		return log === null ? [] : [{ start: byteOffset(log.start), length: byteCount(log.basicBlocks * BASIC_BLOCK) }];
	},
	showsUnmount: true,
	marksMounts: true,
	neverReusesEarly: false,
};
