// Image file: the file that an image format lives in, as the formats' code sees it.
//
// Formats are plain code over this contract, so that the same code runs on real files, on mutated bytes, and under
// simulated power cuts.

import type { ByteSource } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";

/** A file of an image, open for reading. `size` is the file's present size. */
export type ImageFile = ByteSource;

/**
 * A file of an image, open for writing. Errors: NO_SPACE (what was asked is partly done and may be repeated), IO.
 * Nothing is durable, and nothing is ordered, before a `flush` that came after it: a power cut keeps any subset of the
 * 512-byte sectors that were written since the last flush.
 */
export interface WritableImageFile extends ImageFile {
	/** Writes all of `bytes`; past the end the file grows, and what lies between reads as zeros. */
	write(at: ByteOffset, bytes: Uint8Array): Promise<void>;
	/**
	 * Gives the range's space back to the host, as far as the host can; nobody may care what it reads as afterwards. The
	 * file's size stays.
	 */
	punch(at: ByteOffset, length: ByteCount): Promise<void>;
	/** Sets the file's size: cuts what lies behind, or grows with zeros. */
	truncate(size: ByteCount): Promise<void>;
	/** Resolves once all that was done before the call would survive a power cut. */
	flush(): Promise<void>;
}
