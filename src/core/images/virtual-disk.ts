// Virtual disk: what an image in any format is, once opened: the bytes that a guest sees.

import type { ByteSource } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";

/**
 * What an image holds for a run of guest bytes.
 * `data`: stored by this image. `zero`: this image says that it reads as zeros, and stores nothing for it.
 * `absent`: this image says nothing; the image below it decides, and without one it reads as zeros.
 */
export type DiskRunKind = "data" | "zero" | "absent";

/** A run of guest bytes with one kind. */
export interface DiskRun {
	readonly start: ByteOffset;
	readonly length: ByteCount;
	readonly kind: DiskRunKind;
}

/**
 * An image in any format, open for reading. `read` answers with the guest's bytes, backing images included; it throws
 * IMAGE_DAMAGED where the format's own records lead nowhere, and IO.
 */
export interface VirtualDisk extends ByteSource {
	/** Runs that cover `[from, to)` in order, without gap; neighbours may have the same kind. Bounded memory. */
	runs(from: ByteOffset, to: ByteOffset): AsyncIterable<DiskRun>;
}
