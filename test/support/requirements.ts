// What a test needs from its machine. Missing: the test is skipped with a printed reason. In CI it fails instead,
// since there a skipped test would mean that nobody ever runs it.
//
//   test("…", async (t) => {
//   	if (!requireTool(t, "qemu-img", "root")) return;

import { spawnSync } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { join } from "node:path";
import { checkout, searchPath } from "./processes.ts";

/** The part of node:test's context that is used here. */
interface Skippable {
	skip(message: string): void;
}

/** Not programs, but needed all the same. Each says what is missing, or nothing. */
const facilities: Readonly<Record<string, () => string | undefined>> = {
	root: () => (process.getuid?.() === 0 ? undefined : "must run as root"),
	"loop devices": () => (succeeds("losetup", "-f") ? undefined : "no loop devices here (losetup -f)"),
	fuse: () => (hasProgram("fusermount3") && canAccess("/dev/fuse", RW) ? undefined : "no FUSE here (/dev/fuse)"),
	"guest image": () =>
		missing("qemu-system-x86_64") ??
		(succeeds(join(checkout, "test/guest/setup.sh"), "--check")
			? undefined
			: "no up-to-date guest image (make setup-guest, as root)"),
};

/**
 * True where everything named is there: programs by name, or "root", "loop devices", "fuse", "guest image".
 * Otherwise marks the test as skipped and returns false; the test then returns. Throws in CI.
 */
export function requireTool(t: Skippable, ...names: readonly string[]): boolean {
	const reasons = names.map(missing).filter((reason) => reason !== undefined);
	if (reasons.length === 0) return true;
	const reason = reasons.join("; ");
	if (process.env.CI) throw new Error(`CI must run this test, but: ${reason}`);
	t.skip(reason);
	return false;
}

function missing(name: string): string | undefined {
	const facility = facilities[name];
	if (facility !== undefined) return facility();
	return hasProgram(name) ? undefined : `no program ${name} (make setup, as root, installs it)`;
}

const RW = constants.R_OK | constants.W_OK;

function canAccess(path: string, mode: number): boolean {
	try {
		accessSync(path, mode);
		return true;
	} catch {
		return false;
	}
}

const hasProgram = (name: string): boolean =>
	searchPath.split(":").some((folder) => folder !== "" && canAccess(join(folder, name), constants.X_OK));

const succeeds = (program: string, ...programArguments: readonly string[]): boolean =>
	spawnSync(program, programArguments, { env: { ...process.env, PATH: searchPath }, stdio: "ignore" }).status === 0;
