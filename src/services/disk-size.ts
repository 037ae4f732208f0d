// Disk size: which sizes a disk can have.

import { VmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE, formatBytes, isBlockAligned } from "../foundations/units.ts";
import { DISK_BYTES_MAX, DISK_BYTES_MIN } from "./disk-records.ts";

/** Throws USAGE where no disk can have this size. */
export function checkNewSize(size: number): void {
	const problem = sizeProblem(size);
	if (problem !== undefined) throw new VmsweepError("USAGE", `a disk can't have ${size} bytes: ${problem}.`);
}

/** Why no disk can have this size; nothing where one can. */
export function sizeProblem(size: number): string | undefined {
	if (!Number.isSafeInteger(size) || size < DISK_BYTES_MIN)
		return `the smallest disk has ${formatBytes(DISK_BYTES_MIN)}`;
	if (size > DISK_BYTES_MAX) return `the largest disk has ${formatBytes(DISK_BYTES_MAX)}`;
	if (!isBlockAligned(size)) return `the size must be a multiple of ${BLOCK_SIZE} bytes`;
	return undefined;
}
