// What a guest feels of cleaning: latency and throughput inside a VM, with cleaning on and off, beside nbdkit.
//
//   node bench/guest.ts [--rounds 3] [--seconds 8] [--peers A,B] [--folder PATH] [--vmsweep PATH]
//
//   for each round: for each server (another one begins in each round):
//      start it over a new disk ─► boot a guest ─► ext4, a file of 256 MiB, files that come and go all the time
//                               ─► paced load: latency ─► load without a limit: throughput
//
// How it measures
//  - fio runs in the guest, around its page cache, on a file in ext4: 4 KiB at random places, 70 % reads. Paced: 500 requests per
//    second, one at a time; its p50 and p99 are those of reads or writes, whichever is slower. Without a limit: 16 at once.
//  - Beside it 8 MiB files are written, synced and deleted without end, so that there always is something to clean. The first
//    image is 256 MiB: with cleaning on, the cleaner has to keep up with all that; `clean off` has room for all of it.
//  - A ratio is formed within its round, then the median of the rounds is shown.

import { rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { isVmsweepError } from "../src/foundations/errors.ts";
import { Guest, nbdUri } from "../test/support/guest.ts";
import { vmsweep as ownVmsweep, runOk } from "../test/support/processes.ts";
import { requirePrograms } from "../tools/required-programs.ts";
import { ScratchFolder } from "../tools/scratch-folder.ts";
import { chosen, positive } from "./choices.ts";
import { readFioReport } from "./fio.ts";
import { type Finding, inTurns, printMedians, printRatio, type Row } from "./in-turns.ts";
import { describeMachine, machineLines } from "./machine.ts";
import { type Server, startServer } from "./peers.ts";

const MIB = 1 << 20;
const DISK_BYTES = 1536 * MIB;
const LOG_BYTES = 256 * MIB;

const servers = ["vmsweep", "vmsweep-off", "nbdkit"] as const;
type ServerId = (typeof servers)[number];

interface GuestFinding extends Finding {
	/** Paced. */
	readonly latencyMsP50: number;
	readonly latencyMsP99: number;
	/** Without a limit. */
	readonly operationsPerSecond: number;
	/** Processor seconds of the server per second of both loads. */
	readonly cores: number;
	/** By vmsweep's cleaner, up to the end of both loads; 0 for others. */
	readonly movedBytes: number;
}

interface Settings {
	readonly rounds: number;
	readonly seconds: number;
	readonly servers: readonly ServerId[];
	readonly folder: string;
	readonly vmsweep: string;
}

const socketOf = (folder: string): string => join(folder, "guest.sock");

async function serve(id: ServerId, folder: string, vmsweep: string): Promise<Server> {
	const socket = socketOf(folder);
	const disk = join(folder, "disk");
	const remove = (): Promise<void> => rm(disk, { recursive: true, force: true });
	await remove();
	if (id === "nbdkit") {
		await writeFile(disk, "");
		await truncate(disk, DISK_BYTES);
		return startServer({
			socket,
			remove,
			program: "nbdkit",
			programArguments: ["--foreground", "--unix", socket, "file", disk],
		});
	}
	const limit = id === "vmsweep" ? String(LOG_BYTES) : "16G";
	await runOk(vmsweep, ["create", disk, "--size", String(DISK_BYTES), "--log-limit", limit]);
	return startServer({
		socket,
		remove,
		program: vmsweep,
		programArguments: ["serve", disk, "--socket", socket, "--clean", id === "vmsweep" ? "continuous" : "off"],
		movedBytes: async () => JSON.parse(await runOk(vmsweep, ["status", disk, "--json"])).cleaner.movedBytes,
	});
}

const CHURN = `while :; do for i in $(seq 12); do head -c 8M /dev/urandom > /mnt/churn$i; sync /mnt/churn$i; done; rm /mnt/churn*; done`;

async function measure(id: ServerId, round: number, folder: string, settings: Settings): Promise<GuestFinding> {
	const { seconds, vmsweep } = settings;
	await using server = await serve(id, folder, vmsweep);
	await using guest = await Guest.boot({ disks: [{ uri: nbdUri(socketOf(folder)) }], discard: "off" });
	const fio = (options: string): Promise<string> =>
		guest.run(
			`fio --name=load --filename=/mnt/load --size=256M --direct=1 --bs=4k --rw=randrw --rwmixread=70 --randrepeat=0 --time_based --runtime=${seconds} --output-format=json ${options}`,
			{ timeoutSeconds: seconds + 120 },
		);
	await guest.run("mkfs.ext4 -q $DISK0 && mount $DISK0 /mnt && head -c 256M /dev/urandom > /mnt/load && sync");
	await using churn = guest.start(CHURN);
	await churn.until(async () => Number(await guest.run("ls /mnt | wc -l")) > 4, "files to come and go");
	const before = server.cpuSeconds();
	const paced = readFioReport(await fio("--iodepth=1 --rate_iops=350,150"), ["read", "write"]);
	const full = readFioReport(await fio("--ioengine=libaio --iodepth=16"), ["read", "write"]);
	const cores = (server.cpuSeconds() - before) / (2 * seconds);
	const movedBytes = (await server.movedBytes()) ?? 0;
	const { latencyMsP50, latencyMsP99 } = paced;
	const { operationsPerSecond } = full;
	return { server: id, round, latencyMsP50, latencyMsP99, operationsPerSecond, cores, movedBytes };
}

const rows: readonly Row<GuestFinding>[] = [
	["p50 paced, µs", ({ latencyMsP50 }) => 1000 * latencyMsP50],
	["p99 paced, µs", ({ latencyMsP99 }) => 1000 * latencyMsP99],
	["requests per second, full", ({ operationsPerSecond }) => operationsPerSecond],
	["processors of the server", ({ cores }) => cores],
	["moved, MiB", ({ movedBytes }) => movedBytes / MIB],
];

function report(findings: readonly GuestFinding[], { rounds, servers: ids }: Settings): void {
	printMedians(`medians of ${rounds} rounds, in a guest`, ids, findings, rows);
	for (const other of ["vmsweep-off", "nbdkit"] as const) {
		const what = other === "nbdkit" ? "cleaning on : nbdkit" : "cleaning on : off";
		printRatio(`p99, ${what}`, ["vmsweep", other], findings, ({ latencyMsP99 }) => latencyMsP99);
		printRatio(`requests per second, ${what}`, ["vmsweep", other], findings, (each) => each.operationsPerSecond);
	}
}

try {
	const text = { type: "string" } as const;
	const { values } = parseArgs({
		options: { rounds: text, seconds: text, peers: text, folder: text, vmsweep: text },
	});
	const settings: Settings = {
		rounds: positive(values.rounds ?? "3", "--rounds"),
		seconds: positive(values.seconds ?? "8", "--seconds"),
		servers: chosen(values.peers, servers, "peer"),
		folder: values.folder ?? "/var/tmp",
		vmsweep: values.vmsweep ?? ownVmsweep,
	};
	const tools = settings.servers.includes("nbdkit") ? ["nbdkit"] : [];
	requirePrograms("the benchmark", [...tools, "qemu-system-x86_64", "findmnt", "nbdinfo"]);
	await using scratch = await ScratchFolder.make(settings.folder, "vmsweep-guest-");
	console.log(machineLines(await describeMachine(scratch.path, tools)).join("\n"));
	const findings = await inTurns(settings.servers, settings.rounds, (id, round) =>
		measure(id, round, scratch.path, settings),
	);
	report(findings, settings);
} catch (error) {
	if (!isVmsweepError(error)) throw error;
	console.error(`bench: ${error.message}`);
	process.exitCode = error.exit;
}
