// vmsweep check DISK: reads all of a disk again, compares it with its checksums, and repairs what can be repaired.

import { formatBytes } from "../../foundations/units.ts";
import type { CheckReport, RottenPlace } from "../../services/check.ts";
import { runWithBar } from "./disk-command.ts";
import { formatTable, print, printJson } from "./output.ts";

interface CheckOptions {
	readonly repair?: boolean;
	readonly maxRate?: number;
	readonly json?: boolean;
}

/** Rotten blocks that are listed to people. */
const SHOWN_MAX = 20;

export async function check(path: string, { repair = false, maxRate, json = false }: CheckOptions): Promise<void> {
	const report = await runWithBar(path, "check", { repair, bytesPerSecond: maxRate ?? null }, `checking ${path}`);
	await (json ? printJson(report) : print(describe(path, report)));
	// What is damaged and still is so makes scripts stop, as a checker of file systems does.
	if (!report.isGood) process.exitCode = 3;
}

function describe(path: string, report: CheckReport): string {
	const { firstBytes, secondBytes, snapshotBytes, unknownBytes, rotten, rottenBlocks, rottenRecords } = report;
	const facts = [
		["  first image", `${formatBytes(firstBytes)} compared`],
		[
			"  second image",
			`${formatBytes(secondBytes - unknownBytes)} compared${unknownBytes > 0 ? `, ${formatBytes(unknownBytes)} that vmsweep didn't write can't be` : ""}`,
		],
		...(snapshotBytes > 0 ? [["  snapshots", `${formatBytes(snapshotBytes)} compared`]] : []),
	];
	const lines = [
		...rotten.slice(0, SHOWN_MAX).map(describePlace),
		...(rottenBlocks > SHOWN_MAX ? [`  … ${rottenBlocks - SHOWN_MAX} more; --json lists a thousand`] : []),
		...(rottenRecords > 0 ? [`  ${rottenRecords} damaged records in the first image`] : []),
		...report.problems.map((problem) => `  problem: ${problem}`),
		...report.repaired.map((line) => `  repaired: ${line}`),
	];
	const verdict = report.isGood
		? rottenBlocks + rottenRecords > 0
			? "repaired"
			: "good"
		: `damaged: ${rottenBlocks} blocks`;
	return `${path}: ${verdict}\n${formatTable(facts)}${lines.map((line) => `${line}\n`).join("")}`;
}

const uses = {
	used: "in use: read it from a backup, or have the guest write it again",
	unused: "not in use: --repair gives it up while no VM is attached",
	unknown: "nobody can tell whether it is in use",
};

const describePlace = ({ start, where, use, volume }: RottenPlace): string =>
	`  byte ${start} (${where}${volume === null ? "" : `, volume ${volume}`}): ${uses[use]}`;
