// Log chain: follows the log that a guest is writing, from view to view.
//
//   anchored at the log's head in some view ─▶ next view: the records that came since, one behind the other
//        └▶ transactions ─▶ changed metadata blocks (overlay), groups whose free space changed
//        └▶ records and commits, counted                        (live-safety X2)
//
// A record counts once it is whole and all before it are: checksum, position, the place of the one before. Between views
// only the places of the guest's writes to the log are known; they must lie where the next records belong, else somebody
// else wrote there, or the log went round meanwhile, and the chain is broken.

import { isVmsweepError } from "../../../foundations/errors.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import type { LogPosition } from "../../../foundations/units.ts";
import { type EvidenceWanted, LogEvidence } from "./evidence.ts";
import { BASIC_BLOCK, KIND_AGF, KIND_SUPERBLOCK, LOG_RECORD_MAX_BYTES, LOG_RECORDS_IN_FLIGHT } from "./layout.ts";
import { headLsnAfter, type LogEnds } from "./log-ends.ts";
import { type LogRecord, LogRing, lsnCycle, lsnSector, readWholeRecord } from "./log-records.ts";
import { TransactionReader } from "./log-transactions.ts";
import type { Overlay } from "./metadata-view.ts";
import type { Geometry, LogPlace } from "./open.ts";
import { LogReplay, replayLog } from "./recover.ts";

/**
 * Sectors behind the head that may be written before the record at the head is whole: the records under way, and as
 * much again, which a mount stamps (`xlog_clear_stale_blocks`).
 */
const WINDOW = 2 * LOG_RECORDS_IN_FLIGHT * (LOG_RECORD_MAX_BYTES / BASIC_BLOCK + 9);
/** Writes may be widened to whole 4 KiB blocks by whatever lies between the guest and here. */
const WIDENED = 4096 / BASIC_BLOCK;
/** A quiet guest logs a few sectors between two views. */
const AHEAD_SECTORS = 64;
/** Sectors of the log that were written since the last view; in order, each from its first to behind its last. */
export type LogWrites = readonly { readonly from: number; readonly to: number }[];

/** What the records that came since the last view changed. */
export interface LogProgress {
	/** Groups whose free space was changed. */
	readonly groups: ReadonlySet<number>;
	readonly isSuperblockChanged: boolean;
}

export class LogChain {
	readonly #geometry: Geometry;
	readonly #place: LogPlace;
	readonly #transactions = new TransactionReader();
	readonly #replay: LogReplay;
	readonly #evidence: LogEvidence;
	#headLsn: bigint;
	/** First sector of the newest record, where it is known. */
	#previous: number | null = null;
	/** Sectors written since the last record that became whole. */
	#waitingSectors = 0;

	private constructor(geometry: Geometry, place: LogPlace, { headLsn }: LogEnds, wanted?: EvidenceWanted) {
		this.#geometry = geometry;
		this.#place = place;
		this.#replay = new LogReplay(geometry);
		this.#evidence = new LogEvidence(wanted);
		this.#headLsn = headLsn;
	}

	/** Takes up the log as it ends in `volume`. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED where it can't be replayed. */
	static async anchor(
		volume: ByteSource,
		geometry: Geometry,
		place: LogPlace,
		ends: LogEnds,
		wanted?: EvidenceWanted,
	): Promise<LogChain> {
		const chain = new LogChain(geometry, place, ends, wanted);
		const ring = new LogRing(volume, place);
		if (!ends.clean) await replayLog(volume, geometry, ring, ends, chain.#transactions, chain.#replay);
		return chain;
	}

	/** Where the next record goes. */
	get headLsn(): bigint {
		return this.#headLsn;
	}
	/** Counts from the anchor on. */
	get evidence(): LogEvidence {
		return this.#evidence;
	}
	/** What the log changes in the newest view. */
	overlay(): Overlay {
		return this.#replay.overlay();
	}

	/**
	 * Goes on with the records that `volume` has beyond the last view's; it ends at `position`, and `writes` are the log's since.
	 * Returns why the chain is broken where it is. Throws VOLUME_DAMAGED where a record is not as the format says.
	 */
	async extend(volume: ByteSource, position: LogPosition, writes: LogWrites): Promise<LogProgress | string> {
		const ring = new LogRing(volume, this.#place, AHEAD_SECTORS);
		const groups = new Set<number>();
		let isSuperblockChanged = false;
		const before = lsnSector(this.#headLsn);
		let advanced = 0;
		for (;;) {
			const next = { sector: lsnSector(this.#headLsn), cycle: lsnCycle(this.#headLsn) };
			const found = await readWholeRecord(ring, this.#geometry.logUuid, next, ring.length - advanced - 1);
			if (isVmsweepError(found)) break;
			const { record, data } = found;
			if (this.#previous !== null && record.previousSector !== this.#previous)
				return `the log's record at sector ${record.sector} doesn't follow on the one before`;
			let commits = 0;
			for (const transaction of this.#transactions.feed(record.lsn, data, record.operationCount)) {
				commits++;
				for (const { kind, at, isCancel } of transaction.changes) {
					if (kind === KIND_AGF && !isCancel) groups.add(this.#groupAt(at));
					if (kind === KIND_SUPERBLOCK) isSuperblockChanged = true;
				}
				await this.#replay.apply(volume, transaction);
			}
			this.#take(ring, record, commits);
			advanced += record.sectors;
		}
		const broken = this.#judgeWrites(ring, before, advanced, writes);
		if (broken !== null) return broken;
		this.#evidence.addView(position);
		return { groups, isSuperblockChanged };
	}

	#take(ring: LogRing, record: LogRecord, commits: number): void {
		this.#evidence.addRecord(commits);
		this.#replay.forgetBefore(record.tailLsn);
		this.#previous = record.sector;
		this.#headLsn = headLsnAfter(ring, record);
	}

	#groupAt(at: number): number {
		return Math.floor(at / (this.#geometry.agBlocks * this.#geometry.blockSize));
	}

	/** Do all writes lie where the records since sector `before` are, or the next ones will be? Returns why not. */
	#judgeWrites(ring: LogRing, before: number, advanced: number, writes: LogWrites): string | null {
		const room = WIDENED + advanced + WINDOW;
		let written = 0;
		for (const { from, to } of writes) {
			const start = ring.distance(before - WIDENED, from);
			if (start + (to - from) > room && ring.length > room)
				return "its log was written where no record belongs, or went round too fast to be followed";
			written += to - from;
		}
		this.#waitingSectors = advanced > 0 ? 0 : this.#waitingSectors + written;
		return this.#waitingSectors > WINDOW ? "its log goes on elsewhere than was expected" : null;
	}
}
