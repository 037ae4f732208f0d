// What partition-table readers hand on, whatever the table's format.

import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteCount, ByteOffset } from "../../foundations/units.ts";

/** One partition as its table states it; not yet checked against the disk or its neighbours. */
export interface Partition {
	/** `p1`, `p2`, …: the number that the guest's kernel gives it. */
	readonly id: string;
	readonly offset: ByteOffset;
	readonly size: ByteCount;
	/** The table's own name for it (GPT), or null. */
	readonly label: string | null;
	/** Who arranges its content, where its type names somebody that is not read here; null otherwise. */
	readonly owner: string | null;
}

/** A partition table, or the finding that there is none. */
export interface PartitionTable {
	readonly table: "gpt" | "mbr" | "none";
	readonly partitions: readonly Partition[];
	/** Where a damaged or ambiguous table leaves it open what the disk holds: why, and the whole disk is kept. */
	readonly refused: string | null;
	readonly warnings: readonly string[];
	/** Byte ranges of the disk that the answer depends on. */
	readonly identity: readonly ByteRange[];
	/** Byte ranges of the disk that the table's own sectors take; no partition reaches into them. */
	readonly occupied: readonly ByteRange[];
}
