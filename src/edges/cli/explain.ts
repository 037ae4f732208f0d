// vmsweep explain IMAGE: why an image is as large as it is, and what a sweep would give back. Changes nothing.

import { formatBytes } from "../../foundations/units.ts";
import { type ExplainedVolume, type Explanation, explainImage, type ShareKind } from "../../services/explain.ts";
import { interruptible } from "./interruption.ts";
import { formatTable, print, printJson } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

interface ExplainCommandOptions {
	readonly json?: boolean;
	readonly vmOff?: boolean;
}

export async function explain(path: string, { json = false, vmOff = false }: ExplainCommandOptions): Promise<void> {
	const explanation = await interruptible(async (signal) => {
		using bar = new ProgressBar();
		return await explainImage(path, { vmOff, signal, onProgress: bar.update });
	});
	await (json ? printJson(explanation) : print(describe(explanation, vmOff)));
}

const shareNames: Record<ShareKind, string> = {
	used: "used by the guest",
	free: "not needed by the guest, still held",
	swap: "swap of the guest",
	unknown: "unknown, so kept",
	outside: "partition tables and gaps",
	snapshots: "snapshots inside the image",
	format: "the image's own records",
	"first-image": "first image (the log)",
	"second-image": "second image",
};

function describe(explanation: Explanation, vmOff: boolean): string {
	const { image, shares, volumes, largest, snapshots, backing, notes } = explanation;
	const parts = [`${summary(explanation, vmOff).join("\n")}\n`];
	if (shares.length > 0) parts.push(formatTable([["ON THE HOST", "WHAT"], ...shareRows(explanation)], [0]));
	if (volumes.length > 0) parts.push(volumeTable(volumes));
	if (largest.length > 0) parts.push(largestTable(explanation));
	const remarks = [
		...volumes.flatMap(({ id, kept }) => (kept === null ? [] : [`${id} is kept: ${kept}`])),
		...snapshots.map(
			({ id, name }) => `snapshot ${id} (${name}) is inside the image, and what it shares with the disk stays`,
		),
		...(snapshots.length > 0 ? [`a snapshot that nobody needs any more can go: qemu-img snapshot -d ID ${image}`] : []),
		...backing.map(({ path, hostBytes }) => `backing file ${path}: ${sizeOf(hostBytes)} of its own, not counted here`),
		...notes,
	];
	if (remarks.length > 0) parts.push(formatTable(remarks.map((remark) => [remark])));
	return parts.join("\n");
}

/** A few plain sentences. */
function summary(explanation: Explanation, vmOff: boolean): string[] {
	const { shares, reclaimableBytes, command } = explanation;
	const share = (kind: ShareKind): number => shares.find((each) => each.kind === kind)?.hostBytes ?? 0;
	const lines = [firstSentence(explanation)];
	if (share("used") + share("free") > 0)
		lines.push(
			`Its guest uses ${formatBytes(share("used"))}${explanation.hostBytes === null ? "" : " of that"}; ${formatBytes(share("free"))} is held although the guest doesn't need it.`,
		);
	const why: Partial<Record<ShareKind, string>> = {
		...(vmOff ? {} : { swap: "is swap, which only a VM that is off can give up (--vm-off)" }),
		unknown: "lies in volumes that nobody can look into, and is kept",
		snapshots: "is kept by snapshots inside the image",
		"first-image": "is the first image, which cleaning folds into the second",
	};
	for (const [kind, words] of Object.entries(why))
		if (share(kind as ShareKind) > 0) lines.push(`${formatBytes(share(kind as ShareKind))} ${words}.`);
	if (reclaimableBytes !== null) {
		const given = reclaimableBytes > 0 ? `would give ${formatBytes(reclaimableBytes)} back` : "would give nothing back";
		const who = explanation.format === "vmsweep-disk" ? "Cleaning it" : "A sweep";
		lines.push(command === null ? `${who} ${given}.` : `${who} ${given}: ${command}`);
	} else if (command !== null) lines.push(`To get space back: ${command}`);
	return lines;
}

function firstSentence({ image, format, size, hostBytes }: Explanation): string {
	const disk = `a ${formatBytes(size)} disk`;
	if (hostBytes === null) return `${image} shows ${disk}; how much space that takes, only its server knows.`;
	const what = format === "vmsweep-disk" ? "vmsweep disk" : `${format} image`;
	return `${image} takes ${formatBytes(hostBytes)} on the host: a ${what} of ${disk}.`;
}

const shareRows = ({ shares, hostBytes }: Explanation): string[][] => [
	...shares.map(({ kind, hostBytes: bytes }) => [
		formatBytes(bytes),
		kind === "format" && bytes < 0 ? "saved by compression" : shareNames[kind],
	]),
	[sizeOf(hostBytes), "in all"],
];

function volumeTable(volumes: readonly ExplainedVolume[]): string {
	const rows = volumes.map((volume) => [
		volume.id,
		volume.type,
		volume.label ?? "",
		formatBytes(volume.usedHeldBytes),
		formatBytes(volume.usedNotHeldBytes),
		formatBytes(volume.freeHeldBytes),
		formatBytes(volume.freeNotHeldBytes),
		formatBytes(volume.unknownHeldBytes),
		volume.reclaimableBytes === null ? "?" : formatBytes(volume.reclaimableBytes),
	]);
	const heads = [
		"VOLUME",
		"TYPE",
		"LABEL",
		"USED",
		"NEVER WRITTEN",
		"FREE, HELD",
		"FREE, NOT HELD",
		"UNKNOWN",
		"SWEEP",
	];
	return formatTable([heads, ...rows], [3, 4, 5, 6, 7, 8]);
}

function largestTable({ largest }: Explanation): string {
	const rows = largest.map(({ start, length, volume, hostBytes }) => [
		String(start),
		formatBytes(length),
		formatBytes(hostBytes),
		volume,
	]);
	return formatTable([["LARGEST AREAS: AT BYTE", "LENGTH", "GIVES BACK", "VOLUME"], ...rows], [0, 1, 2]);
}

const sizeOf = (bytes: number | null): string => (bytes === null ? "?" : formatBytes(bytes));
