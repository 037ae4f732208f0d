// First image: the log that accumulates all guest writes of a disk, with its index. This is the door to
// the log; the parts behind it are
//
//   format      records in the file            segments   places, live counts, what may be freed
//   index-map   block ─▶ slot, with views      appender   staged writes ─▶ file ─▶ index
//   recovery    file ─▶ log                    flusher    durability, freeing
//   create      an empty log                   cleaning   compare and swap against a view
//   summary-reader  summaries, read back       scrub      data against its checksums
//   undo        what drops took away
//
// Synchronous and without allocation per write: the data plane's thread is its only user. No part of it
// reads a clock or draws lots, so that the crash simulation replays histories exactly.
//
// The promise. After any power cut the disk is a consistent prefix: every write that was committed before a completed
// flush began is there, and those after it survive in order up to some point, entry by entry. Writes that failed may be
// there, wholly or in part, or not.
//
// What the callers promise in return
//  - commit before reading: staged writes aren't in the index
//  - `moved` only for copies that are durable in the second image, and copy only slots below `durablePosition`: else
//    the second image would show, after a cut, a write that the log has lost
//  - `punched` only for runs that read as zeros, durably, in the second image
//  - one cleaner, which decides, moves and drops on one view at a time
//  - `holdFrom` right after opening, while drops can still be undone; and no punching of what it holds
//  - a slot read through `get` or `resolve` is read before anything else is called; one kept longer needs a view

import { assert, VmsweepError } from "../../foundations/errors.ts";
import type { BlockCount, ByteCount, ByteOffset, LogPosition } from "../../foundations/units.ts";
import {
	BLOCK_SIZE,
	blockCount,
	byteCount,
	byteOffset,
	divCeil,
	divFloor,
	logPosition,
} from "../../foundations/units.ts";
import { Appender, applyEntry } from "./appender.ts";
import {
	blocksWithin,
	checkRun,
	clearMoved,
	type LivePart,
	liveRunsOf,
	unchangedSince,
	undoableOf,
	zeroRunsOf,
} from "./cleaning.ts";
import { checkDiskBytes, placesWithin } from "./create.ts";
import { Flusher } from "./flusher.ts";
import { geometryOf, KIND_DATA, KIND_DROP, KIND_ZERO, offsetOfPlace, SEGMENTS_AT } from "./format.ts";
import type { HostFile, PinnedBytes } from "./host-file.ts";
import type { RunVisitor } from "./index-map.ts";
import { IndexMap, ZERO } from "./index-map.ts";
import { Recovery, readSuperblock } from "./recovery.ts";
import type { ScrubbedPart } from "./scrub.ts";
import { scrubSegment } from "./scrub.ts";
import { Segment, SegmentTable } from "./segments.ts";
import type { LogState, Safeguards } from "./state.ts";
import { ALL_SAFEGUARDS, headPosition, isHarmless } from "./state.ts";
import { type SummaryPart, SummaryReader } from "./summary-reader.ts";
import type { View } from "./view.ts";
import { LogView } from "./view.ts";

export type { LivePart } from "./cleaning.ts";
export { formatFirstImage } from "./create.ts";
export type { RunVisitor } from "./index-map.ts";
export { ABSENT, ZERO } from "./index-map.ts";
export type { ScrubbedPart } from "./scrub.ts";
export { UNDO_STRIDE } from "./undo.ts";
export type { View } from "./view.ts";

export interface OpenOptions {
	/** CRC-32 (IEEE, as zlib's) of all of `bytes`, as an unsigned number. */
	readonly checksum: (bytes: Uint8Array) => number;
	/** Memory that the log's own system calls gather from (summaries and headers), 4-byte aligned. */
	readonly allocatePinned: (length: number) => PinnedBytes;
	/** Refuses another disk's log with DISK_IMAGES_MIXED. */
	readonly expectedUuid?: Uint8Array;
	readonly limitBytes?: number;
	/** Free segments kept allocated for reuse rather than handed out for punching; default 4. */
	readonly warmSegments?: number;
	/**
	 * Views to take again: `View.entry` of each, in any order. Each was held, as a view or by this option, ever since it was
	 * taken first: else the log may have let go of what it showed, and can't tell.
	 */
	readonly viewsAtEntries?: readonly number[];
	/** For messages; default "first.log". */
	readonly name?: string;
	/** Only for the crash simulation's broken variants. */
	readonly safeguards?: Safeguards;
}

export interface SegmentInfo {
	/** Unique for ever; grows by at least 1 from segment to segment. */
	readonly sequence: number;
	readonly state: "active" | "sealed";
	readonly firstPosition: LogPosition;
	/** First position past its used slots. */
	readonly endPosition: LogPosition;
	/** What `guestEntries` of a view at its end is. */
	readonly endGuestEntries: number;
	readonly usedSlots: number;
	readonly liveSlots: number;
	/** Zero and drop runs in it, whether they still count or not. */
	readonly zeroRuns: number;
	/** The quarantine holds it; see `holdFrom`. */
	readonly isHeld: boolean;
	/** Host bytes it fills. */
	readonly bytes: number;
}

/** A free segment's place in the file. */
export interface ColdRange {
	readonly offset: ByteOffset;
	readonly length: ByteCount;
}

export class FirstImage {
	/** 16 bytes. */
	readonly uuid: Uint8Array;
	readonly segmentBytes: number;
	/** By `View.entry`: views of `viewsAtEntries`, without those of which the log has freed all or lost some entries. Release them. */
	readonly recoveredViews: ReadonlyMap<number, View>;
	#diskBytes: ByteCount;
	readonly #checksum: (bytes: Uint8Array) => number;
	readonly #state: LogState;
	readonly #appender: Appender;
	readonly #flusher: Flusher;
	readonly #views: LogView[];
	readonly #limitBytes: number;
	/** Places whose headers hold the recovered log's end until the new epoch's header is durable. */
	#held: number[];

	/**
	 * Recovers the log and begins an epoch. Where the host has no space for that, the first commit tries again.
	 * Throws LOG_DAMAGED, DISK_WRONG_VERSION, DISK_IMAGES_MIXED, USAGE (limit too small), IO, NO_SPACE.
	 */
	static open(file: HostFile, options: OpenOptions): FirstImage {
		return new FirstImage(file, options);
	}

	private constructor(file: HostFile, options: OpenOptions) {
		const { name = "first.log", safeguards = ALL_SAFEGUARDS } = options;
		const { superblock, copy, outdated } = readSuperblock(file, name);
		if (options.expectedUuid && !superblock.uuid.every((byte, i) => byte === options.expectedUuid![i]))
			throw new VmsweepError(
				"DISK_IMAGES_MIXED",
				`${name}: belongs to another disk; put back the files that belong together`,
			);
		this.uuid = superblock.uuid;
		this.#diskBytes = byteCount(superblock.diskBytes);
		this.#checksum = options.checksum;
		this.segmentBytes = superblock.segmentBytes;
		this.#limitBytes = (options.limitBytes ?? superblock.limitBytes) || Number.POSITIVE_INFINITY;
		const geometry = geometryOf(superblock.segmentBytes, superblock.summaryBytes);
		const recovery = new Recovery(file, name, superblock, options.checksum, safeguards);
		const placesMax = placesWithin(this.#limitBytes, superblock.segmentBytes);
		const table = new SegmentTable(geometry, recovery.placeCount, placesMax, options.warmSegments ?? 4);
		const state: LogState = {
			file,
			name,
			uuid: superblock.uuid,
			geometry,
			table,
			summaries: new SummaryReader(file, name, superblock.uuid, geometry),
			index: new IndexMap(divCeil(superblock.diskBytes, BLOCK_SIZE), table),
			largestBlocks: divCeil(superblock.largestDiskBytes, BLOCK_SIZE),
			safeguards,
			nextEntry: superblock.freedEntries,
			guestEntries: 0,
			durableEntries: 0,
			durablePosition: 0,
			lastSequence: superblock.freedSequence,
			epoch: 0,
			freedSequence: superblock.freedSequence,
			poison: undefined,
		};
		this.#state = state;
		this.#views = [];
		const views = new Map<number, View>();
		const wanted = new Set(options.viewsAtEntries);
		const takeWanted = (): void => {
			if (wanted.delete(state.nextEntry)) views.set(state.nextEntry, this.takeView());
		};
		this.recoveredViews = views;
		takeWanted();
		const recovered = recovery.run(copy, {
			segment: ({ header, place }) => table.push(new Segment(header, place, geometry.slotsPerSegment)),
			entry: (summary, entry) => {
				const segment = table.chain.at(-1)!;
				if (summary.kind(entry) === KIND_DATA) summary.copySums(entry, segment.sums);
				applyEntry(state, segment, summary, entry);
				if (wanted.size > 0) takeWanted();
			},
		});
		table.popEmpty(recovered.emptyTail.length);
		const last = table.chain.at(-1);
		if (last) last.sealed = true;
		this.#held = recovered.emptyTail.map(({ place }) => place);
		const taken = new Set([...recovered.chain, ...recovered.emptyTail].map(({ place }) => place));
		// Taken from the end: the file's first free place is used first.
		for (let place = recovery.placeCount - 1; place >= 0; place--) if (!taken.has(place)) table.addFree([place]);
		state.durableEntries = recovered.entries;
		state.lastSequence = recovered.lastSequence;
		state.epoch = safeguards.epochs ? recovered.lastEpoch + 1 : 1;
		state.durablePosition = headPosition(state);
		const flusher = new Flusher(state, superblock, copy, this.#views);
		this.#flusher = flusher;
		this.#appender = new Appender(state, options.checksum, options.allocatePinned, () => {
			if (outdated) flusher.upgrade();
		});
		try {
			this.#appender.startEpoch();
		} catch (error) {
			if (!isHarmless(error)) throw error;
		}
		this.#releaseHeld();
	}

	get diskBytes(): ByteCount {
		return this.#diskBytes;
	}

	/** Blocks of the disk; the last one may be cut short by the disk's end. */
	get diskBlocks(): BlockCount {
		return blockCount(this.#state.index.blocks);
	}

	/**
	 * Gives the disk another size, durable on return; views taken before keep what they show. What a larger disk gains reads
	 * as the second image does. What a smaller one loses is gone: let it be unused, and leave it in the second image
	 * until this has returned. Nothing may be staged. Throws USAGE, LOG_FULL, NO_SPACE (the disk has its old size until the
	 * next opening, which may find either), LOG_POISONED, IO.
	 */
	resize(diskBytes: number): void {
		assert(this.stagedCount === 0, "a disk is resized while writes are staged");
		checkDiskBytes(diskBytes);
		const state = this.#state;
		const blocks = divCeil(diskBytes, BLOCK_SIZE);
		if (blocks < this.diskBlocks) {
			// Should the disk grow again, older entries that are still in the log must not come back.
			this.stageZero(blocks, this.diskBlocks - blocks, "zero");
			if (this.commit() < 1) throw this.commitError!;
		}
		this.#flusher.resize(diskBytes);
		state.largestBlocks = Math.max(state.largestBlocks, blocks);
		state.index.resize(blocks);
		this.#diskBytes = byteCount(diskBytes);
	}

	/** Stages whole blocks. `source` must keep them unchanged until commit returns. */
	stageData(block: number, count: number, source: PinnedBytes, offset: number): void {
		checkRun(this.#state, block, count);
		this.#appender.staging.add(KIND_DATA, block, count, source, offset);
	}

	/** Stages zeroing: "zero" for the guest's write-zeroes and trim, "drop" for the cleaner. */
	stageZero(block: number, count: number, kind: "zero" | "drop"): void {
		checkRun(this.#state, block, count);
		this.#appender.staging.add(kind === "zero" ? KIND_ZERO : KIND_DROP, block, count, undefined, 0);
	}

	get stagedCount(): number {
		return this.#appender.staging.count;
	}

	/**
	 * Appends everything staged, in order, and clears the staging; of several items for a block the last one
	 * wins. Returns how many items are completely in the log. Where that is fewer than were staged, `commitError`
	 * says why (NO_SPACE, LOG_FULL, IO, LOG_POISONED), and the first item not done may be there in part, as on any
	 * disk. After NO_SPACE and LOG_FULL the log works on. Never throws.
	 */
	commit(): number {
		const done = this.#appender.commit();
		if (this.#held.length > 0) this.#releaseHeld();
		return done;
	}

	/** Why the last commit did less than everything; undefined if it didn't. */
	get commitError(): VmsweepError | undefined {
		return this.#appender.error;
	}

	/** True after a failed write or flush: every commit and flush is refused until the log is opened again. Reads work. */
	get poisoned(): boolean {
		return this.#state.poison !== undefined;
	}

	/**
	 * Begins a flush of everything committed so far: then datasync the file, on any thread, and call completeFlush with
	 * what this returned. Commits may go on meanwhile. One flush at a time. Throws LOG_POISONED.
	 */
	beginFlush(): LogPosition {
		return logPosition(this.#flusher.begin());
	}

	/** The datasync has returned. May write a superblock (4 KiB) to free segments. Throws LOG_POISONED, IO. */
	completeFlush(position: LogPosition): void {
		this.#flusher.complete(position);
	}

	/** The datasync failed: nobody knows what is on disk, so the log is poisoned. */
	failFlush(cause: unknown = new VmsweepError("IO", `${this.#state.name}: flush failed`)): void {
		this.#flusher.fail(cause);
	}

	/** All data at positions below this one survives a power cut; only such may be copied to the second image. */
	get durablePosition(): LogPosition {
		return logPosition(this.#state.durablePosition);
	}

	/** True where another flush would bring segments nearer to reuse. */
	get needsFlush(): boolean {
		return this.#flusher.needsFlush;
	}

	/** Position that the next data slot gets. */
	get position(): LogPosition {
		return logPosition(headPosition(this.#state));
	}

	/** What `guestEntries` of a view taken now would be. */
	get guestEntries(): number {
		return this.#state.guestEntries;
	}

	/** First position of the oldest segment. */
	get tailPosition(): LogPosition {
		const first = this.#state.table.chain[0];
		return first ? logPosition(this.#state.table.firstPositionOf(first)) : this.position;
	}

	/** Makes everything durable and notes that it is, so that damage can be told from a cut later. Use nothing afterwards. */
	close(): void {
		this.#flusher.close();
	}

	/** ABSENT, ZERO or a slot. */
	get(block: number): number {
		return this.#state.index.get(block);
	}

	/** Visits `[block, block + count)` in order as merged runs; allocates nothing. */
	resolve(block: number, count: number, visit: RunVisitor): void {
		this.#state.index.resolve(block, count, visit);
	}

	/** Byte offset of a slot in the file. */
	offsetOfSlot(slot: number): ByteOffset {
		return byteOffset(slot * BLOCK_SIZE);
	}

	/** CRC-32 of the block in a slot that is in use or that a view shows; 0 where it isn't known (version 1), or really 0. */
	sumOfSlot(slot: number): number {
		return this.#state.table.sumOfSlot(slot);
	}

	/** True where the bytes of `count` blocks, as they were read from consecutive slots, are what was written, as far as is known. */
	matches(slot: number, count: number, bytes: Uint8Array): boolean {
		for (let i = 0; i < count; i++) {
			const sum = this.sumOfSlot(slot + i);
			if (sum === 0) continue;
			if (this.#checksum(bytes.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE)) >>> 0 !== sum) return false;
		}
		return true;
	}

	/** Position of a slot that is in use. */
	positionOfSlot(slot: number): LogPosition {
		return logPosition(this.#state.table.positionOfSlot(slot));
	}

	/** The disk as it is now. Release it: it holds segments and pages of the index. */
	takeView(): View {
		const state = this.#state;
		const view = new LogView(state, state.index.takeView(), this.#views);
		state.table.viewEpoch = state.index.epoch;
		this.#views.push(view);
		return view;
	}

	/** The log's segments, oldest first, and no more than `most`. */
	segments(most = Number.POSITIVE_INFINITY): SegmentInfo[] {
		const { table, geometry } = this.#state;
		return table.chain.slice(0, most).map((segment) => ({
			sequence: segment.sequence,
			state: segment.sealed ? "sealed" : "active",
			firstPosition: logPosition(table.firstPositionOf(segment)),
			endPosition: logPosition(table.firstPositionOf(segment) + segment.usedSlots),
			endGuestEntries: segment.endGuestEntries,
			usedSlots: segment.usedSlots,
			liveSlots: table.liveSlots(segment),
			zeroRuns: segment.zeros.count,
			isHeld: table.isHeld(segment),
			bytes: geometry.segmentBytes,
		}));
	}

	/**
	 * Current runs of a segment, by default of all of it. Empty for an unknown sequence. Reads the segment's summary from
	 * the file. Throws IO, LOG_DAMAGED where it is no longer as it was written.
	 */
	liveRuns(sequence: number, part: SummaryPart = { from: 0, slotsMax: Number.POSITIVE_INFINITY }): LivePart {
		return liveRunsOf(this.#state, sequence, part);
	}

	/**
	 * Of the durable zero and drop runs of a segment, what still reads as ZERO: pairs [block, count], in log order. These
	 * may be punched in the second image. (Runs that a power cut can still undo may not: the cut would leave zeros
	 * where the guest, at that point of the log, had data.) Blocks of drops that `holdFrom` keeps are left out.
	 */
	zeroRuns(sequence: number): Float64Array {
		return zeroRunsOf(this.#state, sequence);
	}

	/**
	 * Quarantine: what was dropped at this position or later stays in the log, together with what it held there: these
	 * segments aren't freed. Undefined ends it. Not remembered over a restart.
	 */
	holdFrom(position: LogPosition | undefined): void {
		this.#state.table.holdFrom = position ?? Number.POSITIVE_INFINITY;
	}

	/**
	 * Blocks that read as ZERO because of a drop that is still in the log, and what they held before it: quintuples
	 * [block, count, first slot or ABSENT, number of the drop's entry, its position], UNDO_STRIDE numbers each, in block
	 * order. Slots are whole until the next flush completes, or as long as `holdFrom` keeps the drop. ABSENT: the second
	 * image's content; only of drops that `holdFrom` keeps, as others may have been punched. Reads the summaries of
	 * segments that drops touched, 64 KiB each. Throws IO, LOG_DAMAGED.
	 */
	undoable(): Float64Array {
		return undoableOf(this.#state);
	}

	/**
	 * Reads live blocks of a segment again and compares them with their checksums, from `from` (0, then the `next` of the last
	 * answer) until about `budgetBytes` were read. A segment that the log no longer has is at its end. Throws IO.
	 */
	scrub(sequence: number, from = 0, budgetBytes = 1024 * 1024): ScrubbedPart {
		const segment = this.#state.table.chain.find((candidate) => candidate.sequence === sequence);
		if (!segment) return { next: -1, bytes: 0, rotten: [], rottenSlots: [], rottenRecords: 0 };
		return scrubSegment(this.#state, this.#checksum, segment, from, budgetBytes);
	}

	/**
	 * Triples [block, count, firstSlot] whose copies in the second image are durable: blocks that still are at that
	 * slot become ABSENT, if the slot is older than `view` (so that it can't be another write) and durable. Returns the
	 * number of blocks changed.
	 */
	moved(runs: Float64Array, view: View): number {
		assert(!view.released, "blocks are moved on a released view");
		return clearMoved(this.#state, runs, view);
	}

	/**
	 * Pairs [block, count] proven unused on `view`: blocks unchanged since become ZERO, with drop entries in the log.
	 * Blocks that are ZERO already, or not yet durable, are left alone. Returns the pairs that this call made ZERO, in
	 * order: only these may be punched in the second image on its account. Fewer where `commitError` is set.
	 */
	dropped(runs: Float64Array, view: View): Float64Array {
		assert(!view.released, "blocks are dropped on a released view");
		assert(this.stagedCount === 0, "blocks are dropped while writes are staged");
		const found = unchangedSince(this.#state, runs, view);
		const pairs: number[] = [];
		for (let i = 0; i < found.length; i += 3) {
			this.#appender.staging.add(KIND_DROP, found[i]!, found[i + 1]!, undefined, found[i + 2]!);
			pairs.push(found[i]!, found[i + 1]!);
		}
		return Float64Array.from(pairs).subarray(0, this.commit() * 2);
	}

	/** Pairs [block, count] that read as zeros, durably, in the second image: ZERO becomes ABSENT. Returns blocks changed. */
	punched(runs: Float64Array): number {
		let changed = 0;
		for (let i = 0; i + 1 < runs.length; i += 2) {
			const within = blocksWithin(this.#state, runs[i]!, runs[i + 1]!);
			changed += this.#state.index.clearWhere(runs[i]!, within, ZERO);
		}
		return changed;
	}

	/** Closes the active segment, if it has entries, so that it can be cleaned; the next write opens another. Returns its sequence or 0. */
	seal(): number {
		const active = this.#state.table.chain.at(-1);
		if (!active || active.sealed || active.entryCount === 0) return 0;
		active.sealed = true;
		return active.sequence;
	}

	/** Host bytes that the log fills: its segments and those that are being freed, not the free ones. */
	get usedBytes(): ByteCount {
		return byteCount(SEGMENTS_AT + this.#state.table.usedPlaces * this.segmentBytes);
	}

	/** Most host bytes that the log may fill; Infinity if unlimited. Guest writes stop two segments below it. */
	get limitBytes(): ByteCount {
		return byteCount(this.#limitBytes);
	}

	/** Host bytes that become free by flushing alone (at most twice). */
	get freeableBytes(): ByteCount {
		return byteCount(this.#flusher.freeableSegments * this.segmentBytes);
	}

	/** Free places that may hold host space, but for `warmBytes` of them; out of the pool until returned: punch them, on any thread. */
	borrowCold(max: number, warmBytes = 0): ColdRange[] {
		const warm = Math.ceil(warmBytes / this.segmentBytes);
		return this.#state.table.lendCold(max, warm).map((place) => this.#rangeOf(place));
	}

	/** `punched`: they were punched; else they will be lent again. */
	returnCold(ranges: readonly ColdRange[], punched = true): void {
		for (const range of ranges) this.#state.table.takeBack(this.#placeOf(range), punched);
	}

	/** Cuts punched segments off the end of the file. Returns the bytes that the file became shorter. Throws IO. */
	trimFile(): number {
		const { table, geometry, file } = this.#state;
		table.dropTrailing();
		const end = offsetOfPlace(geometry, table.placeCount);
		const before = file.size();
		if (before <= end) return 0;
		file.truncate(end);
		return before - end;
	}

	#rangeOf(place: number): ColdRange {
		return { offset: byteOffset(offsetOfPlace(this.#state.geometry, place)), length: byteCount(this.segmentBytes) };
	}

	#placeOf(range: ColdRange): number {
		return divFloor(range.offset - SEGMENTS_AT, this.segmentBytes);
	}

	#releaseHeld(): void {
		if (!this.#appender.epochStarted) return;
		this.#state.table.addFree(this.#held);
		this.#held = [];
	}
}
