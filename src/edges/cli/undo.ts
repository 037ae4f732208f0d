// vmsweep undo DISK: brings dropped blocks back that the quarantine still holds.

import { resolve } from "node:path";
import { formatBytes } from "../../foundations/units.ts";
import { ServedDisk } from "../../services/served-disk.ts";
import { endingAtOnce } from "./interruption.ts";
import { print, printJson, warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

interface UndoOptions {
	readonly dryRun?: boolean;
	readonly json?: boolean;
}

export async function undo(path: string, { dryRun = false, json = false }: UndoOptions): Promise<void> {
	const step = `bringing back what was dropped of ${path}`;
	using bar = new ProgressBar();
	bar.update({ step, done: 0, total: null });
	const { bytes, rottenBytes } = await endingAtOnce(
		"stopped; what was brought back stays. Run the same command to finish.",
		async () => {
			// Whatever the log still has stays there until this command has looked at it.
			await using disk = await ServedDisk.open(resolve(path), { quarantineMs: Number.MAX_SAFE_INTEGER, onEvent: warn });
			return dryRun
				? { bytes: await disk.upkeep.undoableBytes(), rottenBytes: 0 }
				: await disk.upkeep.undo((done, total) => bar.update({ step, done, total }));
		},
	);
	bar[Symbol.dispose]();
	if (json) return await printJson({ bytes, rottenBytes, dryRun });
	if (dryRun) return await print(`${path}: ${formatBytes(bytes)} could be brought back\n`);
	const lost = rottenBytes > 0 ? `note: ${formatBytes(rottenBytes)} are rotten, and were not brought back\n` : "";
	const advice = "cleaning would drop the same blocks again: look at the disk with vmsweep serve --clean off first";
	await print(`${path}: ${formatBytes(bytes)} brought back\n${lost}${bytes > 0 ? `note: ${advice}\n` : ""}`);
}
