// vmsweep clean DISK: cleans all that can be cleaned now, by the process that serves the disk or, if none, by itself.

import { describeCleaning } from "./cleaning.ts";
import { runWithBar } from "./disk-command.ts";
import { print, printJson } from "./output.ts";

interface CleanCommandOptions {
	readonly vmOff?: boolean;
	readonly json?: boolean;
}

export async function clean(path: string, { vmOff = false, json = false }: CleanCommandOptions): Promise<void> {
	const report = await runWithBar(path, "clean", { vmOff }, `cleaning ${path}`);
	await (json ? printJson(report) : print(describeCleaning(path, report)));
}
