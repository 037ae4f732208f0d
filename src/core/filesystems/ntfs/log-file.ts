// $LogFile: was the volume let go of cleanly, and did Windows keep nothing of it in memory?
//
//   | restart page | restart page | log records … |        all 0xff: emptied by a driver that does not keep a log
//   0              page size
//
// The newer of the two restart pages counts. Records of the log are not read: their format is Windows' own, so a volume
// whose log is in use is kept whole. Version 2.0 of the log is what Windows 8 and later use while a volume is
// mounted; a clean unmount goes back to 1.1. So 2.0 means a crash, or fast startup, where Windows keeps the volume in
// its hibernation file (ntfs-3g, "Metadata kept in Windows cache").

import { viewOf } from "../../../foundations/struct.ts";
import { isPowerOfTwo } from "../../../foundations/units.ts";
import type { Content, Files } from "./files.ts";
import { DATA } from "./files.ts";
import {
	MAGIC_CHECKED,
	MAGIC_RESTART,
	NO_CLIENT,
	RESTART_CLEAN,
	RestartArea,
	RestartPage,
	SystemFile,
} from "./layout.ts";
import { damaged } from "./open.ts";
import { applyFixups } from "./records.ts";

/** An emptied log is looked at this far. */
const EMPTY_BYTES = 64 << 10;
const MAX_PAGE_SIZE = 64 << 10;

/** What the log says of how the volume was left. */
export type LogState =
	/** Closed by a clean unmount. */
	| { readonly kind: "closed" }
	/** A driver without a log emptied it: it says nothing. */
	| { readonly kind: "emptied" }
	/** Why the volume can't be believed, in one sentence. */
	| { readonly kind: "open"; readonly why: string };

/** Reads the log's state. Throws VOLUME_DAMAGED. */
export async function readLogState(files: Files): Promise<LogState> {
	const log = await files.content(await files.record(SystemFile.logFile), DATA);
	if (log === null || !log.plain || log.size < 2 * MAX_PAGE_SIZE || log.initializedSize !== log.size)
		return { kind: "open", why: "its $LogFile is damaged; run chkdsk in the guest" };
	const start = await files.read(log, 0, EMPTY_BYTES);
	if (start.every((byte) => byte === 0xff)) return { kind: "emptied" };
	const why = await whyOpen(files, log, start);
	return why === null ? { kind: "closed" } : { kind: "open", why };
}

async function whyOpen(files: Files, log: Content, start: Uint8Array): Promise<string | null> {
	const first = parse(start, start.length);
	if (first === null) return "its $LogFile is not understood; start the guest and shut it down cleanly";
	const second = await secondPage(files, log, first.pageSize);
	if (second === null) return "its $LogFile was cut off in the middle; start the guest and shut it down cleanly";
	// Where both are of the same moment, both must say that all is well.
	const newest = [first, second].filter(({ lsn }) => lsn >= Math.max(first.lsn, second.lsn));
	if (newest.some(({ version }) => version === "2.0"))
		return "Windows crashed, or keeps parts of it in memory for fast startup; shut it down with `shutdown /s /f /t 0`";
	if (newest.some(({ version }) => version !== "1.1")) return `its $LogFile has version ${newest[0]!.version}`;
	if (newest.some(({ clean }) => !clean))
		return "it was not unmounted cleanly; start the guest and shut it down cleanly";
	return null;
}

interface Restart {
	readonly pageSize: number;
	readonly version: string;
	readonly clean: boolean;
	readonly lsn: number;
}

async function secondPage(files: Files, log: Content, pageSize: number): Promise<Restart | null> {
	const raw = await files.read(log, pageSize, pageSize);
	const page = parse(raw, pageSize);
	return page?.pageSize === pageSize ? page : null;
}

/** The restart page at the start of `raw`, or null where it is torn or makes no sense. */
function parse(raw: Uint8Array, limit: number): Restart | null {
	const { magic, systemPageSize, fixupCount } = RestartPage.at(viewOf(raw));
	if (magic !== MAGIC_RESTART && magic !== MAGIC_CHECKED) return null;
	if (!isPowerOfTwo(systemPageSize) || systemPageSize < 512 || systemPageSize > limit) return null;
	const page = raw.slice(0, systemPageSize);
	// chkdsk may leave its pages without fixups.
	if (!(magic === MAGIC_CHECKED && fixupCount === 0) && !applyFixups(page, magic)) return null;
	const view = viewOf(page);
	const { restartArea, checkedLsn, majorVersion, minorVersion } = RestartPage.at(view);
	if (restartArea % 8 !== 0 || restartArea < RestartPage.size || restartArea + RestartArea.size > page.length)
		return null;
	const { clientsInUse, clientCount, flags, length, currentLsn } = RestartArea.at(view, restartArea);
	if (restartArea + length > page.length || (clientsInUse !== NO_CLIENT && clientsInUse >= clientCount)) return null;
	return {
		pageSize: systemPageSize,
		version: `${majorVersion}.${minorVersion}`,
		clean: clientsInUse === NO_CLIENT || (flags & RESTART_CLEAN) !== 0,
		lsn: magic === MAGIC_CHECKED ? checkedLsn : currentLsn,
	};
}

/** Throws VOLUME_DAMAGED unless the first records and their copy in $MFTMirr are equal. */
export async function checkMirror(files: Files): Promise<void> {
	const { recordSize, mftMirrorCluster } = files.geometry;
	const mirror = await files.content(await files.record(SystemFile.mftMirror), DATA);
	if (mirror?.where.kind !== "runs" || mirror.where.runs.locate(0)?.cluster !== mftMirrorCluster)
		throw damaged("its boot sector and its MFT disagree on where $MFTMirr lies; run chkdsk in the guest");
	const length = 4 * recordSize;
	const [original, copy] = [await files.read(files.mft, 0, length), await files.read(mirror, 0, length)];
	if (!original.every((byte, index) => byte === copy[index]))
		throw damaged("the first records of its MFT and their copy in $MFTMirr differ; run chkdsk in the guest");
}
