// NBD client: a connection to somebody else's server, for reading one export.
//
//   address ─▶ socket ─▶ handshake (core/nbd/client-handshake.ts) ─▶ transmission ─▶ RemoteDisk
//
// A server that says nothing for `timeoutMs` while an answer is due, or breaks the protocol, loses the connection;
// everything that was asked fails then. There is no second try: a reader of a whole disk must not mix two of its states.

import { connect, type NetConnectOpts, type Socket } from "node:net";
import { type NbdAddress, parseNbdAddress } from "../../core/nbd/client-address.ts";
import { RemoteDisk } from "../../core/nbd/client-disk.ts";
import { Feed } from "../../core/nbd/client-feed.ts";
import { type Negotiated, negotiate } from "../../core/nbd/client-handshake.ts";
import { ClientTransmission } from "../../core/nbd/client-transmission.ts";
import { VmsweepError } from "../../foundations/errors.ts";

/** An export that is open for reading. */
export interface NbdConnection extends AsyncDisposable {
	readonly disk: RemoteDisk;
	close(): Promise<void>;
}

export interface NbdClientOptions {
	/** Silence that is borne while an answer is due. Default 60,000. */
	readonly timeoutMs?: number;
}

/**
 * Connects to the export at an address (`nbd://…`, `nbd+unix://…`).
 * Throws USAGE, FILE_NOT_FOUND (no such export), IMAGE_UNSUPPORTED, NBD_PROTOCOL or IO.
 */
export async function connectNbd(uri: string, { timeoutMs = 60_000 }: NbdClientOptions = {}): Promise<NbdConnection> {
	const { server, exportName } = parseNbdAddress(uri);
	const socket = connect(connectOptions(server));
	const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
	socket.setNoDelay(true);
	const what = `NBD server at ${uri}`;
	const connection = new Connection(socket, exportName, what);
	socket.setTimeout(timeoutMs, () => {
		if (connection.isWaiting)
			socket.destroy(new VmsweepError("IO", `${what} didn't answer for ${timeoutMs / 1000} s. Check the server.`));
	});
	try {
		await connection.negotiated;
	} catch (error) {
		socket.destroy();
		await closed;
		throw error;
	}
	const close = async (): Promise<void> => {
		connection.disconnect();
		await closed;
	};
	return { disk: connection.disk(), close, [Symbol.asyncDispose]: close };
}

const connectOptions = (server: NbdAddress["server"]): NetConnectOpts =>
	server.kind === "unix" ? { path: server.path } : { host: server.host, port: server.port };

class Connection {
	/** Resolves when the handshake is done. */
	readonly negotiated: Promise<void>;
	readonly #socket: Socket;
	readonly #what: string;
	readonly #handshake: Feed<Negotiated>;
	readonly #settle: PromiseWithResolvers<void>;
	#transmission: ClientTransmission | undefined;

	constructor(socket: Socket, exportName: string, what: string) {
		this.#socket = socket;
		this.#what = what;
		this.#settle = Promise.withResolvers<void>();
		this.negotiated = this.#settle.promise;
		this.#handshake = new Feed(negotiate(exportName, what, (bytes) => void socket.write(bytes)));
		let failure: Error | undefined;
		socket.on("error", (error) => {
			failure = error instanceof VmsweepError ? error : connectionError(error, what);
		});
		socket.on("close", () => this.#fail(failure ?? new VmsweepError("IO", `${what} closed the connection.`)));
		socket.on("data", (bytes: Buffer) => this.#receive(bytes));
		socket.on("end", () => socket.destroy());
	}

	/** Is an answer due? */
	get isWaiting(): boolean {
		return this.#transmission === undefined || this.#transmission.openCount > 0;
	}

	disk(): RemoteDisk {
		return new RemoteDisk(this.#handshake.result!.value, this.#transmission!, this.#what);
	}

	disconnect(): void {
		if (this.#socket.destroyed) return;
		this.#transmission?.disconnect();
		// The server closes when it has read the goodbye; nothing more is wanted from it.
		this.#socket.end(() => this.#socket.destroy());
	}

	#receive(bytes: Uint8Array): void {
		try {
			let used = 0;
			if (this.#transmission === undefined) {
				used = this.#handshake.push(bytes);
				const negotiated = this.#handshake.result?.value;
				if (negotiated === undefined) return;
				const send = (request: Uint8Array): void => void this.#socket.write(request);
				this.#transmission = new ClientTransmission(negotiated, this.#what, send);
				this.#settle.resolve();
			}
			this.#transmission.receive(bytes.subarray(used));
		} catch (error) {
			this.#socket.destroy(error as Error);
			this.#fail(error as Error);
		}
	}

	#fail(error: Error): void {
		this.#settle.reject(error);
		this.#transmission?.fail(error);
	}
}

function connectionError(cause: NodeJS.ErrnoException, what: string): VmsweepError {
	const advice =
		cause.code === "ECONNREFUSED" || cause.code === "ENOENT"
			? "Nobody listens there; check the address and start the server."
			: "Check the address, the network and the server.";
	return new VmsweepError("IO", `${what} can't be reached: ${cause.code ?? cause.message}. ${advice}`, { cause });
}
