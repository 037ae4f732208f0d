// Allocation of a range, for block status: what holds data, what is a hole that reads as zeros.
//
// Blocks in the first image hold data, zeroed ones are holes, and for all others the second image's own holes
// are asked for. Runs are made lazily, a window at a time, since a client may ask about 4 GiB and use little.

import type { AllocationRun } from "../../core/nbd/block-status.ts";
import { dataRuns } from "../os/data-runs.ts";
import type { DiskReader } from "./disk-reader.ts";
import { ZERO_RUN } from "./disk-reader.ts";

const WINDOW_BYTES = 16 * 1024 * 1024;
/** Runs looked at for one answer, about: bounds how long other clients wait. A client asks again for the rest. */
const RUNS_MAX = 16_384;

/** The allocation of `[offset, offset + length)`, in order; ends early where the disk is in very many pieces. */
export function* allocationRuns(
	reader: DiskReader,
	secondFd: number,
	offset: number,
	length: number,
): Generator<AllocationRun> {
	const end = offset + length;
	let seen = 0;
	for (let at = offset; at < end && seen < RUNS_MAX; at += WINDOW_BYTES) {
		reader.plan(at, Math.min(WINDOW_BYTES, end - at));
		// The reader's plan is overwritten by its next use: keep this window's.
		const runs = Array.from({ length: reader.count }, (_, i) => [reader.fd[i]!, reader.length[i]!] as const);
		seen += runs.length;
		let start = at;
		for (const [fd, size] of runs) {
			if (fd === secondFd) yield* storedRuns(fd, start, start + size);
			else yield { start, end: start + size, kind: fd === ZERO_RUN ? "hole" : "data" };
			start += size;
		}
	}
}

/** Data and holes of the second image. */
function* storedRuns(fd: number, from: number, to: number): Generator<AllocationRun> {
	let at = from;
	for (const { start, end } of dataRuns(fd, from, to)) {
		if (start > at) yield { start: at, end: start, kind: "hole" };
		yield { start, end, kind: "data" };
		at = end;
	}
	if (at < to) yield { start: at, end: to, kind: "hole" };
}
