// Sum handlers: the calls about checksums. See second-sums.ts for the order that they have to be made in.

import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import * as sys from "../os/syscalls.ts";
import type { CalledPlane, Handlers, PlaneFiles } from "./called.ts";

type SumCalls = "noteCopied" | "forgetSums" | "flushSums" | "sums" | "secondSums" | "knownSums" | "scrub";

/** Blocks whose checksums are looked at in one call: bounds how long the guest waits for it. */
const LOOKED_AT_ONCE = 16 * 1024;

export function sumHandlers(
	{ log, viewPoints, datasync }: CalledPlane,
	{ sums, sumsFd }: PlaneFiles,
): Handlers<SumCalls> {
	let failed: Error | undefined;
	return {
		noteCopied: (runs, done) => {
			for (let i = 0; i + 2 < runs.length; i += 3)
				for (let j = 0; j < runs[i + 1]!; j++) sums.set(runs[i]! + j, log.sumOfSlot(runs[i + 2]! + j));
			sums.write();
			done(undefined);
		},
		forgetSums: (runs, done) => {
			for (let i = 0; i + 1 < runs.length; i += 2) sums.forget(runs[i]!, runs[i + 1]!);
			sums.write();
			done(undefined);
		},
		flushSums: (_, done, fail) => {
			// After a failed flush the host has forgotten what it lost: only a new start reads what is really there.
			if (failed !== undefined) throw failed;
			datasync(sumsFd, (result) => {
				if (result >= 0) {
					done(undefined);
					return;
				}
				failed = sys.hostError(result, "flushing the second image's checksums");
				fail(failed);
			});
		},
		sums: ({ view, block, count }, done) => {
			const found = new Uint32Array(count);
			viewPoints.view(view).runs(block, count, (value, start, length) => {
				if (value === ZERO) return;
				for (let i = 0; i < length; i++)
					found[start - block + i] = value === ABSENT ? sums.get(start + i) : log.sumOfSlot(value + i);
			});
			done(found);
		},
		secondSums: ({ block, count }, done) => done(Uint32Array.from({ length: count }, (_, i) => sums.get(block + i))),
		knownSums: ({ from }, done) => {
			const { diskBlocks } = log;
			const end = Math.min(from + LOOKED_AT_ONCE, diskBlocks);
			const runs: number[] = [];
			for (let block = from; block < end; block++) {
				if (sums.get(block) === 0) continue;
				const first = block;
				while (block + 1 < end && sums.get(block + 1) !== 0) block++;
				runs.push(first, block + 1 - first);
			}
			done({ runs: Float64Array.from(runs), next: end < diskBlocks ? end : -1 });
		},
		scrub: ({ sequence, from }, done) => done(log.scrub(sequence, from)),
	};
}
