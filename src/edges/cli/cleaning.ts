// What clean and commit print.

import { formatBytes } from "../../foundations/units.ts";
import type { CleanerCounters } from "../../services/clean/counters.ts";
import type { Progress } from "../../services/progress.ts";
import type { CleanReport } from "../../services/served-disk.ts";
import { formatTable } from "./output.ts";

/** Nobody knows before how much there is to clean, so the bar counts only. */
export const progressOfCleaning = (step: string, { droppedBytes, movedBytes }: CleanerCounters): Progress => ({
	step,
	done: droppedBytes + movedBytes,
	total: null,
});

/** A few lines: what was done, both images before and after, what waits in each volume. */
export function describeCleaning(path: string, report: CleanReport): string {
	const { droppedBytes, movedBytes, volumes } = report;
	const change = (before: number, after: number): string => `${formatBytes(before)} → ${formatBytes(after)}`;
	const rows = [
		["  first image", change(report.firstBytesBefore, report.firstBytesAfter)],
		["  second image", change(report.secondBytesBefore, report.secondBytesAfter)],
		...volumes.flatMap(({ id, type, phase, rule, waiting }) => {
			const note = phase === "kept" ? rule : waiting;
			return note === null ? [] : [[`  ${id}`, `${type}: ${note}`]];
		}),
	];
	return `${path}: dropped ${formatBytes(droppedBytes)}, moved ${formatBytes(movedBytes)}\n${formatTable(rows)}`;
}
