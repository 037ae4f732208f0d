// Commit chain: follows a journal that the guest is writing, and counts its commit records (live-safety E2, L6).
//
//   writes in log order ─▶ descriptor at the head? ─▶ … ─▶ commit where the tags say it must be ─▶ counted, head moves on
//                       ─▶ journal superblock: tail moved along the chain, or a jump
//
// Judged from what each write wrote, in order, never from what the journal holds now. Whatever does not follow
// (a commit of another sequence, at another place, with a wrong checksum; a journal superblock that jumps) breaks the
// chain: the incarnation ends, and with it all evidence. Transaction numbers are only compared for "the next one";
// nothing is computed from their distance, since kernels skip some at every mount.
//
// Beside counting, the chain knows which structure blocks (superblock, descriptors, bitmaps) the journal holds in a
// newer version than their home place, so that a view at the newest commit can be read without walking the journal.

import { crc32c } from "../../../foundations/crc.ts";
import { isVmsweepError } from "../../../foundations/errors.ts";
import type { LogPosition } from "../../../foundations/units.ts";
import type { LoggedBlock, Replay } from "./journal.ts";
import type { JournalInfo, LoggedTag } from "./journal-blocks.ts";
import {
	controlHeader,
	isCommitChecksumRight,
	isTailChecksumRight,
	nextSequence,
	parseJournalSuperblock,
	parseRevoked,
	parseTags,
	ringStep,
	sequenceDifference,
} from "./journal-blocks.ts";
import type { JournalFile } from "./journal-file.ts";
import { BLOCK_COMMIT, BLOCK_DESCRIPTOR, BLOCK_REVOKE } from "./layout.ts";

/** A commit record as it was written. */
export interface Commit {
	readonly sequence: number;
	/** Its journal block. */
	readonly at: number;
	/** Log position of the first slot of its write. */
	readonly position: LogPosition;
	/** Log position right after its write. */
	readonly end: LogPosition;
}

type Control =
	| { readonly kind: "descriptor"; readonly tags: readonly LoggedTag[] }
	| { readonly kind: "revoke"; readonly revoked: readonly number[] };

/** More commits are never needed: two for the rule, a third for tests that break it. */
const COMMITS_KEPT = 4;

export class CommitChain {
	#info: JournalInfo;
	readonly #file: JournalFile;
	readonly #isStructure: (block: number) => boolean;
	/** Where the next transaction starts; null where the chain is broken, until a view anchors it again. */
	#head: { position: number; sequence: number } | null = null;
	/** Control blocks of the transaction at the head, by journal block. */
	readonly #pending = new Map<number, Control>();
	/** Which of the blocks that the pending descriptors announce are structure blocks, by journal block. */
	readonly #announced = new Map<number, boolean>();
	/**
	 * Checksums of those structure blocks' contents, by journal block; and of blocks that came before their descriptor, as
	 * they do where the journal lies in stripes.
	 */
	readonly #sums = new Map<number, number>();
	/** Transactions from the tail on. */
	#transactions: { sequence: number; start: number }[] = [];
	#commits: Commit[] = [];
	#lastCandidate: Commit | null = null;
	#incarnation = 1;
	#brokenBecause = "no commit of the guest was seen yet";

	/** Structure blocks whose newest content is in the journal. */
	readonly logged = new Map<number, LoggedBlock>();
	/** Structure blocks that transactions changed since this was last cleared. */
	readonly touched = new Set<number>();
	/** Checksum of the newest committed content of structure blocks, as far as it was seen. */
	readonly contentSums = new Map<number, number>();

	constructor(info: JournalInfo, file: JournalFile, isStructure: (block: number) => boolean) {
		this.#info = info;
		this.#file = file;
		this.#isStructure = isStructure;
	}

	get info(): JournalInfo {
		return this.#info;
	}
	get incarnation(): number {
		return this.#incarnation;
	}
	/** Commits counted in this incarnation, newest last; only the last few are kept. */
	get commits(): readonly Commit[] {
		return this.#commits;
	}
	/** The newest write that looked like a commit record, counted or not. */
	get lastCandidate(): Commit | null {
		return this.#lastCandidate;
	}
	get head(): { readonly position: number; readonly sequence: number } | null {
		return this.#head;
	}
	/** Why the incarnation began. */
	get brokenBecause(): string {
		return this.#brokenBecause;
	}

	/** Ends the incarnation: evidence so far counts no more, and only a view can anchor the chain again. */
	break(why: string): void {
		if (this.#head !== null || this.#commits.length > 0) this.#restart(null, why);
		else this.#brokenBecause = why;
	}

	#restart(head: { position: number; sequence: number } | null, why: string): void {
		this.#incarnation++;
		this.#brokenBecause = why;
		this.#head = head;
		this.#commits = [];
		this.#transactions = [];
		this.logged.clear();
		this.#forgetTransaction();
	}

	#forgetTransaction(): void {
		this.#pending.clear();
		this.#announced.clear();
		this.#sums.clear();
	}

	/**
	 * Takes up the chain where a scan of the journal ended. `counted` is the commit that the scanned view ends with,
	 * null where the view ends elsewhere. `sums` are the contents of the scanned structure blocks.
	 */
	anchor(info: JournalInfo, replay: Replay, counted: Commit | null, sums: ReadonlyMap<number, number>): void {
		this.#info = info;
		this.#head = replay.next.position === 0 ? null : { ...replay.next };
		this.#forgetTransaction();
		this.#transactions = replay.transactions.map(({ sequence, start }) => ({ sequence, start }));
		this.logged.clear();
		for (const [block, logged] of replay.blocks) if (this.#isStructure(block)) this.logged.set(block, logged);
		for (const [block, sum] of sums) this.contentSums.set(block, sum);
		if (counted !== null && this.#commits.at(-1)?.end !== counted.end) this.#commits.push(counted);
	}

	/** Feeds a write to journal block `logical` and those behind it; `bytes` starts at that block's first byte. */
	feed(logical: number, bytes: Uint8Array, write: { position: LogPosition; end: LogPosition }): void {
		const size = this.#info.blockSize;
		for (let at = 0; at < bytes.length; at += size, logical++) {
			const block = bytes.subarray(at, at + size);
			if (logical === 0) this.#feedSuperblock(block);
			else if (block.length < size) this.feedPart(logical);
			else if (logical >= this.#info.first && logical < this.#info.end) this.#feedRing(logical, block, write);
		}
	}

	/** A write that covers a journal block only in part: jbd2 makes none, so nothing known about that block holds. */
	feedPart(logical: number): void {
		if (logical === 0) this.break("a part of the journal's superblock was overwritten");
		this.#pending.delete(logical);
		this.#sums.delete(logical);
	}

	#feedSuperblock(block: Uint8Array): void {
		let next: JournalInfo;
		try {
			next = parseJournalSuperblock(block, this.#info.blockSize, this.#file.blockCount);
		} catch (error) {
			if (!isVmsweepError(error)) throw error;
			this.break(error.message);
			return;
		}
		const before = this.#info;
		this.#info = next;
		const at = next.start === 0 ? null : { position: next.start, sequence: next.sequence };
		if (!isSameLayout(before, next)) {
			this.#restart(at, "the journal's layout or features were changed");
			return;
		}
		if (at === null) {
			// Everything was written home (unmount, freeze). A head that is known still holds if the same mount goes on.
			this.#transactions = [];
			this.logged.clear();
			return;
		}
		if (this.#head !== null && at.position === this.#head.position && at.sequence === this.#head.sequence)
			this.#transactions = [];
		else {
			const tail = this.#transactions.findIndex(
				({ sequence, start }) => sequence === at.sequence && start === at.position,
			);
			if (tail < 0) {
				this.#restart(at, "the file system was mounted again, or its journal was replaced");
				return;
			}
			this.#transactions.splice(0, tail);
		}
		for (const [home, logged] of this.logged)
			if (sequenceDifference(logged.sequence, at.sequence) < 0) this.logged.delete(home);
	}

	#feedRing(logical: number, block: Uint8Array, write: { position: LogPosition; end: LogPosition }): void {
		this.#pending.delete(logical);
		const header = controlHeader(block);
		const head = this.#head;
		if (header?.blockType === BLOCK_COMMIT) {
			const commit = { sequence: header.sequence, at: logical, position: write.position, end: write.end };
			this.#lastCandidate = commit;
			if (head !== null) this.#feedCommit(commit, block);
			return;
		}
		const isStructure = this.#announced.get(logical) ?? (head !== null && header === null);
		if (isStructure) this.#sums.set(logical, crc32c(0, block));
		if (head === null || header === null || header.sequence !== head.sequence) return;
		if (header.blockType === BLOCK_DESCRIPTOR && isTailChecksumRight(block, this.#info)) {
			const tags = parseTags(block, this.#info);
			this.#pending.set(logical, { kind: "descriptor", tags });
			for (const [index, tag] of tags.entries())
				this.#announced.set(ringStep(this.#info, logical, 1 + index), this.#isStructure(tag.block));
		} else if (header.blockType === BLOCK_REVOKE && isTailChecksumRight(block, this.#info)) {
			try {
				const revoked = parseRevoked(block, this.#info).filter(this.#isStructure);
				this.#pending.set(logical, { kind: "revoke", revoked });
			} catch (error) {
				if (!isVmsweepError(error)) throw error;
			}
		}
	}

	#feedCommit(commit: Commit, block: Uint8Array): void {
		const head = this.#head!;
		if (commit.sequence !== head.sequence) {
			this.break(`commit ${commit.sequence} does not follow; ${head.sequence} was expected`);
			return;
		}
		if (!isCommitChecksumRight(block, this.#info)) {
			this.break(`commit ${commit.sequence} has a wrong checksum`);
			return;
		}
		const controls = this.#walk(head.position, commit.at);
		if (controls === null) {
			this.break(`commit ${commit.sequence} does not stand where its transaction ends`);
			return;
		}
		for (const { at, control } of controls)
			if (control.kind === "descriptor")
				for (const [index, tag] of control.tags.entries())
					if (this.#isStructure(tag.block)) this.#log(tag, ringStep(this.#info, at, 1 + index), commit.sequence);
		// A revoke cancels what its own and all earlier transactions logged, so it comes last.
		for (const { control } of controls)
			if (control.kind === "revoke")
				for (const home of control.revoked) {
					this.logged.delete(home);
					this.touched.add(home);
				}
		this.#transactions.push({ sequence: commit.sequence, start: head.position });
		this.#head = { position: ringStep(this.#info, commit.at, 1), sequence: nextSequence(commit.sequence) };
		this.#forgetTransaction();
		this.#commits.push(commit);
		if (this.#commits.length > COMMITS_KEPT) this.#commits.shift();
	}

	#log(tag: LoggedTag, logical: number, sequence: number): void {
		const { physical } = this.#file.locate(logical);
		this.logged.set(tag.block, { logical, physical, sequence, escaped: tag.escaped });
		this.touched.add(tag.block);
		const sum = tag.escaped ? undefined : this.#sums.get(logical);
		if (sum === undefined) this.contentSums.delete(tag.block);
		else this.contentSums.set(tag.block, sum);
	}

	/** The control blocks from the transaction's start to its commit block, or null where they don't lead there. */
	#walk(start: number, commitAt: number): { at: number; control: Control }[] | null {
		const found: { at: number; control: Control }[] = [];
		const ringLength = this.#info.end - this.#info.first;
		for (let length = 0; length < ringLength; ) {
			const at = ringStep(this.#info, start, length);
			if (at === commitAt) return found;
			const control = this.#pending.get(at);
			if (control === undefined) return null;
			found.push({ at, control });
			length += control.kind === "descriptor" ? 1 + control.tags.length : 1;
		}
		return null;
	}
}

function isSameLayout(a: JournalInfo, b: JournalInfo): boolean {
	return (
		a.blockCount === b.blockCount &&
		a.first === b.first &&
		a.end === b.end &&
		a.has.checksum === b.has.checksum &&
		a.has.is64Bit === b.has.is64Bit &&
		a.has.asyncCommit === b.has.asyncCommit &&
		a.has.transactionChecksum === b.has.transactionChecksum &&
		a.has.fastCommit === b.has.fastCommit &&
		a.uuid.every((byte, at) => byte === b.uuid[at])
	);
}
