// Second image: the permanent storage behind a disk, as the cleaner, the readers and `commit` see it.
//
// The contract is narrow on purpose: raw files, block devices, later qcow2 and object stores all fit it. Nothing here
// is safe against a concurrent write of the same bytes; the disk's one server is the only user.

import type { ByteSource } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";

export type SecondImageKind = "file" | "block-device";

/** Bytes for one place. The array stays untouched until the write has settled. */
export interface WritePiece {
	readonly at: ByteOffset;
	readonly bytes: Uint8Array;
}

/** Bytes of another file, `from` there, `to` here. All three are multiples of the 4 KiB block. */
export interface CopyRange {
	readonly from: number;
	readonly to: ByteOffset;
	readonly length: ByteCount;
}

/** Bytes that take host space; the rest of the image reads as zeros. */
export interface AllocatedRange {
	readonly start: ByteOffset;
	readonly length: ByteCount;
}

/**
 * Permanent storage of `size` bytes. Errors: OUT_OF_RANGE (a bug of the caller's), NO_SPACE (host full; what was
 * asked is partly done and may be repeated), IO (storage failed). After a failed flush every later call fails with
 * IO until the image is opened again, since what reached the storage is unknown.
 */
export interface SecondImage extends ByteSource, AsyncDisposable {
	readonly path: string;
	readonly kind: SecondImageKind;
	/** Open descriptor, for the data plane's own reads. It belongs to this object and dies with `close`. */
	readonly fd: number;
	/** Writes pieces that are sorted by position and don't overlap. Neighbours go to the host in one call. */
	writeBatch(pieces: readonly WritePiece[]): Promise<void>;
	/** Copies from another open file, without the bytes passing through user space where the host can. Any order. */
	copyFrom(sourceFd: number, ranges: readonly CopyRange[]): Promise<void>;
	/** Gives the range's space back to the host. It reads as zeros afterwards, always. */
	punch(at: ByteOffset, length: ByteCount): Promise<void>;
	/** Resolves once all that was done before the call would survive a power cut. */
	flush(): Promise<void>;
	/** Host space in use. A block device's is its size: the host doesn't tell more. */
	allocatedBytes(): Promise<ByteCount>;
	/** In order, without overlap. Where the host can't tell holes, everything counts as allocated. */
	allocatedRanges(): AsyncIterable<AllocatedRange>;
	close(): Promise<void>;
}
