// The machine and the programs of a benchmark: without them its numbers mean nothing.

import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { formatBytes } from "../src/foundations/units.ts";
import { run, runOk } from "../test/support/processes.ts";

/** File systems that keep files in memory: a benchmark there measures no disk. */
const MEMORY_FILE_SYSTEMS = ["tmpfs", "ramfs"];

export interface Machine {
	readonly processor: string;
	readonly cores: number;
	readonly memoryBytes: number;
	readonly kernel: string;
	/** File system of the images, and its mount options. */
	readonly fileSystem: string;
	readonly mountOptions: string;
	/** First line of each program's --version. */
	readonly versions: Readonly<Record<string, string>>;
	/** Load average of the last minute at the start: other work on the machine spoils the numbers. */
	readonly loadAtStart: number;
}

/** Facts about this machine, the file system of `folder` and the given programs. */
export async function describeMachine(folder: string, programs: readonly string[]): Promise<Machine> {
	const mount = await runOk("findmnt", ["--noheadings", "--output", "FSTYPE,OPTIONS", "--target", folder]);
	const [fileSystem = "unknown", mountOptions = ""] = mount.trim().split(/\s+/);
	const versions: Record<string, string> = { node: process.version };
	for (const program of new Set(programs)) versions[program] = await versionOf(program);
	return {
		processor: cpus()[0]?.model.trim() ?? "unknown",
		cores: cpus().length,
		memoryBytes: totalmem(),
		kernel: release(),
		fileSystem,
		mountOptions,
		versions,
		loadAtStart: Number(readFileSync("/proc/loadavg", "utf8").split(" ")[0]),
	};
}

async function versionOf(program: string): Promise<string> {
	const { stdout, stderr } = await run(program, ["--version"]);
	const line = `${stdout}\n${stderr}`.trim().split("\n")[0] ?? "";
	return /\d+\.\d+[\w.-]*/.exec(line)?.[0] ?? line;
}

/** A few lines for people, warnings about what spoils numbers included. */
export function machineLines(machine: Machine): string[] {
	const { processor, cores, memoryBytes, kernel, fileSystem, mountOptions, versions, loadAtStart } = machine;
	const lines = [
		`${processor}, ${cores} cores, ${formatBytes(memoryBytes)} memory, Linux ${kernel}`,
		`images on ${fileSystem} (${mountOptions})`,
		Object.entries(versions)
			.map(([name, version]) => `${name} ${version}`)
			.join(", "),
	];
	if (MEMORY_FILE_SYSTEMS.includes(fileSystem))
		lines.push(`note: ${fileSystem} lives in memory, a flush costs nothing there; use --folder for another place`);
	if (loadAtStart > 0.5) lines.push(`note: the machine is busy (load ${loadAtStart}); the numbers will scatter`);
	return lines;
}
