// VHD images: core/images/vhd over a file of the host.

import { isFixedVhd, openVhd } from "../../core/images/vhd/open.ts";
import type { DiskImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import { MappedImage } from "./mapped-image.ts";

/** Opens a VHD image; see `FormatOpener`. Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED or IO. */
export async function openVhdImage(file: HostImageFile): Promise<DiskImage> {
	return new MappedImage("vhd", await openVhd(file, file.path), [{ file, role: "image" }]);
}

/** True where a file without a mark in front, whose name is a VHD's, is a fixed VHD by its footer. */
export const isFixedVhdImage = async (file: HostImageFile): Promise<boolean> => await isFixedVhd(file);
