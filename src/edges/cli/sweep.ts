// vmsweep sweep IMAGE: gives the free space of an image back to the host, in place, with the VM off.

import { Command } from "commander";
import { formatBytes } from "../../foundations/units.ts";
import { checkSwept, type SweepReport, sweepImage } from "../../services/sweep.ts";
import { interruptible } from "./interruption.ts";
import { formatTable, print, printJson } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

export const sweepCommand = (): Command =>
	new Command("sweep")
		.description("drop unused blocks of an image, offline and in place")
		.argument("<image>", "raw image or block device, with its VM shut down cleanly")
		.option("--dry-run", "change nothing; say what a sweep would give back")
		.option("--json", "print JSON")
		.action(sweep);

interface SweepCommandOptions {
	readonly dryRun?: boolean;
	readonly json?: boolean;
}

async function sweep(path: string, { dryRun = false, json = false }: SweepCommandOptions): Promise<void> {
	const report = await interruptible(async (signal) => {
		using bar = new ProgressBar();
		return await sweepImage(path, { dryRun, signal, onProgress: bar.update });
	});
	await (json ? printJson(report) : print(describe(report)));
	checkSwept(report);
}

function describe(report: SweepReport): string {
	const { image, dryRun, droppedBytes, hostBytesBefore, hostBytesAfter, volumes, warnings } = report;
	const given = dryRun
		? `a sweep would give ${formatBytes(droppedBytes)} back`
		: `${formatBytes(hostBytesBefore - hostBytesAfter)} given back`;
	const lines = [
		`${image}: ${given} (space on the host: ${formatBytes(hostBytesBefore)} → ${formatBytes(hostBytesAfter)})`,
	];
	const rows = volumes.map(({ id, type, kept, droppedBytes: bytes }) => [
		`  ${id}`,
		type,
		kept === null ? `${dryRun ? "would drop" : "dropped"} ${formatBytes(bytes)}` : `kept: ${kept}`,
	]);
	const notes = [
		...warnings.map((warning) => `  warning: ${warning}`),
		...volumes.flatMap(({ id, warnings: about }) => about.map((warning) => `  ${id}: ${warning}`)),
	];
	return `${lines.join("\n")}\n${formatTable(rows)}${formatTable(notes.map((note) => [note]))}`;
}
