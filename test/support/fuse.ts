// File systems that only a FUSE driver mounts here, straight from an image file.

import { mkdir } from "node:fs/promises";
import { type Running, run, runOk, start } from "./processes.ts";

/** An image mounted by a FUSE program that stays in the foreground. */
export class FuseMount implements AsyncDisposable {
	readonly path: string;
	readonly #program: Running;

	private constructor(path: string, program: Running) {
		this.path = path;
		this.#program = program;
	}

	/** Starts `program` with its arguments, which end with the image and the mount point; the latter is made. */
	static async mount(program: string, programArguments: readonly string[]): Promise<FuseMount> {
		const path = programArguments.at(-1)!;
		await mkdir(path, { recursive: true });
		const running = start(program, programArguments);
		try {
			const mounted = async (): Promise<boolean> => (await run("mountpoint", ["-q", path])).exitCode === 0;
			await running.until(mounted, "its mount");
		} catch (error) {
			await running[Symbol.asyncDispose]();
			throw error;
		}
		return new FuseMount(path, running);
	}

	/** Unmounts and waits until the program has written everything and ended. Returns what it printed. */
	async unmount(): Promise<string> {
		await runOk("umount", [this.path]);
		const { stdout, stderr } = await this.#program.finished;
		return `${stdout}${stderr}`;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		if (!this.#program.alive) return;
		await run("umount", ["-l", this.path]);
		await this.#program[Symbol.asyncDispose]();
	}
}
