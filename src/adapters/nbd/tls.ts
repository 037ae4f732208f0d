// TLS: what the server proves itself with and asks of clients, and the way from an encrypted socket to the data plane.
//
//   client ══ TLS ══ upgraded socket ── pipe, both ways, with back-pressure ── one end of a socket pair
//                    (this thread)                                              the other end: the data plane's
//
// The data plane only knows descriptors. Encryption costs a copy and this thread's time, for those who ask for it;
// everybody else's requests never pass here.

import { constants } from "node:crypto";
import { readFile } from "node:fs/promises";
import { Socket } from "node:net";
import { join } from "node:path";
import { createSecureContext, createServer, type TLSSocket, type TlsOptions } from "node:tls";
import type { TlsPolicy } from "../../core/nbd/handshake.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { errnoName, socketPair } from "../os/syscalls.ts";

/** Files that TLS is made of. */
export interface TlsFiles {
	/** The server's certificate, with those between it and the authority behind it; PEM. */
	readonly certificate?: string;
	readonly key?: string;
	/** Authority that signs clients' certificates; PEM. */
	readonly authority?: string;
	/** Clients need a certificate by `authority`. */
	readonly verifyPeer?: boolean;
	/** Keys that clients share with the server: lines of `name:key`, the key in hex, as psktool writes them. */
	readonly sharedKeys?: string;
	/** A folder with QEMU's names for all of these; files that it doesn't have are not used. */
	readonly folder?: string;
	/** Clients without TLS are served as well. */
	readonly optional?: boolean;
}

/** TLS as a listener uses it. */
export interface ServerTls {
	readonly policy: TlsPolicy;
	/** What the server proves itself with; beside a certificate there may be keys, too. */
	readonly proof: "certificate" | "keys";
	/** Upgrades a connected socket; rejects with the reason where the client fails. */
	upgrade(socket: Socket): Promise<TLSSocket>;
}

/** QEMU's names in a credentials folder, as its `tls-creds-x509` and `tls-creds-psk` look for them. */
const FOLDER_NAMES = {
	certificate: "server-cert.pem",
	key: "server-key.pem",
	authority: "ca-cert.pem",
	sharedKeys: "keys.psk",
} as const;

const PSK_CIPHERS = "kECDHEPSK:kDHEPSK:kPSK";
/** TLS 1.3 takes a shared key only with SHA-256; beside a certificate OpenSSL would choose SHA-384 first. */
const SHA256_FIRST = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384";

/** Reads the files. Throws FILE_NOT_FOUND, or USAGE where they can't be used. */
export async function loadTls(files: TlsFiles): Promise<ServerTls> {
	const { folder, verifyPeer = false, optional = false } = files;
	const read = async (what: keyof typeof FOLDER_NAMES): Promise<{ path: string; bytes: Buffer } | undefined> => {
		const given = files[what];
		if (given !== undefined) return { path: given, bytes: await readTlsFile(given) };
		if (folder === undefined) return undefined;
		const path = join(folder, FOLDER_NAMES[what]);
		const bytes = await readTlsFile(path).catch((error: unknown) => {
			if (error instanceof VmsweepError && error.code === "FILE_NOT_FOUND") return undefined;
			throw error;
		});
		return bytes && { path, bytes };
	};
	const [certificate, key, authority, sharedKeys] = [
		await read("certificate"),
		await read("key"),
		await read("authority"),
		await read("sharedKeys"),
	];
	if ((certificate === undefined) !== (key === undefined))
		throw new VmsweepError("USAGE", "a TLS certificate and its key belong together. Give both, or none.");
	if (certificate === undefined && sharedKeys === undefined)
		throw new VmsweepError(
			"USAGE",
			`TLS has neither certificate nor shared keys${folder ? ` in ${folder}` : ""}. Give one.`,
		);
	if (verifyPeer && (authority === undefined || certificate === undefined))
		throw new VmsweepError(
			"USAGE",
			"clients' certificates can't be checked without an authority. Name its certificate.",
		);

	const keys = sharedKeys === undefined ? undefined : parseSharedKeys(sharedKeys.path, sharedKeys.bytes.toString());
	const options: TlsOptions = {
		...(certificate && key ? { cert: certificate.bytes, key: key.bytes } : {}),
		// Who is let in is decided in `upgrade`: Node would also turn away those who prove themselves by a shared key.
		...(verifyPeer ? { ca: authority!.bytes, requestCert: true, rejectUnauthorized: false } : {}),
		...(keys === undefined
			? {}
			: {
					ciphers: `${SHA256_FIRST}:${certificate === undefined ? "" : "DEFAULT:"}${PSK_CIPHERS}`,
				}),
		minVersion: "TLSv1.2",
		// Nobody resumes a session: what proves a client is its certificate or key, every time anew.
		secureOptions: constants.SSL_OP_NO_TICKET,
		allowHalfOpen: true,
	};
	try {
		createSecureContext(options);
	} catch (cause) {
		const what = certificate?.path ?? sharedKeys!.path;
		throw new VmsweepError("USAGE", `TLS with ${what} doesn't work: ${(cause as Error).message}. Check the files.`, {
			cause,
		});
	}
	return {
		policy: optional ? "optional" : "required",
		proof: certificate === undefined ? "keys" : "certificate",
		upgrade: (socket) => upgrade(socket, options, keys, verifyPeer),
	};
}

async function readTlsFile(path: string): Promise<Buffer> {
	try {
		return await readFile(path);
	} catch (cause) {
		const code = (cause as NodeJS.ErrnoException).code;
		if (code === "ENOENT")
			throw new VmsweepError("FILE_NOT_FOUND", `${path} doesn't exist. Check the name.`, { cause });
		throw new VmsweepError("IO", `${path} can't be read: ${code}. Check its permissions.`, { cause });
	}
}

/** Throws USAGE. A message never shows a key. */
export function parseSharedKeys(path: string, text: string): ReadonlyMap<string, Buffer> {
	const keys = new Map<string, Buffer>();
	for (const [index, line] of text.split("\n").entries()) {
		if (line.trim() === "") continue;
		const match = /^([^:]+):((?:[0-9a-fA-F]{2})+)\s*$/.exec(line);
		if (match === null)
			throw new VmsweepError(
				"USAGE",
				`${path}, line ${index + 1}: give NAME:KEY with the key in hex, as psktool does.`,
			);
		keys.set(match[1]!, Buffer.from(match[2]!, "hex"));
	}
	if (keys.size === 0) throw new VmsweepError("USAGE", `${path} holds no key. Make one with psktool.`);
	return keys;
}

/** A TLS server for this one client: so its success and failure can't be taken for another's. */
function upgrade(
	socket: Socket,
	options: TlsOptions,
	keys: ReadonlyMap<string, Buffer> | undefined,
	verifyPeer: boolean,
): Promise<TLSSocket> {
	const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
	let keyWasAsked = false;
	const server = createServer({
		...options,
		...(keys === undefined
			? {}
			: {
					pskCallback(_: TLSSocket, name: string) {
						keyWasAsked = true;
						return keys.get(name) ?? null;
					},
				}),
	});
	server.once("secureConnection", (secure) => {
		secure.on("error", () => {});
		if (!verifyPeer || secure.authorized || (keyWasAsked && usesSharedKey(secure))) resolve(secure);
		else {
			secure.destroy();
			reject(new Error(`its certificate was not accepted: ${secure.authorizationError ?? "it has none"}`));
		}
	});
	server.once("tlsClientError", (error: NodeJS.ErrnoException) => {
		reject(new Error(`its TLS handshake failed: ${error.code ?? error.message}`));
	});
	socket.once("close", () => reject(new Error("its connection broke during the TLS handshake")));
	server.emit("connection", socket);
	return promise;
}

/**
 * Was the session made with a shared key? Having looked one up doesn't tell: OpenSSL may go on without it. TLS 1.3 counts
 * such a session as resumed, which no other is here, and older ciphers say it in their names.
 */
const usesSharedKey = (secure: TLSSocket): boolean =>
	secure.getProtocol() === "TLSv1.3" ? secure.isSessionReused() : secure.getCipher().name.includes("PSK");

/** A plain descriptor that stands for an encrypted connection. */
export interface TlsRelay {
	/** Connected stream socket, non-blocking, close-on-exec. Whoever gets it must close it. */
	readonly fd: number;
	/** Resolves once both sides are closed. Never rejects. */
	readonly ended: Promise<void>;
}

/** Connects an encrypted socket with a new descriptor. What the client has sent beyond the handshake comes out of it. */
export function relayTls(secure: TLSSocket): TlsRelay {
	const pair = socketPair();
	if (typeof pair === "number")
		throw new VmsweepError(
			"IO",
			`no socket pair for a TLS client: ${errnoName(-pair)}. Raise the limit of open files.`,
		);
	const near = new Socket({ fd: pair[0], allowHalfOpen: true });
	near.on("error", () => {});
	secure.pipe(near);
	near.pipe(secure, { end: false });
	// The data plane hangs up in one piece: what it said last still has to go out, with TLS's own goodbye.
	near.once("end", () => secure.end(() => secure.destroy()));
	secure.once("close", () => near.destroy());
	const ended = Promise.all([once(near), once(secure)]).then(() => {});
	return { fd: pair[1], ended };
}

const once = (socket: Socket): Promise<void> => new Promise((resolve) => socket.once("close", () => resolve()));
