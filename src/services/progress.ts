// Progress and interruption: how a long service says how far it is, and how it is told to stop.
//
// A service calls `onProgress` as often as it likes; whoever shows it decides how often that is. It asks `checkpoint`
// between steps that each leave everything whole, so that an interruption never meets half a step.

import { VmsweepError } from "../foundations/errors.ts";

/** How far a service is. */
export interface Progress {
	/** What is being done, in a few words, lower case: "dropping free blocks". */
	readonly step: string;
	/** Bytes done. */
	readonly done: number;
	/** Bytes in all; null where nobody knows yet. */
	readonly total: number | null;
}

export type OnProgress = (progress: Progress) => void;

/** What services that take a while accept. */
export interface LongRunning {
	readonly onProgress?: OnProgress;
	/** Aborted: stop at the next point where everything is whole, with INTERRUPTED. */
	readonly signal?: AbortSignal;
}

/** Lets signals and others have their turn, then throws INTERRUPTED where the service was told to stop. */
export async function checkpoint(signal: AbortSignal | undefined, stoppedAs: string): Promise<void> {
	await new Promise(setImmediate);
	if (signal?.aborted) throw new VmsweepError("INTERRUPTED", stoppedAs);
}

/** Longest stretch of work without a checkpoint, in milliseconds. A checkpoint per small step would cost more than the step. */
const TURN_MS = 10;

/** Tells when a service that works in small steps should let others have their turn. */
export class Turns {
	#end = performance.now() + TURN_MS;
	isOver(): boolean {
		return performance.now() >= this.#end;
	}
	begin(): void {
		this.#end = performance.now() + TURN_MS;
	}
}
