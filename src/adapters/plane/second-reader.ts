// Second reader: where the data plane finds a block that is only in the second image.
//
//   SecondLayout (adapters/images/second-layout.ts) ─ posted to the data plane's thread ─► SecondReader ─► runs
//                                                       (second-readers.ts makes it)
//
// Runs are what DiskReader fetches: bytes of an open file, zeros, or something packed that its own function fetches.

import type { TableUpdate } from "../images/second-layout.ts";

/** No file: the run reads as zeros. */
export const ZERO_RUN = -1;
/** Not to be read from a file as it is: its {@link Unpack} fetches it. */
export const PACKED_RUN = -2;
/** A damaged place: reading it fails, as it does with every descriptor that is none. */
export const BROKEN_RUN = -3;

/** Fetches a packed run: fills all of `into`, waiting for the device. Answers 0 or a negated errno. */
export type Unpack = (into: Uint8Array) => number;

/**
 * Takes one run of a plan: `length` bytes at `fileAt` of `fd`, or ZERO_RUN, PACKED_RUN (with `unpack`; `fileAt` is where
 * its packed bytes begin), BROKEN_RUN. Runs come in order and without gap.
 */
export type PushRun = (fd: number, fileAt: number, length: number, unpack?: Unpack) => void;

/** Says where the second image's bytes are. Belongs to the data plane's thread. */
export interface SecondReader {
	/** Grows whenever a place that `plan` named may be given to other content: a read begun before starts over. */
	readonly generation: number;
	/** Pushes the runs of bytes `[from, to)` of the disk. Never throws: what can't be found out is a broken run. */
	plan(from: number, to: number, push: PushRun): void;
	/** Writes tables, and plans by them from now on. Throws IO or NO_SPACE, with some pieces written; may be repeated. */
	writeTables(update: TableUpdate): void;
	/** The image has another size, in bytes. */
	resized(size: number): void;
}
