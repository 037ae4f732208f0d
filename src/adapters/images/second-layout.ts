// Second layout: how a second image's bytes lie in files, as it is posted to the data plane's thread. Descriptors and
// facts, nothing that has a lifetime: the image stays open as long as the data plane runs.
//
// A flat layout is a raw file or block device, in which every byte is at its own place. A qcow2 image has tables that
// say where; while the disk is served, the data plane's thread alone reads them for the guest, and it alone writes
// those that can be reached (plane/qcow2-reader.ts says why).

import type { Qcow2Header } from "../../core/images/qcow2/header.ts";
import type { ByteCount } from "../../foundations/units.ts";

export type SecondLayout = FlatLayout | Qcow2Layout;

/** Bytes past `size` read as zeros. */
export interface FlatLayout {
	readonly kind: "flat";
	readonly fd: number;
	readonly size: ByteCount;
}

export interface Qcow2Layout {
	readonly kind: "qcow2";
	readonly fd: number;
	/** For messages. */
	readonly path: string;
	readonly header: Qcow2Header;
	/** The image below, which nobody writes. */
	readonly below: SecondLayout | null;
}

/** Bytes for an image's tables: `at` is a byte of its file. */
export interface TablePiece {
	readonly at: number;
	readonly bytes: Uint8Array;
}

/** What is to be written to an image's tables, in this order. */
export interface TableUpdate {
	readonly pieces: readonly TablePiece[];
	/** What the header says from then on, where that changes: another place for a table, another size of the disk. */
	readonly header?: Qcow2Header;
	/** Some place that the old tables led to is given up: reads that were planned by them start over. */
	readonly frees: boolean;
}

/**
 * Who writes an image's tables while a data plane reads by them. Resolves once all pieces are written (not durable):
 * from then on no read is answered with what lies at a place that only the old tables led to, so it may be reused.
 */
export type WriteTables = (update: TableUpdate) => Promise<void>;
