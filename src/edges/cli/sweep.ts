// vmsweep sweep IMAGE: gives the free space of an image back to the host, in place, with the VM off.

import { formatBytes } from "../../foundations/units.ts";
import { checkSwept, type SweepReport, sweepImage } from "../../services/sweep.ts";
import { interruptible } from "./interruption.ts";
import { formatTable, print, printJson } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

interface SweepCommandOptions {
	readonly dryRun?: boolean;
	readonly compact?: boolean;
	readonly vmOff?: boolean;
	readonly keepLvmFree?: boolean;
	readonly overlay?: readonly string[];
	readonly dataFile?: readonly string[];
	readonly json?: boolean;
}

export async function sweep(path: string, options: SweepCommandOptions): Promise<void> {
	const {
		dryRun = false,
		compact = false,
		vmOff = false,
		keepLvmFree = false,
		overlay = [],
		dataFile = [],
		json = false,
	} = options;
	const report = await interruptible(async (signal) => {
		using bar = new ProgressBar();
		const how = { dryRun, compact, vmOff, keepLvmFree, overlays: overlay, dataFiles: dataFile };
		return await sweepImage(path, { ...how, signal, onProgress: bar.update });
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
