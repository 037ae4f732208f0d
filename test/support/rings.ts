// Rings that the kernel refuses: io_urings are closed behind the back of whoever has them mapped.

import { readdirSync, readlinkSync } from "node:fs";
import * as sys from "../../src/adapters/os/syscalls.ts";

/** Descriptors of this process's io_urings; Node has some, too. */
export function openRings(): readonly number[] {
	return readdirSync("/proc/self/fd").filter(isRing).map(Number);
}

/** Closes all io_urings but those of `kept`: every later call to one fails. */
export function closeRings(kept: readonly number[]): void {
	for (const fd of openRings()) if (!kept.includes(fd)) sys.close(fd);
}

function isRing(fd: string): boolean {
	try {
		return readlinkSync(`/proc/self/fd/${fd}`) === "anon_inode:[io_uring]";
	} catch {
		// The descriptor of the listing itself.
		return false;
	}
}
