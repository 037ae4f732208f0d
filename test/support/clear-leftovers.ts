// Before all tests: unmounts what a test run that was killed left behind. Its FUSE programs are gone, their mounts stay,
// and stop others: mkfs.btrfs asks for every mounted loop device what lies behind it, and fails where nobody answers.

import { readdirSync, readFileSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FOLDER_PREFIX } from "./folders.ts";
import { run } from "./processes.ts";

interface Mount {
	readonly device: string;
	readonly path: string;
}

/** Called by node's test runner (`--test-global-setup`). */
export async function globalSetup(): Promise<void> {
	const mounts = mountedInTests();
	const dead = mounts.filter(({ path }) => isDead(path));
	if (dead.length === 0) return;
	const isOnDead = (file: string): boolean => dead.some(({ path }) => file === path || file.startsWith(`${path}/`));
	const loops = loopDevices().filter(({ file }) => isOnDead(file));
	const onLoops = mounts.filter(({ device }) => loops.some(({ path }) => path === device));
	for (const { path } of [...onLoops, ...dead]) await run("umount", ["-l", path]);
	for (const { path } of loops) await run("losetup", ["-d", path]);
	console.log(`A test run was killed: unmounted ${[...onLoops, ...dead].map(({ path }) => path).join(", ")}`);
}

/** Mounts in temporary folders of tests. */
function mountedInTests(): Mount[] {
	const prefix = join(tmpdir(), FOLDER_PREFIX);
	return readFileSync("/proc/mounts", "utf8")
		.split("\n")
		.map((line) => line.split(" "))
		.flatMap(([device, path]) => (device && path?.startsWith(prefix) ? [{ device, path }] : []));
}

/** A FUSE mount whose program has ended. */
function isDead(path: string): boolean {
	try {
		statSync(path);
		return false;
	} catch (error) {
		return (error as NodeJS.ErrnoException).code === "ENOTCONN";
	}
}

/** All loop devices in use, and the files behind them. */
function loopDevices(): { readonly path: string; readonly file: string }[] {
	return readdirSync("/sys/block")
		.filter((name) => name.startsWith("loop"))
		.flatMap((name) => {
			try {
				return [{ path: `/dev/${name}`, file: readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").trim() }];
			} catch {
				return []; // not in use
			}
		});
}
