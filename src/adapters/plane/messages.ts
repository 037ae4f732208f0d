// Messages between the control plane and a disk's data-plane thread.
//
//   control plane                              data plane
//   ask(kind, input) ── port, then bell ──►    handler of that kind
//   promise          ◄───────── port ──        { id, output } or { id, error }
//   on stalled …     ◄───────── port ──        { event }
//
// The data plane sleeps in poll, not in an event loop: the eventfd wakes it, and it takes the messages from the
// port by itself (receiveMessageOnPort). Runs travel as Float64Array: [block, count, slot]… or [block, count]….

import type { SegmentInfo } from "../../core/log/first-image.ts";
import type { ErrorCode } from "../../foundations/errors.ts";
import type { LogPosition } from "../../foundations/units.ts";
import type { ClientSetup } from "./connection.ts";
import type { PlaneCounters } from "./plane.ts";
import type { Collected, WatchPlan } from "./watch.ts";

/** The state of the first image and of the clients. */
export interface PlaneStatus {
	readonly position: LogPosition;
	readonly durablePosition: LogPosition;
	readonly tailPosition: LogPosition;
	/** Host bytes that the log's segments fill. */
	readonly usedBytes: number;
	readonly limitBytes: number;
	readonly needsFlush: boolean;
	readonly clients: number;
	/** Clients that wait for room in the log. */
	readonly stalled: number;
	readonly poisoned: boolean;
	readonly counters: PlaneCounters;
}

/** A disk as it was at one position; see `release`. */
export interface ViewHandle {
	readonly id: number;
	readonly position: LogPosition;
}

/** What the control plane can ask: input and output per kind. */
export interface PlaneCalls {
	attach: { input: ClientSetup; output: undefined };
	status: { input: undefined; output: PlaneStatus };
	/** Answers once everything written so far is durable. */
	flush: { input: undefined; output: undefined };
	/** Closes the active segment, so that it can be cleaned. */
	seal: { input: undefined; output: undefined };
	segments: { input: undefined; output: SegmentInfo[] };
	/** A segment's current blocks: [block, count, first slot, file offset]…. */
	liveRuns: { input: number; output: Float64Array };
	/** Pairs [block, count] of a segment's ranges that read as zeros now. */
	zeroRuns: { input: number; output: Float64Array };
	/** Triples whose copies in the second image are durable; answers the number of blocks that point there now. */
	moved: { input: { runs: Float64Array; view: number }; output: number };
	/** Pairs proven unused in a view; answers the pairs that read as zeros now by this call. */
	dropped: { input: { runs: Float64Array; view: number }; output: Float64Array };
	/** Pairs that read as zeros in the second image, durably. */
	punched: { input: Float64Array; output: number };
	takeView: { input: undefined; output: ViewHandle };
	releaseView: { input: number; output: undefined };
	/** True where every write that the view shows is durable. */
	isDurable: { input: number; output: boolean };
	/** Where the blocks of a view are, in order: [block, count, value, file offset, log position]…; see LOCATED_STRIDE. */
	locate: { input: { view: number; block: number; count: number }; output: Float64Array };
	watch: { input: WatchPlan; output: undefined };
	collect: { input: undefined; output: Collected };
	/** Punches some free segments and cuts the file's end; answers the host bytes given back. */
	trim: { input: undefined; output: number };
	/** True: writes without room fail with ENOSPC; false: they wait. */
	refuseWhenFull: { input: boolean; output: undefined };
	/** Flushes, closes the log cleanly and ends the thread. */
	stop: { input: undefined; output: undefined };
}

/**
 * Numbers per run in the answer of `locate`: first block, block count, index value (ABSENT, ZERO or the first slot),
 * and for slots the byte offset in the first image and the log position of the first slot, else -1.
 */
export const LOCATED_STRIDE = 5;

export type PlaneCall = keyof PlaneCalls;

export interface PlaneRequest {
	readonly id: number;
	readonly kind: PlaneCall;
	readonly input: unknown;
}

/** What the data plane says unasked. */
export type PlaneEvent = { readonly kind: "stalled" } | { readonly kind: "poisoned"; readonly reason: string };

export type PlaneReply =
	| { readonly id: number; readonly output: unknown }
	| { readonly id: number; readonly error: { readonly code: ErrorCode; readonly message: string } }
	| { readonly event: PlaneEvent };

/** What the thread is started with. Descriptors are the process's; the control plane closes them after the thread's end. */
export interface WorkerSetup {
	readonly logFd: number;
	readonly logName: string;
	readonly secondFd: number;
	readonly secondSize: number;
	readonly uuid: Uint8Array;
	/** Most host bytes of the log; default: what it was formatted with. */
	readonly limitBytes?: number;
	readonly helperMemory: SharedArrayBuffer;
	readonly bell: number;
}
