// State that the parts of an open first image share: the appender writes entries, the flusher makes them
// durable and frees segments, recovery sets the start. One object, so that each fact exists once.

import { isVmsweepError, VmsweepError } from "../../foundations/errors.ts";
import type { Geometry } from "./format.ts";
import type { HostFile } from "./host-file.ts";
import type { IndexMap } from "./index-map.ts";
import type { SegmentTable } from "./segments.ts";
import type { SummaryReader } from "./summary-reader.ts";

/**
 * The measures that keep a power cut harmless. All on, always, but in the crash simulation, which switches one off
 * to see that it would notice.
 */
export interface Safeguards {
	readonly entryChecksums: boolean;
	readonly dataChecksums: boolean;
	/** Segments are freed only after a flush that began when what supersedes them was written. */
	readonly supersededDurably: boolean;
	/** Segments are reused only after the superblock that frees them is durable. */
	readonly tailDurably: boolean;
	/** Each recovery begins an epoch. */
	readonly epochs: boolean;
	/** A view holds the segments that it shows. */
	readonly viewsHold: boolean;
}

export const ALL_SAFEGUARDS: Safeguards = {
	entryChecksums: true,
	dataChecksums: true,
	supersededDurably: true,
	tailDurably: true,
	epochs: true,
	viewsHold: true,
};

export interface LogState {
	readonly file: HostFile;
	readonly name: string;
	readonly uuid: Uint8Array;
	readonly geometry: Geometry;
	readonly table: SegmentTable;
	readonly summaries: SummaryReader;
	readonly index: IndexMap;
	/** Blocks of the largest size that the disk ever had. */
	largestBlocks: number;
	readonly safeguards: Safeguards;
	/** Number of the next entry, counted over the disk's life. */
	nextEntry: number;
	/** Of the entries since the oldest that recovery found, those by the guest: all but drops. */
	guestEntries: number;
	/** Entries known durable. */
	durableEntries: number;
	/** Position below which all data is durable. */
	durablePosition: number;
	/** Highest sequence ever given, even to a segment that could not be written. */
	lastSequence: number;
	epoch: number;
	/** Newest freed segment, as the superblock written last says. */
	freedSequence: number;
	/** Set by the first failure after which nobody knows what is on disk. */
	poison: VmsweepError | undefined;
}

/** Throws LOG_POISONED after a failed write or flush. */
export function refusePoisoned(state: LogState): void {
	if (state.poison)
		throw new VmsweepError(
			"LOG_POISONED",
			`${state.name}: takes no writes after a failed one (${state.poison.message}); stop the disk, check the storage, serve it again`,
			{ cause: state.poison },
		);
}

/** From now on every write and flush is refused, because what is on disk is unknown. The first cause counts. */
export function poison(state: LogState, cause: unknown): VmsweepError {
	const error =
		cause instanceof VmsweepError ? cause : new VmsweepError("IO", `${state.name}: ${String(cause)}`, { cause });
	state.poison ??= error;
	return error;
}

/**
 * Makes durable what was written, as every part of an open log does it. Throws IO for whatever the host says, also that it
 * is full: the kernel tells of lost pages once, and the next flush would succeed without them.
 */
export function datasync({ file }: LogState): void {
	try {
		file.datasync();
	} catch (error) {
		throw isVmsweepError(error, "NO_SPACE") ? new VmsweepError("IO", error.message, { cause: error }) : error;
	}
}

/** True for failures that leave the log as it was and usable: later tries may succeed. */
export const isHarmless = (error: unknown): error is VmsweepError =>
	error instanceof VmsweepError && ["NO_SPACE", "LOG_FULL", "LOG_POISONED"].includes(error.code);

/** Position that the next data slot gets. */
export function headPosition(state: LogState): number {
	const { table, geometry } = state;
	const last = table.chain.at(-1);
	if (!last || last.sealed) return (state.lastSequence + 1) * geometry.slotsPerSegment;
	return last.sequence * geometry.slotsPerSegment + last.usedSlots;
}
