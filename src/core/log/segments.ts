// Segments: which places of the file hold which segments, what in them is still referenced, which are free.
//
//   place     where a segment lies in the file: 0, 1, 2, … ; outlives the segments that use it one after another
//   segment   one life of a place, named by a sequence number that is never used twice
//   chain     the segments of the log in order: sealed ones, then perhaps the active one
//
//   free ─▶ active ─▶ sealed ─▶ retired (tail written) ─▶ free (tail durable)
//    │ ▲
//    ▼ │ lent: punched or allocated by another thread
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

/** One segment of the log. */
export class Segment {
	readonly sequence: number;
	readonly place: number;
	/** Number of its first entry over the disk's life. */
	readonly firstEntry: number;
	entryCount = 0;
	usedSlots = 0;
	sealed = false;
	/** Zero and drop runs in entry order: the entry (counted in the segment), first block, block count. */
	readonly zeroEntries: number[] = [];
	readonly zeroBlocks: number[] = [];
	readonly zeroCounts: number[] = [];
	/** Runs before this one, and `zeroDone` blocks of it, were seen to be no longer ZERO by this segment's doing. */
	zeroCursor = 0;
	zeroDone = 0;

	constructor(sequence: number, place: number, firstEntry: number) {
		this.sequence = sequence;
		this.place = place;
		this.firstEntry = firstEntry;
	}

	/** The segment's next entry is a zero or drop run. */
	addZeroRun(block: number, count: number): void {
		this.zeroEntries.push(this.entryCount);
		this.zeroBlocks.push(block);
		this.zeroCounts.push(count);
	}
}

/** A view's claim on segments: it may reference what was live when it was taken. */
export interface Pin {
	readonly epoch: number;
	readonly position: number;
}

/** State of a place beyond what the lists say. */
const PLACE_IDLE = 0;
/** Given out by `borrowCold`. */
const PLACE_LENT = 1;
/** Given out by `nextToAllocate`. */
const PLACE_PREPARING = 2;

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
	/** Slot of the segment to disk block. */
	readonly #blocks: Uint32Array[] = [];
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

	/** Counts `count` appended slots as live and remembers their blocks; the index is set right after. */
	addSlots(segment: Segment, slotInSegment: number, block: number, count: number): void {
		const blocks = this.#blocks[segment.place]!;
		for (let i = 0; i < count; i++) blocks[slotInSegment + i] = block + i;
		this.#live[segment.place]! += count;
	}

	liveSlots(segment: Segment): number {
		return this.#live[segment.place]!;
	}

	blockOfSlot(segment: Segment, slotInSegment: number): number {
		return this.#blocks[segment.place]![slotInSegment]!;
	}

	/** Appends a segment to the chain; the one before it is sealed. */
	push(segment: Segment): void {
		const last = this.chain.at(-1);
		if (last) last.sealed = true;
		this.chain.push(segment);
		this.#segmentOfPlace[segment.place] = segment;
		this.#live[segment.place] = 0;
		this.#diedEpoch[segment.place] = 0;
		this.#blocks[segment.place] ??= new Uint32Array(this.geometry.slotsPerSegment);
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
			if (this.#live[segment.place] !== 0 || this.#isPinned(segment, pins)) break;
			if (!visit.isSuperseded(segment, index)) break;
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
		const preparing = this.#states.indexOf(PLACE_PREPARING);
		if (preparing >= 0) {
			this.#states[preparing] = PLACE_IDLE;
			return { place: preparing, warm: false };
		}
		return { place: this.#takeCold(), warm: false };
	}

	/** Gives back a place of which a segment could not be made. */
	untake(place: number): void {
		this.#cold.push(place);
	}

	/** A place to allocate ahead of need, or -1 where the next segment has one. */
	prepare(): number {
		if (this.#warm.length > 0 || this.#states.includes(PLACE_PREPARING) || this.usedPlaces >= this.placesMax) return -1;
		const place = this.#takeCold();
		this.#states[place] = PLACE_PREPARING;
		return place;
	}

	prepared(place: number, succeeded: boolean): void {
		if (this.#states[place] !== PLACE_PREPARING) return;
		this.#states[place] = PLACE_IDLE;
		(succeeded ? this.#warm : this.#cold).push(place);
	}

	/** Lends out up to `max` free places to be punched: those that may have host space and aren't kept warm. */
	lendCold(max: number): number[] {
		const lent: number[] = [];
		for (let i = this.#cold.length - 1; i >= 0 && lent.length < max; i--)
			if (!this.#punched.has(this.#cold[i]!)) lent.push(...this.#cold.splice(i, 1));
		while (lent.length < max && this.#warm.length > this.#warmMax) lent.push(this.#warm.shift()!);
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

	/** Forgets free places at the end of the file. Returns how many. */
	dropTrailing(): number {
		const before = this.placeCount;
		for (;;) {
			const last = this.placeCount - 1;
			const list = this.#warm.length > this.#warmMax && this.#warm.includes(last) ? this.#warm : this.#cold;
			const index = list.indexOf(last);
			if (index < 0) break;
			list.splice(index, 1);
			this.#punched.delete(last);
			this.placeCount--;
		}
		return before - this.placeCount;
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

	/** A view needs a segment if it was taken while something in the segment was live. */
	#isPinned(segment: Segment, pins: readonly Pin[]): boolean {
		const first = this.firstPositionOf(segment);
		const died = this.#diedEpoch[segment.place]!;
		return pins.some((pin) => pin.position > first && pin.epoch < died);
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
		while (segment.zeroCursor < segment.zeroBlocks.length) {
			if (this.#budget <= 0) return false;
			const block = segment.zeroBlocks[segment.zeroCursor]! + segment.zeroDone;
			const left = segment.zeroCounts[segment.zeroCursor]! - segment.zeroDone;
			if (index.get(block) === ZERO) return false;
			const step = Math.min(left, 4096 - (block & 4095));
			this.#zeroAt = -1;
			this.#scanned = 0;
			index.resolve(block, step, this.#visit);
			this.#budget -= this.#scanned + 1;
			segment.zeroDone += this.#scanned;
			if (this.#zeroAt >= 0) return false;
			if (segment.zeroDone >= segment.zeroCounts[segment.zeroCursor]!) {
				segment.zeroCursor++;
				segment.zeroDone = 0;
			}
		}
		return true;
	}
}
