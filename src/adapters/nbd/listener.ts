// Listener: accepts NBD clients on a Unix socket or TCP port, runs their handshakes, hands their connections on.
//
//   client ──► node:net (main thread, asynchronous) ──► Handshake ──► GO ──► duplicate the descriptor ──► onClient
//                                                                             (the data plane's thread owns it now)
//
// Invariants
//  - after GO no byte is read here: libuv is stopped in the very callback that completed the handshake, and what it
//    had read beyond the handshake travels along as `leftover`
//  - the descriptor that is handed on is a duplicate; closing ours afterwards doesn't touch the connection
//  - a slow or hostile client costs one socket for `handshakeTimeoutMs` and nothing else; `connectionsMax` bounds all
//  - the socket file of a dead server is replaced, one of a living server never is
//
// Why the handshake isn't done in the data plane: it is rare, chatty and full of cases, while that thread must only
// ever do requests.

import { chmod, lstat, unlink } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { dirname } from "node:path";
import {
	type ExportDescription,
	Handshake,
	type HandshakeOutcome,
	type MetaContext,
} from "../../core/nbd/handshake.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { errnoName, fcntl } from "../os/syscalls.ts";

/** Where clients connect. */
export type ListenAddress =
	| {
			readonly kind: "unix";
			readonly path: string;
			/** Permissions of the socket file; 0o600 where not given: only this user connects. */
			readonly mode?: number;
	  }
	| {
			readonly kind: "tcp";
			/** Name or address to listen on. */
			readonly host: string;
			/** 0 lets the kernel choose; see {@link NbdListener.address}. */
			readonly port: number;
	  };

/** A client whose handshake is done. Whoever gets it owns `fd` and must close it. */
export interface NbdClient {
	/** Connected stream socket in non-blocking mode, close-on-exec. */
	readonly fd: number;
	readonly exportName: string;
	readonly structuredReplies: boolean;
	readonly metaContexts: readonly MetaContext[];
	/** First bytes of the transmission phase, already taken from the socket. */
	readonly leftover: Uint8Array;
	/** For messages: "unix" or "address:port". */
	readonly peer: string;
}

export interface ListenerOptions {
	readonly address: ListenAddress;
	/** Asked anew for every connection. */
	readonly exports: () => readonly ExportDescription[];
	/** A returned promise keeps the client counted towards `connectionsMax` until it settles. */
	readonly onClient: (client: NbdClient) => Promise<void> | void;
	/** One line about a connection that ended before transmission. */
	readonly onNotice?: (line: string) => void;
	/** Default 30,000. */
	readonly handshakeTimeoutMs?: number;
	/** Connections at once, in handshake and in transmission; more are closed at once. Default 256. */
	readonly connectionsMax?: number;
}

/** A listening NBD server. */
export interface NbdListener extends AsyncDisposable {
	/** Where it really listens: the port is known. */
	readonly address: ListenAddress;
	/** Connections in handshake and in transmission. */
	readonly connectionCount: number;
	/** Takes no new clients, ends handshakes, removes the socket file. Clients in transmission stay. */
	close(): Promise<void>;
}

/** "host:port" or "unix:path", for messages. */
export const formatAddress = (address: ListenAddress): string =>
	address.kind === "unix" ? `unix:${address.path}` : `${hostForUri(address.host)}:${address.port}`;

/** The NBD URI under which a client reaches an export. */
export function exportUri(address: ListenAddress, exportName: string): string {
	const name = encodeURIComponent(exportName);
	if (address.kind === "unix") return `nbd+unix:///${name}?socket=${encodeURI(address.path).replaceAll("&", "%26")}`;
	return `nbd://${hostForUri(address.host)}:${address.port}/${name}`;
}

/** Starts to listen. Throws ADDRESS_IN_USE, FILE_EXISTS, USAGE (a bad address) or IO. */
export async function listenNbd(options: ListenerOptions): Promise<NbdListener> {
	const { address, onNotice = () => {}, handshakeTimeoutMs = 30_000, connectionsMax = 256 } = options;
	if (address.kind === "unix") await removeStaleSocket(address.path);
	const handshaking = new Set<Socket>();
	let connectionCount = 0;

	const server = createServer({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true, keepAlive: true });
	server.on("connection", (socket) => {
		const peer = address.kind === "unix" ? "unix" : `${socket.remoteAddress}:${socket.remotePort}`;
		// Without a listener an error event would end the process; what happened is in the promise below.
		socket.on("error", () => {});
		if (connectionCount >= connectionsMax) {
			onNotice(`NBD client ${peer} refused: ${connectionsMax} connections are open already`);
			socket.destroy();
			return;
		}
		connectionCount++;
		handshaking.add(socket);
		void (async () => {
			try {
				const outcome = await shakeHands(socket, new Handshake(options.exports()), handshakeTimeoutMs);
				if (outcome.kind === "aborted") {
					onNotice(`NBD client ${peer} left: ${outcome.reason}`);
					return;
				}
				const { exportName, structuredReplies, metaContexts, leftover } = outcome;
				const fd = takeDescriptor(socket);
				handshaking.delete(socket);
				await options.onClient({ fd, exportName, structuredReplies, metaContexts, leftover, peer });
			} catch (error) {
				onNotice(`NBD client ${peer} failed: ${error instanceof Error ? error.message : String(error)}`);
			} finally {
				handshaking.delete(socket);
				socket.destroy();
				connectionCount--;
			}
		})();
	});
	const actual = await startListening(server, address);

	const close = async (): Promise<void> => {
		const closed = new Promise<void>((resolve) => server.close(() => resolve()));
		for (const socket of handshaking) socket.destroy();
		await closed;
	};
	return {
		address: actual,
		get connectionCount() {
			return connectionCount;
		},
		close,
		[Symbol.asyncDispose]: close,
	};
}

/** Talks until the handshake ends. Resolves with an outcome whose replies are sent; reading has stopped by then. */
function shakeHands(socket: Socket, handshake: Handshake, timeoutMs: number): Promise<HandshakeOutcome> {
	const { promise, resolve } = Promise.withResolvers<HandshakeOutcome>();
	const give = (outcome: HandshakeOutcome): void => {
		clearTimeout(timer);
		resolve(outcome);
	};
	const timer = setTimeout(() => {
		give({ kind: "aborted", reason: `its handshake took longer than ${timeoutMs / 1000} s` });
	}, timeoutMs);
	const onData = (bytes: Buffer): void => {
		const { reply, outcome } = handshake.receive(bytes);
		if (outcome === undefined) {
			// A client that sends options and never reads the replies is not read either.
			if (reply.length > 0 && !socket.write(reply)) {
				socket.pause();
				socket.once("drain", () => socket.resume());
			}
			return;
		}
		stopReading(socket, onData);
		const complete =
			outcome.kind === "transmission"
				? { ...outcome, leftover: Buffer.concat([outcome.leftover, drainReadable(socket)]) }
				: outcome;
		socket.write(reply, (error) => {
			give(error ? { kind: "aborted", reason: "it closed the connection during the handshake" } : complete);
		});
	};
	socket.on("data", onData);
	socket.once("end", () => give({ kind: "aborted", reason: "it closed the connection during the handshake" }));
	socket.once("close", () => give({ kind: "aborted", reason: "its connection broke during the handshake" }));
	socket.write(handshake.greeting());
	socket.resume();
	return promise;
}

/** libuv's handle behind a socket: Node has no public way to its descriptor, nor to stop reads without a buffer. */
interface StreamHandle {
	readonly fd: number;
	readStop(): number;
}

/** Undefined once the socket is closed. */
const handleOf = (socket: Socket): StreamHandle | undefined =>
	(socket as unknown as { _handle: StreamHandle | null })._handle ?? undefined;

function stopReading(socket: Socket, onData: (bytes: Buffer) => void): void {
	handleOf(socket)?.readStop();
	socket.off("data", onData);
	socket.pause();
}

/** What the stream had buffered behind the last piece that it gave out. */
function drainReadable(socket: Socket): Buffer {
	const pieces: Buffer[] = [];
	for (let piece = socket.read() as Buffer | null; piece !== null; piece = socket.read() as Buffer | null)
		pieces.push(piece);
	// read() asks the handle for more once the buffer is empty; nothing has arrived in between: this is one callback.
	handleOf(socket)?.readStop();
	return Buffer.concat(pieces);
}

/** fcntl command from <fcntl.h>: the lowest free descriptor at or above the argument, closed on exec. */
const F_DUPFD_CLOEXEC = 1030;
const EBADF = 9;

/** Duplicates the socket's descriptor and lets go of the socket itself. */
function takeDescriptor(socket: Socket): number {
	const own = handleOf(socket)?.fd ?? -1;
	const fd = own < 0 ? -EBADF : fcntl(own, F_DUPFD_CLOEXEC, 3);
	if (fd < 0) throw new VmsweepError("IO", `the client's connection could not be duplicated: ${errnoName(-fd)}`);
	socket.destroy();
	return fd;
}

async function startListening(server: Server, address: ListenAddress): Promise<ListenAddress> {
	const { promise, resolve, reject } = Promise.withResolvers<void>();
	server.once("listening", () => resolve());
	server.once("error", reject);
	if (address.kind === "tcp") server.listen({ host: address.host, port: address.port });
	else {
		// The file must never be open to others, not even between bind and chmod; bind happens inside listen().
		const previous = process.umask(0o177);
		try {
			server.listen({ path: address.path });
		} finally {
			process.umask(previous);
		}
	}
	try {
		await promise;
		if (address.kind === "unix" && address.mode !== undefined) await chmod(address.path, address.mode);
	} catch (error) {
		server.close();
		throw listenError(error, address);
	}
	const bound = server.address();
	return address.kind === "tcp" && bound !== null && typeof bound !== "string"
		? { kind: "tcp", host: address.host, port: bound.port }
		: address;
}

/** Removes a socket file that nobody listens on any more. */
async function removeStaleSocket(path: string): Promise<void> {
	const status = await lstat(path).catch(() => undefined);
	if (status === undefined) {
		// Asked here because bind's own error for this says "permission denied".
		if (await lstat(dirname(path)).catch(() => undefined)) return;
		throw listenError({ code: "ENOENT" }, { kind: "unix", path });
	}
	if (!status.isSocket())
		throw new VmsweepError("FILE_EXISTS", `${path} exists and is no socket. Choose another socket path.`);
	if ((await connectError(path)) !== "ECONNREFUSED")
		throw new VmsweepError(
			"ADDRESS_IN_USE",
			`another server listens on ${path}. Stop it or choose another socket path.`,
		);
	await unlink(path).catch((error: unknown) => {
		throw listenError(error, { kind: "unix", path });
	});
}

/** Tries to connect; the error's code, or nothing where somebody answered. */
function connectError(path: string): Promise<string | undefined> {
	return new Promise((resolve) => {
		const probe = connect({ path }, () => {
			probe.destroy();
			resolve(undefined);
		});
		probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? "unknown"));
	});
}

function listenError(cause: unknown, address: ListenAddress): VmsweepError {
	const code = (cause as NodeJS.ErrnoException).code ?? "unknown error";
	const where = formatAddress(address);
	const advice: Record<string, [code: "ADDRESS_IN_USE" | "USAGE" | "IO", text: string]> = {
		EADDRINUSE: ["ADDRESS_IN_USE", "another server listens there. Stop it or choose another address."],
		EACCES: ["IO", "permission denied. Choose a place that you may write to, or a port above 1023."],
		ENOENT: ["USAGE", "the socket's directory doesn't exist. Create it first."],
		ENAMETOOLONG: ["USAGE", "the socket path is too long (107 bytes at most). Choose a shorter one."],
		EINVAL: ["USAGE", "the address can't be used. A socket path may have 107 bytes at most."],
		ENOTFOUND: ["USAGE", "the host name is unknown. Give an address of this host."],
		EADDRNOTAVAIL: ["USAGE", "this host has no such address. Give an address of this host."],
	};
	const [errorCode, text] = advice[code] ?? (["IO", `${code}.`] as const);
	return new VmsweepError(errorCode, `can't listen on ${where}: ${text}`, { cause });
}

const hostForUri = (host: string): string => (host.includes(":") ? `[${host}]` : host);
