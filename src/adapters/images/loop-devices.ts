// Loop devices take no locks on the file behind them, so they are looked up: an image must not change below a file
// system that is mounted from it.

import { readdir, readFile, realpath } from "node:fs/promises";
import { VmsweepError } from "../../foundations/errors.ts";

/** Throws IMAGE_LOCKED where a loop device shows the file at `path`. */
export async function checkNoLoopDevice(path: string): Promise<void> {
	const real = await realpath(path);
	const devices = (await readdir("/sys/block").catch(() => [])).filter((name) => name.startsWith("loop"));
	for (const device of devices) {
		const backing = await readFile(`/sys/block/${device}/loop/backing_file`, "utf8").catch(() => "");
		if (backing.trimEnd() !== real) continue;
		throw new VmsweepError(
			"IMAGE_LOCKED",
			`${path} is in use by the loop device /dev/${device}. Unmount what is on it, then: losetup -d /dev/${device}.`,
		);
	}
}
