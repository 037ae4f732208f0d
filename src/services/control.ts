// Control: how other vmsweep commands talk to the process that serves a disk.
//
//   vmsweep status DISK ──┐
//   vmsweep clean DISK  ──┴─ HTTP over DISK/control.sock (0600) ─► the serving process ─► ServedDisk
//
//   GET  /status   200, one JSON object
//   POST /NAME     a disk command (disk-commands.ts) with its input as a JSON object;
//                  200, one JSON object per line: {"progress":…}… and at the end {"report":…} or {"error":…}
//   otherwise      400, 404 or 405 with {"error":{"code","message"}}
//
// Who may open the socket's file may ask; there is nothing else to check. A client that goes away in the middle of
// a command doesn't stop it.

import { type FileHandle, lstat, open, unlink } from "node:fs/promises";
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline/promises";
import { type ErrorCode, errorTable, isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import type { DiskStatus } from "./disk-status.ts";
import type { OnProgress, Progress } from "./progress.ts";

/** Where a served disk's control socket lies. */
export const controlSocketPath = (directory: string): string => join(directory, "control.sock");

/** Longest input of a command, in bytes. */
const INPUT_BYTES_MAX = 64 * 1024;

/** What the control socket needs of a disk. */
export interface ControlledDisk {
	readonly path: string;
	status(): Promise<DiskStatus>;
	/** Names of the commands that can be asked for. */
	readonly commands: readonly string[];
	/** Runs a command. Throws USAGE where the input isn't what it takes, or what the command throws. */
	run(name: string, input: unknown, onProgress: OnProgress): Promise<unknown>;
}

/** A disk's control socket, open for other commands. */
export interface ControlServer extends AsyncDisposable {
	/** Takes no more requests, lets those in progress end, and removes the socket. */
	close(): Promise<void>;
}

/**
 * Opens a disk's control socket. The caller holds the disk's lock, so a socket that is there is a dead one's.
 * Throws FILE_EXISTS or IO.
 */
export async function listenControl(disk: ControlledDisk): Promise<ControlServer> {
	const path = controlSocketPath(disk.path);
	await removeDeadSocket(path);
	const server = createServer((asked, answer) => {
		respond(disk, asked, answer).catch((error: unknown) => fail(answer, error));
	});
	// A command takes as long as it takes.
	server.requestTimeout = 0;
	const short = await openShortPath(path);
	try {
		await listen(server, short.path);
	} catch (error) {
		await short[Symbol.asyncDispose]();
		const { code } = error as NodeJS.ErrnoException;
		throw new VmsweepError("IO", `${path}: making the control socket failed (${code}). Check the disk's folder.`, {
			cause: error,
		});
	}
	const close = async (): Promise<void> => {
		const closed = new Promise<void>((resolve) => server.close(() => resolve()));
		server.closeIdleConnections();
		await closed;
		await short[Symbol.asyncDispose]();
	};
	return { close, [Symbol.asyncDispose]: close };
}

/** Asks the process that serves a disk for its status. Throws DISK_NOT_SERVED where none answers. */
export async function askStatus(directory: string): Promise<DiskStatus> {
	for await (const line of ask(directory, "GET", "/status")) return JSON.parse(line) as DiskStatus;
	throw silent(directory);
}

/** Asks the process that serves a disk to run a command. Throws DISK_NOT_SERVED, or what the command threw. */
export async function askServed(
	directory: string,
	command: string,
	input: unknown,
	onProgress: OnProgress = () => {},
): Promise<unknown> {
	for await (const line of ask(directory, "POST", `/${command}`, JSON.stringify(input))) {
		const message = JSON.parse(line) as CommandMessage;
		if ("report" in message) return message.report;
		if ("error" in message) throw new VmsweepError(message.error.code, message.error.message);
		onProgress(message.progress);
	}
	throw new VmsweepError(
		"IO",
		`${directory}: the process that serves the disk ended before the command did. Check its log.`,
	);
}

type CommandMessage = { readonly progress: Progress } | { readonly report: unknown } | { readonly error: ErrorMessage };

interface ErrorMessage {
	readonly code: ErrorCode;
	readonly message: string;
}

// ---- Server ---------------------------------------------------------------------------------------------

async function respond(disk: ControlledDisk, asked: IncomingMessage, answer: ServerResponse): Promise<void> {
	answer.on("error", () => {}); // the asker went away
	const body = await readBody(asked);
	const name = (asked.url ?? "").slice(1);
	const allowed = name === "status" ? "GET" : disk.commands.includes(name) ? "POST" : undefined;
	if (allowed === undefined) return send(answer, 404, { error: { code: "USAGE", message: `no ${asked.url} here` } });
	if (asked.method !== allowed) {
		answer.setHeader("Allow", allowed);
		return send(answer, 405, { error: { code: "USAGE", message: `${asked.url} takes ${allowed}` } });
	}
	if (allowed === "GET") return send(answer, 200, await disk.status());
	const input = parseJson(body);
	if (input === undefined) return send(answer, 400, { error: { code: "USAGE", message: "the input is no JSON" } });
	answer.writeHead(200, { "Content-Type": "application/x-ndjson" });
	const say = (message: CommandMessage): void => {
		answer.write(`${JSON.stringify(message)}\n`);
	};
	try {
		say({ report: await disk.run(name, input, (progress) => say({ progress })) });
	} catch (error) {
		say({ error: errorMessage(error) });
	}
	answer.end();
}

/** All of a request's body; undefined where it is longer than any input, and then it isn't read to its end. */
async function readBody(asked: IncomingMessage): Promise<string | undefined> {
	const pieces: Buffer[] = [];
	let length = 0;
	for await (const piece of asked as AsyncIterable<Buffer>) {
		length += piece.length;
		if (length > INPUT_BYTES_MAX) return undefined;
		pieces.push(piece);
	}
	return Buffer.concat(pieces).toString("utf8");
}

function parseJson(text: string | undefined): unknown {
	try {
		return text === undefined ? undefined : (JSON.parse(text === "" ? "{}" : text) as unknown);
	} catch {
		return undefined;
	}
}

function send(answer: ServerResponse, status: number, body: object): void {
	answer.writeHead(status, { "Content-Type": "application/json", Connection: "close" });
	answer.end(`${JSON.stringify(body)}\n`);
}

function fail(answer: ServerResponse, error: unknown): void {
	if (answer.headersSent) answer.destroy();
	else send(answer, 500, { error: errorMessage(error) });
}

const errorMessage = (error: unknown): ErrorMessage =>
	isVmsweepError(error) ? { code: error.code, message: error.message } : { code: "BUG", message: String(error) };

/** Only this user may connect, from the first moment on: bind happens inside `listen`. */
function listen(server: Server, path: string): Promise<void> {
	const { promise, resolve, reject } = Promise.withResolvers<void>();
	server.once("error", reject);
	server.once("listening", resolve);
	const previous = process.umask(0o177);
	try {
		server.listen(path);
	} finally {
		process.umask(previous);
	}
	return promise;
}

async function removeDeadSocket(path: string): Promise<void> {
	const status = await lstat(path).catch(() => undefined);
	if (status === undefined) return;
	if (!status.isSocket())
		throw new VmsweepError("FILE_EXISTS", `${path} exists and is no socket. Move it out of the disk's folder.`);
	await unlink(path);
}

// ---- Client ---------------------------------------------------------------------------------------------

/** The lines of an answer. */
async function* ask(directory: string, method: string, url: string, body = ""): AsyncGenerator<string> {
	await using short = await openShortPath(controlSocketPath(directory));
	const answer = await new Promise<IncomingMessage>((resolve, reject) => {
		const asking = request({ socketPath: short.path, method, path: url, agent: false }, resolve);
		asking.once("error", (cause) => reject(silent(directory, cause)));
		asking.end(body);
	});
	try {
		const lines = createInterface({ input: answer });
		for await (const line of lines) {
			if (answer.statusCode === 200) yield line;
			else throw toError(line);
		}
	} catch (error) {
		if (isVmsweepError(error)) throw error;
		throw silent(directory, error);
	} finally {
		answer.destroy();
	}
}

function toError(line: string): VmsweepError {
	const { error } = JSON.parse(line) as { readonly error: ErrorMessage };
	return new VmsweepError(error.code in errorTable ? error.code : "IO", error.message);
}

const silent = (directory: string, cause?: unknown): VmsweepError =>
	new VmsweepError(
		"DISK_NOT_SERVED",
		`${directory} is in use by a process that doesn't answer on ${controlSocketPath(directory)}: another command (commit, clean) or a server that ends just now. Wait for it, then try again.`,
		{ cause },
	);

// ---- Long paths -----------------------------------------------------------------------------------------

/** Longest path of a Unix socket, in bytes: sun_path of unix(7), less the ending zero. */
export const SOCKET_PATH_BYTES_MAX = 107;

/** A path for bind or connect; keep it open as long as the socket listens, which removes its file by this path. */
interface ShortPath extends AsyncDisposable {
	readonly path: string;
}

/** A socket path that is too long is reached through its folder's descriptor. */
async function openShortPath(path: string): Promise<ShortPath> {
	if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX) return { path, [Symbol.asyncDispose]: async () => {} };
	const folder: FileHandle = await open(dirname(path), "r");
	const short = `/proc/self/fd/${folder.fd}/${path.slice(dirname(path).length + 1)}`;
	return { path: short, [Symbol.asyncDispose]: () => folder.close() };
}
