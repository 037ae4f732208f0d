// A served disk on the host's own kernel: native speed, no guest.
//
//   kernel's file system ── loop device ── nbdfuse ── NBD ── vmsweep
//
// FUSE writes through, so writes reach the server in the kernel's order; fsync becomes a flush; trim does not pass.

import { access, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type Running, run, runOk, start } from "./processes.ts";
import { waitUntil } from "./waiting.ts";

/** What these devices need; for `requireTool`. */
export const LOOP_TOOLS = [
	"root",
	"loop devices",
	"fuse",
	"nbdfuse",
	"losetup",
	"mke2fs",
	"e2fsck",
	"python3",
] as const;

/** A served export, as a loop device. */
export class LoopDevice implements AsyncDisposable {
	readonly path: string;
	readonly #fuse: Running;
	readonly #folder: string;

	private constructor(path: string, fuse: Running, folder: string) {
		this.path = path;
		this.#fuse = fuse;
		this.#folder = folder;
	}

	/** `folder` is made; `uri` is an NBD URI. */
	static async attach(uri: string, folder: string): Promise<LoopDevice> {
		await mkdir(folder, { recursive: true });
		const fuse = start("nbdfuse", [folder, uri]);
		try {
			const file = join(folder, "nbd");
			const exists = (): Promise<boolean> =>
				access(file).then(
					() => true,
					() => false,
				);
			await fuse.until(exists, "its file");
			return new LoopDevice((await runOk("losetup", ["-f", "--show", file])).trim(), fuse, folder);
		} catch (error) {
			await fuse[Symbol.asyncDispose]();
			throw error;
		}
	}

	/** A part of the same file as a device of its own (partition scanning needs device nodes that not every host makes). */
	async part(start: number, length: number): Promise<LoopPart> {
		const range = ["--offset", String(start), "--sizelimit", String(length)];
		return new LoopPart((await runOk("losetup", [...range, "-f", "--show", join(this.#folder, "nbd")])).trim());
	}

	/** Works whether the server still lives or not; whatever is mounted from it must be unmounted. */
	async [Symbol.asyncDispose](): Promise<void> {
		await detach(this.path);
		await run("fusermount3", ["-u", this.#folder]);
		await this.#fuse[Symbol.asyncDispose]();
	}
}

/** A part of a device: a partition. */
export class LoopPart implements AsyncDisposable {
	readonly path: string;
	constructor(path: string) {
		this.path = path;
	}
	async [Symbol.asyncDispose](): Promise<void> {
		await detach(this.path);
	}
}

/** Detaches a loop device and waits until it is gone, which a mount that is just ending delays. */
async function detach(path: string): Promise<void> {
	await run("losetup", ["-d", path]);
	await waitUntil(async () => (await run("losetup", [path])).exitCode !== 0, `loop device ${path} to go`);
}

/** A file system mounted for a scope. */
export class Mounted implements AsyncDisposable {
	readonly path: string;

	private constructor(path: string) {
		this.path = path;
	}

	/** `type` where the kernel doesn't find it out. */
	static async mount(device: string, path: string, options = "defaults", type?: string): Promise<Mounted> {
		await mkdir(path, { recursive: true });
		await runOk("mount", [...(type === undefined ? [] : ["-t", type]), "-o", options, device, path]);
		return new Mounted(path);
	}

	/** For something mounted already. */
	static async adopt(path: string): Promise<Mounted> {
		await runOk("mountpoint", ["-q", path]);
		return new Mounted(path);
	}

	async unmount(): Promise<void> {
		await runOk("umount", [this.path]);
	}

	/** Unmounts where it still is mounted. */
	async [Symbol.asyncDispose](): Promise<void> {
		if ((await run("mountpoint", ["-q", this.path])).exitCode === 0) await run("umount", ["-l", this.path]);
	}
}

/** `sha256sum` lines of all files below a mounted image, sorted by path, without the `./`. */
export async function hashesIn(folder: string): Promise<string[]> {
	const script = 'cd "$1" && find . -type f ! -path "./lost+found/*" -printf "%P\\0" | sort -z | xargs -0 -r sha256sum';
	const lines = await runOk("bash", ["-c", script, "hashes", folder], { timeoutSeconds: 600 });
	return lines.split("\n").filter((line) => line !== "");
}
