// Handlers: what the data plane does when the control plane asks. They run between two rounds of requests, so
// everything that they change is seen by the next round, and by nothing in between.

import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import type { HostFile } from "../../core/log/host-file.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import type { ClientSetup } from "./connection.ts";
import type { PlaneCall, PlaneCalls, PlaneStatus } from "./messages.ts";
import type { Plane } from "./plane.ts";

/** Free segments punched per `trim`: bounds how long the guest waits for it. */
const PUNCH_AT_ONCE = 4;

type Handlers = {
	readonly [K in PlaneCall]: (
		input: PlaneCalls[K]["input"],
		done: (output: PlaneCalls[K]["output"]) => void,
		fail: (error: unknown) => void,
	) => void;
};

export interface PlaneHandlers {
	/** Runs one call; exactly one of `done` and `fail` is called, now or later. */
	handle(kind: PlaneCall, input: unknown, done: (output: unknown) => void, fail: (error: unknown) => void): void;
}

export function planeHandlers(plane: Plane, file: HostFile): PlaneHandlers {
	const { log, viewPoints } = plane;
	const handlers: Handlers = {
		attach: (setup: ClientSetup, done) => {
			plane.attach(setup);
			done(undefined);
		},
		status: (_, done) => done(statusOf(plane)),
		flush: (_, done, fail) => {
			plane.flush((error) => {
				if (error === 0) done(undefined);
				else fail(new VmsweepError("IO", "flushing the first image failed. Check the host's storage."));
			});
		},
		seal: (_, done) => {
			log.seal();
			done(undefined);
		},
		segments: (_, done) => done(log.segments()),
		liveRuns: (sequence, done) => done(withOffsets(plane, log.liveRuns(sequence))),
		zeroRuns: (sequence, done) => done(log.zeroRuns(sequence)),
		moved: ({ runs, view }, done) => done(log.moved(runs, viewPoints.view(view))),
		dropped: ({ runs, view }, done, fail) => {
			const applied = log.dropped(runs, viewPoints.view(view));
			if (log.commitError !== undefined && applied.length === 0 && runs.length > 0) fail(log.commitError);
			else done(applied);
		},
		punched: (runs, done) => done(log.punched(runs)),
		takeView: (_, done) => done(viewPoints.take()),
		releaseView: (id, done) => {
			viewPoints.release(id);
			done(undefined);
		},
		isDurable: (id, done) => done(viewPoints.view(id).durable),
		locate: ({ view, block, count }, done) => done(locate(plane, view, block, count)),
		watch: (plan, done) => {
			viewPoints.setPlan(plan);
			done(undefined);
		},
		collect: (_, done) => done(viewPoints.collect()),
		trim: (_, done) => {
			const ranges = log.borrowCold(PUNCH_AT_ONCE);
			let bytes = 0;
			let punched = false;
			try {
				for (const { offset, length } of ranges) {
					file.punch(offset, length);
					bytes += length;
				}
				punched = true;
			} finally {
				log.returnCold(ranges, punched);
			}
			done(bytes + log.trimFile());
		},
		refuseWhenFull: (refuse, done) => {
			plane.refuseWhenFull = refuse;
			plane.resumeStalled();
			done(undefined);
		},
		stop: (_, done, fail) => {
			plane.flush(() => {
				plane.stop();
				try {
					log.close();
					done(undefined);
				} catch (error) {
					fail(error);
				}
			});
		},
	};
	return {
		handle(kind, input, done, fail) {
			(handlers[kind] as (input: unknown, done: (output: unknown) => void, fail: (error: unknown) => void) => void)(
				input,
				done,
				fail,
			);
		},
	};
}

function statusOf(plane: Plane): PlaneStatus {
	const { log } = plane;
	return {
		position: log.position,
		durablePosition: log.durablePosition,
		tailPosition: log.tailPosition,
		usedBytes: log.usedBytes,
		limitBytes: log.limitBytes,
		needsFlush: log.needsFlush,
		clients: plane.clientCount,
		stalled: plane.stalledCount,
		poisoned: log.poisoned,
		counters: { ...plane.counters },
	};
}

/** Triples [block, count, slot] with each slot's place in the file behind it. */
function withOffsets(plane: Plane, triples: Float64Array): Float64Array {
	const runs = new Float64Array((triples.length / 3) * 4);
	for (let from = 0, to = 0; from < triples.length; from += 3, to += 4) {
		runs.set(triples.subarray(from, from + 3), to);
		runs[to + 3] = plane.log.offsetOfSlot(triples[from + 2]!);
	}
	return runs;
}

/** See `locate` in messages.ts. */
function locate(plane: Plane, view: number, block: number, count: number): Float64Array {
	const { log } = plane;
	const found: number[] = [];
	plane.viewPoints.view(view).runs(block, count, (value, start, length) => {
		if (value === ABSENT || value === ZERO) found.push(start, length, value, -1, -1);
		else found.push(start, length, value, log.offsetOfSlot(value), log.positionOfSlot(value));
	});
	return Float64Array.from(found);
}
