// What open-image.ts and the openers of the formats promise each other.

import type { DiskImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";

/** What an image says about the image below it. */
export interface BackingReference {
	/** As the image's header has it: a path (relative to the folder of the image), or an address. */
	readonly name: string;
	/** The format by the name that qemu-img uses; null where the header has none. */
	readonly format: string | null;
}

/** What a format's opener may ask for. */
export interface Opening {
	/** The image's own path, for messages and for finding the files beside it. */
	readonly path: string;
	/** Opens a file beside the image (an extent, a data file), with the same locks. */
	openPart(name: string): Promise<HostImageFile>;
	/** Opens the image below, for reading. */
	openBacking(reference: BackingReference): Promise<DiskImage>;
}

/**
 * Opens an image whose first bytes are of the opener's format. On success the image owns the file; where the opener
 * throws, its caller closes `file`, and the opener whatever it opened itself.
 */
export type FormatOpener = (file: HostImageFile, opening: Opening) => Promise<DiskImage>;
