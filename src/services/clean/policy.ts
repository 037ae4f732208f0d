// Policy: what an operator says about blocks that nobody needs, but somebody might miss.

export type KeepOrDrop = "keep" | "drop";

export interface CleaningPolicy {
	/** What lies in extents that no logical volume of LVM has; `vgcfgrestore` can bring a removed volume back from them. */
	readonly lvmFree: KeepOrDrop;
	/**
	 * What a mounted btrfs has given up. The proof rests on how Linux's btrfs reuses blocks, and on nothing that the disk shows
	 * (docs/decisions/0018): not for guests with another driver.
	 */
	readonly btrfsMounted: KeepOrDrop;
}

/** What holds where an operator says nothing. */
export const KEEP_ALL: CleaningPolicy = { lvmFree: "keep", btrfsMounted: "keep" };
