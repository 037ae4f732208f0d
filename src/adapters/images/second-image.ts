// Second image: the permanent storage behind a disk, as the cleaner, the readers and `commit` see it.
//
// The contract is narrow on purpose: raw files, block devices, qcow2 images, later object stores all fit it. Nothing here
// is safe against a concurrent write of the same bytes; the disk's one server is the only user.
//
// The guest's own reads don't come through here: the data plane reads by the image's `layout`.

import type { ByteSource } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";
import type { DataRun } from "../os/data-runs.ts";
import type { SecondLayout, WriteTables } from "./second-layout.ts";

export type SecondImageKind = "file" | "block-device";
export type SecondImageFormat = "raw" | "qcow2";

/** Bytes for one place. The array stays untouched until the write has settled. */
export interface WritePiece {
	readonly at: ByteOffset;
	readonly bytes: Uint8Array;
}

/** The ways to copy a long range from another file, best first. */
export type CopyMethod = "reflink" | "copy_file_range" | "read-write";

/** Bytes of another file, `from` there, `to` here. All three are multiples of the 4 KiB block. */
export interface CopyRange {
	readonly from: number;
	readonly to: ByteOffset;
	readonly length: ByteCount;
}

/** Which parts of the disk hold something in a second image (or in what lies below it): all others read as zeros. */
export interface HeldParts {
	/** The parts of bytes `[from, to)`, in order, without overlap. Where the host can't tell holes, everything. */
	within(from: number, to: number): Iterable<DataRun> | AsyncIterable<DataRun>;
}

/** What a file looked like at one moment. */
export interface FileMark {
	/** In bytes. */
	readonly size: number;
	/** Time of the last change, nanoseconds since 1970, decimal. */
	readonly changedNs: string;
}

/** What an image looked like at one moment: its own file, and those below it, nearest first. */
export interface ImageFingerprint extends FileMark {
	readonly below?: readonly (FileMark & { readonly path: string })[] | undefined;
}

/**
 * Permanent storage of `size` bytes. Errors: OUT_OF_RANGE (a bug of the caller's), NO_SPACE (host full; what was
 * asked is partly done and may be repeated), IO (storage failed). After a failed flush every later call fails with
 * IO until the image is opened again, since what reached the storage is unknown.
 */
export interface SecondImage extends ByteSource, AsyncDisposable {
	readonly path: string;
	/** What its own file is. */
	readonly kind: SecondImageKind;
	readonly format: SecondImageFormat;
	/**
	 * How the data plane reads it, as of now: for the start of a data plane. The descriptors in it belong to this object
	 * and die with `close`.
	 */
	readonly layout: SecondLayout;
	/** How long ranges are copied from the first image on this host, for status reports. */
	readonly copyMethod: CopyMethod;
	/** What of it takes space; the dropper looks only there. */
	readonly held: HeldParts;
	/**
	 * From now on tables that can be reached are written by `write`: by the data plane that reads by them. Undefined: by
	 * this object itself. To be set right after a data plane's start, and unset when it has stopped.
	 */
	writeTablesBy(write: WriteTables | undefined): void;
	/** Writes pieces that are sorted by position and don't overlap. Neighbours go to the host in one call. */
	writeBatch(pieces: readonly WritePiece[]): Promise<void>;
	/** Copies from another open file, without the bytes passing through user space where the host can. Any order. */
	copyFrom(sourceFd: number, ranges: readonly CopyRange[]): Promise<void>;
	/** Gives the range's space back to the host. It reads as zeros afterwards, always. */
	punch(at: ByteOffset, length: ByteCount): Promise<void>;
	/** Resolves once all that was done before the call would survive a power cut. */
	flush(): Promise<void>;
	/** As `flush`, and the file's size and times are durable, too: what a clean close compares later. */
	flushAll(): Promise<void>;
	/** Throws IMAGE_UNSUPPORTED where `resize` would; changes nothing. */
	checkResize(size: ByteCount): Promise<void>;
	/**
	 * Sets the disk's size, durably; what is added reads as zeros. Whatever is cut off is given back: the caller has no use
	 * for it any more. Throws IMAGE_UNSUPPORTED where this image can't change its size so.
	 */
	resize(size: ByteCount): Promise<void>;
	/** Tells whether somebody else changed the image. Nothing for devices, which have no such marks. */
	fingerprint(): Promise<ImageFingerprint | undefined>;
	/** Host space in use. A block device's is its size: the host doesn't tell more. */
	allocatedBytes(): Promise<ByteCount>;
	close(): Promise<void>;
}
