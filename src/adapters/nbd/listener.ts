// Listener: accepts NBD clients on a Unix socket, TCP or vsock port, runs their handshakes, hands their connections on.
//
//   client ──► node:net (main thread, asynchronous) ──► Handshake ──► GO ──► duplicate the descriptor ──► onClient
//                              ▲                            │                 (the data plane's thread owns it now)
//                              └── encrypted, see tls.ts ◄──┘ STARTTLS
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
import { TLSSocket } from "node:tls";
import {
	type ExportDescription,
	Handshake,
	type HandshakeOutcome,
	type MetaContext,
} from "../../core/nbd/handshake.ts";
import type { HeaderForm } from "../../core/nbd/protocol.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { errnoName, fcntl, socketAddress } from "../os/syscalls.ts";
import type { ListenAddress } from "./listen-address.ts";
import { listenError } from "./listen-error.ts";
import { relayTls, type ServerTls } from "./tls.ts";
import { listenOnDescriptor, openVsock } from "./vsock.ts";

export { exportUri, formatAddress, type ListenAddress } from "./listen-address.ts";

/** See `ListenerOptions`. */
const HANDSHAKE_TIMEOUT_MS = 30_000;
const CONNECTIONS_MAX = 256;

/** A client whose handshake is done. Whoever gets it owns `fd` and must close it. */
export interface NbdClient {
	/** Connected stream socket in non-blocking mode, close-on-exec. */
	readonly fd: number;
	readonly exportName: string;
	readonly headers: HeaderForm;
	readonly metaContexts: readonly MetaContext[];
	/** First bytes of the transmission phase, already taken from the socket. */
	readonly leftover: Uint8Array;
	/** For messages: "unix", "address:port" or "vsock:cid:port". */
	readonly peer: string;
}

export interface ListenerOptions {
	readonly address: ListenAddress;
	/** Asked anew for every connection. */
	readonly exports: () => readonly ExportDescription[] | Promise<readonly ExportDescription[]>;
	/** Encryption; none where not given. */
	readonly tls?: ServerTls;
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
	/** Resolves once what the data plane has said to encrypted clients is sent, after it has closed their connections. */
	finished(): Promise<void>;
}

/** Starts to listen. Throws ADDRESS_IN_USE, FILE_EXISTS, USAGE (a bad address) or IO. */
export async function listenNbd(options: ListenerOptions): Promise<NbdListener> {
	const { address, onNotice = () => {}, connectionsMax = CONNECTIONS_MAX } = options;
	if (address.kind === "unix") await removeStaleSocket(address.path);
	const handshaking = new Set<Socket>();
	const relays = new Set<Promise<void>>();
	let connectionCount = 0;

	const server = createServer({ pauseOnConnect: true, allowHalfOpen: true, noDelay: true, keepAlive: true });
	server.on("connection", (socket) => {
		const peer = peerOf(socket);
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
				const shaken = await shakeHands(socket, options);
				handshaking.delete(socket);
				if (typeof shaken === "string") {
					onNotice(`NBD client ${peer} left: ${shaken}`);
					return;
				}
				const { fd, ended } = shaken.stream instanceof TLSSocket ? relayTls(shaken.stream) : takeDescriptor(socket);
				relays.add(ended);
				void ended.then(() => relays.delete(ended));
				await options.onClient({ ...shaken.client, fd, peer });
				await ended;
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
		// Encrypted clients in transmission are connections here for as long as they stay.
		if (relays.size === 0) await closed;
	};
	return {
		address: actual,
		get connectionCount() {
			return connectionCount;
		},
		close,
		finished: async () => void (await Promise.all(relays)),
		[Symbol.asyncDispose]: close,
	};
}

/** A connection that is ready for requests. */
interface Shaken {
	readonly stream: Socket;
	readonly client: Omit<NbdClient, "fd" | "peer">;
}

/** Talks until the handshake ends, inside TLS where the client asks for it; or tells why it came to nothing. */
async function shakeHands(socket: Socket, options: ListenerOptions): Promise<Shaken | string> {
	const { tls, handshakeTimeoutMs = HANDSHAKE_TIMEOUT_MS } = options;
	let tooSlow = false;
	const timer = setTimeout(() => {
		tooSlow = true;
		socket.destroy();
	}, handshakeTimeoutMs);
	try {
		const handshake = new Handshake(await options.exports(), tls?.policy);
		let stream = socket;
		socket.write(handshake.greeting());
		let outcome = await talk(stream, handshake);
		if (outcome.kind === "tls") {
			stream = await tls!.upgrade(socket);
			handshake.continueInTls();
			outcome = await talk(stream, handshake);
		}
		if (outcome.kind === "transmission") return { stream, client: outcome };
		if (tooSlow) return `its handshake took longer than ${handshakeTimeoutMs / 1000} s`;
		return outcome.kind === "aborted" ? outcome.reason : "it asked for TLS inside TLS";
	} catch (error) {
		if (tooSlow) return `its handshake took longer than ${handshakeTimeoutMs / 1000} s`;
		throw error;
	} finally {
		clearTimeout(timer);
	}
}

/** Feeds a handshake. Resolves with an outcome whose replies are sent; reading has stopped by then. */
function talk(stream: Socket, handshake: Handshake): Promise<HandshakeOutcome> {
	const { promise, resolve } = Promise.withResolvers<HandshakeOutcome>();
	const onData = (bytes: Buffer): void => {
		const { reply, outcome } = handshake.receive(bytes);
		if (outcome === undefined) {
			// A client that sends options and never reads the replies is not read either.
			if (reply.length > 0 && !stream.write(reply)) {
				stream.pause();
				stream.once("drain", () => stream.resume());
			}
			return;
		}
		stopReading(stream, onData);
		// What TLS has decrypted already stays in the stream: the relay takes it from there.
		const complete =
			outcome.kind === "transmission" && !(stream instanceof TLSSocket)
				? { ...outcome, leftover: Buffer.concat([outcome.leftover, drainReadable(stream)]) }
				: outcome;
		stream.write(reply, (error) => {
			resolve(error ? { kind: "aborted", reason: "it closed the connection during the handshake" } : complete);
		});
	};
	stream.on("data", onData);
	stream.once("end", () => resolve({ kind: "aborted", reason: "it closed the connection during the handshake" }));
	stream.once("close", () => resolve({ kind: "aborted", reason: "its connection broke during the handshake" }));
	stream.resume();
	return promise;
}

/** libuv's handle behind a socket: Node has no public way to its descriptor, nor to stop reads without a buffer. */
interface StreamHandle {
	readonly fd: number;
	/** Node's own note that reads were started: TLS starts them again where they are not. */
	reading: boolean;
	readStop(): number;
}

/** Undefined once the socket or server is closed. */
const handleOf = (socket: Socket | Server): StreamHandle | undefined =>
	(socket as unknown as { _handle: StreamHandle | null })._handle ?? undefined;

function stopReading(socket: Socket, onData: (bytes: Buffer) => void): void {
	stopHandle(socket);
	socket.off("data", onData);
	socket.pause();
}

/** What the stream had buffered behind the last piece that it gave out. */
function drainReadable(socket: Socket): Buffer {
	const pieces: Buffer[] = [];
	for (let piece = socket.read() as Buffer | null; piece !== null; piece = socket.read() as Buffer | null)
		pieces.push(piece);
	// read() asks the handle for more once the buffer is empty; nothing has arrived in between: this is one callback.
	stopHandle(socket);
	return Buffer.concat(pieces);
}

function stopHandle(socket: Socket): void {
	const handle = handleOf(socket);
	if (handle === undefined) return;
	handle.readStop();
	handle.reading = false;
}

/** fcntl command from <fcntl.h>: the lowest free descriptor at or above the argument, closed on exec. */
const F_DUPFD_CLOEXEC = 1030;
const EBADF = 9;

/** Duplicates the socket's descriptor and lets go of the socket itself. */
function takeDescriptor(socket: Socket): { readonly fd: number; readonly ended: Promise<void> } {
	const own = handleOf(socket)?.fd ?? -1;
	const fd = own < 0 ? -EBADF : fcntl(own, F_DUPFD_CLOEXEC, 3);
	if (fd < 0) throw new VmsweepError("IO", `the client's connection could not be duplicated: ${errnoName(-fd)}`);
	socket.destroy();
	return { fd, ended: Promise.resolve() };
}

async function startListening(server: Server, address: ListenAddress): Promise<ListenAddress> {
	const { promise, resolve, reject } = Promise.withResolvers<void>();
	server.once("listening", () => resolve());
	server.once("error", reject);
	try {
		bindTo(server, address);
		await promise;
		if (address.kind === "unix" && address.mode !== undefined) await chmod(address.path, address.mode);
	} catch (error) {
		server.close();
		throw listenError(error, address);
	}
	return boundAddress(server, address);
}

function bindTo(server: Server, address: ListenAddress): void {
	switch (address.kind) {
		case "tcp":
			server.listen({ host: address.host, port: address.port });
			return;
		case "unix": {
			// The file must never be open to others, not even between bind and chmod; bind happens inside listen().
			const previous = process.umask(0o177);
			try {
				server.listen({ path: address.path });
			} finally {
				process.umask(previous);
			}
			return;
		}
		case "descriptor":
			if (socketAddress(address.fd, "own")?.kind === "vsock") listenOnDescriptor(server, address.fd);
			else server.listen({ fd: address.fd });
			return;
		case "vsock": {
			const fd = openVsock(address.cid, address.port);
			if (fd < 0) throw Object.assign(new Error("vsock"), { code: errnoName(-fd) });
			listenOnDescriptor(server, fd);
			return;
		}
		default:
			address satisfies never;
	}
}

/** Where a server really listens. */
function boundAddress(server: Server, asked: ListenAddress): ListenAddress {
	if (asked.kind === "unix") return asked;
	const own = socketAddress(handleOf(server)?.fd ?? -1, "own");
	if (own !== undefined) return own;
	const bound = server.address();
	if (typeof bound === "string") return asked;
	return bound === null
		? asked
		: { kind: "tcp", host: asked.kind === "tcp" ? asked.host : bound.address, port: bound.port };
}

/** For messages. */
function peerOf(socket: Socket): string {
	if (socket.remoteAddress !== undefined) return `${socket.remoteAddress}:${socket.remotePort}`;
	const peer = socketAddress(handleOf(socket)?.fd ?? -1, "peer");
	return peer?.kind === "vsock" ? `vsock:${peer.cid}:${peer.port}` : "unix";
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
