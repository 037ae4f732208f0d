// Disk image: an image that a user named, in any format, open under the host's locks. What `map`, `explain`, `convert`
// and `sweep` work on.
//
//   name ─▶ openDiskImage ─▶ raw file, block device   ─┐
//                         ─▶ qcow2 (+ backing chain)   ─┼─▶ DiskImage ─▶ guest map, convert
//                         ─▶ vmdk, vhd, vhdx, vdi      ─┤        └─▶ SweepableImage (raw, qcow2) ─▶ sweep
//                         ─▶ nbd:// address            ─┘

import type { VirtualDisk } from "../../core/images/virtual-disk.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";
import type { SecondLayout } from "./second-layout.ts";

/** Formats that are read, by the names that qemu-img uses (`vhd` is its `vpc`); `nbd` is a server's export. */
export type DiskFormat = "raw" | "qcow2" | "vmdk" | "vhd" | "vhdx" | "vdi" | "nbd";

/** A run of guest bytes that takes host space in this image itself. */
export interface HeldRun {
	readonly start: ByteOffset;
	readonly length: ByteCount;
}

/** One file of an image and what it takes on the host. */
export interface ImagePart {
	readonly path: string;
	readonly format: DiskFormat;
	/** `image`: the one that was named. `data`: a file beside it (extents, external data). `backing`: below it. */
	readonly role: "image" | "data" | "backing";
	/** Bytes on the host; a block device's is its size, an NBD export's null. */
	readonly hostBytes: ByteCount | null;
}

/** A snapshot inside an image. */
export interface InternalSnapshot {
	readonly id: string;
	readonly name: string;
}

/** An open image. Changes nothing unless it is a {@link SweepableImage}. Concurrent reads are fine. */
export interface DiskImage extends VirtualDisk, AsyncDisposable {
	/** As the user named it: a path or an NBD address. */
	readonly path: string;
	readonly format: DiskFormat;
	/** Host bytes in use by the image's own files (image and data parts, not its backing). Null for an NBD export. */
	allocatedBytes(): Promise<ByteCount | null>;
	/**
	 * Guest bytes of `[from, to)` that take host space in the image itself (not in its backing), in order, in units of
	 * what the host or the format allocates (4 KiB, a cluster). An exact answer, since `explain` promises it; only a
	 * compressed cluster is counted in guest bytes, although it takes less. Finish one walk before the next begins.
	 */
	held(from: ByteOffset, to: ByteOffset): AsyncIterable<HeldRun>;
	/** All files, the named one first. */
	parts(): Promise<readonly ImagePart[]>;
	/** How it lies in files, for whoever reads it without this object; null or missing where that can't be said. */
	layout?(): SecondLayout | null;
	/** Snapshots inside the image; none for most formats. */
	readonly snapshots: readonly InternalSnapshot[];
	/** What an operator should know: damaged parts, a dirty bit. */
	readonly warnings: readonly string[];
	close(): Promise<void>;
}

/** An image of which unused blocks can be given back, open for writing. */
export interface SweepableImage extends DiskImage {
	/**
	 * Only whole units of this many guest bytes can be given back, aligned to it; the last unit of the disk may be
	 * short. `drop` and `wouldDrop` leave out what is not covered wholly.
	 */
	readonly unit: ByteCount;
	/** False where what was dropped may read as anything, so that only what nobody will read may be dropped. */
	readonly dropsToZeros: boolean;
	/**
	 * Gives whole units back to the host, as far as the format allows (a cluster that a snapshot shares stays). They
	 * read as zeros afterwards, or stay as they were where the format can't say so. Small drops are gathered: ask for
	 * as many as there are, and for a `flush` at the end. A crash at any point leaves an image that is right; at worst
	 * some space is not yet given back. Returns how many host bytes it gives back.
	 */
	drop(start: ByteOffset, length: ByteCount): Promise<number>;
	/**
	 * How many host bytes `drop` would give back; the dry run's figure. It counts on: a range is counted as if all
	 * ranges that were asked for before had been dropped, so ask once for each, in order, and don't mix it with `drop`.
	 */
	wouldDrop(start: ByteOffset, length: ByteCount): Promise<number>;
	/**
	 * Host bytes that only the snapshots inside the image keep: content that the disk's present state doesn't refer to.
	 * Ask before anything is dropped, also in a dry run.
	 */
	snapshotBytes(): Promise<ByteCount>;
	/** Resolves once all drops would survive a power cut. */
	flush(): Promise<void>;
	/** Moves what lies at the file's end into its holes and makes the file shorter; formats without such a need lack it. */
	compact?(options: CompactOptions): Promise<void>;
}

export interface CompactOptions {
	readonly onProgress?: (done: ByteCount, total: ByteCount) => void;
	/** Aborted: stop at the next point where the image is whole (INTERRUPTED). */
	readonly signal?: AbortSignal;
}
