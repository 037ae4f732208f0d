// The guest map: which bytes of a disk the guest's own file systems use. The result types that the
// readers (core), the services and the command line share; `vmsweep map --json` prints them as they are.
//
//   disk   | table | p1 ext4            | gap | p2 swap | … |
//   extents  unknown  used free used …    unknown  unknown     cover the disk in order, no gap, no overlap
//
// Invariants
//  - `free` stands only where a file system proves it; whatever is in doubt is `used` or `unknown`
//  - `used` and `unknown` are both kept; `unknown` says that no reader could look inside
//  - extents are computed while they are walked: a fragmented disk would need gigabytes as an array

import type { ByteSource } from "./source.ts";
import type { ByteCount, ByteOffset } from "./units.ts";

/** What is known about a run of bytes. Only `free`, and `used` that is `neverUsed`, may ever be dropped. */
export type ExtentState = "used" | "free" | "unknown";

/** A run of bytes of the disk with one state. */
export interface Extent {
	readonly start: ByteOffset;
	readonly length: ByteCount;
	readonly state: ExtentState;
	/**
	 * The id of the volume that it belongs to, the innermost one (a logical volume rather than its physical volume), or
	 * null between volumes (partition tables, gaps, boot areas).
	 */
	readonly volume: string | null;
	/** Only with `used`: metadata that nobody will read, see {@link FileSystemMap.neverUsed}; absent otherwise. */
	readonly neverUsed?: true;
}

/** A run of bytes; what it counts from (disk or volume) is said where it is used. */
export interface ByteRange {
	readonly start: ByteOffset;
	readonly length: ByteCount;
}

/** `clean`: unmounted cleanly. `dirty`: mounted, crashed, or being repaired. `unknown`: no reader could tell. */
export type VolumeState = "clean" | "dirty" | "unknown";

/** One volume: a partition, a file system straight on the disk, or a logical volume inside one of them. */
export interface VolumeMap {
	/**
	 * `p1`, `p2`, … with the partition table's numbers, or `disk` for a volume straight on the disk; for a logical volume
	 * that id with the names of its volume group and its own: `p2/vg0/root`.
	 */
	readonly id: string;
	/** Where its first byte lies on the disk. A logical volume may go on anywhere else. */
	readonly offset: ByteOffset;
	readonly size: ByteCount;
	/** `ext2`, `ext3`, `ext4`; the name of a signature that is known but not read (`xfs`, `swap`, …); or `unknown`. */
	readonly type: string;
	readonly uuid: string | null;
	readonly label: string | null;
	readonly state: VolumeState;
	readonly blockSize: ByteCount | null;
	/** Bytes that the file system uses; null where no reader could tell. */
	readonly usedBytes: ByteCount | null;
	/** Bytes proved free; null where no reader could tell. */
	readonly freeBytes: ByteCount | null;
	/** Of the used bytes, those that nobody will read ({@link FileSystemMap.neverUsed}); absent where there are none. */
	readonly neverUsedBytes?: ByteCount;
	/** Volumes inside this one: an LVM physical volume's logical volumes. */
	readonly children: readonly VolumeMap[];
	/** Why the whole volume is kept, in one sentence; null where its free space was read. */
	readonly kept: string | null;
	/** Things an operator should know: damaged groups, overlaps, a backup table in use. */
	readonly warnings: readonly string[];
}

/** What a file system's reader found out about one volume. Byte positions count from the volume's start. */
export interface FileSystemMap {
	readonly type: string;
	readonly uuid: string | null;
	readonly label: string | null;
	readonly state: VolumeState;
	readonly blockSize: ByteCount | null;
	/** Bytes from the volume's start that the file system covers; what lies behind is `unknown`. */
	readonly size: ByteCount;
	readonly usedBytes: ByteCount | null;
	readonly freeBytes: ByteCount | null;
	readonly kept: string | null;
	/**
	 * A hibernated system lies in this volume: it goes on from there, with memory that may know more than any volume of
	 * the disk shows.
	 */
	readonly isAsleep?: boolean;
	readonly warnings: readonly string[];
	/**
	 * What counts as used, but whose content provably nobody will read: inode tables that were never initialised, the
	 * blocks of an empty journal. Sweeping may drop it; the file system's own count of free space does not have it.
	 */
	readonly neverUsed?: {
		readonly bytes: ByteCount;
		/** Runs inside `[from, to)`, in order, disjoint from the free runs. */
		readonly runs: (from: ByteOffset, to: ByteOffset) => Iterable<ByteRange>;
	};
	/** Maximal free runs inside `[from, to)`, in order; nothing for a volume that is kept whole. */
	readonly freeRuns: (from: ByteOffset, to: ByteOffset) => Iterable<ByteRange>;
}

/** What a reader is told beyond the bytes. */
export interface ReadOptions {
	/**
	 * The operator states that the VM is off for good: no saved state, no hibernation. Then also those blocks count as
	 * free of which only the guest's memory could have told otherwise (swap).
	 */
	readonly vmOff: boolean;
}

/** Maps one volume, or returns null where it has no file system of this kind. Throws only what the source throws. */
export type FileSystemReader = (volume: ByteSource, options: ReadOptions) => Promise<FileSystemMap | null>;

/** The map of a whole disk. */
export interface GuestMap {
	readonly size: ByteCount;
	readonly table: "gpt" | "mbr" | "none";
	readonly volumes: readonly VolumeMap[];
	/** About the disk as a whole: its partition table. */
	readonly warnings: readonly string[];
	/** Covers the disk in order without gap or overlap; may be walked any number of times. */
	readonly extents: Iterable<Extent>;
	/**
	 * Byte ranges of the disk whose change may change which volumes there are and what lies in them:
	 * partition tables, and the places of file-system signatures. A write there means: read the map again.
	 */
	readonly identity: readonly ByteRange[];
	/** What reading the map cost. */
	readonly bytesRead: number;
	readonly reads: number;
}

/** Every volume, those inside others too, each behind the one that holds it. */
export function* allVolumes(volumes: readonly VolumeMap[]): Generator<VolumeMap> {
	for (const volume of volumes) {
		yield volume;
		yield* allVolumes(volume.children);
	}
}
