// Timed programs: how long a whole process takes, what it reads and how much memory it needs.
//
// GNU time reports what wait4(2) says about the process: its elapsed time and its largest resident set. The bytes that
// it asked to read come from the kernel's count for the shell that waited for it (proc(5), io, rchar), less what an
// empty run of the same shell counts; they include loading the program itself.

import { readFile } from "node:fs/promises";
import { runOk } from "../test/support/processes.ts";
import type { ScratchFolder } from "../tools/scratch-folder.ts";
import { spreadOf } from "./statistics.ts";

/** One run of a program. */
export interface Timing {
	readonly seconds: number;
	/** User and system time. */
	readonly cpuSeconds: number;
	readonly memoryBytes: number;
	readonly bytesRead: number;
}

/** A program with its arguments, or a script for `bash -c` whose `$1`… are the arguments. */
export type Program = {
	readonly command: readonly [string, ...string[]];
};

/** A shell script as a program. */
export const script = (text: string, ...words: string[]): Program => ({
	command: ["bash", "-o", "pipefail", "-ec", text, "bash", ...words],
});

/** Runs a program to its end; throws where it fails. What it prints is thrown away. */
export async function timed(scratch: ScratchFolder, { command }: Program): Promise<Timing> {
	const [times, counted] = [scratch.file("times"), scratch.file("counted")];
	const shell =
		'times=$1 counted=$2; shift 2; command time -q -f "%e %U %S %M" -o "$times" "$@" >/dev/null 2>"$counted.err" ||' +
		' { cat "$counted.err" >&2; exit 1; }; cat /proc/$$/io >"$counted"';
	await runOk("bash", ["-c", shell, "timed", times, counted, ...command], {
		timeoutSeconds: 1800,
	});
	const [seconds = 0, user = 0, system = 0, kilobytes = 0] = (await readFile(times, "utf8"))
		.trim()
		.split(" ")
		.map(Number);
	const read = /^rchar:\s+(\d+)/m.exec(await readFile(counted, "utf8"))?.[1];
	return { seconds, cpuSeconds: user + system, memoryBytes: kilobytes * 1024, bytesRead: Number(read) };
}

/** The middle of each figure over several runs. */
export function medianTiming(timings: readonly Timing[]): Timing {
	const middle = (figure: (timing: Timing) => number): number => spreadOf(timings.map(figure))!.median;
	return {
		seconds: middle(({ seconds }) => seconds),
		cpuSeconds: middle(({ cpuSeconds }) => cpuSeconds),
		memoryBytes: middle(({ memoryBytes }) => memoryBytes),
		bytesRead: middle(({ bytesRead }) => bytesRead),
	};
}
