// Segments: which places of the file hold which segments, what in them is still referenced, which are free.
//
//   place     where a segment lies in the file: 0, 1, 2, … ; outlives the segments that use it one after another
//   segment   one life of a place, named by a sequence number that is never used twice
//   chain     the segments of the log in order: sealed ones, then perhaps the active one
//
//   free ─▶ active ─▶ sealed ─▶ retired (tail written) ─▶ free (tail durable)
//    │ ▲
//    ▼ │ lent: punched by another thread
//
// Invariants
//  - a slot counts as live exactly while the index points at it
//  - only the oldest segments of the chain retire, never the last one of it
//  - a place is in the chain, retired, free (warm or cold), lent, or held; in exactly one of these

import { assert, VmsweepError } from "../../foundations/errors.ts";
import type { Geometry } from "./format.ts";
import { SEGMENTS_AT } from "./format.ts";
import type { IndexMap, SlotLedger } from "./index-map.ts";
import { ZERO } from "./index-map.ts";

const FIRST_SLOT = SEGMENTS_AT / 4096;

/** Zero and drop runs of a segment in entry order, 12 bytes each. */
export class ZeroRuns {
	count = 0;
	hasDrop = false;
	/** Per run: the entry (counted in the segment) times 2, plus 1 for a drop; first block; block count. */
	#words = new Uint32Array(0);

	add(entry: number, isDrop: boolean, block: number, count: number): void {
		const at = this.count++ * 3;
		if (isDrop) this.hasDrop = true;
		if (at === this.#words.length) {
			const words = new Uint32Array(Math.max(24, at * 2));
			words.set(this.#words);
			this.#words = words;
		}
		this.#words[at] = entry * 2 + (isDrop ? 1 : 0);
		this.#words[at + 1] = block;
		this.#words[at + 2] = count;
	}

	entry = (run: number): number => this.#words[run * 3]! >>> 1;
	isDrop = (run: number): boolean => (this.#words[run * 3]! & 1) === 1;
	block = (run: number): number => this.#words[run * 3 + 1]!;
	blocks = (run: number): number => this.#words[run * 3 + 2]!;
}

/** What names one life of a place, and how its entries are to be read. */
export interface SegmentLife {
	readonly sequence: number;
	readonly epoch: number;
	/** Format version of its entries. */
	readonly version: number;
	/** Number of its first entry over the disk's life. */
	readonly firstEntry: number;
}

/** One segment of the log. */
export class Segment {
	readonly sequence: number;
	readonly epoch: number;
	readonly version: number;
	readonly place: number;
	readonly firstEntry: number;
	/** Records of its summary in use; an entry's further records count. */
	entryCount = 0;
	/** The log's guest entries up to this segment's end. */
	endGuestEntries = 0;
	usedSlots = 0;
	sealed = false;
	/** CRC-32 per slot, 0 where it isn't known. */
	readonly sums: Uint32Array;
	readonly zeros = new ZeroRuns();
	/** Runs before this one, and `zeroDone` blocks of it, were seen to be no longer ZERO by this segment's doing. */
	zeroCursor = 0;
	zeroDone = 0;
	/** View epoch in which the last of its zero runs was seen to be superseded. */
	zerosDiedEpoch = Number.POSITIVE_INFINITY;
	/** Position of the newest drop that took one of its live slots away, or -1. */
	droppedAt = -1;

	constructor(life: SegmentLife, place: number, slots: number) {
		this.sequence = life.sequence;
		this.epoch = life.epoch;
		this.version = life.version;
		this.firstEntry = life.firstEntry;
		this.place = place;
		this.sums = new Uint32Array(slots);
	}
}

/** A view's claim on segments: it may reference what was live when it was taken. */
export interface Pin {
	readonly epoch: number;
	/** Entries that it shows. */
	readonly entry: number;
}

/** State of a place beyond what the lists say. */
const PLACE_IDLE = 0;
/** Given out by `borrowCold`. */
const PLACE_LENT = 1;

export class SegmentTable implements SlotLedger {
	readonly geometry: Geometry;
	readonly chain: Segment[] = [];
	/** Places freed in the superblock just written, which isn't durable yet. */
	readonly retired: number[] = [];
	/** Epoch of the index map: stamps the moment in which a segment lost its last live slot. */
	viewEpoch = 1;
	placeCount: number;
	/** Most places that segments of the log may take. */
	placesMax: number;
	/** Position of the drop that is being applied, or -1: slots released meanwhile can be asked for by an undo. */
	droppingAt = -1;
	/** What was dropped at this position or later can still be undone; Infinity: nothing. */
	holdFrom = Number.POSITIVE_INFINITY;
	readonly #warmMax: number;
	/** Free and allocated, oldest first; taken from the end. */
	readonly #warm: number[] = [];
	/** Free, perhaps without host space. */
	readonly #cold: number[] = [];
	/** Cold places that were punched since they were last used. */
	readonly #punched = new Set<number>();
	#states = new Uint8Array(16);
	#live = new Int32Array(16);
	/** View epoch in which the place's live count last became 0. */
	#diedEpoch = new Float64Array(16);
	readonly #segmentOfPlace: (Segment | undefined)[] = [];

	constructor(geometry: Geometry, placeCount: number, placesMax: number, warmMax: number) {
		this.geometry = geometry;
		this.placeCount = 0;
		this.placesMax = placesMax;
		this.#warmMax = warmMax;
		while (this.placeCount < placeCount) this.#addPlace();
	}

	/** The index no longer points at `slot`. */
	release(slot: number): void {
		const place = (slot - FIRST_SLOT) >>> this.geometry.shift;
		if (--this.#live[place]! === 0) this.#diedEpoch[place] = this.viewEpoch;
		if (this.droppingAt >= 0) this.#segmentOfPlace[place]!.droppedAt = this.droppingAt;
	}

	/** First slot number of a place's data area. */
	firstSlotOf(place: number): number {
		return FIRST_SLOT + place * this.geometry.blocksPerSegment + this.geometry.leadBlocks;
	}

	/** The segment of the log that holds `slot`. */
	segmentOfSlot(slot: number): Segment | undefined {
		return this.#segmentOfPlace[(slot - FIRST_SLOT) >>> this.geometry.shift];
	}

	positionOfSlot(slot: number): number {
		const segment = this.segmentOfSlot(slot);
		assert(segment !== undefined, `slot ${slot} belongs to no segment`);
		return segment.sequence * this.geometry.slotsPerSegment + (slot - this.firstSlotOf(segment.place));
	}

	firstPositionOf(segment: Segment): number {
		return segment.sequence * this.geometry.slotsPerSegment;
	}

	/** Counts `count` appended slots as live; the index is set right after. */
	addLive(segment: Segment, count: number): void {
		this.#live[segment.place]! += count;
	}

	/** CRC-32 of a slot's block; 0 where it isn't known. */
	sumOfSlot(slot: number): number {
		const segment = this.segmentOfSlot(slot);
		return segment?.sums[slot - this.firstSlotOf(segment.place)] ?? 0;
	}

	/** True where a drop within the quarantine is in the segment, or took a block from it. */
	isHeld(segment: Segment): boolean {
		if (this.holdFrom === Number.POSITIVE_INFINITY) return false;
		const end = this.firstPositionOf(segment) + segment.usedSlots;
		if (end > this.holdFrom || segment.droppedAt >= this.holdFrom) return true;
		// Entries without data stand at the position of the slot that comes next.
		return end === this.holdFrom && segment.zeros.count > 0;
	}

	liveSlots(segment: Segment): number {
		return this.#live[segment.place]!;
	}

	/** Appends a segment to the chain; the one before it is sealed. */
	push(segment: Segment): void {
		const last = this.chain.at(-1);
		if (last) last.sealed = true;
		this.chain.push(segment);
		this.#segmentOfPlace[segment.place] = segment;
		this.#live[segment.place] = 0;
		this.#diedEpoch[segment.place] = 0;
	}

	/** Takes segments without entries off the end of the chain. */
	popEmpty(count: number): void {
		for (const segment of this.chain.splice(this.chain.length - count)) {
			assert(segment.entryCount === 0, "a segment with entries is left out of the log");
			this.#segmentOfPlace[segment.place] = undefined;
		}
	}

	/** How many of the oldest segments nothing needs any more. Looks at no more than `budget` zeroed blocks. */
	countFreeable(index: IndexMap, pins: readonly Pin[], budget = 1 << 20): number {
		let count = 0;
		const visit = new ZeroScan(budget);
		while (count < this.chain.length - 1) {
			const segment = this.chain[count]!;
			if (this.#live[segment.place] !== 0 || this.isHeld(segment)) break;
			if (!visit.isSuperseded(segment, index)) break;
			if (segment.zerosDiedEpoch === Number.POSITIVE_INFINITY) segment.zerosDiedEpoch = this.viewEpoch;
			if (this.#isPinned(segment, pins)) break;
			count++;
		}
		return count;
	}

	/** Takes the `count` oldest segments out of the chain; their places are not yet free. */
	retire(count: number): void {
		for (const segment of this.chain.splice(0, count)) {
			this.#segmentOfPlace[segment.place] = undefined;
			this.retired.push(segment.place);
		}
	}

	/** The superblock that retired them is durable. */
	freeRetired(): void {
		this.#warm.push(...this.retired);
		this.retired.length = 0;
	}

	/** Adds places that nothing needs, of which nobody knows whether the host has space for them. */
	addFree(places: readonly number[]): void {
		this.#cold.push(...places);
	}

	get usedPlaces(): number {
		return this.chain.length + this.retired.length;
	}

	/** A free place for the next segment, and whether the host surely has its space. Grows the file's places if none is free. */
	take(): { place: number; warm: boolean } {
		const warm = this.#warm.pop();
		if (warm !== undefined) return { place: warm, warm: true };
		return { place: this.#takeCold(), warm: false };
	}

	/** Gives back a place of which a segment could not be made. */
	untake(place: number): void {
		this.#cold.push(place);
	}

	/** Lends out up to `max` free places to be punched: those that may have host space, but for `warm` of them and those always kept. */
	lendCold(max: number, warm: number): number[] {
		const lent: number[] = [];
		for (let i = this.#cold.length - 1; i >= 0 && lent.length < max; i--)
			if (!this.#punched.has(this.#cold[i]!)) lent.push(...this.#cold.splice(i, 1));
		const kept = Math.max(warm, this.#warmMax);
		while (lent.length < max && this.#warm.length > kept) lent.push(this.#warm.shift()!);
		for (const place of lent) this.#states[place] = PLACE_LENT;
		return lent;
	}

	takeBack(place: number, punched: boolean): void {
		if (this.#states[place] !== PLACE_LENT)
			throw new VmsweepError("BUG", `internal error: segment place ${place} was not lent. Please report it.`);
		this.#states[place] = PLACE_IDLE;
		this.#cold.push(place);
		if (punched) this.#punched.add(place);
	}

	/** Forgets punched places at the end of the file: to cut off what has host space takes as long as punching it. */
	dropTrailing(): void {
		for (let last = this.placeCount - 1; this.#punched.delete(last); last--) {
			this.#cold.splice(this.#cold.indexOf(last), 1);
			this.placeCount--;
		}
	}

	#takeCold(): number {
		const place = this.#cold.pop() ?? this.#addPlace();
		this.#punched.delete(place);
		return place;
	}

	#addPlace(): number {
		const place = this.placeCount++;
		if (place >= this.#live.length) {
			const length = this.#live.length * 2;
			const states = new Uint8Array(length);
			states.set(this.#states);
			this.#states = states;
			const live = new Int32Array(length);
			live.set(this.#live);
			this.#live = live;
			const died = new Float64Array(length);
			died.set(this.#diedEpoch);
			this.#diedEpoch = died;
		}
		return place;
	}

	/**
	 * A view needs a segment if it was taken while something in the segment was live, or was a zero run that still
	 * counted: without that, a view that is taken again while the log is replayed would show what was there before.
	 */
	#isPinned(segment: Segment, pins: readonly Pin[]): boolean {
		const died = this.#diedEpoch[segment.place]!;
		const zerosDied = segment.zeros.count > 0 ? segment.zerosDiedEpoch : 0;
		return pins.some((pin) => pin.entry > segment.firstEntry && pin.epoch < Math.max(died, zerosDied));
	}
}

/**
 * Looks whether zero runs still count. A block that isn't ZERO now was changed after the run was applied, so the
 * run never counts for it again; a block that is ZERO may be so by this run or a later one, and holds the segment.
 * So one cursor per segment that only goes forward is enough, and a stuck one costs a single look.
 */
class ZeroScan {
	#budget: number;
	#zeroAt = -1;
	#scanned = 0;
	readonly #visit = (value: number, block: number, count: number): void => {
		if (this.#zeroAt >= 0) return;
		if (value === ZERO) this.#zeroAt = block;
		else this.#scanned += count;
	};

	constructor(budget: number) {
		this.#budget = budget;
	}

	isSuperseded(segment: Segment, index: IndexMap): boolean {
		const { zeros } = segment;
		while (segment.zeroCursor < zeros.count) {
			if (this.#budget <= 0) return false;
			const block = zeros.block(segment.zeroCursor) + segment.zeroDone;
			// Beyond the end of a disk that shrank nothing counts.
			const end = Math.min(zeros.block(segment.zeroCursor) + zeros.blocks(segment.zeroCursor), index.blocks);
			this.#scanned = 0;
			if (block < end) {
				if (index.get(block) === ZERO) return false;
				const step = Math.min(end - block, 4096 - (block & 4095));
				this.#zeroAt = -1;
				index.resolve(block, step, this.#visit);
				this.#budget -= this.#scanned + 1;
				segment.zeroDone += this.#scanned;
				if (this.#zeroAt >= 0) return false;
			}
			if (block + this.#scanned >= end) {
				segment.zeroCursor++;
				segment.zeroDone = 0;
			}
		}
		return true;
	}
}
