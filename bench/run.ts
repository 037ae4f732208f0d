// `make bench`: fio's nbd engine against vmsweep, nbdkit's file plugin, qemu-nbd and a qcow2 overlay.
//
//   for each workload: for each round: for each peer (another one begins in each round):
//      start it fresh ─► settle ─► fio for some seconds ─► throughput, latency, the server's processor time
//
// How it measures
//  - All peers serve the same raw image, one after the other, on the same file system, each over a Unix socket.
//    The image is full of random bytes, so no peer can answer from a hole.
//  - Peers take turns within each round; a ratio is formed within its round, then the median of the rounds is shown.
//  - Before each run the host's dirty pages are written out, the whole image is read into the page cache, and the
//    server answers a second of random reads that don't count: a server runs for weeks, and its compiler, caches and
//    connections are warm. That is the same for all peers.
//  - vmsweep's first image and the overlay are new in each run (bench/peers.ts says why). The image is large enough
//    that most writes of a run are the first ones to their cluster of the overlay. --warm measures the other case.
//  - Targets are judged with cleaning on. The disk holds no file system that the cleaner knows, so it drops nothing
//    and moves all that is written, while the benchmark writes. That is its hard case; `clean off` shows the data
//    plane alone. Only workloads that write have it: a reader gives the cleaner nothing to do.
//
// What it does not measure: reads that miss the page cache, a guest (tools/demo.ts has one), TCP, several clients,
// and long runs in which vmsweep recycles its segments and must move as fast as the guest writes.

import { randomFillSync } from "node:crypto";
import { open, writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { isVmsweepError, VmsweepError } from "../src/foundations/errors.ts";
import { formatBytes } from "../src/foundations/units.ts";
import { vmsweep as ownVmsweep, runOk } from "../test/support/processes.ts";
import { requirePrograms } from "../tools/required-programs.ts";
import { ScratchFolder } from "../tools/scratch-folder.ts";
import { chosen, positive } from "./choices.ts";
import { fill, runFio } from "./fio.ts";
import { describeMachine, machineLines } from "./machine.ts";
import { type Peer, type Place, peers } from "./peers.ts";
import { cpuTable, spreadTable, targetTable, throughputTable } from "./report.ts";
import { type Sample, targetsOf } from "./statistics.ts";
import { isWrite, type Workload, WRITTEN_BYTES, workloads } from "./workloads.ts";

const usage = `Usage: make bench, or: bench/run.ts [options]
  --rounds N      rounds per workload (default 3)
  --seconds N     length of one run (default 3)
  --size MIB      size of the image in MiB (default 4096)
  --rows A,B      only these workloads: ${workloads.map(({ id }) => id).join(", ")}
  --peers A,B     only these servers: ${peers.map(({ id }) => id).join(", ")}
  --warm          write twice over the first 512 MiB before each run and stay there: recycled segments, no new ones;
                  the overlay is not new then, so its targets don't apply
  --quick         one round of one second each on 256 MiB: does it run at all
  --json FILE     all measurements and results too, as JSON
  --folder PATH   where the images go (default: /var/tmp)
  --vmsweep PATH  the vmsweep command to measure (default: this checkout's)`;

const MIB = 1 << 20;
/** Random reads that don't count, before each run. */
const WARM_UP = { pattern: "randread", blockBytes: 4096, depth: 32 } as const;
const WARM_UP_SECONDS = 1;
/** With --warm: the second pass supersedes what the first one wrote, which frees segments to be written again. */
const WARM_PASSES = 2;

interface Settings {
	readonly rounds: number;
	readonly seconds: number;
	readonly sizeBytes: number;
	readonly workloads: readonly Workload[];
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
	const rows = chosen(
		values.rows,
		workloads.map(({ id }) => id),
		"workload",
	);
	return {
		rounds: positive(values.rounds ?? (values.quick ? "1" : "3"), "--rounds"),
		seconds: positive(values.seconds ?? (values.quick ? "1" : "3"), "--seconds"),
		sizeBytes: positive(values.size ?? (values.quick ? "256" : "4096"), "--size") * MIB,
		workloads: workloads.filter(({ id }) => rows.includes(id)),
		warm: values.warm ?? false,
		peers: ((ids) => peers.filter(({ id }) => ids.includes(id)))(
			chosen(
				values.peers,
				peers.map(({ id }) => id),
				"peer",
			),
		),
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
	requirePrograms("the benchmark", [...tools, "findmnt", "sync"]);
	await using scratch = await ScratchFolder.make(settings.folder, "vmsweep-bench-");
	const machine = await describeMachine(scratch.path, tools);
	console.log(machineLines(machine).join("\n"));

	const samples = await measureAll(settings, scratch);
	const targets = targetsOf(settings.workloads, samples).filter(({ peer }) => !settings.warm || peer !== "overlay");
	if (samples.length > 0) {
		const measured = { ...settings, samples };
		const { rounds, seconds } = settings;
		const heading = `Median of ${rounds} rounds of ${seconds} s; vmsweep's ratio to each (+ target reached, - missed)`;
		console.log(`\n${heading}\n\n${throughputTable(measured)}`);
		console.log(`\nLowest and highest round\n\n${spreadTable(measured)}`);
		console.log(`\nProcessor seconds of the server for 100,000 operations\n\n${cpuTable(measured)}`);
		if (targets.length > 0) console.log(`\nTargets\n\n${targetTable(targets)}`);
	}
	if (settings.json === undefined) return;
	const { rounds, seconds, sizeBytes, warm } = settings;
	const facts = { date: new Date().toISOString(), machine, rounds, seconds, sizeBytes, warm };
	const result = { ...facts, targets, samples };
	await writeFile(settings.json, `${JSON.stringify(result, null, "\t")}\n`);
}

async function measureAll(settings: Settings, scratch: ScratchFolder): Promise<Sample[]> {
	const place: Place = { folder: scratch.path, image: scratch.file("image.raw"), vmsweep: settings.vmsweep };
	console.log(`filling an image of ${formatBytes(settings.sizeBytes)} with random bytes`);
	await fillImage(place.image, settings.sizeBytes);
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
	{ seconds, sizeBytes, warm }: Settings,
): Promise<Sample> {
	await using server = await peer.serve(place);
	const passes = warm ? WARM_PASSES : workload.readsFrom === "written" ? 1 : 0;
	const range = passes > 0 ? Math.min(WRITTEN_BYTES, sizeBytes) : sizeBytes;
	for (let pass = 0; pass < passes; pass++) await runFio(server.uri, fill, { sizeBytes: range });
	await settle(place);
	await runFio(server.uri, WARM_UP, { sizeBytes: range, seconds: WARM_UP_SECONDS });
	const cpuBefore = server.cpuSeconds();
	const result = await runFio(server.uri, workload, { sizeBytes: range, seconds });
	const cpuSeconds = server.cpuSeconds() - cpuBefore;
	return { workload: workload.id, peer: peer.id, round, ...result, cpuSeconds };
}

/** Nothing left to write out from the run before, and the image in the page cache. */
async function settle({ folder, image }: Place): Promise<void> {
	await runOk("sync", ["--file-system", folder]);
	const file = await open(image);
	try {
		const into = new Uint8Array(4 * MIB);
		while ((await file.read(into, 0, into.length, null)).bytesRead > 0);
	} finally {
		await file.close();
	}
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
