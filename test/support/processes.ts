// Other programs in tests: `run` waits for the end of one, `start` keeps one beside the test.
//
// Every program gets a process group of its own, so that ending it also ends its children, and nothing else.
// None outlives the test process, not even when that is stopped in the middle.

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { waitUntil } from "./waiting.ts";

/** The checkout that these tests belong to. */
export const checkout = join(import.meta.dirname, "../..");
/** The command line under test, as users call it. */
export const vmsweep = join(checkout, "bin/vmsweep");

const nodeFolder = dirname(process.execPath);
/** Where programs are looked for: as the user has it, and where Debian keeps mkfs, losetup and their like. */
export const searchPath = `${process.env.PATH ?? ""}:/usr/local/sbin:/usr/sbin:/sbin:${nodeFolder}`;

export interface RunOptions {
	/** Standard input; none by default. */
	readonly input?: string | Uint8Array;
	/** Added to the environment; undefined takes a variable out. */
	readonly environment?: Readonly<Record<string, string | undefined>>;
	readonly folder?: string;
	/** After this the program is killed and `run` throws: a guard against hanging. Default two minutes. */
	readonly timeoutSeconds?: number;
}

/** How a program ended. */
export interface Finished {
	/** Undefined when a signal ended it. */
	readonly exitCode: number | undefined;
	readonly signal: NodeJS.Signals | undefined;
	readonly stdout: string;
	readonly stderr: string;
	readonly stdoutBytes: Uint8Array;
}

/** Runs a program to its end, whatever its exit code. Throws where it can't be started or takes too long. */
export async function run(
	program: string,
	programArguments: readonly string[] = [],
	options: RunOptions = {},
): Promise<Finished> {
	await using child = start(program, programArguments, options);
	const seconds = options.timeoutSeconds ?? 120;
	let timer: NodeJS.Timeout | undefined;
	const timeout = new Promise<never>((_, reject) => {
		const message = `${child.command} did not end within ${seconds} s`;
		timer = setTimeout(() => reject(new Error(`${message}\n${child.stderr}`)), seconds * 1000);
	});
	try {
		return await Promise.race([child.finished, timeout]);
	} finally {
		clearTimeout(timer);
	}
}

const DEAD_MOUNT = "cannot check mount status";

/** Like {@link run}, and fails with the program's own words unless it exits with 0. Returns what it printed. */
export async function runOk(
	program: string,
	programArguments: readonly string[] = [],
	options: RunOptions = {},
): Promise<string> {
	let finished = await run(program, programArguments, options);
	// btrfs's programs ask what lies behind every mounted loop device, also those of tests that just kill its server.
	for (let tried = 1; tried < 40 && finished.stderr.includes(DEAD_MOUNT); tried++) {
		await delay(500);
		finished = await run(program, programArguments, options);
	}
	const { exitCode, signal, stdout, stderr } = finished;
	const command = [program, ...programArguments].join(" ");
	assert.equal(exitCode, 0, `${command} ended with ${exitCode ?? signal}\n${stdout}${stderr}`);
	return stdout;
}

/** A program that runs beside the test. Leaving its scope ends it: SIGTERM, after five seconds SIGKILL. */
export class Running implements AsyncDisposable {
	readonly command: string;
	/** Resolves when the program and its output ended; rejects where it could not be started. */
	readonly finished: Promise<Finished>;
	readonly #child: ChildProcess;
	readonly #stdout: Buffer[] = [];
	readonly #stderr: Buffer[] = [];
	#ended = false;

	constructor(child: ChildProcess, command: string) {
		this.command = command;
		this.#child = child;
		child.stdout?.on("data", (part: Buffer) => this.#stdout.push(part));
		child.stderr?.on("data", (part: Buffer) => this.#stderr.push(part));
		const killAtExit = (): void => this.#signal("SIGKILL");
		process.once("exit", killAtExit);
		child.once("exit", () => {
			this.#ended = true;
			process.removeListener("exit", killAtExit);
		});
		this.finished = new Promise((resolve, reject) => {
			child.once("error", reject);
			child.once("close", (exitCode, signal) => {
				const stdoutBytes = Buffer.concat(this.#stdout);
				const { stdout, stderr } = this;
				resolve({ exitCode: exitCode ?? undefined, signal: signal ?? undefined, stdout, stderr, stdoutBytes });
			});
		});
		this.finished.catch(() => {}); // reported to whoever awaits it; nobody need to
	}

	get pid(): number {
		assert(this.#child.pid !== undefined, `${this.command} could not be started`);
		return this.#child.pid;
	}
	/** False once the process has ended. */
	get alive(): boolean {
		return !this.#ended && this.#child.pid !== undefined;
	}
	/** What it printed so far. */
	get stdout(): string {
		return Buffer.concat(this.#stdout).toString();
	}
	get stderr(): string {
		return Buffer.concat(this.#stderr).toString();
	}

	/** Waits for a line on either output that matches; returns the match. Fails when the program ends before. */
	async line(pattern: RegExp, timeoutSeconds = 30): Promise<RegExpMatchArray> {
		const find = (): RegExpMatchArray | undefined =>
			`${this.stdout}\n${this.stderr}`
				.split("\n")
				.map((line) => line.match(pattern))
				.find((match) => match !== null);
		return this.until(find, `a line like ${pattern}`, timeoutSeconds);
	}

	/** Waits until `condition` gives something true, which it returns. Fails when the program ends before. */
	async until<T>(
		condition: () => T | Promise<T>,
		what: string,
		timeoutSeconds = 30,
	): Promise<Exclude<T, false | undefined>> {
		const report = (): string => `${this.command}\n${this.stdout}${this.stderr}`;
		const found = await waitUntil(
			async () => {
				const ended = !this.alive; // asked first: what it printed last counts
				const result = await condition();
				if (ended && !result) throw new Error(`ended before ${what}: ${report()}`);
				return result;
			},
			() => `${what} from ${report()}`,
			{ timeoutSeconds },
		);
		return found;
	}

	/** Sends a signal to the program and its children, and waits for the end. */
	async end(signal: NodeJS.Signals = "SIGTERM"): Promise<Finished> {
		this.#signal(signal);
		return this.finished;
	}

	/** SIGKILL: what a crash of the program is. */
	async kill(): Promise<Finished> {
		return this.end("SIGKILL");
	}

	async [Symbol.asyncDispose](): Promise<void> {
		if (!this.alive) return;
		const timer = setTimeout(() => this.#signal("SIGKILL"), 5000);
		await this.end();
		clearTimeout(timer);
	}

	#signal(signal: NodeJS.Signals): void {
		if (!this.alive) return;
		try {
			process.kill(-this.pid, signal);
		} catch (error) {
			if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
		}
	}
}

/** Starts a program beside the test: `await using server = start(vmsweep, ["serve", disk])`. */
export function start(
	program: string,
	programArguments: readonly string[] = [],
	options: Omit<RunOptions, "timeoutSeconds"> = {},
): Running {
	const environment: NodeJS.ProcessEnv = {
		...process.env,
		PATH: searchPath,
		LC_ALL: "C.UTF-8",
		...options.environment,
	};
	delete environment.NODE_TEST_CONTEXT; // a Node program under test is no test file
	const child = spawn(program, programArguments, {
		cwd: options.folder,
		detached: true,
		env: environment,
		stdio: [options.input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
	});
	child.stdin?.on("error", () => {}); // a program need not read all of its input
	child.stdin?.end(options.input);
	return new Running(child, [program, ...programArguments].join(" "));
}
