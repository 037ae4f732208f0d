// `make bench`: the server against nbdkit, qemu-nbd and qemu-storage-daemon, raw, qcow2 and as an overlay.
//
//   for each workload: for each round: for each peer (another one begins in each round):
//      start it fresh ─► settle ─► a client for some seconds ─► throughput, latency, the server's processor time
//
// How it measures
//  - All peers serve the same raw image, one after the other, on the same file system, each over a Unix socket.
//    The image is full of random bytes, so no peer can answer from a hole.
//  - Clients are fio's nbd engine and, for some rows, a lean one of our own (bench/workloads.ts says why): the same
//    for all peers. The report shows how many processors the server and the client kept busy.
//  - Peers take turns within each round; a ratio is formed within its round, then the median of the rounds is shown.
//  - Before each run the host's dirty pages are written out, the whole image is read into the page cache (page by page;
//    bench/page-cache.ts says why that matters), and the server answers a second of random reads that don't count: a
//    server runs for weeks, and its compiler, caches and connections are warm. That is the same for all peers. Cold rows
//    drop the served files from the page cache after that; rows that rewrite or clean begin right after what they wrote.
//  - vmsweep's first image and the overlay are new in each run (bench/peers.ts says why). The image is large enough
//    that most writes of a run are the first ones to their cluster of the overlay. --warm measures the other case.
//  - Targets are judged with cleaning on. The disk holds no file system that the cleaner knows, so it drops nothing
//    and moves all that is written, while the benchmark writes. That is its hard case; `clean off` shows the data
//    plane alone. Only workloads that write have it: a reader gives the cleaner nothing to do.
//  - All peers make durable at a flush, and only then; but for nbdkit's cow filter, which is no yardstick for flushes.
//
// What it does not measure: a guest (tools/demo.ts has one), TCP, and reads that miss the caches of a hypervisor
// below this machine.

import { randomFillSync } from "node:crypto";
import { open, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { isVmsweepError, VmsweepError } from "../src/foundations/errors.ts";
import { formatBytes } from "../src/foundations/units.ts";
import { vmsweep as ownVmsweep } from "../test/support/processes.ts";
import { requirePrograms } from "../tools/required-programs.ts";
import { ScratchFolder } from "../tools/scratch-folder.ts";
import { chosen, positive } from "./choices.ts";
import type { ClientResult } from "./client-result.ts";
import { fill, runFio } from "./fio.ts";
import { runLean } from "./lean/run-lean.ts";
import { describeMachine, machineLines } from "./machine.ts";
import { idleMemory, LARGE_LOG_BYTES, largeDiskMemory, type MemoryFinding } from "./memory.ts";
import { forgetCached, readIntoCache, writeOut } from "./page-cache.ts";
import { isOurs, type Peer, type Place, peers, type Server } from "./peers.ts";
import {
	coresTable,
	cpuTable,
	doubts,
	latencyTable,
	memoryTable,
	ratioTable,
	spreadTable,
	targetTable,
	throughputTable,
} from "./report.ts";
import { type Sample, type Target, targetsOf } from "./statistics.ts";
import {
	type DiskState,
	isWrite,
	type Pattern,
	SMALL_LOG_BYTES,
	type Workload,
	WRITTEN_BYTES,
	workloads,
} from "./workloads.ts";

/** Names in lines that fit below an option. */
const listed = (names: readonly string[]): string =>
	names.join(", ").replace(/(.{70,90}), /g, "$1,\n                  ");

const usage = `Usage: make bench, or: bench/run.ts [options]
  --full          all workloads and servers, 3 rounds of 3 seconds on 4 GiB, memory with the whole 16 GiB log: two hours or more.
                  Without it: the main ones, 3 rounds of 1 second on 1 GiB, memory extrapolated: some minutes
  --rounds N      rounds per workload
  --seconds N     length of one run
  --size MIB      size of the image in MiB
  --rows A,B      only these workloads, and not memory unless it is named:
                  ${listed([...workloads.map(({ id }) => id), "memory"])}
  --peers A,B     only these servers:
                  ${listed(peers.map(({ id }) => id))}
  --warm          write twice over the first 512 MiB before each run and stay there: recycled segments, no new ones;
                  the overlay is not new then, so its targets don't apply
  --quick         one round of one second each on 256 MiB: does it run at all
  --json FILE     all measurements and results too, as JSON
  --folder PATH   where the images go (default: /var/tmp)
  --vmsweep PATH  the vmsweep command to measure (default: this checkout's)`;

const MIB = 1 << 20;
/** Random reads that don't count, before each run. */
const WARM_UP: Pattern = { client: "fio", pattern: "randread", blockBytes: 4096, depth: 32 };
const WARM_UP_SECONDS = 1;
/** With --warm: the second pass supersedes what the first one wrote, which frees segments to be written again. */
const WARM_PASSES = 2;

const presets = {
	full: { rounds: "3", seconds: "3", sizeMib: "4096", memoryLogBytes: LARGE_LOG_BYTES },
	short: { rounds: "3", seconds: "1", sizeMib: "1024", memoryLogBytes: 2048 * MIB },
	quick: { rounds: "1", seconds: "1", sizeMib: "256", memoryLogBytes: 256 * MIB },
} as const;

interface Settings {
	readonly rounds: number;
	readonly seconds: number;
	readonly sizeBytes: number;
	readonly workloads: readonly Workload[];
	/** Bytes to write into the first image of a large disk whose memory is measured; undefined: no memory at all. */
	readonly memoryLogBytes: number | undefined;
	/** Measure on what was written twice just before, not on new files. */
	readonly warm: boolean;
	readonly peers: readonly Peer[];
	readonly json: string | undefined;
	readonly folder: string;
	readonly vmsweep: string;
}

try {
	const settings = readSettings(process.argv.slice(2));
	if (settings === undefined) console.log(usage);
	else await bench(settings);
} catch (error) {
	if (!isVmsweepError(error)) throw error;
	console.error(`bench: ${error.message}`);
	process.exitCode = error.exit;
}

/** Undefined where help is asked for. Throws USAGE. */
function readSettings(programArguments: readonly string[]): Settings | undefined {
	const { values } = parse(programArguments);
	if (values.help) return undefined;
	const { full = false, quick = false } = values;
	const preset = quick ? presets.quick : full ? presets.full : presets.short;
	const known = [...workloads.map(({ id }) => id), "memory"];
	const shortRows = [...workloads.filter(({ short }) => short).map(({ id }) => id), "memory"];
	const rows = values.rows === undefined && !full ? shortRows : chosen(values.rows, known, "workload");
	const allPeers = peers.map(({ id }) => id);
	const shortPeers = peers.filter(({ short }) => short).map(({ id }) => id);
	const servers = values.peers === undefined && !full ? shortPeers : chosen(values.peers, allPeers, "peer");
	return {
		rounds: positive(values.rounds ?? preset.rounds, "--rounds"),
		seconds: positive(values.seconds ?? preset.seconds, "--seconds"),
		sizeBytes: positive(values.size ?? preset.sizeMib, "--size") * MIB,
		workloads: workloads.filter(({ id }) => rows.includes(id)),
		memoryLogBytes: rows.includes("memory") ? preset.memoryLogBytes : undefined,
		warm: values.warm ?? false,
		peers: peers.filter(({ id }) => servers.includes(id)),
		json: values.json,
		folder: values.folder ?? "/var/tmp",
		vmsweep: values.vmsweep ?? ownVmsweep,
	};
}

function parse(programArguments: readonly string[]) {
	const text = { type: "string" } as const;
	const options = {
		rounds: text,
		seconds: text,
		size: text,
		rows: text,
		peers: text,
		json: text,
		folder: text,
		vmsweep: text,
		warm: { type: "boolean" },
		full: { type: "boolean" },
		quick: { type: "boolean" },
		help: { type: "boolean" },
	} as const;
	try {
		return parseArgs({ args: [...programArguments], options });
	} catch (error) {
		throw new VmsweepError("USAGE", `${(error as Error).message}\n${usage}`);
	}
}

async function bench(settings: Settings): Promise<void> {
	const tools = ["fio", ...settings.peers.flatMap((peer) => peer.tools)];
	requirePrograms("the benchmark", [...tools, "findmnt", "nbdinfo", "sync"]);
	await using scratch = await ScratchFolder.make(settings.folder, "vmsweep-bench-");
	const machine = await describeMachine(scratch.path, tools);
	console.log(machineLines(machine).join("\n"));

	const { rounds, seconds, sizeBytes, warm, memoryLogBytes } = settings;
	const place: Place = {
		folder: scratch.path,
		image: scratch.file("image.raw"),
		qcow2: scratch.file("image.qcow2"),
		vmsweep: settings.vmsweep,
	};
	console.log(`filling an image of ${formatBytes(sizeBytes)} with random bytes`);
	await fillImage(place.image, sizeBytes);
	const samples = await measureAll(settings, place);
	const memory: MemoryFinding[] = [];
	if (memoryLogBytes !== undefined) {
		console.log("measuring memory");
		memory.push(...(await idleMemory(settings.peers, place, sizeBytes)));
		if (settings.peers.some(({ id }) => isOurs(id)))
			memory.push(...(await largeDiskMemory(scratch, settings.vmsweep, memoryLogBytes)));
	}
	const targets = targetsOf(settings.workloads, settings.peers, samples).filter(
		({ peer }) => !warm || peer !== "overlay",
	);
	report(settings, samples, targets, memory);
	if (settings.json === undefined) return;
	const facts = { date: new Date().toISOString(), machine, rounds, seconds, sizeBytes, warm };
	await writeFile(settings.json, `${JSON.stringify({ ...facts, targets, memory, samples }, null, "\t")}\n`);
}

function report(
	settings: Settings,
	samples: readonly Sample[],
	targets: readonly Target[],
	memory: readonly MemoryFinding[],
): void {
	const section = (heading: string, text: string): void => console.log(`\n${heading}\n\n${text}`);
	if (samples.length > 0) {
		const measured = { ...settings, samples };
		const { rounds, seconds } = settings;
		section(`Median of ${rounds} rounds of ${seconds} s`, throughputTable(measured));
		section("vmsweep's throughput divided by each peer's (+ target reached, - missed)", ratioTable(measured, targets));
		section("Lowest and highest round", spreadTable(measured));
		const latencies = latencyTable(measured);
		if (latencies !== undefined) section("Latency that 50, 99 and 99.9 % stay below, in microseconds", latencies);
		section("Processor seconds of the server for 100,000 operations, and for 10^9 bytes", cpuTable(measured));
		section("Processors kept busy by the server + by the client", coresTable(measured));
		if (targets.length > 0) section("Targets", targetTable(targets));
		const notes = doubts(measured);
		if (notes.length > 0) section("Doubts", notes.join("\n"));
	}
	if (memory.length > 0) section("Memory", memoryTable(memory));
}

async function measureAll(settings: Settings, place: Place): Promise<Sample[]> {
	const samples: Sample[] = [];
	for (const workload of settings.workloads) {
		// Cleaning has nothing to do while nobody writes.
		const racers = settings.peers.filter(({ id }) => id !== "vmsweep-off" || isWrite(workload));
		for (let round = 0; round < settings.rounds; round++) {
			const done: string[] = [];
			for (let turn = 0; turn < racers.length; turn++) {
				const peer = racers[(turn + round) % racers.length]!;
				const sample = await measure(peer, place, workload, round, settings);
				samples.push(sample);
				done.push(`${peer.id} ${Math.round(sample.operationsPerSecond)}`);
			}
			console.log(`${workload.title}, round ${round + 1}, operations per second: ${done.join(", ")}`);
		}
	}
	return samples;
}

async function measure(
	peer: Peer,
	place: Place,
	workload: Workload,
	round: number,
	settings: Settings,
): Promise<Sample> {
	const { seconds, warm } = settings;
	const { state } = workload;
	const logLimitBytes = state === "cleaning" ? Math.min(SMALL_LOG_BYTES, settings.sizeBytes) : undefined;
	await using server = await peer.serve(place, { logLimitBytes });
	const { usedBytes, writtenBytes } = rangeOf(state, settings);
	const passes = writtenBytes === 0 ? 0 : warm ? WARM_PASSES : 1;
	await settle(place);
	for (let pass = 0; pass < passes; pass++) await runFio(server.uri, fill, { sizeBytes: writtenBytes });
	// Where the cleaner is to be at work, it must not get the time to finish; what is to be dirty must not be written out.
	if (state !== "cleaning" && state !== "dirty") {
		await writeOut(place.folder);
		await runFio(server.uri, WARM_UP, { sizeBytes: usedBytes, seconds: WARM_UP_SECONDS });
		if (state === "cold") await forgetCached(place.folder);
	}
	// The cleaner goes by what the guest does: first it has to see that.
	if (workload.operationsPerSecondMax !== undefined) await runClient(server, workload, usedBytes, WARM_UP_SECONDS);
	// Asking vmsweep what it moved takes it processor time, so that comes outside of the rest.
	const movedBefore = await server.movedBytes();
	const before = usageOf(server);
	const result = await runClient(server, workload, usedBytes, seconds);
	const after = usageOf(server);
	const movedAfter = await server.movedBytes();
	return {
		workload: workload.id,
		peer: peer.id,
		round,
		...result,
		cpuSeconds: after.cpuSeconds - before.cpuSeconds,
		storageReadBytes: after.storageReadBytes - before.storageReadBytes,
		movedBytes: movedAfter === undefined ? null : movedAfter - movedBefore!,
	};
}

/** Which part of the disk a run uses, and how much of it is written before, from its start. */
function rangeOf(
	state: DiskState,
	{ sizeBytes, warm }: Settings,
): { readonly usedBytes: number; readonly writtenBytes: number } {
	const part = Math.min(WRITTEN_BYTES, sizeBytes / 2);
	switch (state) {
		case "written":
		case "dirty":
			return { usedBytes: part, writtenBytes: part };
		case "both":
			return { usedBytes: 2 * part, writtenBytes: part };
		case "cleaning":
			return { usedBytes: sizeBytes, writtenBytes: Math.min(SMALL_LOG_BYTES, sizeBytes) };
		case "cold":
			return { usedBytes: sizeBytes, writtenBytes: 0 };
		case "base":
			return warm ? { usedBytes: part, writtenBytes: part } : { usedBytes: sizeBytes, writtenBytes: 0 };
		default:
			return state satisfies never;
	}
}

function usageOf(server: Server) {
	return { cpuSeconds: server.cpuSeconds(), storageReadBytes: server.storageReadBytes() };
}

function runClient(server: Server, workload: Pattern, sizeBytes: number, seconds: number): Promise<ClientResult> {
	const range = { sizeBytes, seconds };
	return workload.client === "fio" ? runFio(server.uri, workload, range) : runLean(server.socket, workload, range);
}

/** Nothing left to write out from the run before, and what is served in the page cache, in the same way each time. */
async function settle({ folder, image, qcow2 }: Place): Promise<void> {
	await forgetCached(folder);
	await readIntoCache(image);
	await readIntoCache(qcow2);
}

async function fillImage(path: string, sizeBytes: number): Promise<void> {
	const file = await open(path, "wx");
	try {
		const bytes = new Uint8Array(4 * MIB);
		for (let at = 0; at < sizeBytes; at += bytes.length) {
			randomFillSync(bytes);
			await file.write(bytes, 0, Math.min(bytes.length, sizeBytes - at));
		}
		await file.datasync();
	} finally {
		await file.close();
	}
}
