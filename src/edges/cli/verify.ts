// vmsweep verify DISK: proves that nobody needs what cleaning would drop.

import { formatBytes } from "../../foundations/units.ts";
import { type VerifyReport, type VolumeVerdict, verifyDisk } from "../../services/verify/verify.ts";
import { interruptible } from "./interruption.ts";
import { formatTable, print, printJson, warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

interface VerifyCommandOptions {
	readonly volume?: string;
	readonly keepGoing?: boolean;
	readonly mount: boolean;
	readonly maxRate: number;
	readonly json?: boolean;
}

export async function verify(path: string, options: VerifyCommandOptions): Promise<void> {
	const { volume, keepGoing = false, mount, maxRate, json = false } = options;
	using bar = new ProgressBar();
	const report = await interruptible(
		(signal) =>
			verifyDisk(path, {
				...(volume === undefined ? {} : { volume }),
				keepGoing,
				mount,
				bytesPerSecond: maxRate,
				signal,
				onProgress: bar.update,
			}),
		// Mounts and devices that stay on the host are worse than a moment's patience.
		() => warn("still giving back what is attached to this host"),
	);
	bar[Symbol.dispose]();
	await (json ? printJson(report) : print(describeVerify(path, report)));
	if (!report.isSame) process.exitCode = 1;
}

const ALARM = `STOP CLEANING: something that the cleaner would drop is needed.
  Serve the disk with --clean off, keep both images as they are, and report this with the output of verify --json.
`;

/** What was found, for people. */
export function describeVerify(path: string, { position, volumes, isSame }: VerifyReport): string {
	const looked = volumes.filter(({ skipped }) => skipped === null);
	const bytes = looked.reduce((sum, { droppableBytes }) => sum + droppableBytes, 0);
	const verdict = !isSame
		? "DIFFERENT"
		: looked.length === 0
			? "nothing to verify: nothing would be dropped"
			: `all the same without ${formatBytes(bytes)} that may be dropped`;
	const lines = volumes.flatMap(describeVolume);
	return `${path}: ${verdict} (log position ${position})\n${formatTable(lines)}${isSame ? "" : ALARM}`;
}

function describeVolume(volume: VolumeVerdict): string[][] {
	const { id, type, droppableBytes, skipped, checker, files, differences, differenceCount, notes } = volume;
	if (skipped !== null) return [[`  ${id}`, `${type}: skipped: ${skipped}`]];
	const lines = [`${type}: ${formatBytes(droppableBytes)} droppable, overwritten with a pattern`];
	if (checker !== null) lines.push(`${checker.program}: ${checkerWords[checker.verdict]}`);
	if (files !== null) lines.push(`${files.count} files with ${formatBytes(files.bytes)} compared`);
	lines.push(...notes.map((note) => `note: ${note}`), ...differences.map((difference) => `DIFFERENCE: ${difference}`));
	if (differenceCount > differences.length) lines.push(`… ${differenceCount - differences.length} more differences`);
	if (checker?.verdict === "different")
		for (const line of checker.output.trim().split("\n")) lines.push(`${checker.program}> ${line}`);
	return lines.map((line, index) => [index === 0 ? `  ${id}` : "", line]);
}

const checkerWords = {
	clean: "clean",
	"as-real": "complains, as it does about the real view",
	different: "complains, but not about the real view",
};
