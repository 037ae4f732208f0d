// Host mount: an NBD export as a block device and a mounted file system of this host, for a while.
//
//   export ─ nbdfuse ─► file ─ losetup ─► block device ─ mount ─► folder
//
// Whoever disposes of these in the opposite order leaves nothing behind, whatever has failed in between. This process serves the
// export, so nothing here may wait for the file or the device without letting others have their turn.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { exists } from "../../adapters/os/exists.ts";
import { hasProgram, RunningProgram, runProgram } from "../../adapters/os/programs.ts";
import { VmsweepError } from "../../foundations/errors.ts";

/** Tries and the time between them, in milliseconds, for what a program that is just ending keeps busy. */
const TRIES = 100;
const RETRY_MS = 100;

/** What is needed here, with Debian's packages. */
const needed = [
	["nbdfuse", "libnbd-bin"],
	["fusermount3", "fuse3"],
	["losetup", "mount"],
	["mount", "mount"],
	["umount", "mount"],
] as const;

/** Throws TOOL_MISSING where this host, or this user, can't do it. */
export function checkHost(): void {
	if (process.getuid?.() !== 0)
		throw new VmsweepError(
			"TOOL_MISSING",
			"verify attaches the disk's views to this host, which takes root. Run it with sudo.",
		);
	for (const [program, from] of needed) requireTool(program, from);
}

/** Throws TOOL_MISSING where a program isn't there. */
export function requireTool(program: string, from: string): void {
	if (!hasProgram(program))
		throw new VmsweepError(
			"TOOL_MISSING",
			`verify needs ${program}, which is not on this host. Run: apt install ${from}`,
		);
}

/** A block device. */
export interface HostDevice extends AsyncDisposable {
	readonly path: string;
}

/**
 * Attaches an export as a block device; `folder` is made, and gets nbdfuse's file. Throws INTERRUPTED, or IO
 * where a program fails.
 */
export async function attachDevice(uri: string, folder: string, signal: AbortSignal): Promise<HostDevice> {
	await using stack = new AsyncDisposableStack();
	await mkdir(folder, { recursive: true });
	const fuse = stack.use(new RunningProgram("nbdfuse", [folder, uri]));
	stack.defer(() => leaveFolder(folder));
	const file = join(folder, "nbd");
	await waitFor(async () => {
		if (!fuse.isAlive) throw failed("nbdfuse", (await fuse.ended).stderr);
		return await exists(file);
	}, signal);
	// Not ended by the signal: a device that nobody knows of would stay.
	const { exitCode, stdout, stderr } = await runProgram("losetup", ["--find", "--show", file]);
	if (exitCode !== 0) throw failed("losetup", stderr);
	const path = stdout.trim();
	stack.defer(async () => {
		await runProgram("losetup", ["--detach", path]);
		await waitFor(async () => (await runProgram("losetup", [path])).exitCode !== 0).catch(() => {});
	});
	const owned = stack.move();
	return { path, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function leaveFolder(folder: string): Promise<void> {
	await waitFor(
		async () => (await runProgram("fusermount3", ["-u", folder])).exitCode === 0 || !(await isMounted(folder)),
	).catch(() => runProgram("fusermount3", ["-u", "-z", folder]));
}

const isMounted = async (folder: string): Promise<boolean> =>
	(await runProgram("mountpoint", ["-q", folder])).exitCode === 0;

/** A mounted file system, or what the mount said. */
export type Mounting = (AsyncDisposable & { readonly problem?: undefined }) | { readonly problem: string };

/** Mounts a device at a folder, which is made. Throws INTERRUPTED. */
export async function mountDevice(
	device: string,
	folder: string,
	type: string,
	options: string,
	signal: AbortSignal,
): Promise<Mounting> {
	await mkdir(folder, { recursive: true });
	if (signal.aborted) throw new VmsweepError("INTERRUPTED", "mount was stopped.");
	// Not ended by the signal: whether it was mounted must be known.
	const { exitCode, stderr } = await runProgram("mount", ["-t", type, "-o", options, device, folder]);
	if (exitCode !== 0) {
		if (await isMounted(folder)) await runProgram("umount", ["-l", folder]);
		return { problem: lineOf(stderr) };
	}
	return {
		[Symbol.asyncDispose]: () =>
			waitFor(async () => (await runProgram("umount", [folder])).exitCode === 0 || !(await isMounted(folder))).catch(
				async () => {
					await runProgram("umount", ["-l", folder]);
				},
			),
	};
}

const failed = (program: string, stderr: string): VmsweepError =>
	new VmsweepError("IO", `${program} failed: ${lineOf(stderr)}. Check that this host has FUSE and loop devices.`);

const lineOf = (text: string): string =>
	text
		.trim()
		.split("\n")
		.map((line) => line.trim())
		.join(" ")
		.replace(/\.$/, "");

/** Waits until something is true. Throws INTERRUPTED, or IO where it takes too long. */
async function waitFor(isSo: () => Promise<boolean>, signal?: AbortSignal): Promise<void> {
	for (let tried = 0; tried < TRIES; tried++) {
		if (signal?.aborted === true) throw new VmsweepError("INTERRUPTED", "waiting for this host was stopped.");
		if (await isSo()) return;
		await delay(RETRY_MS);
	}
	throw new VmsweepError("IO", "this host took too long to attach a device. Try again.");
}
