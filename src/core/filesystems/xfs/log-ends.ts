// Ends of the log: where the next record would go (head), and how far back recovery must start (tail).
//
//   sector   0                      head              tail                 end
//   cycle    8 8 8 8 8 8 8 8 8 8 8 8 │ 7 7 7 7 7 7 7 7 │ 7 7 7 7 7 7 7 7 7
//            ◀──── to be replayed ──▶│◀ free or stale ▶ │◀─ to be replayed ─
//
// Kernels write up to eight records at once, so a crash may leave holes before the last sector of a cycle: whatever lies
// behind the first hole, or behind the first torn record among the last eight, does not count. A log that ends with an
// unmount record is clean, and finding that costs about twenty small reads. (`xlog_find_head`, `xlog_find_tail`.)
//
// Stricter than kernels where it is in doubt: every number of the last record must fit, and a log of zeros is refused.

import { VmsweepError } from "../../../foundations/errors.ts";
import type { VolumeState } from "../../../foundations/guest-map.ts";
import { viewOf } from "../../../foundations/struct.ts";
import {
	BASIC_BLOCK,
	LOG_RECORD_MAX_BYTES,
	LOG_RECORDS_IN_FLIGHT,
	LogOperation,
	LogRecordHeader,
	OP_UNMOUNT,
} from "./layout.ts";
import type { LogRecord, LogRing } from "./log-records.ts";
import {
	cycleAt,
	isRecordChecksumRight,
	isRecordHead,
	lsnCycle,
	lsnOf,
	lsnSector,
	parseRecordHead,
} from "./log-records.ts";
import type { Geometry } from "./open.ts";

/** How the log ends. */
export interface LogEnds {
	/** The last record is that of an unmount: nothing is to be replayed. */
	readonly clean: boolean;
	/** It was mounted again since, without a record yet: its memory may know more. */
	readonly mountedSince: boolean;
	/** First sector to replay; the head where there is none. */
	readonly tail: number;
	/** First sector behind the last whole record. */
	readonly head: number;
	/** Where the next record would go, as a log position. */
	readonly headLsn: bigint;
}

/** What a log's records must agree with. */
type LogKind = Pick<Geometry, "logUuid" | "isLogVersion2" | "version">;

/** What a log that ends like this says of the volume. */
export const stateOf = ({ clean, mountedSince }: LogEnds): VolumeState => (clean && !mountedSince ? "clean" : "dirty");

const damaged = (what: string): VmsweepError =>
	new VmsweepError("VOLUME_DAMAGED", `its log is damaged: ${what}; mount it in the guest, then try again`);

/** Sectors that a record may take, with room for the odd record that mkfs writes. */
const MAX_RECORD_SECTORS = LOG_RECORD_MAX_BYTES / BASIC_BLOCK + 9;

/** Finds both ends. Throws VOLUME_DAMAGED where the log doesn't look like one. */
export async function findLogEnds(ring: LogRing, kind: LogKind): Promise<LogEnds> {
	const guess = await findCycleEnd(ring);
	const unmounted = await lastRecord(ring, kind, guess.head);
	if (unmounted !== null && (await isUnmount(ring, unmounted))) return await cleanEnds(ring, unmounted);
	// Without checksums a log is either clean, or not to be believed: its ends are not looked for then.
	if (kind.version === 4) return { clean: false, mountedSince: true, tail: guess.head, head: guess.head, headLsn: 0n };

	let head = await skipHoles(ring, guess, kind);
	const partial = await recordBefore(ring, head);
	if (partial === null) throw damaged("no record comes before its end");
	const record = parseRecordHead(await ring.read(partial, 1), partial, kind.isLogVersion2);
	if (record === null || record.sectors !== ring.distance(partial, head)) head = partial;
	return await trimTorn(ring, kind, head);
}

interface CycleEnd {
	/** First sector that the newest cycle has not reached. */
	readonly head: number;
	/** The cycle of the sectors from there on. */
	readonly older: number;
	/** Are all sectors of one cycle? Then the head is the ring's end. */
	readonly isUniform: boolean;
}

/** Where cycle numbers fall, by halving: any such place where holes make more than one. */
async function findCycleEnd(ring: LogRing): Promise<CycleEnd> {
	const cycle = async (sector: number): Promise<number> => cycleAt(await ring.read(sector, 1), 0);
	const first = await cycle(0);
	const last = await cycle(ring.length - 1);
	if (first === 0) throw damaged("it is empty");
	if (first === last) return { head: ring.length, older: last - 1, isUniform: true };
	// One cycle apart, or two where the crash came between the writes of the ring's end and of its start.
	if (last > first || last < first - 2) throw damaged(`it starts with cycle ${first} and ends with ${last}`);
	let low = 0;
	let high = ring.length - 1;
	while (high - low > 1) {
		const middle = Math.floor((low + high) / 2);
		if ((await cycle(middle)) === last) high = middle;
		else low = middle;
	}
	return { head: high, older: last, isUniform: false };
}

/** Looks back as far as records may have been under way at once, and moves the head before the first hole. */
async function skipHoles(ring: LogRing, { head, older, isUniform }: CycleEnd, kind: LogKind): Promise<number> {
	const largest = kind.isLogVersion2 ? LOG_RECORD_MAX_BYTES : 32 << 10;
	const scan = (LOG_RECORDS_IN_FLIGHT * largest) / BASIC_BLOCK;
	const find = async (from: number, to: number, cycle: number): Promise<number | null> => {
		if (from >= to) return null;
		const bytes = await ring.read(from, to - from);
		for (let sector = from; sector < to; sector++)
			if (cycleAt(bytes, (sector - from) * BASIC_BLOCK) === cycle) return sector;
		return null;
	};
	const behind = Math.max(0, scan - head);
	// A log that was never written around has no older cycle at its end.
	if (behind > 0 && older !== 0 && !isUniform) {
		const hole = await find(Math.max(head, ring.length - behind), ring.length, older - 1);
		if (hole !== null) return hole;
	}
	return (await find(Math.max(0, head - scan), head, older)) ?? head;
}

/** Sector of the last record head before `head`, or null where there is none within a record's length. */
async function recordBefore(ring: LogRing, head: number): Promise<number | null> {
	let end = 0;
	for (const back of [8, 64, MAX_RECORD_SECTORS]) {
		const count = Math.min(back, ring.length) - end;
		if (count <= 0) return null;
		const first = head - end - count;
		const bytes = await ring.read(first, count);
		for (let i = count - 1; i >= 0; i--) if (isRecordHead(bytes, i * BASIC_BLOCK)) return ring.wrap(first + i);
		end += count;
	}
	return null;
}

/** The record that ends right before `head`, or null. */
async function lastRecord(ring: LogRing, kind: LogKind, head: number): Promise<LogRecord | null> {
	const sector = await recordBefore(ring, head);
	if (sector === null) return null;
	const record = parseRecordHead(await ring.read(sector, 1), sector, kind.isLogVersion2);
	if (record === null || record.sectors !== ring.distance(sector, head)) return null;
	return kind.logUuid.every((byte, at) => byte === record.uuid[at]) ? record : null;
}

/** Is it the one record that a clean unmount writes? mkfs.xfs and xfs_repair leave its checksum zero. */
async function isUnmount(ring: LogRing, record: LogRecord): Promise<boolean> {
	if (record.operationCount !== 1) return false;
	const bytes = await ring.read(record.sector, record.sectors);
	const flags = LogOperation.read.flags(viewOf(bytes), record.headSectors * BASIC_BLOCK);
	if ((flags & OP_UNMOUNT) === 0) return false;
	return record.checksum === 0 || isRecordChecksumRight(record, bytes);
}

/** Where the record behind `record` goes. */
export function headLsnAfter(ring: LogRing, record: LogRecord): bigint {
	const head = record.sector + record.sectors;
	return head >= ring.length ? lsnOf(record.cycle + 1, head - ring.length) : lsnOf(record.cycle, head);
}

async function cleanEnds(ring: LogRing, record: LogRecord): Promise<LogEnds> {
	const head = ring.wrap(record.sector + record.sectors);
	const mountedSince = await isStamped(ring, head, record);
	return { clean: true, mountedSince, tail: head, head, headLsn: headLsnAfter(ring, record) };
}

/** A mount stamps what lies behind the head with empty records that have the last one's tail (`xlog_clear_stale_blocks`). */
async function isStamped(ring: LogRing, head: number, { tailLsn }: LogRecord): Promise<boolean> {
	const bytes = await ring.read(head, 1);
	if (!isRecordHead(bytes, 0)) return false;
	const next = LogRecordHeader.at(viewOf(bytes));
	return next.length === 0 && next.operationCount === 0 && next.tailLsn === tailLsn;
}

/** Checks the last records, whose writes a crash may have torn; ends the log before the first bad one. */
async function trimTorn(ring: LogRing, kind: LogKind, head: number): Promise<LogEnds> {
	const sectors = await lastHeads(ring, kind, head);
	let good: LogRecord | null = null;
	for (const [index, sector] of sectors.entries()) {
		const next = sectors[index + 1] ?? head;
		const record = parseRecordHead(await ring.read(sector, 1), sector, kind.isLogVersion2);
		const isGood =
			record !== null &&
			record.sectors === ring.distance(sector, next) &&
			kind.logUuid.every((byte, at) => byte === record.uuid[at]) &&
			(await isWhole(ring, record));
		// The oldest of nine is only a fallback: its write had ended before the last one began.
		if (!isGood && (index > 0 || sectors.length <= LOG_RECORDS_IN_FLIGHT)) break;
		if (isGood) good = record;
	}
	if (good === null) throw damaged("none of its last records is whole");
	if (await isUnmount(ring, good)) return await cleanEnds(ring, good);
	const tail = lsnSector(good.tailLsn);
	const end = ring.wrap(good.sector + good.sectors);
	const cycles = good.cycle - lsnCycle(good.tailLsn);
	const isBehind = cycles === 0 ? tail <= good.sector : cycles === 1 && tail > good.sector;
	if (!isBehind || tail >= ring.length || tail === end) throw damaged(`its tail is sector ${tail}, its head ${end}`);
	return { clean: false, mountedSince: true, tail, head: end, headLsn: headLsnAfter(ring, good) };
}

/** Sectors of the last nine record heads before `head`, oldest first; none before the tail that the last one names. */
async function lastHeads(ring: LogRing, kind: LogKind, head: number): Promise<readonly number[]> {
	const sectors: number[] = [];
	let reach = ring.length;
	for (let end = head; sectors.length <= LOG_RECORDS_IN_FLIGHT; ) {
		const sector = await recordBefore(ring, end);
		if (sector === null) break;
		const back = ring.distance(sector, head);
		if (back > reach || back <= ring.distance(end, head)) break;
		if (sectors.length === 0) {
			const record = parseRecordHead(await ring.read(sector, 1), sector, kind.isLogVersion2);
			if (record === null) throw damaged(`the last record, at sector ${sector}, is none`);
			reach = ring.distance(lsnSector(record.tailLsn), head);
		}
		sectors.unshift(sector);
		end = sector;
	}
	return sectors;
}

async function isWhole(ring: LogRing, record: LogRecord): Promise<boolean> {
	const bytes = await ring.read(record.sector, record.sectors);
	return isRecordChecksumRight(record, bytes) || (record.checksum === 0 && (await isUnmount(ring, record)));
}
