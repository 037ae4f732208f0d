// Scheduling: how the kernel shares processors between a thread and others.
//
// A thread that wakes up waits for the one that runs on its processor until that one's slice is over: some milliseconds.
// One that asks for shorter slices is let in at once, and gets no more time in all than any other
// (Linux 6.12, kernel/sched/fair.c, "custom slices"). No privilege is needed.

import { getPriority } from "node:os";
import { viewOf } from "../../foundations/struct.ts";
import * as sys from "./syscalls.ts";

/** struct sched_attr (sched_setattr(2)), as of its first version: what all kernels take. In bytes. */
const ATTRIBUTE_BYTES = 48;
const NICE_AT = 16;
const RUNTIME_AT = 24;

/**
 * Asks for slices of so many nanoseconds for the calling thread. Returns 0 or a negated errno; older kernels take no notice,
 * and where one refuses, that costs speed alone.
 */
export function askForSlices(nanoseconds: number): number {
	const attribute = sys.pin(ATTRIBUTE_BYTES);
	const view = viewOf(attribute.bytes);
	view.setUint32(0, ATTRIBUTE_BYTES, true);
	// The policy, SCHED_OTHER, is 0. Its nice value is set by the same call: it stays what it is.
	view.setInt32(NICE_AT, getPriority(), true);
	sys.put64(view, RUNTIME_AT, nanoseconds);
	return sys.schedSetattr(attribute.address);
}
