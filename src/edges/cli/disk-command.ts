// Disk command: runs one of the commands that work on a disk, served or not, with a progress bar.

import { resolve } from "node:path";
import { type DiskCommandName, type InputOf, type ReportOf, runOnDisk } from "../../services/disk-commands.ts";
import { isDiskServed } from "../../services/disk-directory.ts";
import { endingAtOnce } from "./interruption.ts";
import { warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

/** Runs a command; Ctrl-C ends the waiting, or the command itself where no server runs it. */
export async function runWithBar<Name extends DiskCommandName>(
	path: string,
	name: Name,
	input: InputOf<Name>,
	step: string,
): Promise<ReportOf<Name>> {
	using bar = new ProgressBar();
	bar.update({ step, done: 0, total: null });
	const line = (await isDiskServed(resolve(path)))
		? "stopped waiting; the server goes on."
		: "stopped; nothing is lost, and the next start of the disk recovers it.";
	return await endingAtOnce(line, () =>
		runOnDisk(path, name, input, { onProgress: (progress) => bar.update(progress), onEvent: warn }),
	);
}
