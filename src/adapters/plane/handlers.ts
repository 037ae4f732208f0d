// Handlers: what the data plane does when the control plane asks. They run between two rounds of requests, so
// everything that they change is seen by the next round, and by nothing in between.

import { ABSENT, type FirstImage, UNDO_STRIDE, ZERO } from "../../core/log/first-image.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { CalledPlane, Handlers, PlaneFiles } from "./called.ts";
import type { ClientSetup } from "./connection.ts";
import type { PlaneCall, PlaneStatus } from "./messages.ts";
import { snapshotHandlers } from "./snapshot-handlers.ts";
import { sumHandlers } from "./sum-handlers.ts";

/** Slots of a segment that are looked up at once: bounds how long the guest waits for it. */
const SLOTS_AT_ONCE = 256;
/** Free segments lent at once: the guest may want some meanwhile. */
const LENT_AT_ONCE = 4;
/** Clients may take this long to end what they are in the middle of, when the disk is closed. */
const DRAIN_MS = 10_000;

export interface PlaneHandlers {
	/** Runs one call; exactly one of `done` and `fail` is called, now or later. */
	handle(kind: PlaneCall, input: unknown, done: (output: unknown) => void, fail: (error: unknown) => void): void;
}

export function planeHandlers(plane: CalledPlane, files: PlaneFiles): PlaneHandlers {
	const { log, viewPoints } = plane;
	const handlers: Handlers = {
		...sumHandlers(plane, files),
		...snapshotHandlers(plane, files),
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
		oldestSegments: (most, done) => done(log.segments(most)),
		written: (since, done) => plane.awaitWrites(since, () => done(undefined)),
		liveRuns: ({ sequence, from }, done) => {
			const { runs, next } = log.liveRuns(sequence, { from, slotsMax: SLOTS_AT_ONCE });
			done({ runs: withOffsets(plane, runs), next });
		},
		zeroRuns: (sequence, done) => done(log.zeroRuns(sequence)),
		moved: ({ runs, view }, done) => {
			plane.ages.moving(runs);
			done(log.moved(runs, viewPoints.view(view)));
		},
		dropped: ({ runs, view }, done, fail) => {
			const applied = log.dropped(runs, viewPoints.view(view));
			if (log.commitError !== undefined && applied.length === 0 && runs.length > 0) fail(log.commitError);
			else done(applied);
		},
		punched: (runs, done) => {
			plane.ages.clearing(runs);
			log.punched(runs);
			done(log.guestEntries);
		},
		takeView: (_, done) => done(viewPoints.take()),
		recovered: (entry, done) => {
			const view = log.recoveredViews.get(entry);
			done(view === undefined || view.released ? null : viewPoints.keep(view));
		},
		hold: (position, done) => {
			log.holdFrom(position ?? undefined);
			done(undefined);
		},
		undoable: (_, done) => done(undoable(plane)),
		restore: (runs, done) => done(restore(plane, runs)),
		writeSecondTables: (update, done) => {
			plane.writeSecondTables(update);
			done(undefined);
		},
		resize: ({ size, guestEntries }, done) => {
			// Asked here, where no client can come in between, nor go after it has written.
			if (size < log.diskBytes && plane.clientCount > 0)
				throw new VmsweepError(
					"DISK_LOCKED",
					`${plane.clientCount} clients use the disk. Detach them, then shrink it.`,
				);
			if (size < log.diskBytes && log.guestEntries !== guestEntries)
				throw new VmsweepError(
					"DISK_LOCKED",
					"a client has written while the disk's end was looked at. Shrink it again while the VM is off.",
				);
			plane.resize(size);
			done(undefined);
		},
		releaseView: (id, done) => {
			viewPoints.release(id);
			done(undefined);
		},
		isDurable: (id, done) => done(viewPoints.view(id).durable),
		locate: ({ view, block, count }, done) => done(locate(plane, view, block, count)),
		locateLogged: ({ view, block, count }, done) => done(locateLogged(plane, view, block, count)),
		watch: (plan, done) => {
			viewPoints.setPlan(plan);
			done(undefined);
		},
		collect: (_, done) => done(viewPoints.collect()),
		takeViewAtRest: ({ volume, lastWrite }, done) => done(viewPoints.takeAtRest(volume, lastWrite)),
		writeCounts: (_, done) => done({ ...viewPoints.counts(), isReceiving: plane.isReceiving }),
		lendFree: (warmBytes, done) => done(log.borrowCold(LENT_AT_ONCE, warmBytes)),
		returnFree: ({ ranges, punched }, done) => {
			log.returnCold(ranges, punched);
			log.trimFile();
			done(undefined);
		},
		refuseWhenFull: (refuse, done) => {
			plane.refuseWhenFull(refuse);
			done(undefined);
		},
		stop: (_, done, fail) => {
			plane.drain(DRAIN_MS, () =>
				plane.flush(() => {
					plane.stop();
					try {
						files.snapshots.close();
						log.close();
						done(undefined);
					} catch (error) {
						fail(error);
					}
				}),
			);
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

function statusOf(plane: CalledPlane): PlaneStatus {
	const { log } = plane;
	return {
		position: log.position,
		durablePosition: log.durablePosition,
		guestEntries: log.guestEntries,
		size: log.diskBytes,
		tailPosition: log.tailPosition,
		usedBytes: log.usedBytes,
		limitBytes: log.limitBytes,
		needsFlush: log.needsFlush,
		clients: plane.clientCount,
		stalled: plane.stalledCount,
		poisoned: log.poisoned,
		hostIsFull: log.commitError?.code === "NO_SPACE",
		counters: { ...plane.counters },
		latencies: plane.latencies.counts(),
	};
}

/** Triples [block, count, slot] with each slot's place in the file behind it. */
function withOffsets(plane: CalledPlane, triples: Float64Array): Float64Array {
	const runs = new Float64Array((triples.length / 3) * 4);
	for (let from = 0, to = 0; from < triples.length; from += 3, to += 4) {
		runs.set(triples.subarray(from, from + 3), to);
		runs[to + 3] = plane.log.offsetOfSlot(triples[from + 2]!);
	}
	return runs;
}

/** See `locate` in messages.ts. */
function locate(plane: CalledPlane, view: number, block: number, count: number): Float64Array {
	const { log, viewPoints } = plane;
	const found: number[] = [];
	viewPoints.view(view).runs(block, count, (value, start, length) => pushLocated(found, log, value, start, length));
	return Float64Array.from(found);
}

/** See `locateLogged` in messages.ts. */
function locateLogged(plane: CalledPlane, view: number, block: number, count: number): Float64Array {
	const { log, viewPoints } = plane;
	const found: number[] = [];
	const past = viewPoints.view(view);
	log.resolve(block, count, (now, from, length) => {
		if (now === ABSENT) return;
		past.runs(from, length, (value, start, run) => pushLocated(found, log, value, start, run));
	});
	return Float64Array.from(found);
}

function pushLocated(found: number[], log: FirstImage, value: number, start: number, length: number): void {
	if (value === ABSENT || value === ZERO) found.push(start, length, value, -1, -1);
	else found.push(start, length, value, log.offsetOfSlot(value), log.positionOfSlot(value));
}

/** See `undoable` in messages.ts. */
function undoable({ log }: CalledPlane): Float64Array {
	const found: number[] = [];
	const runs = log.undoable();
	for (let i = 0; i < runs.length; i += UNDO_STRIDE) {
		const slot = runs[i + 2]!;
		found.push(runs[i]!, runs[i + 1]!, slot, slot === ABSENT ? -1 : log.offsetOfSlot(slot));
	}
	return Float64Array.from(found);
}

/** Writes what dropped blocks held once more, as the guest would; only where they still read as dropped. */
function restore(plane: CalledPlane, runs: Float64Array): number {
	const { log } = plane;
	let restored = 0;
	for (let i = 0; i + 3 < runs.length; i += 4) {
		const [block, count, slot, at] = [runs[i]!, runs[i + 1]!, runs[i + 2]!, runs[i + 3]!];
		const bytes = plane.readWhole(slot === ABSENT ? { block, count } : { block, count, slot, at });
		const isZero = (at: number): boolean =>
			zeros.equals(bytes.bytes.subarray((at - block) * BLOCK_SIZE, (at - block + 1) * BLOCK_SIZE));
		let blocks = 0;
		log.resolve(block, count, (value, first, length) => {
			if (value !== ZERO) return;
			const end = first + length;
			for (let from = first; from < end; from++) {
				let to = from;
				while (to < end && !isZero(to)) to++;
				if (to > from) log.stageData(from, to - from, bytes, (from - block) * BLOCK_SIZE);
				blocks += to - from;
				from = to;
			}
		});
		const staged = log.stagedCount;
		if (log.commit() < staged) throw log.commitError!;
		restored += blocks;
	}
	return restored;
}

const zeros = Buffer.alloc(BLOCK_SIZE);
