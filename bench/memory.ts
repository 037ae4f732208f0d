// Memory: of an idle server, and of vmsweep with a large disk whose first image is full.
//
// The first image is filled through NBD, as a guest would: 1 MiB at random places, which is kind to the index, and 4 KiB at
// random places all over the disk, its worst case. Less than the wanted log is written in a short run; the memory of
// the whole one is then read off the line through two measurements, and called so.

import { rm } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { formatBytes } from "../src/foundations/units.ts";
import { runOk } from "../test/support/processes.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { runFio } from "./fio.ts";
import { runLean } from "./lean/run-lean.ts";
import { isOurs, type Peer, type Place, type Server, startServer } from "./peers.ts";
import type { Memory } from "./processes.ts";
import type { Pattern } from "./workloads.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

const IDLE_BYTES_MAX = 100 * MIB;
const LARGE_BYTES_MAX = 300 * MIB;
const LARGE_DISK_BYTES = 1024 * GIB;
/** The log that LARGE_BYTES_MAX is about. */
export const LARGE_LOG_BYTES = 16 * GIB;
/** How long a server is left alone before it counts as idle, and one that first has to clean what was written. */
const IDLE_MS = 3000;
const CLEANED_MS = 30_000;

/** A row of the report, and of the JSON. */
export interface MemoryFinding {
	readonly title: string;
	readonly residentBytes: number;
	/** Undefined where the value was not measured but extrapolated. */
	readonly proportionalBytes: number | undefined;
	readonly maxBytes: number | undefined;
	/** Read off a straight line through two smaller logs: a hint, since an index need not grow straight. */
	readonly extrapolated: boolean;
}

/** Each server just after its start, and at rest after two seconds of mixed load. */
export async function idleMemory(peers: readonly Peer[], place: Place, sizeBytes: number): Promise<MemoryFinding[]> {
	const load: Pattern = { client: "lean", pattern: "randrw", readPercent: 70, blockBytes: 4 * KIB, depth: 32 };
	const findings: MemoryFinding[] = [];
	for (const peer of peers) {
		await using server = await peer.serve(place);
		const { id, title } = peer;
		const maxBytes = isOurs(id) ? IDLE_BYTES_MAX : undefined;
		const idleMs = isOurs(id) ? CLEANED_MS : IDLE_MS;
		findings.push({
			title: `${title}, idle since its start`,
			...(await atRest(server, idleMs)),
			maxBytes,
			extrapolated: false,
		});
		await runLean(server.socket, load, { sizeBytes, seconds: 2 });
		findings.push({
			title: `${title}, idle after load`,
			...(await atRest(server, idleMs)),
			maxBytes,
			extrapolated: false,
		});
	}
	return findings;
}

/** vmsweep with a 1 TiB disk whose first image holds `logBytes`. */
export async function largeDiskMemory(
	scratch: ScratchFolder,
	vmsweep: string,
	logBytes: number,
): Promise<MemoryFinding[]> {
	const layouts = [
		{ name: "1 MiB runs", blockBytes: MIB, depth: 4 },
		{ name: "scattered 4 KiB", blockBytes: 4 * KIB, depth: 32 },
	];
	const findings: MemoryFinding[] = [];
	for (const { name, blockBytes, depth } of layouts) {
		const [disk, socket] = [scratch.file("large"), scratch.file("large.sock")];
		const limit = String(2 * Math.max(logBytes, GIB));
		await runOk(vmsweep, ["create", disk, "--size", String(LARGE_DISK_BYTES), "--log-limit", limit]);
		await using server = await startServer({
			socket,
			program: vmsweep,
			programArguments: ["serve", disk, "--socket", socket, "--clean", "off"],
			remove: () => rm(disk, { recursive: true, force: true }),
		});
		const pattern: Pattern = { client: "fio", pattern: "randwrite", blockBytes, depth };
		const write = async (transferBytes: number): Promise<Memory> => {
			await runFio(server.uri, pattern, { sizeBytes: LARGE_DISK_BYTES, transferBytes });
			return atRest(server);
		};
		const half = await write(logBytes / 2);
		const full = await write(logBytes / 2);
		const title = `1 TiB disk, ${name}, log of`;
		const isWhole = logBytes >= LARGE_LOG_BYTES;
		const measured = { title: `${title} ${formatBytes(logBytes)}`, ...full, extrapolated: false };
		findings.push({ ...measured, maxBytes: isWhole ? LARGE_BYTES_MAX : undefined });
		if (isWhole) continue;
		findings.push({
			title: `${title} ${formatBytes(LARGE_LOG_BYTES)}`,
			residentBytes: atLargeLog(half.residentBytes, full.residentBytes, logBytes),
			proportionalBytes: undefined,
			maxBytes: LARGE_BYTES_MAX,
			extrapolated: true,
		});
	}
	return findings;
}

/** The value at LARGE_LOG_BYTES on the line through those at half of `logBytes` and at `logBytes`. */
export function atLargeLog(atHalf: number, atFull: number, logBytes: number): number {
	return atFull + ((atFull - atHalf) / (logBytes / 2)) * (LARGE_LOG_BYTES - logBytes);
}

async function atRest(server: Server, idleMs = IDLE_MS): Promise<Memory> {
	// The time is what is measured: memory that a server gives back by itself while nobody asks anything.
	await delay(idleMs);
	return server.memory();
}
