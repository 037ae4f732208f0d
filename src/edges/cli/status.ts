// vmsweep status [DISK]: how a disk is, served or not; without DISK, all disks in the current folder.

import { formatBytes } from "../../foundations/units.ts";
import type { VolumeStatus } from "../../services/clean/volume-status.ts";
import { type AnyDiskStatus, diskStatus, findDisks, type RestingDiskStatus } from "../../services/control-at-rest.ts";
import type { DiskStatus } from "../../services/disk-status.ts";
import { reportFailure } from "./failure.ts";
import { formatTable, print, printJson } from "./output.ts";

export async function status(
	directory: string | undefined,
	{ json = false }: { readonly json?: boolean },
): Promise<void> {
	if (directory !== undefined) {
		const found = await diskStatus(directory);
		return await (json ? printJson(found) : print(found.served ? describeServed(found) : describeResting(found)));
	}
	const found = await statusOfAll();
	if (json) return await printJson(found);
	if (found.length === 0) return await print("no disks in this folder\n");
	const rows = [["DISK", "SIZE", "STATE", "FIRST IMAGE", "SECOND IMAGE"], ...found.map(row)];
	await print(formatTable(rows, [1, 3, 4]));
}

/** One bad disk must not hide the others: it is told on standard error. */
async function statusOfAll(): Promise<AnyDiskStatus[]> {
	const found: AnyDiskStatus[] = [];
	for (const path of await findDisks("."))
		try {
			found.push(await diskStatus(path));
		} catch (error) {
			process.exitCode = reportFailure(error);
		}
	return found;
}

const row = (disk: AnyDiskStatus): string[] => [
	disk.name,
	formatBytes(disk.size),
	disk.served ? `served, ${count(disk.clients, "client")}` : leftAs(disk),
	bytesOrMissing(disk.first.hostBytes),
	bytesOrMissing(disk.second.hostBytes),
];

function describeServed(disk: DiskStatus): string {
	const { first, second, guest, cleaner } = disk;
	const facts = [
		[
			"first image",
			`${formatBytes(first.hostBytes)} on the host, ${formatBytes(first.usedBytes)} in use, limit ${formatBytes(first.limitBytes)}`,
		],
		["", first.path],
		[
			"second image",
			`${formatBytes(second.hostBytes)} on the host, ${
				second.state === "needs-first-image"
					? "needs the first image"
					: `by itself the disk as it was at position ${second.standsAt} (${second.stoodAt ?? "time unknown"})`
			}`,
		],
		["", second.path],
		...disk.snapshots.map(({ name, created, hostBytes }) => [
			`snapshot ${name}`,
			`${created}, keeps ${formatBytes(hostBytes)}`,
		]),
		[
			"guest",
			`read ${formatBytes(guest.readBytes)}, wrote ${formatBytes(guest.writtenBytes)}, ${count(guest.flushes, "flush", "flushes")}`,
		],
		[
			"cleaner",
			`dropped ${formatBytes(cleaner.droppedBytes)}, moved ${formatBytes(cleaner.movedBytes)}, gave ${formatBytes(cleaner.punchedBytes)} of the first image back`,
		],
		["", metadataWords(disk)],
		...describeFreezes(disk),
		...disk.volumes.flatMap(describeVolume),
	];
	if (disk.stalled > 0) facts.push(["waiting", `${count(disk.stalled, "client")} for room in the first image`]);
	const cleaning = disk.cleaning === "continuous" ? "cleaned continuously" : "cleaning off";
	return `${heading(disk)}served, ${count(disk.clients, "client")}, ${cleaning}\n${factTable(facts)}`;
}

function metadataWords({ cleaner, metadataBytesPerGuestGiB: perGiB }: DiskStatus): string {
	const read = `read ${formatBytes(cleaner.metadataBytesRead)} of metadata, ${formatBytes(cleaner.metadataBytesLastPass)} in the last pass`;
	return perGiB === null ? read : `${read}; ${formatBytes(perGiB)} per GiB that the guest wrote`;
}

/** A volume's lines: how it is followed, by which rule, when it was judged last, and what waits. */
function describeVolume({ id, type, phase, rule, lastPoint, waiting }: VolumeStatus): string[][] {
	if (phase === "kept") return [[id, `${type}, ${rule}`]];
	const lines = [`${type}, ${phase} phase`, `rule: ${rule}`];
	if (lastPoint !== null) lines.push(`last commit point: position ${lastPoint.position}, ${ago(lastPoint.at)} ago`);
	lines.push(waiting ?? "nothing waits: all that is free was dropped");
	return lines.map((line, index) => [index === 0 ? id : "", line]);
}

/** How long ago an instant was, roughly. */
function ago(iso: string): string {
	const seconds = Math.max(0, Math.round((Date.now() - Date.parse(iso)) / 1000));
	if (seconds < 120) return `${seconds} s`;
	const minutes = Math.round(seconds / 60);
	return minutes < 120 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}

function describeFreezes({ freezes }: DiskStatus): string[][] {
	if (freezes === null) return [];
	const { frozenAt, frozenMs, problem } = freezes;
	const last = frozenAt === null ? "not frozen yet" : `frozen at ${frozenAt}, for ${frozenMs} ms`;
	return [["guest agent", problem === null ? last : `${last}; ${problem}`]];
}

function describeResting(disk: RestingDiskStatus): string {
	const { first, second, problems } = disk;
	const state = {
		whole: ", whole by itself",
		stands: `, by itself the disk as it was at position ${second.standsAt} (${second.stoodAt ?? "time unknown"})`,
		"needs-first-image": ", needs the first image",
	};
	const facts = [
		["first image", `${bytesOrMissing(first.hostBytes)} on the host`],
		["", first.path],
		[
			"second image",
			`${bytesOrMissing(second.hostBytes)} on the host${second.state === null ? "" : state[second.state]}`,
		],
		["", second.path],
		...problems.map((problem) => ["problem", problem]),
	];
	return `${heading(disk)}${leftAs(disk)}\n${factTable(facts)}`;
}

const heading = ({ name, size, uuid }: AnyDiskStatus): string =>
	`${describeName(name)} (${formatBytes(size)}, ${uuid}): `;

const describeName = (name: string): string => formatTable([[name]]).trimEnd();

const factTable = (facts: readonly (readonly string[])[]): string =>
	formatTable(facts.map(([name, ...rest]) => [`  ${name}`, ...rest]));

const leftAs = ({ left }: RestingDiskStatus): string =>
	left === "clean" ? "not served, closed cleanly" : "not served, not closed cleanly (the next start recovers it)";

const bytesOrMissing = (bytes: number | null): string => (bytes === null ? "missing" : formatBytes(bytes));

const count = (n: number, one: string, many = `${one}s`): string => `${n} ${n === 1 ? one : many}`;
