// vmsweep resize DISK SIZE: gives a disk another size; growing while the VM runs.

import { CommanderError } from "commander";
import { formatBytes } from "../../foundations/units.ts";
import { diskStatus } from "../../services/control-at-rest.ts";
import { runWithBar } from "./disk-command.ts";
import { print, printJson } from "./output.ts";

interface ResizeOptions {
	readonly shrink?: boolean;
	readonly json?: boolean;
}

export async function resize(
	path: string,
	size: number,
	{ shrink = false, json = false }: ResizeOptions,
): Promise<void> {
	const before = (await diskStatus(path)).size;
	if (size < before && !shrink)
		throw new CommanderError(
			2,
			"vmsweep.resize",
			`${path} has ${formatBytes(before)}, more than ${formatBytes(size)}; add --shrink where its end is to be cut off`,
		);
	const report = await runWithBar(path, "resize", { size }, `resizing ${path}`);
	if (json) return await printJson(report);
	const lines = [
		`${path}: ${formatBytes(before)} → ${formatBytes(report.size)}`,
		...report.notes.map((note) => `note: ${note}`),
		"clients see the new size when they connect again",
	];
	await print(`${lines.join("\n")}\n`);
}
