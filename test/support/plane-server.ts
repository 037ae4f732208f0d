// A data plane with an NBD listener and nothing else: no cleaner, no control plane. For tests of the data plane.
//
//   startPlane   in this process: the test can ask the plane for its counters
//   spawnPlane   in a process of its own: the test can kill it
//
// Both serve one export, named like EXPORT. A disk that does not exist yet is made.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { exportUri, type ListenAddress, listenNbd, type NbdListener } from "../../src/adapters/nbd/listener.ts";
import type { ServerTls } from "../../src/adapters/nbd/tls.ts";
import * as sys from "../../src/adapters/os/syscalls.ts";
import type { ClientSetup } from "../../src/adapters/plane/connection.ts";
import { DataPlane } from "../../src/adapters/plane/data-plane.ts";
import type { PlaneEvent } from "../../src/adapters/plane/messages.ts";
import { diskTransmissionFlags } from "../../src/core/nbd/handshake.ts";
import { transmissionFlag } from "../../src/core/nbd/protocol.ts";
import { BLOCK_SIZE, byteCount } from "../../src/foundations/units.ts";
import { createDisk } from "../../src/services/create.ts";
import { type DiskDirectory, openDiskDirectory } from "../../src/services/disk-directory.ts";
import { type Running, start } from "./processes.ts";

export const EXPORT = "disk";

export interface PlaneOptions {
	/** The disk's directory; its parent exists. */
	readonly directory: string;
	/** Bytes, for a new disk; 64 MiB where not given. */
	readonly size?: number;
	/** An existing raw image to make the disk around, instead of a new one. */
	readonly second?: string;
	/** Most bytes of the first image; 16 GiB where not given. */
	readonly limitBytes?: number;
	readonly readOnly?: boolean;
	readonly limits?: Pick<ClientSetup, "requestTimeoutMs" | "idleTimeoutMs" | "clientsMax">;
	/** Encrypts; see `loadTls`. */
	readonly tls?: ServerTls;
	/** Listens on a TCP port of the loopback address as well as on the Unix socket. */
	readonly tcp?: boolean;
}

/** How clients reach a plane. */
export interface PlaneAddresses {
	readonly socketPath: string;
	readonly uri: string;
	/** URI of the TCP listener; empty without one. */
	readonly tcpUri: string;
	readonly tcpPort: number;
}

export class PlaneServer implements AsyncDisposable, PlaneAddresses {
	readonly socketPath: string;
	readonly uri: string;
	readonly tcpUri: string;
	readonly tcpPort: number;
	readonly plane: DataPlane;
	readonly directory: DiskDirectory;
	readonly size: number;
	/** What the plane said unasked, in order. */
	readonly events: PlaneEvent[];
	readonly #listeners: readonly NbdListener[];
	#stopped: Promise<void> | undefined;

	constructor(plane: DataPlane, directory: DiskDirectory, listeners: readonly NbdListener[], events: PlaneEvent[]) {
		const [unix, tcp] = listeners.map(({ address }) => address);
		assert(unix?.kind === "unix");
		this.socketPath = unix.path;
		this.uri = exportUri(unix, EXPORT);
		this.tcpUri = tcp === undefined ? "" : exportUri(tcp, EXPORT);
		this.tcpPort = tcp?.kind === "tcp" ? tcp.port : 0;
		this.plane = plane;
		this.directory = directory;
		this.size = directory.second.size;
		this.events = events;
		this.#listeners = listeners;
	}

	/** Ends cleanly. */
	stop(): Promise<void> {
		this.#stopped ??= this.#stop();
		return this.#stopped;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.stop();
	}

	async #stop(): Promise<void> {
		for (const listener of this.#listeners) await listener.close();
		try {
			await this.plane.stop();
			for (const listener of this.#listeners) await listener.finished();
		} finally {
			await this.directory.close();
		}
	}
}

/** Serves a disk in this process. */
export async function startPlane(options: PlaneOptions): Promise<PlaneServer> {
	const { directory: path, limitBytes = 16 * 2 ** 30, readOnly = false, limits = {}, tls } = options;
	if (!existsSync(join(path, "disk.json"))) {
		const { second } = options;
		const size = byteCount(options.size ?? 64 * 2 ** 20);
		await createDisk({ directory: path, second: second ? { kind: "adopt", path: second } : { kind: "new", size } });
	}
	const directory = await openDiskDirectory(path);
	const { second, firstFd, firstPath, sumsFd, sumsPath, snapshots, uuid } = directory;
	const events: PlaneEvent[] = [];
	const plane = await DataPlane.start({
		logFd: firstFd,
		logName: firstPath,
		second: second.layout,
		sumsFd,
		sumsName: sumsPath,
		snapshots: snapshots.setups(),
		viewsAtEntries: snapshots.entries,
		holdsAll: false,
		uuid,
		limitBytes,
		onEvent: (event) => events.push(event),
		onDeath: (error) => {
			throw error;
		},
	}).catch(async (error: unknown) => {
		await directory[Symbol.asyncDispose]();
		throw error;
	});
	second.writeTablesBy((update) => plane.ask("writeSecondTables", update));
	const listen = (address: ListenAddress): Promise<NbdListener> =>
		listenNbd({
			address,
			...(tls === undefined ? {} : { tls }),
			connectionsMax: 1024,
			exports: () => [
				{
					name: EXPORT,
					description: "",
					size: second.size,
					readOnly,
					transmissionFlags: diskTransmissionFlags | (readOnly ? transmissionFlag.READ_ONLY : 0),
					contexts: ["allocation", "liveness", "since"],
					blockSize: { minimum: 1, preferred: 4096, maximumPayload: 2 ** 25 },
				},
			],
			onClient: async ({ fd, headers, metaContexts, leftover }) => {
				const contexts = metaContexts.map(({ id, context }) => ({ id, context }));
				await plane.ask("attach", { fd, headers, contexts, leftover, readOnly, ...limits }).catch((error) => {
					sys.close(fd);
					throw error;
				});
			},
		});
	const listeners = [await listen({ kind: "unix", path: `${path}.sock` })];
	if (options.tcp) listeners.push(await listen({ kind: "tcp", host: "127.0.0.1", port: 0 }));
	return new PlaneServer(plane, directory, listeners, events);
}

/** What the cleaner does, without its judgement: copies all closed segments to the second image and frees them. Returns how many blocks. */
export async function moveEverything({ plane, directory }: PlaneServer): Promise<number> {
	await plane.ask("seal");
	const view = await plane.ask("takeView");
	let moved = 0;
	try {
		await plane.ask("flush");
		for (const { sequence, state } of await plane.ask("segments")) {
			if (state !== "sealed") continue;
			const runs: number[] = [];
			for (let from = 0; from >= 0; ) {
				const part = await plane.ask("liveRuns", { sequence, from });
				runs.push(...part.runs);
				from = part.next;
			}
			const triples: number[] = [];
			for (let i = 0; i < runs.length; i += 4) {
				const [block, count, slot, at] = [runs[i]!, runs[i + 1]!, runs[i + 2]!, runs[i + 3]!];
				const { bytes, address } = sys.pin(count * BLOCK_SIZE);
				assert.equal(sys.preadAll(directory.firstFd, address, bytes.length, at), bytes.length);
				assert.equal(sys.pwrite(directory.second.layout.fd, address, bytes.length, block * BLOCK_SIZE), bytes.length);
				triples.push(block, count, slot);
			}
			assert.equal(sys.fdatasync(directory.second.layout.fd), 0);
			moved += await plane.ask("moved", { runs: Float64Array.from(triples), view: view.id });
		}
	} finally {
		await plane.ask("releaseView", view.id);
	}
	for (let i = 0; i < 2; i++) await plane.ask("flush");
	return moved;
}

/** A plane in a process of its own; its addresses are known as soon as this resolves. */
export interface SpawnedPlane extends PlaneAddresses {
	readonly process: Running;
}

/** Serves a disk in a process of its own: SIGTERM ends it cleanly, SIGKILL is a crash. */
export async function spawnPlane(options: PlaneOptions): Promise<SpawnedPlane> {
	const process_ = start(process.execPath, [import.meta.filename, JSON.stringify(options)]);
	const ready = await process_.line(/^ready (.*)$/).catch(async (error: unknown) => {
		await process_[Symbol.asyncDispose]();
		throw error;
	});
	return { ...(JSON.parse(ready[1]!) as PlaneAddresses), process: process_ };
}

async function main(options: PlaneOptions): Promise<void> {
	const server = await startPlane(options);
	process.once("SIGTERM", () => void server.stop());
	const { socketPath, uri, tcpUri, tcpPort } = server;
	console.log(`ready ${JSON.stringify({ socketPath, uri, tcpUri, tcpPort } satisfies PlaneAddresses)}`);
}

if (import.meta.main) await main(JSON.parse(process.argv[2]!) as PlaneOptions);
