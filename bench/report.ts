// The report: tables of plain text, 120 columns at most, that read the same on a terminal and in a file.

import type { Peer, PeerId } from "./peers.ts";
import { cpuPer100k, ratioOf, type Sample, type Spread, spreadOver, type Target } from "./statistics.ts";
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

/** The main table: medians of all peers side by side, then vmsweep's ratio to each of the others. */
export function throughputTable({ workloads, peers, samples }: Measured): string {
	const others = peers.filter(({ id }) => id !== "vmsweep" && id !== "vmsweep-off");
	const ours: PeerId = peers.some(({ id }) => id === "vmsweep") ? "vmsweep" : "vmsweep-off";
	return table([
		["", "", ...peers.map(({ title }) => title), "|", ...others.map(({ id }) => `:${id}`)],
		...workloads.map((workload) => [
			workload.title,
			workload.unit,
			...peers.map(({ id }) => median(spreadOver(samples, workload.id, id, (sample) => figure(workload, sample)))),
			"|",
			...others.map(({ id }) => ratioCell(workload, id, ratioOf(samples, workload.id, { ours, peer: id }))),
		]),
	]);
}

/** A ratio; where it has a target, `+` says reached and `-` missed. */
function ratioCell({ targets }: Workload, peer: PeerId, ratio: Spread | undefined): string {
	const goal = targets[peer];
	if (ratio === undefined || goal === undefined) return `${median(ratio)} `;
	return `${median(ratio)}${ratio.median >= goal ? "+" : "-"}`;
}

/** Lowest and highest round of each peer. */
export const spreadTable = ({ workloads, peers, samples }: Measured): string =>
	table([
		["", "", ...peers.map(({ title }) => title)],
		...workloads.map((workload) => [
			workload.title,
			workload.unit,
			...peers.map(({ id }) => ends(spreadOver(samples, workload.id, id, (sample) => figure(workload, sample)))),
		]),
	]);

/** Processor seconds of each server for 100,000 operations. */
export const cpuTable = ({ workloads, peers, samples }: Measured): string =>
	table([
		["", ...peers.map(({ title }) => title)],
		...workloads.map(({ id, title }) => [
			title,
			...peers.map((peer) => median(spreadOver(samples, id, peer.id, cpuPer100k))),
		]),
	]);

/** Each target with what was reached. */
export function targetTable(targets: readonly Target[]): string {
	const anyCleanOff = targets.some(({ ratioCleanOff }) => ratioCleanOff !== undefined);
	return table([
		["", "against", "target", "reached", "min–max", ...(anyCleanOff ? ["clean off"] : []), ""],
		...targets.map(({ title, peer, goal, ratio, ratioCleanOff, reached }) => [
			title,
			peer,
			`>= ${goal.toFixed(1)}`,
			short(ratio.median),
			ends(ratio),
			...(anyCleanOff ? [median(ratioCleanOff)] : []),
			reached ? "yes" : "NO",
		]),
	]);
}
