// Runs fio's nbd engine against a server, and reads what it reports.

import { VmsweepError } from "../src/foundations/errors.ts";
import { runOk } from "../test/support/processes.ts";
import type { Workload } from "./workloads.ts";

/** What one fio run did. */
export interface FioResult {
	/** Completed reads and writes; flushes are not counted. */
	readonly operations: number;
	readonly operationsPerSecond: number;
	readonly bytesPerSecond: number;
	/** Time from sending a request to its answer that 99 % of them stay below. */
	readonly latencyMsP99: number;
}

export interface FioRange {
	/** Bytes of the disk to use, from its start. */
	readonly sizeBytes: number;
	/** How long to go on; once over the range where not given. */
	readonly seconds?: number;
}

/** Fills the first bytes of a disk, one pass. */
export const fill: Pick<Workload, "pattern" | "blockBytes" | "depth"> = {
	pattern: "write",
	blockBytes: 1 << 20,
	depth: 4,
};

/** Runs a workload on the disk at `uri`. Fails with fio's words where a request fails. */
export async function runFio(
	uri: string,
	{ pattern, blockBytes, depth, flushEvery }: Pick<Workload, "pattern" | "blockBytes" | "depth" | "flushEvery">,
	{ sizeBytes, seconds }: FioRange,
): Promise<FioResult> {
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
			...(seconds === undefined ? [] : ["--time_based", `--runtime=${seconds}`]),
			...(flushEvery === undefined ? [] : [`--fsync=${flushEvery}`]),
		],
		{ timeoutSeconds: (seconds ?? 120) + 120 },
	);
	return readFioReport(output, pattern.endsWith("read") ? "read" : "write");
}

/** Reads fio's JSON; fio may print plain lines before it. */
export function readFioReport(output: string, direction: "read" | "write"): FioResult {
	const start = output.indexOf("{");
	const job = start < 0 ? undefined : JSON.parse(output.slice(start)).jobs?.[0];
	const report = job?.[direction];
	if (report === undefined || !(report.total_ios > 0))
		throw new VmsweepError("IO", `fio reports no ${direction} at all; its output: ${output.slice(0, 500)}`);
	return {
		operations: report.total_ios,
		operationsPerSecond: report.iops,
		bytesPerSecond: report.bw_bytes,
		latencyMsP99: (report.clat_ns?.percentile?.["99.000000"] ?? 0) / 1e6,
	};
}
