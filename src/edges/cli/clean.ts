// vmsweep clean DISK: cleans all that can be cleaned now, by the process that serves the disk or, if none, by itself.

import { resolve } from "node:path";
import type { CleanerCounters } from "../../services/clean/cleaner.ts";
import { askClean } from "../../services/control.ts";
import { isDiskServed } from "../../services/disk-directory.ts";
import { type CleanReport, ServedDisk } from "../../services/served-disk.ts";
import { describeCleaning, progressOfCleaning } from "./cleaning.ts";
import { endingAtOnce } from "./interruption.ts";
import { print, printJson, warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

export async function clean(path: string, { json = false }: { readonly json?: boolean }): Promise<void> {
	const directory = resolve(path);
	using bar = new ProgressBar();
	bar.update({ step: `cleaning ${path}`, done: 0, total: null });
	const onProgress = (counters: CleanerCounters): void => bar.update(progressOfCleaning(`cleaning ${path}`, counters));
	const report = (await isDiskServed(directory))
		? await endingAtOnce("stopped waiting; the server goes on cleaning.", () => askClean(directory, onProgress))
		: await endingAtOnce("stopped; nothing is lost, and the next start of the disk recovers it.", () =>
				cleanHere(directory, onProgress),
			);
	bar[Symbol.dispose]();
	await (json ? printJson(report) : print(describeCleaning(path, report)));
}

async function cleanHere(directory: string, onProgress: (counters: CleanerCounters) => void): Promise<CleanReport> {
	await using disk = await ServedDisk.open(directory, { onEvent: warn });
	return await disk.cleanNow(onProgress);
}
