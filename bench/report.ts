// The report: tables of plain text that read the same on a terminal and in a file.

import { formatBytes } from "../src/foundations/units.ts";
import type { MemoryFinding } from "./memory.ts";
import { isOurs, type Peer, type PeerId } from "./peers.ts";
import {
	clientCores,
	cpuPer100k,
	cpuPerGb,
	ratioOf,
	type Sample,
	type Spread,
	serverCores,
	spreadOver,
	type Target,
} from "./statistics.ts";
import type { Workload } from "./workloads.ts";

/** Lays out cells in columns: the first to the left, the others to the right. */
export function table(rows: readonly (readonly string[])[]): string {
	const columns = Math.max(...rows.map((row) => row.length));
	const widths = Array.from({ length: columns }, (_, column) =>
		Math.max(...rows.map((row) => (row[column] ?? "").length)),
	);
	return rows
		.map((row) =>
			row
				.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)))
				.join("  ")
				.trimEnd(),
		)
		.join("\n");
}

/** Three significant digits, thousands as k: "98.1k", "1234" as "1.23k", "0.95". */
export function short(value: number): string {
	if (value >= 99_950) return `${(value / 1000).toFixed(0)}k`;
	if (value >= 9_995) return `${(value / 1000).toFixed(1)}k`;
	if (value >= 1_000) return `${(value / 1000).toFixed(2)}k`;
	if (value >= 99.95) return value.toFixed(0);
	return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

const figure = ({ unit }: Workload, sample: Sample): number =>
	unit === "IOPS" ? sample.operationsPerSecond : sample.bytesPerSecond / 2 ** 20;

const NONE = "–";
const median = (spread: Spread | undefined): string => (spread === undefined ? NONE : short(spread.median));
const ends = (spread: Spread | undefined): string =>
	spread === undefined ? NONE : `${short(spread.min)}–${short(spread.max)}`;

export interface Measured {
	readonly workloads: readonly Workload[];
	readonly peers: readonly Peer[];
	readonly samples: readonly Sample[];
}

/** A row for each workload and a column for each peer, behind a column of units where there are any. */
function perPeer(
	{ workloads, peers }: Pick<Measured, "workloads" | "peers">,
	cell: (workload: Workload, peer: PeerId) => string,
	unit?: (workload: Workload) => string,
): string {
	return table([
		["", ...(unit === undefined ? [] : [""]), ...peers.map(({ title }) => title)],
		...workloads.map((workload) => [
			workload.title,
			...(unit === undefined ? [] : [unit(workload)]),
			...peers.map(({ id }) => cell(workload, id)),
		]),
	]);
}

/** Each peer's throughput, in each workload's unit. */
const inUnits = (measured: Measured, show: (spread: Spread | undefined) => string): string =>
	perPeer(
		measured,
		(workload, peer) => show(spreadOver(measured.samples, workload.id, peer, (sample) => figure(workload, sample))),
		({ unit }) => unit,
	);

/** The main table: medians of all peers side by side. */
export const throughputTable = (measured: Measured): string => inUnits(measured, median);

/** Lowest and highest round of each peer. */
export const spreadTable = (measured: Measured): string => inUnits(measured, ends);

/** vmsweep's throughput divided by each peer's; where that has a target, `+` says reached and `-` missed. */
export function ratioTable({ workloads, peers, samples }: Measured, targets: readonly Target[]): string {
	const others = peers.filter(({ id }) => !isOurs(id));
	const ours: PeerId = peers.some(({ id }) => id === "vmsweep") ? "vmsweep" : "vmsweep-off";
	return table([
		["", ...others.map(({ title }) => `:${title}`)],
		...workloads.map(({ id, title }) => [
			title,
			...others.map((peer) => {
				const ratio = median(ratioOf(samples, id, { ours, peer: peer.id }));
				const ofCell = targets.filter(
					({ workload, figure, peer: against }) => workload === id && figure === "throughput" && against === peer.id,
				);
				if (ofCell.length === 0) return `${ratio} `;
				return `${ratio}${ofCell.every(({ reached }) => reached) ? "+" : "-"}`;
			}),
		]),
	]);
}

const nameOf = ({ peer, best }: Target): string => (best ? `best (${peer})` : peer);
const verdict = ({ reached }: Target): string => (reached ? "yes" : "NO");

/** Processor seconds of each server for 100,000 operations and for 10^9 bytes. */
export const cpuTable = (measured: Measured): string =>
	perPeer(measured, ({ id }, peer) => {
		const [operations, bytes] = [cpuPer100k, cpuPerGb].map((one) => spreadOver(measured.samples, id, peer, one));
		return operations === undefined ? NONE : `${median(operations)} ${median(bytes)}`;
	});

/** Processors that the server and the client kept busy: at the machine's count, neither could go faster. */
export const coresTable = (measured: Measured): string =>
	perPeer(measured, ({ id }, peer) => {
		const [server, client] = [serverCores, clientCores].map((one) => spreadOver(measured.samples, id, peer, one));
		return server === undefined ? NONE : `${server.median.toFixed(2)}+${client!.median.toFixed(2)}`;
	});

/** Latencies of workloads that don't go to the limit, or have one request in flight: 50, 99 and 99.9 % in microseconds. */
export function latencyTable(measured: Measured): string | undefined {
	const workloads = measured.workloads.filter(
		({ depth, connections, operationsPerSecondMax }) =>
			(depth === 1 && connections === undefined) || operationsPerSecondMax !== undefined,
	);
	if (workloads.length === 0) return undefined;
	return perPeer({ ...measured, workloads }, ({ id }, peer) => {
		const all = [50, 99, 99.9].map((percent) =>
			spreadOver(measured.samples, id, peer, (sample) => 1000 * latencyOf(sample, percent)),
		);
		return all[0] === undefined ? NONE : all.map((one) => one!.median.toFixed(0)).join("/");
	});
}

const latencyOf = ({ latencyMsP50, latencyMsP99, latencyMsP999 }: Sample, percent: number): number =>
	percent === 50 ? latencyMsP50 : percent === 99 ? latencyMsP99 : latencyMsP999;

/** What would make a row say something else than its title; nothing where all is as it should be. */
export function doubts({ workloads, samples }: Measured): string[] {
	return workloads.flatMap(({ id, title, state, blockBytes }) => {
		const ours = samples.filter(({ workload }) => workload === id);
		if (state === "cold") {
			const warm = ours.filter((sample) => sample.storageReadBytes < (sample.operations * blockBytes) / 2);
			return [...new Set(warm.map(({ peer }) => peer))].map(
				(peer) => `${title}: under half of what ${peer} answered came from storage, the rest from memory`,
			);
		}
		if (state === "cleaning" && ours.some(({ peer, movedBytes }) => peer === "vmsweep" && movedBytes === 0))
			return [`${title}: there is a round in which the cleaner moved nothing`];
		return [];
	});
}

/** Each target with what was reached. */
export function targetTable(targets: readonly Target[]): string {
	const anyCleanOff = targets.some(({ ratioCleanOff }) => ratioCleanOff !== undefined);
	return table([
		["", "", "against", "target", "reached", "min–max", ...(anyCleanOff ? ["clean off"] : []), ""],
		...targets.map((target) => [
			target.title,
			target.figure,
			nameOf(target),
			`${target.bound === "at least" ? ">=" : "<="} ${target.goal}`,
			short(target.ratio.median),
			ends(target.ratio),
			...(anyCleanOff ? [median(target.ratioCleanOff)] : []),
			verdict(target),
		]),
	]);
}

/** Memory: resident, and with shared pages divided among those who share them. */
export const memoryTable = (findings: readonly MemoryFinding[]): string =>
	table([
		["", "resident", "proportional", "target", ""],
		...findings.map((finding) => [
			finding.title,
			`${finding.extrapolated ? "about " : ""}${formatBytes(finding.residentBytes)}`,
			finding.proportionalBytes === undefined ? NONE : formatBytes(finding.proportionalBytes),
			finding.maxBytes === undefined ? NONE : `< ${formatBytes(finding.maxBytes)}`,
			memoryVerdict(finding),
		]),
	]);

function memoryVerdict({ residentBytes, maxBytes, extrapolated }: MemoryFinding): string {
	if (maxBytes === undefined) return "";
	if (extrapolated) return "only --full can tell";
	return residentBytes < maxBytes ? "yes" : "NO";
}
