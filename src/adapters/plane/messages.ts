// Messages between the control plane and a disk's data-plane thread.
//
//   control plane                              data plane
//   ask(kind, input) ── port, then bell ──►    handler of that kind
//   promise          ◄───────── port ──        { id, output } or { id, error }
//   on stalled …     ◄───────── port ──        { event }
//
// The data plane sleeps in poll, not in an event loop: the eventfd wakes it, and it takes the messages from the
// port by itself (receiveMessageOnPort). Runs travel as Float64Array: [block, count, slot]… or [block, count]….

import type { ColdRange, LivePart, ScrubbedPart, SegmentInfo } from "../../core/log/first-image.ts";
import type { ErrorCode } from "../../foundations/errors.ts";
import type { LogPosition } from "../../foundations/units.ts";
import type { SecondLayout, TableUpdate } from "../images/second-layout.ts";
import type { ClientSetup } from "./connection.ts";
import type { PlaneCounters } from "./counters.ts";
import type { LatencyCounts } from "./latencies.ts";
import type { SnapshotSetup } from "./snapshots.ts";
import type { Collected, KeptView, WatchPlan, WriteCounts } from "./watch.ts";

/** The state of the first image and of the clients. */
export interface PlaneStatus {
	readonly position: LogPosition;
	readonly durablePosition: LogPosition;
	/** What `guestEntries` of a view taken now would be. */
	readonly guestEntries: number;
	readonly tailPosition: LogPosition;
	/** Of the disk, in bytes. */
	readonly size: number;
	/** Host bytes that the log's segments fill. */
	readonly usedBytes: number;
	readonly limitBytes: number;
	readonly needsFlush: boolean;
	readonly clients: number;
	/** Clients that wait for room in the log. */
	readonly stalled: number;
	readonly poisoned: boolean;
	/** The host had no space for the newest write. */
	readonly hostIsFull: boolean;
	readonly counters: PlaneCounters;
	readonly latencies: LatencyCounts;
}

/** A disk as it was at one position; see `releaseView`. */
export type ViewHandle = KeptView;

/** Where a located block of a snapshot is: the descriptor of a log, or one of these. */
export const IN_ZEROS = -1;
export const IN_SECOND = -2;
/** In none of the logs that were asked for. */
export const IN_NONE = -3;
/** Nowhere any more: it was rotten when it was to be kept. */
export const IN_NOTHING = -4;

/** What the control plane can ask: input and output per kind. */
export interface PlaneCalls {
	attach: { input: ClientSetup; output: undefined };
	status: { input: undefined; output: PlaneStatus };
	/** Answers once everything written so far is durable. */
	flush: { input: undefined; output: undefined };
	/** Closes the active segment, so that it can be cleaned. */
	seal: { input: undefined; output: undefined };
	segments: { input: undefined; output: SegmentInfo[] };
	/** The same, but for the newer ones where there are more than this many: a large log has thousands. */
	oldestSegments: { input: number; output: SegmentInfo[] };
	/** Answers once the guest has written something since this number of guest entries. */
	written: { input: number; output: undefined };
	/** Some of a segment's current blocks, from an entry on: [block, count, first slot, file offset]…, and the entry to go on with or -1. */
	liveRuns: { input: { sequence: number; from: number }; output: LivePart };
	/** Pairs [block, count] of a segment's ranges that read as zeros now. */
	zeroRuns: { input: number; output: Float64Array };
	/** Triples whose copies in the second image are durable; answers the number of blocks that point there now. */
	moved: { input: { runs: Float64Array; view: number }; output: number };
	/** Pairs proven unused in a view; answers the pairs that read as zeros now by this call. */
	dropped: { input: { runs: Float64Array; view: number }; output: Float64Array };
	/** Pairs that read as zeros in the second image, durably. Answers what `guestEntries` of a view taken now would be. */
	punched: { input: Float64Array; output: number };
	/** Pairs: forgets the checksums of blocks that are about to be punched; durable after `flushSums`. */
	forgetSums: { input: Float64Array; output: undefined };
	/** Triples that were copied to the second image: their checksums stand beside it; durable after `flushSums`. */
	noteCopied: { input: Float64Array; output: undefined };
	/** Answers once all checksums of the second image that were changed are durable. */
	flushSums: { input: undefined; output: undefined };
	/** Checksums of a view's blocks wherever they are, one per block; 0 where nothing is known. */
	sums: { input: { view: number; block: number; count: number }; output: Uint32Array };
	/** The same of the second image's blocks. */
	secondSums: { input: { block: number; count: number }; output: Uint32Array };
	/**
	 * Which blocks of the second image have a known checksum, from block `from` on, as pairs. Looks at some blocks only: the
	 * next question is to begin at `next`, -1 for none.
	 */
	knownSums: { input: { from: number }; output: { runs: Float64Array; next: number } };
	/** A snapshot that is newer than all others. */
	addSnapshot: { input: SnapshotSetup; output: undefined };
	removeSnapshot: { input: string; output: undefined };
	/** Of pairs, what a snapshot has not kept itself. */
	notKept: { input: { name: string; runs: Float64Array }; output: Float64Array };
	/** Blocks to be kept for a snapshot, as pairs with their bytes and pairs of zeros; durable when answered. */
	keep: { input: { name: string; runs: Float64Array; bytes: Uint8Array; zeros: Float64Array }; output: undefined };
	/** A block that is rotten, so that nothing of it can be kept for a snapshot: reading it there is an error from now on. */
	lose: { input: { name: string; block: number }; output: undefined };
	/** Clients that read a snapshot. */
	snapshotReaders: { input: string; output: number };
	/** Where a snapshot's blocks are, in order: [block, count, where, byte in the file]…; see located.ts. */
	locateInSnapshot: { input: { name: string; block: number; count: number; own: boolean }; output: Float64Array };
	/** Checksums of a snapshot's blocks, one per block; 0 where nothing is known. */
	snapshotSums: { input: { name: string; block: number; count: number }; output: Uint32Array };
	/** Segments with data or drops at or behind this position are held: neither freed nor their drops punched. */
	hold: { input: LogPosition | null; output: undefined };
	/** What could be brought back: [block, count, slot or ABSENT, byte in the first image or -1]…. */
	undoable: { input: undefined; output: Float64Array };
	/**
	 * Writes dropped blocks again, as `undoable` told them, where nobody wrote since, and where they aren't zeros anyway.
	 * Answers how many blocks. Throws IO where one of them is rotten: none of that run's is written then.
	 */
	restore: { input: Float64Array; output: number };
	/** Writes tables of the second image, and reads by them from now on; see `WriteTables` in images/second-layout.ts. */
	writeSecondTables: { input: TableUpdate; output: undefined };
	/**
	 * Gives the disk another size, in bytes. A smaller one is refused with DISK_LOCKED while there are clients, and where the
	 * guest has written since the view that showed the end unused: `guestEntries` is that view's.
	 */
	resize: { input: { size: number; guestEntries?: number | undefined }; output: undefined };
	/** Compares some of a segment's live blocks with their checksums, from 0 or the last answer's `next` on. */
	scrub: { input: { sequence: number; from: number }; output: ScrubbedPart };
	takeView: { input: undefined; output: ViewHandle };
	/** The view of an instant that was asked for at the start; null where the log doesn't hold it any more. */
	recovered: { input: number; output: ViewHandle | null };
	releaseView: { input: number; output: undefined };
	/** True where every write that the view shows is durable. */
	isDurable: { input: number; output: boolean };
	/** Where the blocks of a view are, in order: [block, count, value, file offset, log position]…; see located.ts. */
	locate: { input: { view: number; block: number; count: number }; output: Float64Array };
	/** The same for blocks of which the log has something now; all others are left out. */
	locateLogged: { input: { view: number; block: number; count: number }; output: Float64Array };
	watch: { input: WatchPlan; output: undefined };
	collect: { input: undefined; output: Collected };
	/** A view of a volume that rests since the last collection; see `ViewPoints.takeAtRest`. */
	takeViewAtRest: { input: { volume: number; lastWrite: number }; output: ViewHandle | undefined };
	writeCounts: { input: undefined; output: WriteCounts };
	/** Lends some free segments of the first image that may take host space, but for this many bytes of them: to be punched. */
	lendFree: { input: number; output: ColdRange[] };
	/** They may be used again; where they were punched, the file's end is cut off as far as it is free. */
	returnFree: { input: { ranges: readonly ColdRange[]; punched: boolean }; output: undefined };
	/** True: writes without room fail with ENOSPC; false: they wait. */
	refuseWhenFull: { input: boolean; output: undefined };
	/** Flushes, closes the log cleanly and ends the thread. */
	stop: { input: undefined; output: undefined };
}

export type PlaneCall = keyof PlaneCalls;

/** Who answers calls: the data plane's thread; in the crash simulation the same handlers without a thread. */
export interface PlanePort {
	/** Rejects with the call's error, or DISK_STOPPED once the disk is not served any more. */
	ask<K extends PlaneCall>(
		kind: K,
		...input: undefined extends PlaneCalls[K]["input"] ? [] : [PlaneCalls[K]["input"]]
	): Promise<PlaneCalls[K]["output"]>;
}

export interface PlaneRequest {
	readonly id: number;
	readonly kind: PlaneCall;
	readonly input: unknown;
}

/** What the data plane says unasked. */
export type PlaneEvent =
	| { readonly kind: "stalled" }
	| { readonly kind: "poisoned"; readonly reason: string }
	/** Somebody wanted to read a block that doesn't match its checksum. */
	| { readonly kind: "rotten"; readonly block: number }
	/** Clients have asked for nothing for a while, after work that took memory. */
	| { readonly kind: "rested" };

export type PlaneReply =
	| { readonly id: number; readonly output: unknown }
	| { readonly id: number; readonly error: { readonly code: ErrorCode; readonly message: string } }
	| { readonly event: PlaneEvent };

/** What the thread is started with. Descriptors are the process's; the control plane closes them after the thread's end. */
export interface WorkerSetup {
	readonly logFd: number;
	readonly logName: string;
	readonly second: SecondLayout;
	/** Checksums of the second image's blocks (core/log/second-sums.ts). */
	readonly sumsFd: number;
	readonly sumsName: string;
	/** Oldest first. */
	readonly snapshots: readonly SnapshotSetup[];
	/** Instants of which views are wanted, as `entry` of their handles; see `recovered`. */
	readonly viewsAtEntries: readonly number[];
	/** Hold all that the log has until `hold` says otherwise, so that what was dropped can be brought back. */
	readonly holdsAll: boolean;
	readonly uuid: Uint8Array;
	/** Most host bytes of the log; default: what it was formatted with. */
	readonly limitBytes?: number;
	/** Shared with helper threads; null where the data plane is to use io_uring. */
	readonly helperMemory: SharedArrayBuffer | null;
	readonly bell: number;
}
