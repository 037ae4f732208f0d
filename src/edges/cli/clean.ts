// vmsweep clean DISK: cleans all that can be cleaned now, by the process that serves the disk or, if none, by itself.

import { describeCleaning } from "./cleaning.ts";
import { runWithBar } from "./disk-command.ts";
import { print, printJson } from "./output.ts";

export async function clean(path: string, { json = false }: { readonly json?: boolean }): Promise<void> {
	const report = await runWithBar(path, "clean", {}, `cleaning ${path}`);
	await (json ? printJson(report) : print(describeCleaning(path, report)));
}
