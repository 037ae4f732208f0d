// vmsweep map IMAGE: what the guest uses, per volume. Changes nothing.

import { Command } from "commander";
import type { VolumeMap } from "../../foundations/guest-map.ts";
import { formatBytes } from "../../foundations/units.ts";
import { type MappedImage, mapImage, mapReportJson } from "../../services/map-report.ts";
import { drawPicture, PICTURE_LEGEND } from "./disk-picture.ts";
import { formatTable, print, printAll, warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

export const mapCommand = (): Command =>
	new Command("map")
		.description("show what the guest uses of an image, per volume; changes nothing")
		.argument("<image>", "raw image or block device, not in use by a running VM")
		.option("--json", "print JSON")
		.option("--extents", "list every used, free and unknown extent of the disk")
		.action(map);

interface MapOptions {
	readonly json?: boolean;
	readonly extents?: boolean;
}

async function map(path: string, { json = false, extents = false }: MapOptions): Promise<void> {
	await using image = await readWithBar(path);
	if (json) {
		for (const warning of image.map.warnings) warn(`${path}: ${warning}`);
		await printAll(mapReportJson(image, { extents }));
		return;
	}
	await print(describe(image));
	if (extents) await printAll(extentLines(image));
}

async function readWithBar(path: string): Promise<MappedImage> {
	using bar = new ProgressBar();
	bar.update({ step: `reading the guest's file systems on ${path}`, done: 0, total: null });
	return await mapImage(path);
}

function describe({ path, format, map }: MappedImage): string {
	const tables = { gpt: "GPT", mbr: "MBR", none: "no partition table" };
	const lines = [`${path}: ${format}, ${formatBytes(map.size)}, ${tables[map.table]}`];
	for (const warning of map.warnings) lines.push(`  warning: ${warning}`);
	const columns = Math.max(20, Math.min(process.stdout.columns || 80, 120) - 2);
	const picture = drawPicture(map.extents, map.size, columns);
	if (picture.length > 0) lines.push("", ...picture.map((row) => `  ${row}`), `  ${PICTURE_LEGEND}`, "");
	const rows = [["VOLUME", "TYPE", "LABEL", "STATE", "SIZE", "USED", "FREE"], ...map.volumes.map(volumeRow)];
	const table = map.volumes.length > 0 ? formatTable(rows, [4, 5, 6]) : "  no volumes\n";
	const notes = map.volumes.flatMap(({ id, kept, warnings }) => [
		...(kept === null ? [] : [`${id} is kept whole: ${kept}`]),
		...warnings.map((warning) => `${id}: ${warning}`),
	]);
	return `${lines.join("\n")}\n${table}${formatTable(notes.map((note) => [note]))}`;
}

const volumeRow = ({ id, type, label, state, size, usedBytes, freeBytes }: VolumeMap): string[] => [
	id,
	type,
	label ?? "",
	state,
	formatBytes(size),
	usedBytes === null ? "?" : formatBytes(usedBytes),
	freeBytes === null ? "?" : formatBytes(freeBytes),
];

/** Lines gathered into one write. */
const LINES_PER_PIECE = 2048;

/** One line per extent: start, length, state, volume. */
function* extentLines({ map }: MappedImage): Generator<string> {
	yield "\n";
	let lines: string[] = [];
	for (const { start, length, state, volume } of map.extents) {
		lines.push(`${String(start).padStart(16)} ${String(length).padStart(16)}  ${state.padEnd(7)}  ${volume ?? "-"}\n`);
		if (lines.length < LINES_PER_PIECE) continue;
		yield lines.join("");
		lines = [];
	}
	yield lines.join("");
}
