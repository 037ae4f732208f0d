// Virtual disk: what an image in any format is, once opened: the bytes that a guest sees.

import type { ByteSource } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";

/**
 * What is known of a run of guest bytes without reading them.
 * `data`: stored somewhere. `zero`: an image says that it reads as zeros, and stores nothing for it.
 * `absent`: no image says anything; it reads as zeros, too.
 *
 * An image with others below it answers for all of them together: where it says nothing itself, the image below is
 * asked. So whoever copies a disk needs the `data` runs, and no others.
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
