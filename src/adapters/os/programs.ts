// Programs: other programs of the host, run for a command: found, started, waited for, ended.
//
// Each has a process group of its own, so that Ctrl-C on the terminal ends vmsweep in its own order and not them under its hands;
// an abort ends the whole group.

import { type ChildProcess, spawn } from "node:child_process";
import { accessSync, constants, createWriteStream } from "node:fs";
import { join } from "node:path";
import { VmsweepError } from "../../foundations/errors.ts";

/** Output of a program that is kept, in characters of each stream. */
const OUTPUT_MAX = 256 * 1024;
/** Time between SIGTERM and SIGKILL, in milliseconds. */
const PATIENCE_MS = 5_000;

/** Where programs are looked for: as the user has it, and where Debian keeps mount, losetup and checkers. */
const searchPath = [process.env.PATH ?? "", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].join(":");

/** How a program ended. */
export interface Ended {
	/** Null where a signal ended it. */
	readonly exitCode: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

export interface ProgramOptions {
	/** Ends the program. */
	readonly signal?: AbortSignal;
	/** A file that takes its standard output instead. */
	readonly outputFile?: string;
}

/** True where a program of this name can be run. */
export const hasProgram = (name: string): boolean =>
	searchPath.split(":").some((folder) => {
		try {
			if (folder === "") return false;
			accessSync(join(folder, name), constants.X_OK);
			return true;
		} catch {
			return false;
		}
	});

/** A program that runs beside this process. Disposing ends it: SIGTERM, after a while SIGKILL. */
export class RunningProgram implements AsyncDisposable {
	/** Never rejects: a program that could not be started has ended with null. */
	readonly ended: Promise<Ended>;
	readonly #child: ChildProcess;
	#isOver = false;

	constructor(program: string, programArguments: readonly string[], { signal, outputFile }: ProgramOptions = {}) {
		const child = spawn(program, programArguments, {
			detached: true,
			env: { ...process.env, PATH: searchPath, LC_ALL: "C" },
			stdio: ["ignore", "pipe", "pipe"],
		});
		this.#child = child;
		let [stdout, stderr] = ["", ""];
		if (outputFile === undefined)
			child.stdout!.on("data", (part: Buffer) => {
				if (stdout.length < OUTPUT_MAX) stdout += part.toString();
			});
		const written = outputFile === undefined ? undefined : saved(child, outputFile);
		child.stderr!.on("data", (part: Buffer) => {
			if (stderr.length < OUTPUT_MAX) stderr += part.toString();
		});
		const onAbort = (): void => this.#kill("SIGTERM");
		signal?.addEventListener("abort", onAbort);
		const onExit = (): void => this.#kill("SIGTERM");
		process.once("exit", onExit);
		const closed = new Promise<number | null>((resolve) => {
			child.once("error", (error) => {
				stderr += error.message;
				resolve(null);
			});
			child.once("close", (code) => resolve(code));
		});
		this.ended = (async () => {
			const exitCode = await closed;
			this.#isOver = true;
			signal?.removeEventListener("abort", onAbort);
			process.off("exit", onExit);
			const problem = await written;
			return { exitCode: problem === undefined ? exitCode : null, stdout, stderr: stderr + (problem ?? "") };
		})();
		if (signal?.aborted === true) onAbort();
	}

	/** False once it has ended. */
	get isAlive(): boolean {
		return !this.#isOver;
	}

	#kill(signal: NodeJS.Signals): void {
		if (this.#isOver || this.#child.pid === undefined) return;
		try {
			process.kill(-this.#child.pid, signal);
		} catch {
			// It has ended just now.
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#kill("SIGTERM");
		const timer = setTimeout(() => this.#kill("SIGKILL"), PATIENCE_MS);
		await this.ended;
		clearTimeout(timer);
	}
}

/** Writes a program's output to a file; resolves to what went wrong, if anything did. */
function saved(child: ChildProcess, path: string): Promise<string | undefined> {
	return new Promise((resolve) => {
		const file = createWriteStream(path, { mode: 0o600 });
		file.once("error", (error) => {
			child.stdout!.resume();
			resolve(error.message);
		});
		file.once("close", () => resolve(undefined));
		child.stdout!.pipe(file);
	});
}

/** Runs a program to its end. Throws INTERRUPTED where it was ended by the signal. */
export async function runProgram(
	program: string,
	programArguments: readonly string[],
	options: ProgramOptions = {},
): Promise<Ended> {
	const ended = await new RunningProgram(program, programArguments, options).ended;
	if (options.signal?.aborted === true) throw new VmsweepError("INTERRUPTED", `${program} was stopped.`);
	return ended;
}
