// exFAT at rest: nothing on the disk tells an unmounted volume from a mounted one. Linux takes VolumeDirty off with every
// sync while the volume stays mounted, and can't freeze it. So it is followed for the sake of its reason only.

import type { AtRestKind } from "../at-rest.ts";
import { readExfat } from "./index.ts";

export const exfatAtRest: AtRestKind = {
	type: "exfat",
	whileMounted: "exFAT doesn't show on the disk whether it is mounted; it is cleaned by vmsweep sweep, with the VM off",
	read: readExfat,
	marks: () => Promise.resolve([]),
	showsUnmount: false,
	marksMounts: false,
	neverReusesEarly: false,
};
