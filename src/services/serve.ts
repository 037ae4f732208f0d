// Serve: one process that serves several disks to NBD clients until it is told to stop.
//
//   start:  open disks ─► control sockets ─► listeners ─► ready
//   client ─► listener (handshake) ─► the disk of its export name ─► that disk's data plane
//   close:  listeners ─► control sockets ─► disks (drained, durable, closed cleanly)
//
// Each disk has a listener of its own on DISK/nbd.sock, or all share the one that the user named.
//
// A disk whose data plane died can't answer its clients, nor can their connections be taken from it: only the end of
// the process closes them. So `broken` tells the caller to close everything else and to end.

import { closeSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import {
	exportUri,
	type ListenAddress,
	listenNbd,
	type NbdClient,
	type NbdListener,
} from "../adapters/nbd/listener.ts";
import { diskTransmissionFlags, type ExportDescription } from "../core/nbd/handshake.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE, type ByteCount } from "../foundations/units.ts";
import { type ControlServer, listenControl, SOCKET_PATH_BYTES_MAX } from "./control.ts";
import { ServedDisk } from "./served-disk.ts";

export interface ServeOptions {
	/** The disks' directories. */
	readonly disks: readonly string[];
	/** One address for all disks; DISK/nbd.sock of each where not given. */
	readonly address?: ListenAddress;
	readonly clean: "continuous" | "off";
	/** Clients can't write. Cleaning goes on. */
	readonly readOnly?: boolean;
	/** Most host bytes that each first image may fill. */
	readonly limitBytes?: number;
	/** Serve although a second image was changed since its disk was closed. */
	readonly acceptChangedImage?: boolean;
	/** One line about a disk that an operator should know; `name` is the disk's, or null for all of them. */
	readonly onEvent?: (line: string, name: string | null) => void;
}

/** A disk that clients can attach. */
export interface ServedExport {
	readonly name: string;
	/** The disk's directory, absolute. */
	readonly path: string;
	readonly size: ByteCount;
	readonly readOnly: boolean;
	readonly address: ListenAddress;
	readonly uri: string;
}

/** Starts to serve. Throws USAGE, ADDRESS_IN_USE, or what opening a disk throws; nothing is left open then. */
export const serveDisks = (options: ServeOptions): Promise<Server> => Server.start(options);

export class Server implements AsyncDisposable {
	readonly #options: ServeOptions;
	readonly #disks: ServedDisk[] = [];
	readonly #controls: ControlServer[] = [];
	readonly #listeners: NbdListener[] = [];
	readonly #exports: ServedExport[] = [];
	readonly #broken = Promise.withResolvers<Error>();
	#closed: Promise<void> | undefined;

	private constructor(options: ServeOptions) {
		this.#options = options;
	}

	static async start(options: ServeOptions): Promise<Server> {
		const addresses = addressesOf(options);
		const server = new Server(options);
		try {
			for (const path of options.disks) await server.#openDisk(path);
			for (const [index, disk] of server.#disks.entries())
				if (options.address === undefined) await server.#listen(addresses[index]!, [disk]);
			if (options.address !== undefined) await server.#listen(options.address, server.#disks);
			if (options.clean === "continuous") for (const disk of server.#disks) disk.startCleaning();
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
		await Promise.all(this.#listeners.map((listener) => listener.close()));
		// A cleaning that a control client waits for ends with its disk.
		const controls = Promise.all(this.#controls.map((control) => control.close()));
		const disks = await Promise.allSettled(this.#disks.map((disk) => disk.close()));
		await controls;
		const failure = disks.find((outcome) => outcome.status === "rejected");
		if (failure !== undefined) throw failure.reason;
	}

	async #openDisk(path: string): Promise<void> {
		const { limitBytes, acceptChangedImage = false, onEvent = () => {} } = this.#options;
		const name = basename(resolve(path));
		const disk = await ServedDisk.open(path, {
			...(limitBytes === undefined ? {} : { limitBytes }),
			acceptChangedImage,
			onEvent: (line) => onEvent(line, name),
			onBroken: (error) => this.#broken.resolve(error),
		});
		this.#disks.push(disk);
		this.#controls.push(await listenControl(disk));
	}

	async #listen(address: ListenAddress, disks: readonly ServedDisk[]): Promise<void> {
		const { readOnly = false, onEvent = () => {} } = this.#options;
		const byName = new Map(disks.map((disk) => [disk.name, disk]));
		const exports = disks.map((disk) => describeExport(disk, readOnly));
		const listener = await listenNbd({
			address,
			exports: () => exports,
			onClient: (client) => attach(byName.get(client.exportName), client, readOnly),
			onNotice: (line) => onEvent(line, disks.length === 1 ? disks[0]!.name : null),
		});
		this.#listeners.push(listener);
		for (const { name, path, size } of disks)
			this.#exports.push({
				name,
				path,
				size,
				readOnly,
				address: listener.address,
				uri: exportUri(listener.address, name),
			});
	}
}

const MAXIMUM_PAYLOAD = 32 * 1024 * 1024;

const describeExport = ({ name, path, size }: ServedDisk, readOnly: boolean): ExportDescription => ({
	name,
	description: path,
	size,
	readOnly,
	transmissionFlags: diskTransmissionFlags,
	blockSize: { minimum: 1, preferred: BLOCK_SIZE, maximumPayload: MAXIMUM_PAYLOAD },
});

/** Hands a client to its disk. Where that fails the connection is closed, so that the client notices. */
async function attach(disk: ServedDisk | undefined, client: NbdClient, readOnly: boolean): Promise<void> {
	try {
		if (disk === undefined) throw new VmsweepError("NBD_PROTOCOL", `no disk is called ${client.exportName}`);
		await disk.attach(client, readOnly);
	} catch (error) {
		closeSync(client.fd);
		throw error;
	}
}

/** One address per disk, after everything that speaks against the names. Throws USAGE. */
function addressesOf({ disks, address }: ServeOptions): ListenAddress[] {
	const directories = disks.map((path) => resolve(path));
	const twice = directories.find((path, index) => directories.indexOf(path) < index);
	if (twice !== undefined) throw new VmsweepError("USAGE", `${twice} is named twice. Name each disk once.`);
	if (address !== undefined) {
		const names = directories.map((path) => basename(path));
		const name = names.find((each, index) => names.indexOf(each) < index);
		if (name !== undefined)
			throw new VmsweepError(
				"USAGE",
				`two disks are called ${name}, and clients on one address choose by name. Serve them on their own sockets.`,
			);
		if (address.kind === "unix") checkSocketPath(address.path, "Choose a shorter one");
		return disks.map(() => address);
	}
	return directories.map((directory) => {
		const path = join(directory, "nbd.sock");
		checkSocketPath(path, "Choose another with --socket");
		return { kind: "unix", path };
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
