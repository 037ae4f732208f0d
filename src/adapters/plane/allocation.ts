// Status of a range, for block status: per metadata context, runs with the context's flags.
//
//   base:allocation   what holds data, what is a hole that reads as zeros: blocks in the first image hold data, zeroed
//                     ones are holes, and for all others the second image's own holes are asked for
//   vmsweep:liveness  what was proven when the client came, as far as it still holds
//                     (docs/live-safety.md)
//   vmsweep:since     what was written since a log position, or may have been
//
// Runs are made lazily, a window at a time, since a client may ask about the whole disk and use little.

import type { StatusRun } from "../../core/nbd/block-status.ts";
import { liveness, since } from "../../core/nbd/meta-contexts.ts";
import { allocation } from "../../core/nbd/protocol.ts";
import { BLOCK_SIZE, roundDown, roundUp } from "../../foundations/units.ts";
import { dataRuns } from "../os/data-runs.ts";
import { LIVE, type Liveness } from "./connection.ts";
import type { DiskReader } from "./disk-reader.ts";
import { ZERO_RUN } from "./disk-reader.ts";
import type { WriteAges } from "./write-ages.ts";

const WINDOW_BYTES = 16 * 1024 * 1024;
/** Windows and runs looked at for one answer, about: bounds how long other clients wait. A client asks again for the rest. */
const WINDOWS_MAX = 4096;
const RUNS_MAX = 16_384;

const HOLE = allocation.HOLE | allocation.ZERO;
const DATA = 0;

/** Runs of some window: pushed in order and without gap, as [start, end, status]. */
type PushRun = (start: number, end: number, status: number) => void;

/**
 * The allocation of `[offset, offset + length)`; ends early where the disk is in very many pieces. `reader` must not plan
 * anything else while these runs are pulled.
 */
export function allocationRuns(reader: DiskReader, offset: number, length: number): Generator<StatusRun> {
	return windows(offset, length, function* (from, to) {
		reader.plan(from, to - from);
		let start = from;
		// The plan stays until the next window's: who pulls these runs uses no reader in between.
		for (let run = 0; run < reader.count; run++) {
			const fd = reader.fd[run]!;
			const end = start + reader.length[run]!;
			if (fd >= 0 && reader.position[run]! < 0) yield* storedRuns(fd, reader.fileAt[run]!, start, end);
			else yield { start, end, status: fd === ZERO_RUN ? HOLE : DATA };
			start = end;
		}
	});
}

/** Data and holes of a file of the second image, whose byte `fileAt` is the disk's byte `from`. */
function* storedRuns(fd: number, fileAt: number, from: number, to: number): Generator<StatusRun> {
	const shift = from - fileAt;
	let at = from;
	for (const data of dataRuns(fd, fileAt, fileAt + to - from)) {
		const [start, end] = [data.start + shift, data.end + shift];
		if (start > at) yield { start: at, end: start, status: HOLE };
		yield { start, end, status: DATA };
		at = end;
	}
	if (at < to) yield { start: at, end: to, status: HOLE };
}

/**
 * What was written since `position`, or may have been. A position that the log hasn't reached yet tells nothing. Neither
 * does one from before the log was opened (its end was the position then): whoever took it may have copied what a power
 * cut has undone since, and a block that is again what it was before looks as if it were old.
 */
export function changedRuns(
	ages: WriteAges,
	head: number,
	position: number,
	offset: number,
	length: number,
): Generator<StatusRun> {
	const asked = position > ages.opened && position <= head ? position : -1;
	return windows(offset, length, function* (from, to) {
		yield* collect((push) => {
			ages.visit(from / BLOCK_SIZE, (to - from) / BLOCK_SIZE, asked, (block, count, isOlder) => {
				push(block * BLOCK_SIZE, (block + count) * BLOCK_SIZE, isOlder ? since.UNCHANGED : since.CHANGED);
			});
		});
	});
}

/** What is live, and what is proven unused and was not written since. */
export function livenessRuns(ages: WriteAges, proven: Liveness, offset: number, length: number): Generator<StatusRun> {
	return windows(offset, length, function* (from, to) {
		yield* collect((push) => {
			const end = to / BLOCK_SIZE;
			let block = from / BLOCK_SIZE;
			const pushTo = (stop: number, status: number): void => {
				if (stop > block) push(block * BLOCK_SIZE, stop * BLOCK_SIZE, status);
				block = Math.max(block, stop);
			};
			for (let i = firstEndingBehind(proven.runs, block); i < proven.runs.length && proven.runs[i]! < end; i += 3) {
				pushTo(proven.runs[i]!, liveness.UNKNOWN);
				const stop = Math.min(end, proven.runs[i]! + proven.runs[i + 1]!);
				const writtenBefore = proven.runs[i + 2]!;
				if (writtenBefore === LIVE) pushTo(stop, liveness.LIVE);
				else
					ages.visit(block, stop - block, writtenBefore, (first, count, isOlder) =>
						pushTo(first + count, isOlder ? liveness.DEAD : liveness.UNKNOWN),
					);
			}
			pushTo(end, liveness.UNKNOWN);
		});
	});
}

/** Index of the first of sorted triples that reaches past `block`. */
function firstEndingBehind(triples: Float64Array, block: number): number {
	let low = 0;
	let high = triples.length / 3;
	while (low < high) {
		const middle = (low + high) >>> 1;
		if (triples[3 * middle]! + triples[3 * middle + 1]! <= block) low = middle + 1;
		else high = middle;
	}
	return 3 * low;
}

/** Asks for whole blocks, a window at a time, until `length` bytes are covered or it was enough work for one answer. */
function* windows(
	offset: number,
	length: number,
	runsOf: (from: number, to: number) => Iterable<StatusRun>,
): Generator<StatusRun> {
	const end = roundUp(offset + length, BLOCK_SIZE);
	let at = roundDown(offset, BLOCK_SIZE);
	let runs = 0;
	for (let window = 0; window < WINDOWS_MAX && runs < RUNS_MAX && at < end; window++) {
		const to = Math.min(at + WINDOW_BYTES, end);
		for (const run of runsOf(at, to)) {
			runs++;
			yield run;
		}
		at = to;
	}
}

/** What `visit` pushes, neighbours with the same status joined. */
function collect(visit: (push: PushRun) => void): StatusRun[] {
	const runs: { start: number; end: number; status: number }[] = [];
	visit((start, end, status) => {
		const last = runs.at(-1);
		if (last?.status === status) last.end = end;
		else runs.push({ start, end, status });
	});
	return runs;
}
