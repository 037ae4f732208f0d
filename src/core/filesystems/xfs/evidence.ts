// Evidence: when has a log moved on far enough for what was written at some position (live-safety X2)?
//
//   view at p ──▶ | 8 records that may have been under way | 17 commits in the records behind them | ──▶ settled: p
//
// A block written before p belongs to a transaction that was at least in the guest's memory at p. From there it has two
// ways to the disk. Either it was copied to one of the buffers that are written as records, of which there are eight: they
// are on the disk once the log is eight records longer. Or it still waits in a checkpoint that is to be copied, of which
// the guest makes at most some at once, and whose commits come strictly in order: so many commits later it is through.
// Commits alone don't prove it, since one record may hold dozens of them (22 were measured).

import type { LogPosition } from "../../../foundations/units.ts";
import { LOG_RECORDS_IN_FLIGHT } from "./layout.ts";

/** Checkpoints that are being copied to the log at once: 4 per processor node in older kernels, 4 in all in newer ones. */
const CHECKPOINTS_IN_FLIGHT = 16;
/** Bounds memory for a guest whose log grows without any commit: older views are forgotten then. */
const RECORDS_REMEMBERED = 1 << 16;

/** How much must follow. Other numbers than the rule's are for tests that must fail. */
export interface EvidenceWanted {
	readonly records: number;
	readonly commits: number;
}

/** Those, and the one that was being filled. */
export const COMMITS_WANTED = CHECKPOINTS_IN_FLIGHT + 1;
const THE_RULE: EvidenceWanted = { records: LOG_RECORDS_IN_FLIGHT, commits: COMMITS_WANTED };

export class LogEvidence {
	readonly #wanted: EvidenceWanted;
	/** Commits in all records up to each one; the first entry is what was before record `#firstRecord`. */
	#commitsThrough: number[] = [0];
	#firstRecord = 0;
	/** Views that wait, oldest first: where they ended, and how many records the log had then. */
	readonly #views: { position: LogPosition; records: number }[] = [];
	#settled: LogPosition | null = null;

	constructor(wanted: EvidenceWanted = THE_RULE) {
		this.#wanted = wanted;
	}

	/** Records so far. */
	get records(): number {
		return this.#firstRecord + this.#commitsThrough.length - 1;
	}
	/** Commits so far. */
	get commits(): number {
		return this.#commitsThrough.at(-1)!;
	}
	/** Blocks whose last write is older than this have settled; null as long as none has. */
	get settled(): LogPosition | null {
		return this.#settled;
	}
	/** What must still follow for the oldest view that waits; null where none does. */
	get missing(): EvidenceWanted | null {
		const oldest = this.#views[0];
		if (oldest === undefined) return null;
		const records = Math.max(0, oldest.records + this.#wanted.records - this.records);
		return { records, commits: this.#wanted.commits - (this.#commitsBehind(oldest.records) ?? 0) };
	}

	get wantedCommits(): number {
		return this.#wanted.commits;
	}

	/** Of the commits that a block last written at `position` needs, how many are there. */
	commitsFor(position: LogPosition): number {
		if (this.#settled !== null && position < this.#settled) return this.#wanted.commits;
		const view = this.#views.find((each) => position < each.position);
		return view === undefined ? 0 : Math.min(this.#wanted.commits, this.#commitsBehind(view.records) ?? 0);
	}

	/** The log has one more record, which holds this many commits. */
	addRecord(commits: number): void {
		this.#commitsThrough.push(this.commits + commits);
	}

	/** A view that ends at `position` shows all records so far, and no more. */
	addView(position: LogPosition): void {
		const newest = this.#views.at(-1);
		if (newest?.records === this.records) newest.position = position;
		else this.#views.push({ position, records: this.records });
		while (this.#views.length > 0 && this.#hasSettled(this.#views[0]!.records))
			this.#settled = this.#views.shift()!.position;
		while (this.#views.length > 1 && this.records - this.#views[0]!.records > RECORDS_REMEMBERED) this.#views.shift();
		this.#forgetRecords(this.#views[0]?.records ?? this.records);
	}

	#hasSettled(records: number): boolean {
		const commits = this.#commitsBehind(records);
		return commits !== null && commits >= this.#wanted.commits;
	}

	/** Commits in the records behind those that were under way at `records`; null while these haven't all come. */
	#commitsBehind(records: number): number | null {
		const through = records + this.#wanted.records;
		return through > this.records ? null : this.commits - this.#commitsThrough[through - this.#firstRecord]!;
	}

	#forgetRecords(before: number): void {
		// Not one by one, which would copy the list every time.
		if (before - this.#firstRecord < 1024) return;
		this.#commitsThrough = this.#commitsThrough.slice(before - this.#firstRecord);
		this.#firstRecord = before;
	}
}
