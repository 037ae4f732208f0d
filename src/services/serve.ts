// Serve: one process that serves several disks to NBD clients until it is told to stop.
//
//   start:  open disks ─► control sockets ─► listeners ─► ready
//   client ─► listener (handshake) ─► the disk of its export name ─► that disk's data plane
//   close:  listeners ─► control sockets ─► disks (drained, durable, closed cleanly)
//
// Each disk has a listener of its own on DISK/nbd.sock, or all share those that the user or a service manager named.
//
// A disk whose data plane died can't answer its clients, nor can their connections be taken from it: only the end of
// the process closes them. So `broken` tells the caller to close everything else and to end.

import { closeSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, resolve } from "node:path";
import {
	exportUri,
	type ListenAddress,
	listenNbd,
	type NbdClient,
	type NbdListener,
} from "../adapters/nbd/listener.ts";
import { loadTls, type ServerTls, type TlsFiles } from "../adapters/nbd/tls.ts";
import { GuestAgent } from "../adapters/qemu/guest-agent.ts";
import { diskTransmissionFlags, type ExportDescription } from "../core/nbd/handshake.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE, type ByteCount } from "../foundations/units.ts";
import { type CleaningPolicy, KEEP_ALL } from "./clean/policy.ts";
import { CleaningTurns } from "./clean/turns.ts";
import type { ClientLimits } from "./client-setup.ts";
import { type ControlledDisk, type ControlServer, listenControl, SOCKET_PATH_BYTES_MAX } from "./control.ts";
import { type DiskCommandName, diskCommands, runCommand } from "./disk-commands.ts";
import { freezingPath, nbdSocketPath } from "./disk-paths.ts";
import { Freezer } from "./freezer.ts";
import { RateLimit } from "./rate-limit.ts";
import { ServedDisk } from "./served-disk.ts";

/** Disks that clean at once, at most, and never more than leaves a processor for the guests' disks. */
const CLEANING_AT_ONCE = 4;

export interface ServeOptions {
	/** The disks' directories. */
	readonly disks: readonly string[];
	/** Addresses, each for all disks or for the one that it names; DISK/nbd.sock of each disk where not given. */
	readonly addresses?: readonly ServeAddress[];
	/** Encrypts all connections, or those whose clients want it. */
	readonly tls?: TlsFiles;
	/** Clients that each disk may have at once; as many as there is room for where not given. */
	readonly clientsMax?: number;
	/** See `ClientSetup`. */
	readonly requestTimeoutMs?: number;
	readonly idleTimeoutMs?: number;
	readonly clean: "continuous" | "off";
	/** Clients can't write. Cleaning goes on. */
	readonly readOnly?: boolean;
	/** Most host bytes that each first image may fill. */
	readonly limitBytes?: number;
	/** Serve although a second image was changed since its disk was closed. */
	readonly acceptChangedImage?: boolean;
	/** For how long dropped blocks can be brought back, in milliseconds; default 0: not at all. */
	readonly quarantineMs?: number;
	/** Default: all is kept that somebody might miss. */
	readonly policy?: CleaningPolicy;
	/** Guest agents of the VMs; a volume that needs it is then judged at freeze points. */
	readonly agents?: readonly ServeAgent[];
	/** A guest is frozen at most this often, in milliseconds; default 10 minutes. */
	readonly freezeEveryMs?: number;
	/** Bytes per second that cleaning in the background may read and write, all disks together; no limit where not given. */
	readonly bytesPerSecond?: number;
	/** One line about a disk that an operator should know; `name` is the disk's, or null for all of them. */
	readonly onEvent?: (line: string, name: string | null) => void;
}

/** Where clients reach all disks, or only the one called `disk`. */
export interface ServeAddress {
	readonly address: ListenAddress;
	readonly disk?: string;
}

/** Where the guest agent of a VM answers: of the VM that has the disk called `disk`, or all that no other one names. */
export interface ServeAgent {
	/** Of a Unix socket. */
	readonly path: string;
	readonly disk?: string;
}

/** A disk that clients can attach. */
export interface ServedExport {
	readonly name: string;
	/** The disk's directory, absolute. */
	readonly path: string;
	readonly size: ByteCount;
	readonly readOnly: boolean;
	readonly address: ListenAddress;
	/** What clients that must encrypt need; null where they needn't. */
	readonly tls: ServerTls["proof"] | null;
	readonly uri: string;
}

/** Starts to serve. Throws USAGE, ADDRESS_IN_USE, or what opening a disk throws; nothing is left open then. */
export const serveDisks = (options: ServeOptions): Promise<Server> => Server.start(options);

export class Server implements AsyncDisposable {
	readonly #options: ServeOptions;
	readonly #tls: ServerTls | undefined;
	readonly #turns = new CleaningTurns(Math.max(1, Math.min(CLEANING_AT_ONCE, availableParallelism() - 1)));
	readonly #limit: RateLimit | undefined;
	readonly #disks: ServedDisk[] = [];
	readonly #controls: ControlServer[] = [];
	readonly #listeners: NbdListener[] = [];
	readonly #exports: ServedExport[] = [];
	readonly #freezers: Freezer[] = [];
	readonly #broken = Promise.withResolvers<Error>();
	#closed: Promise<void> | undefined;

	private constructor(options: ServeOptions, tls: ServerTls | undefined) {
		this.#options = options;
		this.#tls = tls;
		this.#limit = options.bytesPerSecond === undefined ? undefined : new RateLimit(options.bytesPerSecond);
	}

	static async start(options: ServeOptions): Promise<Server> {
		const addresses = addressesOf(options);
		const vms = vmsOf(options);
		const tls = options.tls === undefined ? undefined : await loadTls(options.tls);
		const server = new Server(options, tls);
		try {
			for (const path of options.disks) await server.#openDisk(path);
			for (const { address, disk } of addresses) {
				// A service manager names a socket after its unit, where nobody named it after a disk.
				const named = server.#disks.filter(({ name, path }) => disk === name || disk === path);
				await server.#listen(address, named.length > 0 ? named : server.#disks);
			}
			if (options.clean === "continuous") {
				for (const disk of server.#disks) disk.startCleaning();
				for (const vm of vms) server.#freeze(vm);
			}
			return server;
		} catch (error) {
			await server.close().catch(() => {}); // the first error is the one to tell
			throw error;
		}
	}

	/** In the order of the disks. */
	get exports(): readonly ServedExport[] {
		return this.#exports;
	}

	/** Resolves where a disk can't be served any more: close the server and end the process, with a failure. */
	get broken(): Promise<Error> {
		return this.#broken.promise;
	}

	/** Takes no new clients, finishes what the others have in flight, and closes all disks cleanly. */
	close(): Promise<void> {
		this.#closed ??= this.#close();
		return this.#closed;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	async #close(): Promise<void> {
		// First of all no guest may stay frozen.
		await Promise.all(this.#freezers.map((freezer) => freezer.close()));
		await Promise.all(this.#listeners.map((listener) => listener.close()));
		// A cleaning that a control client waits for ends with its disk.
		const controls = Promise.all(this.#controls.map((control) => control.close()));
		const disks = await Promise.allSettled(this.#disks.map((disk) => disk.close()));
		await controls;
		await Promise.all(this.#listeners.map((listener) => listener.finished()));
		const failure = disks.find((outcome) => outcome.status === "rejected");
		if (failure !== undefined) throw failure.reason;
	}

	async #openDisk(path: string): Promise<void> {
		const { limitBytes, acceptChangedImage = false, quarantineMs = 0, policy = KEEP_ALL } = this.#options;
		const { onEvent = () => {} } = this.#options;
		const name = basename(resolve(path));
		const disk = await ServedDisk.open(path, {
			...(limitBytes === undefined ? {} : { limitBytes }),
			acceptChangedImage,
			quarantineMs,
			policy,
			turns: this.#turns,
			limit: this.#limit,
			onEvent: (line) => onEvent(line, name),
			onVolume: (line) => onEvent(line, name),
			onBroken: (error) => this.#broken.resolve(error),
		});
		this.#disks.push(disk);
		this.#controls.push(await listenControl(controlled(disk)));
	}

	/** Has a VM's guest frozen now and then. */
	#freeze({ agent, paths }: Vm): void {
		const { freezeEveryMs = FREEZE_EVERY_MS, onEvent = () => {} } = this.#options;
		const disks = this.#disks.filter(({ path }) => paths.includes(path));
		const freezer = new Freezer({
			agent: new GuestAgent(agent),
			disks: disks.map(({ freezable }) => freezable),
			everyMs: freezeEveryMs,
			notePath: freezingPath(disks[0]!.path),
			onEvent: (line) => onEvent(line, disks.length === 1 ? disks[0]!.name : null),
		});
		this.#freezers.push(freezer);
		for (const disk of disks) disk.freezer = freezer;
	}

	async #listen(address: ListenAddress, disks: readonly ServedDisk[]): Promise<void> {
		const { readOnly = false, requestTimeoutMs, idleTimeoutMs, clientsMax, onEvent = () => {} } = this.#options;
		const limits: ClientLimits = {
			readOnly,
			...(requestTimeoutMs === undefined ? {} : { requestTimeoutMs }),
			...(idleTimeoutMs === undefined ? {} : { idleTimeoutMs }),
			...(clientsMax === undefined ? {} : { clientsMax }),
		};
		const byName = new Map(disks.map((disk) => [disk.name, disk]));
		const listener = await listenNbd({
			address,
			...(this.#tls === undefined ? {} : { tls: this.#tls }),
			// Anew for every client, so that it learns a disk's present size.
			exports: async () => (await Promise.all(disks.map((disk) => describeExports(disk, limits)))).flat(),
			onClient: (client) => attach(byName, client, limits),
			onNotice: (line) => onEvent(line, disks.length === 1 ? disks[0]!.name : null),
		});
		this.#listeners.push(listener);
		const tls = this.#tls?.policy === "required" ? this.#tls.proof : null;
		for (const { name, path, size } of disks)
			this.#exports.push({
				name,
				path,
				size,
				readOnly,
				address: listener.address,
				tls,
				uri: exportUri(listener.address, name, tls !== null),
			});
	}
}

/** A disk as its control socket sees it. */
const controlled = (disk: ServedDisk): ControlledDisk => ({
	path: disk.path,
	status: () => disk.status(),
	commands: Object.keys(diskCommands),
	run: (name, input, onProgress) => runCommand(disk, name as DiskCommandName, input, onProgress),
});

const MAXIMUM_PAYLOAD = 32 * 1024 * 1024;

/** Between a disk's name and a snapshot's. */
const SNAPSHOT_MARK = "@";

/** A disk and behind it its snapshots, oldest first. */
async function describeExports(disk: ServedDisk, limits: ClientLimits): Promise<ExportDescription[]> {
	const present = await describeExport(disk, limits);
	const past = disk.snapshots().map(
		({ name, created, size }): ExportDescription => ({
			...present,
			name: `${disk.name}${SNAPSHOT_MARK}${name}`,
			description: `${disk.path} as it was at ${created}`,
			size,
			readOnly: true,
			contexts: ["allocation"],
		}),
	);
	return [present, ...past];
}

async function describeExport(disk: ServedDisk, { readOnly, clientsMax }: ClientLimits): Promise<ExportDescription> {
	const { name, path, size } = disk;
	const isFull = clientsMax !== undefined && (await disk.clientCount()) >= clientsMax;
	return {
		name,
		description: path,
		size,
		readOnly,
		transmissionFlags: diskTransmissionFlags,
		blockSize: { minimum: 1, preferred: BLOCK_SIZE, maximumPayload: MAXIMUM_PAYLOAD },
		contexts: ["allocation", "liveness", "since"],
		...(isFull ? { refusal: `${name} has ${clientsMax} clients already` } : {}),
	};
}

/** Hands a client to its disk. Where that fails the connection is closed, so that the client notices. */
async function attach(disks: ReadonlyMap<string, ServedDisk>, client: NbdClient, limits: ClientLimits): Promise<void> {
	try {
		const { exportName } = client;
		const mark = disks.has(exportName) ? -1 : exportName.lastIndexOf(SNAPSHOT_MARK);
		const disk = disks.get(mark < 0 ? exportName : exportName.slice(0, mark));
		if (disk === undefined) throw new VmsweepError("NBD_PROTOCOL", `no disk is called ${exportName}`);
		if (mark < 0) await disk.attach(client, limits);
		else await disk.attach(client, { ...limits, readOnly: true }, exportName.slice(mark + 1));
	} catch (error) {
		closeSync(client.fd);
		throw error;
	}
}

/** A guest freezes for a moment; more often it would be noticed. */
const FREEZE_EVERY_MS = 600_000;

/** A VM with an agent. */
interface Vm {
	readonly agent: string;
	/** Directories of its disks. */
	readonly paths: readonly string[];
}

/** The VMs that have agents, each with those of the disks that are its own. Throws USAGE. */
function vmsOf({ disks, agents = [] }: ServeOptions): Vm[] {
	const agentOf = new Map<string, string>();
	const all = disks.map((path) => resolve(path));
	for (const { path, disk } of agents.filter((agent) => agent.disk !== undefined)) {
		const named = all.filter((directory) => basename(directory) === disk);
		if (named.length !== 1)
			throw new VmsweepError("USAGE", `--qga ${disk}=${path}: ${named.length} of the disks are called ${disk}.`);
		if (agentOf.has(named[0]!)) throw new VmsweepError("USAGE", `--qga names ${disk} twice. A disk has one VM.`);
		agentOf.set(named[0]!, path);
	}
	const [common, second] = agents.filter((agent) => agent.disk === undefined);
	if (second !== undefined)
		throw new VmsweepError("USAGE", "--qga SOCKET is for one VM. With several, say --qga DISK=SOCKET for each disk.");
	if (common !== undefined)
		for (const directory of all) if (!agentOf.has(directory)) agentOf.set(directory, common.path);
	return [...new Set(agentOf.values())].map((agent) => {
		checkSocketPath(agent, "Choose a shorter one");
		return { agent, paths: all.filter((directory) => agentOf.get(directory) === agent) };
	});
}

/** The addresses asked for, or one per disk, after everything that speaks against the names. Throws USAGE. */
function addressesOf({ disks, addresses }: ServeOptions): ServeAddress[] {
	const directories = disks.map((path) => resolve(path));
	const twice = directories.find((path, index) => directories.indexOf(path) < index);
	if (twice !== undefined) throw new VmsweepError("USAGE", `${twice} is named twice. Name each disk once.`);
	if (addresses !== undefined) {
		const names = directories.map((path) => basename(path));
		const name = names.find((each, index) => names.indexOf(each) < index);
		if (name !== undefined)
			throw new VmsweepError(
				"USAGE",
				`two disks are called ${name}, and clients on one address choose by name. Serve them on their own sockets.`,
			);
		for (const { address } of addresses)
			if (address.kind === "unix") checkSocketPath(address.path, "Choose a shorter one");
		return [...addresses];
	}
	return directories.map((directory) => {
		const path = nbdSocketPath(directory);
		checkSocketPath(path, "Choose another with --socket");
		return { address: { kind: "unix", path }, disk: directory };
	});
}

/** Hypervisors take the path as it is, so there is no way around the kernel's limit. */
function checkSocketPath(path: string, advice: string): void {
	const bytes = Buffer.byteLength(path);
	if (bytes <= SOCKET_PATH_BYTES_MAX) return;
	throw new VmsweepError(
		"USAGE",
		`the socket path ${path} has ${bytes} bytes; Unix sockets take ${SOCKET_PATH_BYTES_MAX}. ${advice}.`,
	);
}
