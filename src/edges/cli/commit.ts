// vmsweep commit DISK: folds the first image into the second, which then is a plain raw image that any tool can open.

import { resolve } from "node:path";
import { ServedDisk } from "../../services/served-disk.ts";
import { describeCleaning, progressOfCleaning } from "./cleaning.ts";
import { endingAtOnce } from "./interruption.ts";
import { print, printJson, warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

export async function commit(path: string, { json = false }: { readonly json?: boolean }): Promise<void> {
	const step = `committing ${path}`;
	using bar = new ProgressBar();
	bar.update({ step, done: 0, total: null });
	const { report, second } = await endingAtOnce(
		"stopped; nothing is lost. Run the same command to finish.",
		async () => {
			await using disk = await ServedDisk.open(resolve(path), { onEvent: warn });
			const done = await disk.commit((counters) => bar.update(progressOfCleaning(step, counters)));
			return { report: done, second: (await disk.status()).second.path };
		},
	);
	bar[Symbol.dispose]();
	if (json) return await printJson({ ...report, second });
	await print(`${describeCleaning(path, report)}${second} is a whole image of the disk now.\n`);
}
