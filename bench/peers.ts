// The servers that are compared. All serve the same image file, one after the other, each over its own Unix socket:
//
//   vmsweep       the image as second image of a new disk, cleaning on: what a user gets
//   vmsweep-off   the same with `--clean off`: the data plane alone
//   nbdkit        nbdkit's file plugin on the image
//   nbdkit-cow    the same below nbdkit's cow filter: writes go to a temporary file. Its flush does nothing
//   qemu-nbd      qemu-nbd on the image as raw
//   qsd           qemu-storage-daemon on the image as raw
//   qsd-qcow2     qemu-storage-daemon on a qcow2 image with the same content, all of it allocated
//   overlay       qemu-nbd on a new qcow2 overlay over the image
//
// A started peer is fresh: vmsweep's first image, the overlay and the cow file are empty, and every write is the first one
// to its place in them. That is the hard case for vmsweep too, since a recycled segment takes writes faster than a
// new one. The raw peers and qsd-qcow2 write in place, over blocks that the file system has allocated and holds in memory.

import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { nbdUri } from "../test/support/guest.ts";
import { type Running, run, runOk, start } from "../test/support/processes.ts";
import { cpuSeconds, type Memory, memoryOf, storageReadBytes } from "./processes.ts";

export type PeerId = "vmsweep" | "vmsweep-off" | "nbdkit" | "nbdkit-cow" | "qemu-nbd" | "qsd" | "qsd-qcow2" | "overlay";

export interface Peer {
	readonly id: PeerId;
	/** Column heading. */
	readonly title: string;
	/** Programs it needs besides vmsweep. */
	readonly tools: readonly string[];
	/** False where a flush is answered without making anything durable: no yardstick for workloads that flush. */
	readonly flushes: boolean;
	/** Part of the short run that `make bench` does. */
	readonly short: boolean;
	/** Makes what it writes into, and starts it. */
	serve(place: Place, options?: ServeOptions): Promise<Server>;
}

export interface ServeOptions {
	/** Limit of vmsweep's first image where it cleans; {@link USUAL_LOG_BYTES} where not given. */
	readonly logLimitBytes?: number | undefined;
}

/** Where peers work. */
export interface Place {
	/** A folder for sockets and for what peers write into. */
	readonly folder: string;
	/** The raw image that all serve. */
	readonly image: string;
	/** The same as qcow2; only there where a peer serves it. */
	readonly qcow2: string;
	/** The vmsweep command. */
	readonly vmsweep: string;
}

/** A running server. Leaving its scope ends it and removes what it wrote, except what went into the image. */
export interface Server extends AsyncDisposable {
	readonly socket: string;
	readonly uri: string;
	/** Processor time that it took so far, user and kernel, all threads and children. */
	cpuSeconds(): number;
	/** Bytes that it read from storage so far, because the page cache did not have them. */
	storageReadBytes(): number;
	memory(): Memory;
	/** Bytes that its cleaner moved so far; undefined for who has none. */
	movedBytes(): Promise<number | undefined>;
}

/** Limit of the first image that disks from 4 to 16 GiB get; those of the benchmark are smaller only to save time. */
const USUAL_LOG_BYTES = 4 * 1024 ** 3;
/** Cleaning off, the first image only grows; no run of the benchmark writes as much as this. */
const NEVER_FULL = "256G";

export const peers: readonly Peer[] = [
	vmsweepPeer("vmsweep", "vmsweep", "continuous"),
	vmsweepPeer("vmsweep-off", "clean off", "off"),
	{
		id: "nbdkit",
		title: "nbdkit",
		tools: ["nbdkit"],
		flushes: true,
		short: true,
		serve: ({ folder, image }) => nbdkit(join(folder, "nbdkit.sock"), folder, ["file", image]),
	},
	{
		id: "nbdkit-cow",
		title: "nbdkit+cow",
		tools: ["nbdkit"],
		flushes: false,
		short: false,
		serve: ({ folder, image }) => nbdkit(join(folder, "cow.sock"), folder, ["--filter=cow", "file", image]),
	},
	{
		id: "qemu-nbd",
		title: "qemu-nbd",
		tools: ["qemu-nbd"],
		flushes: true,
		short: false,
		serve: ({ folder, image }) => qemuNbd(join(folder, "qemu.sock"), "raw", image),
	},
	{
		id: "qsd",
		title: "qsd raw",
		tools: ["qemu-storage-daemon"],
		flushes: true,
		short: true,
		serve: ({ folder, image }) => storageDaemon(join(folder, "qsd.sock"), "raw", image),
	},
	{
		id: "qsd-qcow2",
		title: "qsd qcow2",
		tools: ["qemu-storage-daemon", "qemu-img"],
		flushes: true,
		short: false,
		async serve({ folder, image, qcow2 }) {
			if (!existsSync(qcow2))
				await runOk("qemu-img", ["convert", "-O", "qcow2", image, qcow2], { timeoutSeconds: 900 });
			return storageDaemon(join(folder, "qsd-qcow2.sock"), "qcow2", qcow2);
		},
	},
	{
		id: "overlay",
		title: "overlay",
		tools: ["qemu-nbd", "qemu-img"],
		flushes: true,
		short: true,
		async serve({ folder, image }) {
			const overlay = join(folder, "overlay.qcow2");
			await rm(overlay, { force: true });
			await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay]);
			return qemuNbd(join(folder, "overlay.sock"), "qcow2", overlay, () => rm(overlay, { force: true }));
		},
	},
];

/** vmsweep itself, whether it cleans or not. */
export const isOurs = (id: PeerId): boolean => id === "vmsweep" || id === "vmsweep-off";

function vmsweepPeer(id: PeerId, title: string, clean: "continuous" | "off"): Peer {
	return {
		id,
		title,
		tools: [],
		flushes: true,
		short: true,
		async serve({ folder, image, vmsweep }, { logLimitBytes } = {}) {
			const [disk, socket] = [join(folder, "disk"), join(folder, "vmsweep.sock")];
			// The image is ours alone: what the last disk left unmoved is benchmark data, and may go.
			const forget = async (): Promise<void> => {
				await rm(disk, { recursive: true, force: true });
				await rm(`${image}.vmsweep`, { force: true });
			};
			await forget();
			const limit = clean === "off" ? NEVER_FULL : String(logLimitBytes ?? USUAL_LOG_BYTES);
			await runOk(vmsweep, ["create", disk, "--second", image, "--log-limit", limit]);
			return startServer({
				socket,
				program: vmsweep,
				programArguments: ["serve", disk, "--socket", socket, "--clean", clean],
				remove: forget,
				movedBytes: async () => JSON.parse(await runOk(vmsweep, ["status", disk, "--json"])).cleaner.movedBytes,
			});
		},
	};
}

/** `folder` also takes the temporary file of the cow filter: it must be on the file system that all others use. */
const nbdkit = (socket: string, folder: string, what: readonly string[]): Promise<Server> =>
	startServer({
		socket,
		program: "nbdkit",
		programArguments: ["--foreground", "--unix", socket, ...what],
		environment: { TMPDIR: folder },
	});

const qemuNbd = (socket: string, format: string, image: string, remove?: () => Promise<void>): Promise<Server> =>
	startServer({
		socket,
		program: "qemu-nbd",
		// As many clients as there are, which the storage daemon allows by itself.
		programArguments: [`--format=${format}`, "--persistent", "--shared=0", "-k", socket, image],
		remove,
	});

const storageDaemon = (socket: string, format: string, image: string): Promise<Server> =>
	startServer({
		socket,
		program: "qemu-storage-daemon",
		programArguments: [
			"--blockdev",
			JSON.stringify({ driver: "file", "node-name": "file", filename: image }),
			"--blockdev",
			JSON.stringify({ driver: format, "node-name": "disk", file: "file" }),
			"--nbd-server",
			`addr.type=unix,addr.path=${socket},max-connections=0`,
			"--export",
			"type=nbd,id=export,node-name=disk,name=,writable=on",
		],
	});

interface ServerSetup {
	readonly socket: string;
	/** One of its exports, to see that it is there; the nameless one where not given. */
	readonly exportName?: string;
	readonly program: string;
	readonly programArguments: readonly string[];
	readonly environment?: Readonly<Record<string, string>>;
	readonly remove?: (() => Promise<void>) | undefined;
	readonly movedBytes?: () => Promise<number>;
}

/** Starts a server and waits for its socket. */
export async function startServer(setup: ServerSetup): Promise<Server> {
	const { socket, exportName = "", program, programArguments, environment = {}, remove, movedBytes } = setup;
	await rm(socket, { force: true });
	const running: Running = start(program, programArguments, { environment });
	const stop = async (): Promise<void> => {
		await running[Symbol.asyncDispose]();
		await rm(socket, { force: true });
		await remove?.();
	};
	try {
		await running.until(() => existsSync(socket), "its socket");
		// The storage daemon makes its socket before its export.
		const uri = nbdUri(socket, exportName);
		await running.until(async () => (await run("nbdinfo", ["--size", uri])).exitCode === 0, "its export");
	} catch (error) {
		await stop();
		throw error;
	}
	return {
		socket,
		uri: nbdUri(socket),
		cpuSeconds: () => cpuSeconds(running.pid),
		storageReadBytes: () => storageReadBytes(running.pid),
		memory: () => memoryOf(running.pid),
		movedBytes: async () => movedBytes?.(),
		[Symbol.asyncDispose]: stop,
	};
}
