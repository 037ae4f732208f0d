// Many small disks served by one process: what it takes while their guests rest, and while each does a little.
//
//   node bench/many.ts [--disks 24] [--rounds 3] [--seconds 4] [--peers A,B] [--folder PATH] [--vmsweep PATH]
//
//   for each round: for each server (another one begins in each round):
//      start it over new images ─► rest ─► memory, processor time of rest ─► fill ─► light load ─► latency, processor time
//
// How it measures
//  - vmsweep has a first image of 256 MiB per disk, of which five eighths are written in sequence before the load: with
//    cleaning on, all disks have something to move for as long as the load lasts. `clean off` has room for all of it.
//  - Light load: one fio with a job per disk, each a hundred requests of 4 KiB per second, 70 % reads, one at a time, at random
//    places. Latencies are those of all jobs together, the slower of reads and writes.
//  - nbdkit serves a folder of images, qemu-storage-daemon has an export per image; both write in place.
//  - A ratio is formed within its round, then the median of the rounds is shown.

import { rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { isVmsweepError } from "../src/foundations/errors.ts";
import { nbdUri } from "../test/support/guest.ts";
import { vmsweep as ownVmsweep, runOk } from "../test/support/processes.ts";
import { requirePrograms } from "../tools/required-programs.ts";
import { ScratchFolder } from "../tools/scratch-folder.ts";
import { chosen, positive } from "./choices.ts";
import { readFioReport } from "./fio.ts";
import { type Finding, inTurns, printMedians, printRatio, type Row } from "./in-turns.ts";
import { describeMachine, machineLines } from "./machine.ts";
import { type Server, startServer } from "./peers.ts";

const MIB = 1 << 20;
const DISK_BYTES = 512 * MIB;
const LOG_BYTES = 256 * MIB;
const WRITTEN_BYTES = 160 * MIB;
/** Per disk. */
const READS_PER_SECOND = 70;
const WRITES_PER_SECOND = 30;
/** Before it counts as resting: cleaning looks less and less often. */
const SETTLE_MS = 16_000;
const REST_MS = 10_000;

const servers = ["vmsweep", "vmsweep-off", "nbdkit", "qsd"] as const;
type ServerId = (typeof servers)[number];

/** One server in one round. Processor time as a share of one processor. */
interface ManyFinding extends Finding {
	readonly startedBytes: number;
	readonly restCores: number;
	readonly loadedBytes: number;
	readonly loadCores: number;
	readonly operationsPerSecond: number;
	readonly latencyMsP50: number;
	readonly latencyMsP99: number;
	/** By vmsweep's cleaner, from the end of the fill to that of the load; 0 for others. */
	readonly movedBytes: number;
}

interface Settings {
	readonly disks: number;
	readonly rounds: number;
	readonly seconds: number;
	readonly servers: readonly ServerId[];
	readonly folder: string;
	readonly vmsweep: string;
}

const socketOf = (folder: string): string => join(folder, "many.sock");
const nameOf = (disk: number): string => `disk${disk}`;

/** Starts a server of so many new disks, named as `nameOf` says. */
async function serve(id: ServerId, folder: string, { disks, vmsweep }: Settings): Promise<Server> {
	const socket = socketOf(folder);
	const names = Array.from({ length: disks }, (_, disk) => nameOf(disk));
	const images = join(folder, "images");
	const remove = (): Promise<void> => rm(images, { recursive: true, force: true });
	await remove();
	await runOk("mkdir", [images]);
	const common = { socket, exportName: names[0]!, remove };
	if (id === "nbdkit" || id === "qsd")
		for (const name of names) {
			await writeFile(join(images, name), "");
			await truncate(join(images, name), DISK_BYTES);
		}
	switch (id) {
		case "nbdkit":
			return startServer({
				...common,
				program: "nbdkit",
				programArguments: ["--foreground", "--unix", socket, "file", `dir=${images}`],
			});
		case "qsd": {
			const each = names.flatMap((name) => [
				"--blockdev",
				JSON.stringify({ driver: "file", "node-name": `file-${name}`, filename: join(images, name) }),
				"--blockdev",
				JSON.stringify({ driver: "raw", "node-name": name, file: `file-${name}` }),
			]);
			const exports = names.flatMap((name) => [
				"--export",
				`type=nbd,id=export-${name},node-name=${name},name=${name},writable=on`,
			]);
			const listen = ["--nbd-server", `addr.type=unix,addr.path=${socket},max-connections=0`];
			return startServer({
				...common,
				program: "qemu-storage-daemon",
				programArguments: [...each, ...listen, ...exports],
			});
		}
		case "vmsweep":
		case "vmsweep-off": {
			const folders = names.map((name) => join(images, name));
			for (const disk of folders)
				await runOk(vmsweep, [
					"create",
					disk,
					"--size",
					String(DISK_BYTES),
					"--log-limit",
					id === "vmsweep" ? String(LOG_BYTES) : "16G",
				]);
			const clean = id === "vmsweep" ? "continuous" : "off";
			const moved = async (disk: string): Promise<number> =>
				JSON.parse(await runOk(vmsweep, ["status", disk, "--json"])).cleaner.movedBytes;
			return startServer({
				...common,
				program: vmsweep,
				programArguments: ["serve", ...folders, "--socket", socket, "--clean", clean],
				movedBytes: async () => {
					let sum = 0;
					for (const disk of folders) sum += await moved(disk);
					return sum;
				},
			});
		}
		default:
			return id satisfies never;
	}
}

/** A fio job per disk, with the same options. Returns what it reports. */
async function fioOnAll(
	folder: string,
	disks: number,
	options: readonly string[],
	timeoutSeconds: number,
): Promise<string> {
	const jobs = Array.from({ length: disks }, (_, disk) => [
		`--name=${nameOf(disk)}`,
		`--uri=${nbdUri(socketOf(folder), nameOf(disk))}`,
	]).flat();
	const all = ["--name=global", "--ioengine=nbd", "--thread", "--group_reporting", ...options];
	return runOk("fio", ["--output-format=json", ...all, ...jobs], { timeoutSeconds });
}

async function measure(id: ServerId, round: number, folder: string, settings: Settings): Promise<ManyFinding> {
	const { disks, seconds } = settings;
	await using server = await serve(id, folder, settings);
	await delay(SETTLE_MS);
	const startedBytes = server.memory().residentBytes;
	const idleBefore = server.cpuSeconds();
	await delay(REST_MS);
	const restCores = (server.cpuSeconds() - idleBefore) / (REST_MS / 1000);
	await fioOnAll(folder, disks, ["--rw=write", "--bs=1M", "--iodepth=1", `--size=${WRITTEN_BYTES}`], 600);
	const movedBefore = await server.movedBytes();
	const before = server.cpuSeconds();
	const output = await fioOnAll(
		folder,
		disks,
		[
			"--rw=randrw",
			"--rwmixread=70",
			`--rate_iops=${READS_PER_SECOND},${WRITES_PER_SECOND}`,
			"--bs=4k",
			"--iodepth=1",
			`--size=${DISK_BYTES}`,
			"--randrepeat=0",
			"--time_based",
			`--runtime=${seconds}`,
		],
		seconds + 120,
	);
	const loadCores = (server.cpuSeconds() - before) / seconds;
	const loadedBytes = server.memory().residentBytes;
	const movedAfter = await server.movedBytes();
	const { operationsPerSecond, latencyMsP50, latencyMsP99 } = readFioReport(output, ["read", "write"]);
	return {
		server: id,
		round,
		startedBytes,
		restCores,
		loadedBytes,
		loadCores,
		operationsPerSecond,
		latencyMsP50,
		latencyMsP99,
		movedBytes: (movedAfter ?? 0) - (movedBefore ?? 0),
	};
}

const rows: readonly Row<ManyFinding>[] = [
	["resident when started, MiB", ({ startedBytes }) => startedBytes / MIB],
	["resident after load, MiB", ({ loadedBytes }) => loadedBytes / MIB],
	["processor at rest, %", ({ restCores }) => 100 * restCores],
	["processor under load, %", ({ loadCores }) => 100 * loadCores],
	["requests per second", ({ operationsPerSecond }) => operationsPerSecond],
	["p50, µs", ({ latencyMsP50 }) => 1000 * latencyMsP50],
	["p99, µs", ({ latencyMsP99 }) => 1000 * latencyMsP99],
	["moved since the fill, MiB", ({ movedBytes }) => movedBytes / MIB],
];

try {
	const text = { type: "string" } as const;
	const { values } = parseArgs({
		options: { disks: text, rounds: text, seconds: text, peers: text, folder: text, vmsweep: text },
	});
	const settings: Settings = {
		disks: positive(values.disks ?? "24", "--disks"),
		rounds: positive(values.rounds ?? "3", "--rounds"),
		seconds: positive(values.seconds ?? "4", "--seconds"),
		servers: chosen(values.peers, servers, "peer"),
		folder: values.folder ?? "/var/tmp",
		vmsweep: values.vmsweep ?? ownVmsweep,
	};
	const tools = ["fio", ...(settings.servers.includes("nbdkit") ? ["nbdkit"] : [])];
	if (settings.servers.includes("qsd")) tools.push("qemu-storage-daemon");
	requirePrograms("the benchmark", [...tools, "findmnt", "nbdinfo"]);
	await using scratch = await ScratchFolder.make(settings.folder, "vmsweep-many-");
	console.log(machineLines(await describeMachine(scratch.path, tools)).join("\n"));
	const findings = await inTurns(settings.servers, settings.rounds, (id, round) =>
		measure(id, round, scratch.path, settings),
	);
	printMedians(`medians of ${settings.rounds} rounds, ${settings.disks} disks`, settings.servers, findings, rows);
	printRatio("p99, cleaning on : off", ["vmsweep", "vmsweep-off"], findings, ({ latencyMsP99 }) => latencyMsP99);
} catch (error) {
	if (!isVmsweepError(error)) throw error;
	console.error(`bench: ${error.message}`);
	process.exitCode = error.exit;
}
