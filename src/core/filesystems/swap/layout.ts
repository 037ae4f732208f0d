// The header page of Linux swap (include/linux/swap.h, `union swap_header`; mkswap(8)). Little-endian hosts only.

import { bytes, struct, u32le } from "../../../foundations/struct.ts";

/** Behind the boot area of 1 KiB in the first page. */
export const SWAP_HEADER_AT = 1024;
export const SwapHeader = struct("swap_header", 512, {
	version: u32le(0x0),
	/** Number of the last page; the header's own is 0. */
	lastPage: u32le(0x4),
	badPageCount: u32le(0x8),
	uuid: bytes(0xc, 16),
	label: bytes(0x1c, 16),
});

/** The last bytes of the first page say what the area is. */
export const SIGNATURE_LENGTH = 10;
export const SIGNATURE_SWAP = "SWAPSPACE2";
/** Header without a version, before Linux 2.2. */
export const SIGNATURE_OLD = "SWAP-SPACE";
/** The area holds a hibernated system: the kernel's own, µswsusp's, TuxOnIce's. */
export const SIGNATURES_HIBERNATED: readonly string[] = ["S1SUSPEND\0", "S2SUSPEND\0", "ULSUSPEND\0", "LINHIB0001"];

/** Page sizes of all architectures that have swap. */
export const PAGE_SIZES: readonly number[] = [4096, 8192, 16384, 65536];
