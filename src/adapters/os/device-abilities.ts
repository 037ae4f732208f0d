// What a block device can give back: read from sysfs, because trying it would already change the device.
// (Linux, Documentation/ABI/stable/sysfs-block.)

import { readFile, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";

export interface DeviceAbilities {
	/** It lets go of ranges that read as zeros from then on, without writing them. */
	readonly zeroes: boolean;
	/** It lets go of ranges; what they read as is left open. */
	readonly discards: boolean;
}

/** Of the device with this number, as `stat` has it in `rdev`. Nothing is known of one that sysfs doesn't show. */
export async function deviceAbilities(rdev: number): Promise<DeviceAbilities> {
	// Twelve bits of major, twenty of minor, spread over the number (glibc, sys/sysmacros.h).
	const [major, minor] = [(rdev >>> 8) & 0xfff, (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)];
	const folder = await realpath(`/sys/dev/block/${major}:${minor}`).catch(() => undefined);
	if (folder === undefined) return { zeroes: false, discards: false };
	const limit = async (name: string): Promise<number> => {
		// A partition's queue is its disk's.
		for (const queue of [join(folder, "queue"), join(dirname(folder), "queue")]) {
			const text = await readFile(join(queue, name), "utf8").catch(() => undefined);
			if (text !== undefined) return Number(text);
		}
		return 0;
	};
	return {
		zeroes: (await limit("write_zeroes_max_bytes")) > 0,
		discards: (await limit("discard_max_bytes")) > 0,
	};
}
