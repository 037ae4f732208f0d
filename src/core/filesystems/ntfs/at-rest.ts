// NTFS at rest: Windows closes the log in $LogFile when it lets a volume go, and opens it before it changes anything.
// ntfs-3g and Linux's ntfs3 empty the log instead, and what they leave behind looks the same mounted and unmounted: such
// a volume is kept.

import { byteCount, byteOffset } from "../../../foundations/units.ts";
import type { AtRestKind } from "../at-rest.ts";
import { DATA, Files } from "./files.ts";
import { readNtfs } from "./index.ts";
import { SystemFile } from "./layout.ts";
import { readLogState } from "./log-file.ts";
import { parseBootSector, readBootSector } from "./open.ts";

/** Windows' pages have 4 KiB. Were they larger, the second would not be taken for a mark, and the volume kept. */
const RESTART_BYTES = 2 * 4096;

export const ntfsAtRest: AtRestKind = {
	type: "ntfs",
	whileMounted: "NTFS is cleaned when Windows has unmounted it; after ntfs-3g nothing on the disk shows that",
	async read(view) {
		const map = await readNtfs(view);
		if (map === null || map.kept !== null) return map;
		const raw = await readBootSector(view);
		const log = await readLogState(await Files.open(view, parseBootSector(raw!, view.size)));
		if (log.kind === "closed") return map;
		return { ...map, kept: "ntfs-3g has emptied its log, so nothing on the disk shows whether it is mounted" };
	},
	/** The two restart pages at the start of the log. */
	async marks(view) {
		const raw = await readBootSector(view);
		if (raw === null) return [];
		const files = await Files.open(view, parseBootSector(raw, view.size));
		const log = await files.content(await files.record(SystemFile.logFile), DATA);
		if (log?.where.kind !== "runs") return [];
		const { clusterSize } = files.geometry;
		const marks = new Map<number, number>();
		for (let at = 0; at < RESTART_BYTES; at += clusterSize) {
			const cluster = log.where.runs.locate(at / clusterSize)?.cluster;
			if (cluster != null) marks.set(cluster * clusterSize, clusterSize);
		}
		return [...marks].map(([start, length]) => ({ start: byteOffset(start), length: byteCount(length) }));
	},
	showsUnmount: true,
	marksMounts: true,
	neverReusesEarly: false,
};
