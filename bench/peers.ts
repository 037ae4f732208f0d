// The servers that are compared. All serve the same image file, one after the other, each over its own Unix socket:
//
//   vmsweep       the image as second image of a new disk, cleaning on: what a user gets
//   vmsweep-off   the same with `--clean off`: the data plane alone
//   nbdkit        nbdkit's file plugin on the image
//   qemu-nbd      qemu-nbd on the image as raw
//   overlay       qemu-nbd on a new qcow2 overlay over the image
//
// A started peer is fresh: vmsweep's first image and the overlay are empty files, and every write is the first one
// to its place in them. That is the hard case for vmsweep too, since a recycled segment takes writes faster than a
// new one. The raw peers write in place, over blocks that the file system has allocated and holds in memory.

import { existsSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { nbdUri } from "../test/support/guest.ts";
import { type Running, runOk, start } from "../test/support/processes.ts";

export type PeerId = "vmsweep" | "vmsweep-off" | "nbdkit" | "qemu-nbd" | "overlay";

export interface Peer {
	readonly id: PeerId;
	/** Column heading. */
	readonly title: string;
	/** Programs it needs besides vmsweep. */
	readonly tools: readonly string[];
	/** Makes what it writes into, and starts it. */
	serve(place: Place): Promise<Server>;
}

/** Where peers work. */
export interface Place {
	/** A folder for sockets and for what peers write into. */
	readonly folder: string;
	/** The raw image that all serve. */
	readonly image: string;
	/** The vmsweep command. */
	readonly vmsweep: string;
}

/** A running server. Leaving its scope ends it and removes what it wrote, except what went into the image. */
export interface Server extends AsyncDisposable {
	readonly uri: string;
	/** Processor time that the process took so far, user and kernel, all threads. */
	cpuSeconds(): number;
}

export const peers: readonly Peer[] = [
	vmsweepPeer("vmsweep", "vmsweep", "continuous"),
	vmsweepPeer("vmsweep-off", "clean off", "off"),
	{
		id: "nbdkit",
		title: "nbdkit file",
		tools: ["nbdkit"],
		serve: ({ folder, image }) => {
			const socket = join(folder, "nbdkit.sock");
			return startServer(socket, "nbdkit", ["--foreground", "--unix", socket, "file", image]);
		},
	},
	{
		id: "qemu-nbd",
		title: "qemu-nbd",
		tools: ["qemu-nbd"],
		serve: ({ folder, image }) => qemuNbd(join(folder, "qemu.sock"), "raw", image),
	},
	{
		id: "overlay",
		title: "qcow2 overlay",
		tools: ["qemu-nbd", "qemu-img"],
		async serve({ folder, image }) {
			const overlay = join(folder, "overlay.qcow2");
			await rm(overlay, { force: true });
			await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay]);
			return qemuNbd(join(folder, "overlay.sock"), "qcow2", overlay, () => rm(overlay, { force: true }));
		},
	},
];

function vmsweepPeer(id: PeerId, title: string, clean: "continuous" | "off"): Peer {
	return {
		id,
		title,
		tools: [],
		async serve({ folder, image, vmsweep }) {
			const [disk, socket] = [join(folder, "disk"), join(folder, "vmsweep.sock")];
			// The image is ours alone: what the last disk left unmoved is benchmark data, and may go.
			const forget = async (): Promise<void> => {
				await rm(disk, { recursive: true, force: true });
				await rm(`${image}.vmsweep`, { force: true });
			};
			await forget();
			await runOk(vmsweep, ["create", disk, "--second", image]);
			return startServer(socket, vmsweep, ["serve", disk, "--socket", socket, "--clean", clean], forget);
		},
	};
}

const qemuNbd = (socket: string, format: string, image: string, remove?: () => Promise<void>): Promise<Server> =>
	startServer(socket, "qemu-nbd", [`--format=${format}`, "--persistent", "-k", socket, image], remove);

async function startServer(
	socket: string,
	program: string,
	programArguments: readonly string[],
	remove: () => Promise<void> = async () => {},
): Promise<Server> {
	await rm(socket, { force: true });
	const running: Running = start(program, programArguments);
	const stop = async (): Promise<void> => {
		await running[Symbol.asyncDispose]();
		await rm(socket, { force: true });
		await remove();
	};
	try {
		await running.until(() => existsSync(socket), "its socket");
	} catch (error) {
		await stop();
		throw error;
	}
	return {
		uri: nbdUri(socket),
		cpuSeconds: () => cpuSeconds(running.pid),
		[Symbol.asyncDispose]: stop,
	};
}

/** Clock ticks per second of /proc; the kernel's interface fixes it at 100 on all current architectures. */
const TICKS_PER_SECOND = 100;

/** proc(5): fields 14 (utime) and 15 (stime), counted behind the command's name, which may hold anything. */
export function cpuSeconds(pid: number): number {
	const text = readFileSync(`/proc/${pid}/stat`, "utf8");
	const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
	return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}
