// vmsweep why DISK OFFSET: everything known about one block of a disk.

import { formatBytes } from "../../foundations/units.ts";
import type { BlockPlace, BlockReport, BlockUse } from "../../services/why.ts";
import { runWithBar } from "./disk-command.ts";
import { formatTable, print, printJson } from "./output.ts";

export async function why(path: string, at: number, { json = false }: { readonly json?: boolean }): Promise<void> {
	const report = await runWithBar(path, "why", { at }, `looking at byte ${at} of ${path}`);
	await (json ? printJson(report) : print(describe(path, report)));
}

const uses: Readonly<Record<BlockUse, string>> = {
	used: "in use by the file system",
	metadata: "in use: metadata of the file system",
	journal: "in use: the file system's journal",
	free: "free",
	unknown: "not known",
};

function describe(path: string, report: BlockReport): string {
	const { at, block, volume, use, evidence, snapshots, undoable } = report;
	const facts = [["volume", volume === null ? "none" : describeVolume(report)]];
	facts.push(["guest map", uses[use]]);
	if (evidence !== null) {
		const { rule, incarnation, commits, judgedAt, settledBefore } = evidence;
		facts.push(["rule", rule]);
		const seen = `incarnation ${incarnation}, ${commits} commits counted`;
		facts.push(["evidence", judgedAt === null ? seen : `${seen}, judged at position ${judgedAt}`]);
		if (settledBefore !== null)
			facts.push(["", `free blocks last written before position ${settledBefore} may be dropped`]);
	}
	facts.push(["its bytes", describePlace(report.place)]);
	facts.push(["last write", describeLastWrite(report)]);
	facts.push(["may be dropped", report.because === null ? "yes, now" : `no: ${report.because}`]);
	for (const { name, keepsCopy } of snapshots)
		facts.push([
			`snapshot ${name}`,
			keepsCopy
				? "keeps a copy of what it was then"
				: "shows it in the second image, and keeps a copy before it changes",
		]);
	if (undoable) facts.push(["quarantine", "it was dropped; vmsweep undo could bring it back"]);
	const advice = adviceOf(report);
	if (advice !== null) facts.push(["its file", advice]);
	const heading = `${path}: byte ${at} (block of ${formatBytes(block.length)} from byte ${block.start} on)`;
	return `${heading}\n${formatTable(facts.map(([name, text]) => [`  ${name}`, text!]))}`;
}

function describeVolume({ volume }: BlockReport): string {
	const { id, type, offset, fileSystemBlock } = volume!;
	const inside = offset === null ? "in pieces" : `byte ${offset} of it`;
	return `${id} (${type}), ${inside}${fileSystemBlock === null ? "" : `, file-system block ${fileSystemBlock}`}`;
}

function describePlace(place: BlockPlace): string {
	switch (place.kind) {
		case "first-image": {
			const segment = place.segment === null ? "" : `segment ${place.segment}, `;
			return `in the first image: ${segment}byte ${place.at} of ${place.path}`;
		}
		case "second-image":
			return `in the second image, ${place.allocated ? "allocated" : "a hole"}: ${place.path}`;
		case "zeros":
			return "zeros: dropped, trimmed or zeroed; the first image says so";
		default:
			return place satisfies never;
	}
}

function describeLastWrite({ lastWrite: { position, exact }, place }: BlockReport): string {
	if (position === null) return "not known: zeros have no place in the log";
	if (exact) return `log position ${position}`;
	if (place.kind === "second-image" && !place.allocated)
		return `none that is known; not after log position ${position}`;
	return `older than the log's memory; not after log position ${position}`;
}

/** How to find the file that uses a block; null where that can't be told. */
function adviceOf({ use, volume }: BlockReport): string | null {
	if (use !== "used" || volume === null || volume.fileSystemBlock === null || !volume.type.startsWith("ext"))
		return null;
	return `in the guest: debugfs -R 'icheck ${volume.fileSystemBlock}' DEVICE, then debugfs -R 'ncheck INODE' DEVICE`;
}
