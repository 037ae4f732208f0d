// Guests: a real Linux under QEMU on disks under test, kept up for as many commands as a test likes.
//
//   await using guest = await Guest.boot({ disks: [{ uri: nbdUri(socket, "web01") }], discard: "off" });
//   await guest.run("mkfs.ext4 -q $DISK0 && mount $DISK0 /mnt");
//   await guest.kill();    // a power cut
//
// The work is done by test/guest/guest; its README lists what a guest has. A guest is killed when its scope ends,
// and with the test process. Time-outs are guards against hanging, generous enough for TCG on a busy machine.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { checkout, type Finished, type Running, type RunOptions, run, runOk, start } from "./processes.ts";

const guestProgram = join(checkout, "test/guest/guest");

type Bus = "virtio-blk" | "virtio-scsi" | "nvme";
type CacheMode = "writeback" | "none" | "writethrough" | "directsync" | "unsafe";

/** A disk of a guest: the first is $DISK0 in its scripts. */
export interface GuestDisk {
	/** `nbd+unix:///EXPORT?socket=PATH` (see {@link nbdUri}), `nbd://HOST:PORT/EXPORT`, or the path of an image. */
	readonly uri: string;
	/** Its own values of the options below, and `ro`, `format`, `serial`, `dev.X`, `proto.X` (README of test/guest). */
	readonly options?: Readonly<Record<string, string>>;
}

export interface GuestOptions {
	readonly disks: readonly GuestDisk[];
	readonly bus?: Bus;
	readonly cache?: CacheMode;
	/** "off": the guest can't trim. Default "on". */
	readonly discard?: "on" | "off";
	readonly memoryMib?: number;
	readonly cpus?: number;
	/** How long QEMU tries again to reach an NBD server that went away; 0 (default) gives the guest I/O errors at once. */
	readonly reconnectSeconds?: number;
	/** The guest is killed after this, whatever happens. Default an hour. */
	readonly maxLifeSeconds?: number;
	/** More options of `guest run`, as listed by `guest run --help`. */
	readonly more?: readonly string[];
}

export interface ScriptOptions extends Pick<RunOptions, "input"> {
	/** Variables for the script. */
	readonly variables?: Readonly<Record<string, string>>;
	/** Default five minutes. */
	readonly timeoutSeconds?: number;
}

/** Exit codes by which test/guest/guest tells its own failures from the script's. */
const TIMED_OUT = 124;
const RIG_FAILED = 125;

/** The URI under which QEMU and libnbd reach an export on a Unix socket. */
export const nbdUri = (socket: string, exportName = ""): string =>
	`nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`;

export class Guest implements AsyncDisposable {
	readonly name: string;
	readonly #removeAtExit = (): void => {
		spawnSync(guestProgram, ["remove", this.name], { stdio: "ignore" });
	};

	private constructor(name: string) {
		this.name = name;
		process.once("exit", this.#removeAtExit);
	}

	/** Boots a guest; resolves when it runs scripts. Throws with QEMU's words and the end of the console otherwise. */
	static async boot(options: GuestOptions): Promise<Guest> {
		const guest = new Guest(`t${randomBytes(6).toString("hex")}`);
		try {
			await runOk(guestProgram, ["run", "--keep-running", "--name", guest.name, ...bootArguments(options)], {
				timeoutSeconds: 180,
			});
		} catch (error) {
			await guest[Symbol.asyncDispose]();
			throw error;
		}
		return guest;
	}

	/** Runs a script (bash, or by its #! line) as root in /root; resolves with its end, whatever its exit code. */
	async exec(script: string, options: ScriptOptions = {}): Promise<Finished> {
		const timeoutSeconds = options.timeoutSeconds ?? 300;
		const finished = await run(guestProgram, this.#execArguments(script, options, timeoutSeconds), {
			...inputOf(options),
			timeoutSeconds: timeoutSeconds + 30,
		});
		const { exitCode, stderr } = finished;
		if (exitCode === TIMED_OUT || exitCode === RIG_FAILED) throw new Error(`guest ${this.name}: ${stderr}`);
		return finished;
	}

	/** Like {@link exec}, and fails unless the script exits with 0. Returns what it printed. */
	async run(script: string, options: ScriptOptions = {}): Promise<string> {
		const { exitCode, stdout, stderr } = await this.exec(script, options);
		assert.equal(exitCode, 0, `in the guest, ${script}\nended with ${exitCode}\n${stdout}${stderr}`);
		return stdout;
	}

	/** Starts a script beside the test; leaving its scope ends it in the guest too. Up to six run at once. */
	start(script: string, options: ScriptOptions = {}): Running {
		const timeoutSeconds = options.timeoutSeconds ?? 3600;
		return start(guestProgram, this.#execArguments(script, options, timeoutSeconds), inputOf(options));
	}

	/** Power cut: SIGKILL of QEMU. What QEMU and the guest had not yet sent is lost. */
	async kill(): Promise<void> {
		await runOk(guestProgram, ["kill", this.name]);
	}

	/** Clean power-off: unmount, sync. */
	async stop(): Promise<void> {
		await runOk(guestProgram, ["stop", this.name]);
	}

	/** One QMP command, and its return value. Disks are nodes `disk0`, … and devices `dev-disk0`, …. */
	async qmp(command: string, commandArguments: unknown = {}): Promise<unknown> {
		return JSON.parse(await runOk(guestProgram, ["qmp", this.name, command, JSON.stringify(commandArguments)]));
	}

	/** One command of the guest agent, for example `guest-fsfreeze-freeze`, and its return value. */
	async agent(command: string, commandArguments: unknown = {}): Promise<unknown> {
		return JSON.parse(await runOk(guestProgram, ["qga", this.name, command, JSON.stringify(commandArguments)]));
	}

	/** The serial console so far, also after the guest's end: its kernel's messages. */
	async console(): Promise<string> {
		return runOk(guestProgram, ["log", this.name]);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await run(guestProgram, ["remove", this.name]);
		process.removeListener("exit", this.#removeAtExit);
	}

	#execArguments(script: string, options: ScriptOptions, timeoutSeconds: number): string[] {
		const variables = Object.entries(options.variables ?? {}).flatMap(([name, value]) => ["--env", `${name}=${value}`]);
		const input = options.input === undefined ? [] : ["--stdin"];
		return ["exec", this.name, "--timeout", String(timeoutSeconds), ...variables, ...input, "-c", script];
	}
}

const inputOf = (options: ScriptOptions): Pick<RunOptions, "input"> =>
	options.input === undefined ? {} : { input: options.input };

function bootArguments(options: GuestOptions): string[] {
	const { disks, bus, cache, discard, memoryMib, cpus, reconnectSeconds, maxLifeSeconds, more } = options;
	const flags = {
		"--bus": bus,
		"--cache": cache,
		"--discard": discard,
		"--mem": memoryMib,
		"--cpus": cpus,
		"--reconnect-delay": reconnectSeconds,
		"--max-life": maxLifeSeconds,
	};
	return [
		...disks.flatMap((disk) => ["--disk", diskArgument(disk)]),
		...Object.entries(flags).flatMap(([flag, value]) => (value === undefined ? [] : [flag, String(value)])),
		...(more ?? []),
	];
}

const diskArgument = ({ uri, options = {} }: GuestDisk): string =>
	[uri, ...Object.entries(options).map(([key, value]) => `${key}=${value}`)].join(",");
