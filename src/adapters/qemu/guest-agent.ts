// Guest agent: a client of QEMU's guest agent (qemu-ga) on the Unix socket that QEMU gives its channel.
//
//   connect ─▶ 0xff, guest-sync-delimited ─▶ skip all up to 0xff and our number ─▶ one command ─▶ one answer ─▶ …
//
// Commands and answers are JSON objects, one per line (QEMU Guest Agent Protocol Reference). Answers carry no number, so
// one command is under way at a time, and a connection on which one was not answered in time is never used again: its
// late answer would be taken for another's. The next command connects and synchronises anew.
//
// QEMU takes one client at a time on such a socket; a second one is connected, but hears nothing. What comes from there
// is the guest's word: it is bounded in bytes and time, and checked for its form.

import { connect, type Socket } from "node:net";
import { VmsweepError } from "../../foundations/errors.ts";

/** Answers of the commands used here have some hundred bytes; more may lie in the channel from earlier clients. */
const ANSWER_BYTES_MAX = 1 << 20;
const CONNECT_MS = 5_000;
const SYNC_MS = 5_000;
/** Sent in front of a command, it ends whatever half a command the agent has; it sends one before its answer. */
const DELIMITER = 0xff;
const NEWLINE = 0x0a;

export type FreezeStatus = "thawed" | "frozen";

export class GuestAgent {
	readonly #path: string;
	readonly #random: () => number;
	#channel: Channel | undefined;
	/** Commands wait for each other. */
	#last: Promise<unknown> = Promise.resolve();

	/** @param path of the Unix socket; nothing is connected before the first command */
	constructor(path: string, random: () => number = Math.random) {
		this.#path = path;
		this.#random = random;
	}

	/** Throws IO where there is no agent, or where it doesn't answer in time or says something else. */
	async status(timeoutMs: number): Promise<FreezeStatus> {
		const status = await this.#ask("guest-fsfreeze-status", timeoutMs);
		if (status !== "thawed" && status !== "frozen") throw this.#nonsense("guest-fsfreeze-status", status);
		return status;
	}

	/** Freezes all file systems that the agent can freeze, and returns how many. Throws as `status` does. */
	freeze(timeoutMs: number): Promise<number> {
		return this.#count("guest-fsfreeze-freeze", timeoutMs);
	}

	/** Throws as `status` does. */
	thaw(timeoutMs: number): Promise<number> {
		return this.#count("guest-fsfreeze-thaw", timeoutMs);
	}

	close(): void {
		this.#channel?.close(this.#failure("the connection was closed"));
		this.#channel = undefined;
	}

	async #count(command: string, timeoutMs: number): Promise<number> {
		const count = await this.#ask(command, timeoutMs);
		if (typeof count !== "number" || !Number.isSafeInteger(count) || count < 0) throw this.#nonsense(command, count);
		return count;
	}

	/** One command after the other. */
	#ask(command: string, timeoutMs: number): Promise<unknown> {
		const answer = this.#last.then(() => this.#askNow(command, timeoutMs));
		this.#last = answer.catch(() => {});
		return answer;
	}

	async #askNow(command: string, timeoutMs: number): Promise<unknown> {
		this.#channel ??= await this.#open();
		try {
			const answer = await this.#channel.exchange({ execute: command }, timeoutMs);
			if (!isObject(answer)) throw this.#nonsense(command, answer);
			if ("error" in answer) throw this.#refused(command, answer.error);
			if (!("return" in answer)) throw this.#nonsense(command, answer);
			return answer.return;
		} catch (error) {
			if (!(error instanceof Refusal)) this.close();
			throw error;
		}
	}

	async #open(): Promise<Channel> {
		const channel = await Channel.connect(this.#path, (what) => this.#failure(what));
		try {
			const id = Math.floor(this.#random() * 2 ** 31);
			await channel.synchronise(id);
			return channel;
		} catch (error) {
			channel.close(error instanceof Error ? error : this.#failure(String(error)));
			throw error;
		}
	}

	#failure(what: string): VmsweepError {
		return new VmsweepError("IO", `guest agent at ${this.#path}: ${what}. Is qemu-ga running in the guest?`);
	}

	#nonsense(command: string, answer: unknown): VmsweepError {
		const text = JSON.stringify(answer)?.slice(0, 80) ?? "nothing";
		return new VmsweepError("IO", `guest agent at ${this.#path}: it answered ${command} with ${text}.`);
	}

	#refused(command: string, error: unknown): VmsweepError {
		// As JSON, so that nothing of it can steer a terminal.
		const why =
			isObject(error) && typeof error.desc === "string" ? JSON.stringify(error.desc.slice(0, 200)) : "no reason";
		return new Refusal("IO", `guest agent at ${this.#path}: ${command} failed: ${why}.`);
	}
}

/** The agent understood, and said no: the connection is good. */
class Refusal extends VmsweepError {}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
	typeof value === "object" && value !== null && !Array.isArray(value);

type Failure = (what: string) => VmsweepError;

/** One connection: lines out, lines in. */
class Channel {
	readonly #socket: Socket;
	readonly #failure: Failure;
	/** What was received and not taken. */
	#received: Buffer = Buffer.alloc(0);
	/** Bytes received since a command was sent. */
	#bytes = 0;
	/** Who waits for the next line, or for the connection. */
	#waiter: PromiseWithResolvers<Buffer> | undefined;
	#broken: Error | undefined;

	private constructor(socket: Socket, failure: Failure) {
		this.#socket = socket;
		this.#failure = failure;
		socket.on("data", (bytes: Buffer) => this.#receive(bytes));
		socket.on("error", (error) => this.close(failure(error.message)));
		socket.on("close", () => this.close(failure("the connection was closed")));
		socket.on("connect", () => this.#wake(Buffer.alloc(0)));
	}

	static async connect(path: string, failure: Failure): Promise<Channel> {
		const channel = new Channel(connect({ path }), failure);
		await channel.#wait(CONNECT_MS, "it can't be connected");
		return channel;
	}

	/** Skips what was meant for others. */
	async synchronise(id: number): Promise<void> {
		this.#bytes = 0;
		this.#socket.write(Buffer.of(DELIMITER));
		this.#send({ execute: "guest-sync-delimited", arguments: { id } });
		const until = performance.now() + SYNC_MS;
		for (;;) {
			const line = await this.#line(until - performance.now(), "it doesn't answer");
			const delimiter = line.lastIndexOf(DELIMITER);
			if (delimiter < 0) continue;
			const answer = parsed(line.subarray(delimiter + 1));
			if (isObject(answer) && answer.return === id) return;
		}
	}

	/** Sends a command, and returns what the next line holds. */
	async exchange(command: object, timeoutMs: number): Promise<unknown> {
		if (this.#received.length > 0) throw this.#failure("it said something unasked");
		this.#bytes = 0;
		this.#send(command);
		return parsed(await this.#line(timeoutMs, `it doesn't answer within ${timeoutMs / 1000} s`));
	}

	close(cause: Error): void {
		this.#broken ??= cause;
		this.#waiter?.reject(this.#broken);
		this.#waiter = undefined;
		this.#socket.destroy();
	}

	#send(command: object): void {
		this.#socket.write(`${JSON.stringify(command)}\n`);
	}

	#receive(bytes: Buffer): void {
		this.#bytes += bytes.length;
		if (this.#bytes > ANSWER_BYTES_MAX) {
			this.close(this.#failure("it says more than any answer has"));
			return;
		}
		this.#received = Buffer.concat([this.#received, bytes]);
		const line = this.#waiter === undefined ? undefined : this.#takeLine();
		if (line !== undefined) this.#wake(line);
	}

	#takeLine(): Buffer | undefined {
		const end = this.#received.indexOf(NEWLINE);
		if (end < 0) return undefined;
		const line = this.#received.subarray(0, end);
		this.#received = this.#received.subarray(end + 1);
		return line;
	}

	#wake(line: Buffer): void {
		this.#waiter?.resolve(line);
		this.#waiter = undefined;
	}

	async #line(timeoutMs: number, silence: string): Promise<Buffer> {
		return this.#takeLine() ?? (await this.#wait(timeoutMs, silence));
	}

	/** Waits to be woken; closes the channel where that takes longer. */
	async #wait(timeoutMs: number, silence: string): Promise<Buffer> {
		if (this.#broken !== undefined) throw this.#broken;
		const timer = setTimeout(() => this.close(this.#failure(silence)), Math.max(0, timeoutMs));
		this.#waiter = Promise.withResolvers();
		try {
			return await this.#waiter.promise;
		} finally {
			clearTimeout(timer);
		}
	}
}

function parsed(line: Buffer): unknown {
	try {
		return JSON.parse(line.toString("utf8"));
	} catch {
		return undefined;
	}
}
