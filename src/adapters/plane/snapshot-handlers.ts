// Snapshot handlers: the calls about snapshots (snapshots.ts).

import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import * as sys from "../os/syscalls.ts";
import type { CalledPlane, Handlers, PlaneFiles } from "./called.ts";
import { eachPart, type LogFile } from "./disk-reader.ts";
import { IN_NONE, IN_NOTHING, IN_SECOND, IN_ZEROS } from "./messages.ts";

type SnapshotCalls =
	| "addSnapshot"
	| "removeSnapshot"
	| "notKept"
	| "keep"
	| "lose"
	| "snapshotReaders"
	| "locateInSnapshot"
	| "snapshotSums";

export function snapshotHandlers({ datasync }: CalledPlane, { snapshots, sums }: PlaneFiles): Handlers<SnapshotCalls> {
	/** Makes what a snapshot's log shows durable. Throws LOG_POISONED. */
	const flush = (name: string, { log, fd }: LogFile, done: () => void, fail: (error: unknown) => void): void => {
		const position = log.beginFlush();
		datasync(fd, (result) => {
			try {
				if (result < 0) {
					const error = sys.hostError(result, `flushing what snapshot ${name} keeps`);
					log.failFlush(error);
					throw error;
				}
				log.completeFlush(position);
				snapshots.flushed(name);
			} catch (error) {
				fail(error);
				return;
			}
			done();
		});
	};
	return {
		addSnapshot: (setup, done) => {
			snapshots.add(setup);
			done(undefined);
		},
		removeSnapshot: (name, done) => {
			snapshots.remove(name);
			done(undefined);
		},
		notKept: ({ name, runs }, done, fail) => {
			// What is only in the log's memory isn't kept: the second image may be changed on this answer's account.
			const undurable = snapshots.undurable(name);
			if (undurable === undefined) done(snapshots.notKept(name, runs));
			else flush(name, undurable, () => done(snapshots.notKept(name, runs)), fail);
		},
		keep: ({ name, runs, bytes, zeros }, done, fail) => {
			flush(name, snapshots.keep(name, runs, bytes, zeros), () => done(undefined), fail);
		},
		lose: ({ name, block }, done) => {
			snapshots.lose(name, block);
			done(undefined);
		},
		snapshotReaders: (name, done) => done(snapshots.readersOf(name)),
		locateInSnapshot: ({ name, block, count, own }, done) => {
			const logs = snapshots.logsOf(name);
			const found: number[] = [];
			locate(own ? logs.slice(0, 1) : logs, block, count, own ? IN_NONE : IN_SECOND, found);
			done(Float64Array.from(found));
		},
		snapshotSums: ({ name, block, count }, done) => {
			const found = new Uint32Array(count);
			const note = (logs: readonly LogFile[], from: number, length: number): void => {
				const [source, ...rest] = logs;
				if (source === undefined) {
					for (let i = 0; i < length; i++) found[from - block + i] = sums.get(from + i);
					return;
				}
				source.log.resolve(from, length, (value, start, run) => {
					if (value === ABSENT) note(rest, start, run);
					else if (value !== ZERO)
						for (let i = 0; i < run; i++) found[start - block + i] = source.log.sumOfSlot(value + i);
				});
			};
			note(snapshots.logsOf(name), block, count);
			done(found);
		},
	};
}

/** Appends where blocks are to `found`; what is in no log is `elsewhere`. */
function locate(logs: readonly LogFile[], block: number, count: number, elsewhere: number, found: number[]): void {
	const [source, ...rest] = logs;
	if (source === undefined) {
		found.push(block, count, elsewhere, -1);
		return;
	}
	const { log, fd, lost = new Set<number>() } = source;
	// A disk may have grown since a snapshot was taken.
	const inside = Math.max(0, Math.min(count, log.diskBlocks - block));
	if (inside > 0)
		log.resolve(block, inside, (value, start, length) => {
			if (value === ABSENT)
				eachPart(lost, start, length, (at, part, isLost) => {
					if (isLost) found.push(at, part, IN_NOTHING, -1);
					else locate(rest, at, part, elsewhere, found);
				});
			else if (value === ZERO) found.push(start, length, IN_ZEROS, -1);
			else found.push(start, length, fd, log.offsetOfSlot(value));
		});
	if (inside < count) found.push(block + inside, count - inside, IN_ZEROS, -1);
}
