// VDI images: core/images/vdi over a file of the host.

import { openVdi } from "../../core/images/vdi/open.ts";
import type { DiskImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import { MappedImage } from "./mapped-image.ts";

/** Opens a VDI image; see `FormatOpener`. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openVdiImage(file: HostImageFile): Promise<DiskImage> {
	return new MappedImage("vdi", await openVdi(file, file.path), [{ file, role: "image" }]);
}
