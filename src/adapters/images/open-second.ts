// Opening a disk's second image in the format that the disk's description says; nothing is probed.

import { openSecondQcow2 } from "./open-image.ts";
import { openRawImage } from "./raw-image.ts";
import type { SecondImage, SecondImageFormat } from "./second-image.ts";

/** Opens it for writing, under QEMU's locks. Throws what opening an image throws. */
export const openSecondImage = (path: string, format: SecondImageFormat): Promise<SecondImage> =>
	format === "qcow2" ? openSecondQcow2(path) : openRawImage(path, "write");
