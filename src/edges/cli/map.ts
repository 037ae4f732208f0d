// vmsweep map IMAGE: what the guest uses, per volume. Changes nothing.

import { allVolumes, type VolumeMap } from "../../foundations/guest-map.ts";
import { formatBytes } from "../../foundations/units.ts";
import { type MappedImage, mapImage, mapReportJson } from "../../services/map-report.ts";
import { drawPicture, PICTURE_LEGEND } from "./disk-picture.ts";
import { formatTable, print, printAll, warn } from "./output.ts";
import { ProgressBar } from "./progress-bar.ts";

interface MapOptions {
	readonly json?: boolean;
	readonly extents?: boolean;
	readonly vmOff?: boolean;
}

export async function map(path: string, { json = false, extents = false, vmOff = false }: MapOptions): Promise<void> {
	await using image = await readWithBar(path, vmOff);
	if (json) {
		for (const warning of image.warnings) warn(`${path}: ${warning}`);
		await printAll(mapReportJson(image, { extents }));
		return;
	}
	await print(describe(image));
	if (extents) await printAll(extentLines(image));
}

async function readWithBar(path: string, vmOff: boolean): Promise<MappedImage> {
	using bar = new ProgressBar();
	bar.update({ step: `reading the guest's file systems on ${path}`, done: 0, total: null });
	return await mapImage(path, { vmOff });
}

function describe({ path, format, map, warnings }: MappedImage): string {
	const tables = { gpt: "GPT", mbr: "MBR", none: "no partition table" };
	const lines = [`${path}: ${format}, ${formatBytes(map.size)}, ${tables[map.table]}`];
	for (const warning of warnings) lines.push(`  warning: ${warning}`);
	const columns = Math.max(20, Math.min(process.stdout.columns || 80, 120) - 2);
	const picture = drawPicture(map.extents, map.size, columns);
	if (picture.length > 0) lines.push("", ...picture.map((row) => `  ${row}`), `  ${PICTURE_LEGEND}`, "");
	const rows = [["VOLUME", "TYPE", "LABEL", "STATE", "SIZE", "USED", "FREE"], ...volumeRows(map.volumes, 0)];
	const table = map.volumes.length > 0 ? formatTable(rows, [4, 5, 6]) : "  no volumes\n";
	const notes = [...allVolumes(map.volumes)].flatMap(({ id, kept, warnings: about }) => [
		...(kept === null ? [] : [`${id} is kept whole: ${kept}`]),
		...about.map((warning) => `${id}: ${warning}`),
	]);
	notes.push(`read ${formatBytes(map.bytesRead)} of metadata`);
	return `${lines.join("\n")}\n${table}${formatTable(notes.map((note) => [note]))}`;
}

/** A row for each volume; those inside another one stand below it, indented. */
const volumeRows = (volumes: readonly VolumeMap[], depth: number): string[][] =>
	volumes.flatMap((volume) => [volumeRow(volume, depth), ...volumeRows(volume.children, depth + 1)]);

const volumeRow = ({ id, type, label, state, size, usedBytes, freeBytes }: VolumeMap, depth: number): string[] => [
	"  ".repeat(depth) + id,
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
