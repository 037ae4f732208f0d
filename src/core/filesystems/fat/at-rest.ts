// FAT at rest: Linux marks the boot sector when it mounts a volume, before anything else, and takes the mark off at the
// unmount with the last of all writes. Other drivers (DOS, firmware) mark nothing, so only a mark that was seen to be
// written last is believed, and never a clean volume as it was found. Freezing does nothing here: Linux can't freeze FAT.

import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { AtRestKind } from "../at-rest.ts";
import { readFat } from "./index.ts";
import { BootSector } from "./layout.ts";

export const fatAtRest: AtRestKind = {
	type: "vfat",
	whileMounted: "FAT is cleaned when it is unmounted",
	read: readFat,
	// Not the second entry of the FAT, which has such bits, too: drivers that mark nothing write that sector for any file.
	marks: () => Promise.resolve([{ start: byteOffset(0), length: byteCount(BootSector.size) }]),
	showsUnmount: true,
	marksMounts: false,
	neverReusesEarly: false,
};
