// Runs the lean client against a server, in a process of its own.

import { randomInt } from "node:crypto";
import { join } from "node:path";
import { runOk } from "../../test/support/processes.ts";
import type { ClientResult } from "../client-result.ts";
import type { Pattern } from "../workloads.ts";
import type { LeanJob, LeanReport } from "./client.ts";

const client = join(import.meta.dirname, "client.ts");

/** Runs a workload for some seconds on the first `sizeBytes` of the disk behind a Unix socket. Fails where a request fails. */
export async function runLean(
	socket: string,
	{ pattern, blockBytes, depth, connections = 1, readPercent, flushEvery = 0 }: Pattern,
	{ sizeBytes, seconds }: { readonly sizeBytes: number; readonly seconds: number },
): Promise<ClientResult> {
	const job: LeanJob = {
		socket,
		connections,
		depth,
		seconds,
		plan: {
			order: pattern.startsWith("rand") ? "random" : "sequential",
			readPercent: pattern === "randrw" ? (readPercent ?? 50) : pattern.endsWith("read") ? 100 : 0,
			blockBytes,
			rangeBytes: sizeBytes,
			flushEvery,
			seed: randomInt(1, 2 ** 31),
		},
	};
	const output = await runOk(process.execPath, [client, JSON.stringify(job)], { timeoutSeconds: seconds + 120 });
	const { operations, seconds: elapsed, ...rest }: LeanReport = JSON.parse(output);
	const operationsPerSecond = operations / elapsed;
	return { ...rest, operations, operationsPerSecond, bytesPerSecond: operationsPerSecond * blockBytes };
}
