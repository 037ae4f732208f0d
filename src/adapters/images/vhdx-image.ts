// VHDX images: core/images/vhdx over a file of the host.

import { openVhdx } from "../../core/images/vhdx/open.ts";
import type { DiskImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import { MappedImage } from "./mapped-image.ts";

/** Opens a VHDX image; see `FormatOpener`. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openVhdxImage(file: HostImageFile): Promise<DiskImage> {
	return new MappedImage("vhdx", await openVhdx(file, file.path), [{ file, role: "image" }]);
}
