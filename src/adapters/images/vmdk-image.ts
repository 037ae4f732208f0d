// VMDK images: core/images/vmdk over the files of the host that a descriptor names.

import { promisify } from "node:util";
import { inflate } from "node:zlib";
import { openVmdk } from "../../core/images/vmdk/open.ts";
import type { DiskImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import { closeAll, type FileInUse, MappedImage } from "./mapped-image.ts";

const inflateAsync = promisify(inflate);

/** What is needed of `Opening`. */
interface PartOpening {
	openPart(name: string): Promise<HostImageFile>;
}

/**
 * Opens a VMDK image with its extents and parents; see `FormatOpener`.
 * Throws IMAGE_DAMAGED, IMAGE_UNSUPPORTED, what opening a file throws, or IO.
 */
export async function openVmdkImage(file: HostImageFile, opening: PartOpening): Promise<DiskImage> {
	const files: FileInUse[] = [{ file, role: "image" }];
	try {
		const disk = await openVmdk(file, file.path, {
			async openPart(name, role) {
				const part = await opening.openPart(name);
				files.push({ file: part, role });
				return part;
			},
			inflate: (packed, length) => inflateAsync(packed, { maxOutputLength: length }),
		});
		return new MappedImage("vmdk", disk, files);
	} catch (error) {
		// The image's own file is the caller's until it is open.
		await closeAll(files.slice(1));
		throw error;
	}
}
