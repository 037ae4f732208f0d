// vmsweep convert SOURCE TARGET: copies what the guest uses of an image into a new one.

import { formatBytes } from "../../foundations/units.ts";
import { type ConvertReport, convertImage } from "../../services/convert.ts";
import { interruptible } from "./interruption.ts";
import { formatTable, print, printJson } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

interface ConvertCommandOptions {
	readonly format?: "raw" | "qcow2";
	readonly compress: "zstd" | "none";
	readonly clusterSize?: number;
	readonly overwriteDevice?: boolean;
	readonly vmOff?: boolean;
	readonly json?: boolean;
}

export async function convert(source: string, target: string, options: ConvertCommandOptions): Promise<void> {
	const { format, compress, clusterSize, overwriteDevice = false, vmOff = false, json = false } = options;
	const report = await interruptible(async (signal) => {
		using bar = new ProgressBar();
		const how = { format, compress, clusterSize, overwriteDevice, vmOff };
		return await convertImage(source, target, { ...how, signal, onProgress: bar.update });
	});
	await (json ? printJson(report) : print(describe(report)));
}

function describe(report: ConvertReport): string {
	const { source, target, format, copiedBytes, leftOutBytes, sourceHostBytes, targetHostBytes } = report;
	const before = sourceHostBytes === null ? "" : `${formatBytes(sourceHostBytes)} → `;
	const line = `${source} → ${target} (${format}): ${formatBytes(copiedBytes)} copied, ${formatBytes(leftOutBytes)} of free space left out (space on the host: ${before}${formatBytes(targetHostBytes)})`;
	const rows = report.volumes.map(({ id, type, kept, leftOutBytes: bytes }) => [
		`  ${id}`,
		type,
		kept === null ? `left out ${formatBytes(bytes)}` : `copied whole: ${kept}`,
	]);
	const notes = [
		...report.warnings.map((warning) => `  warning: ${warning}`),
		...report.volumes.flatMap(({ id, warnings: about }) => about.map((warning) => `  ${id}: ${warning}`)),
	];
	return `${line}\n${formatTable(rows)}${formatTable(notes.map((note) => [note]))}`;
}
