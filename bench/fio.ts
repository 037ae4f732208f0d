// Runs fio's nbd engine against a server, and reads what it reports.

import { VmsweepError } from "../src/foundations/errors.ts";
import { runOk } from "../test/support/processes.ts";
import type { ClientResult } from "./client-result.ts";
import type { Pattern } from "./workloads.ts";

export interface FioRange {
	/** Bytes of the disk to use, from its start. */
	readonly sizeBytes: number;
	/** How long to go on; once over the range where not given. */
	readonly seconds?: number;
	/** Stop after this many bytes; places may come up more than once then. */
	readonly transferBytes?: number;
}

/** Fills the first bytes of a disk, one pass. */
export const fill: Pattern = { client: "fio", pattern: "write", blockBytes: 1 << 20, depth: 4 };

/** Runs a workload on the disk at `uri`. Fails with fio's words where a request fails. */
export async function runFio(uri: string, workload: Pattern, range: FioRange): Promise<ClientResult> {
	const { pattern, blockBytes, depth, connections = 1, readPercent, flushEvery, operationsPerSecondMax } = workload;
	const { sizeBytes, seconds, transferBytes } = range;
	const output = await runOk(
		"fio",
		[
			"--name=bench",
			"--ioengine=nbd",
			`--uri=${uri}`,
			`--rw=${pattern}`,
			`--bs=${blockBytes}`,
			`--iodepth=${depth}`,
			`--size=${sizeBytes}`,
			"--randrepeat=0",
			"--output-format=json",
			...(connections === 1 ? [] : [`--numjobs=${connections}`, "--group_reporting"]),
			...(readPercent === undefined ? [] : [`--rwmixread=${readPercent}`]),
			...(operationsPerSecondMax === undefined ? [] : [`--rate_iops=${rates(operationsPerSecondMax, readPercent)}`]),
			...(seconds === undefined ? [] : ["--time_based", `--runtime=${seconds}`]),
			...(transferBytes === undefined ? [] : [`--io_size=${transferBytes}`, "--norandommap"]),
			...(flushEvery === undefined ? [] : [`--fsync=${flushEvery}`]),
		],
		{ timeoutSeconds: (seconds ?? 480) + 120 },
	);
	return readFioReport(output, directionsOf(pattern));
}

/** fio paces reads and writes each for themselves. */
function rates(operationsPerSecond: number, readPercent: number | undefined): string {
	if (readPercent === undefined) return String(operationsPerSecond);
	const reads = Math.round((operationsPerSecond * readPercent) / 100);
	return `${reads},${operationsPerSecond - reads}`;
}

type Direction = "read" | "write";

function directionsOf(pattern: Pattern["pattern"]): readonly Direction[] {
	if (pattern === "randrw") return ["read", "write"];
	return pattern.endsWith("read") ? ["read"] : ["write"];
}

/** Reads fio's JSON; fio may print plain lines before it. Every direction must have done something. */
export function readFioReport(output: string, directions: readonly Direction[]): ClientResult {
	const start = output.indexOf("{");
	const job = start < 0 ? undefined : JSON.parse(output.slice(start)).jobs?.[0];
	const reports = directions.map((direction) => {
		const report = job?.[direction];
		if (report === undefined || !(report.total_ios > 0))
			throw new VmsweepError("IO", `fio reports no ${direction} at all; its output: ${output.slice(0, 500)}`);
		return report;
	});
	const sum = (figure: string): number => reports.reduce((total, report) => total + report[figure], 0);
	const slowest = (percentile: string): number =>
		Math.max(...reports.map((report) => report.clat_ns?.percentile?.[percentile] ?? 0)) / 1e6;
	return {
		operations: sum("total_ios"),
		operationsPerSecond: sum("iops"),
		bytesPerSecond: sum("bw_bytes"),
		latencyMsP50: slowest("50.000000"),
		latencyMsP99: slowest("99.000000"),
		latencyMsP999: slowest("99.900000"),
		// Shares in percent of the time that all jobs of the group ran, which is a sum as well.
		clientCpuSeconds: ((job.usr_cpu + job.sys_cpu) / 100) * (job.job_runtime / 1000),
	};
}
