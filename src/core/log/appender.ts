// Appender: writes staged items to the end of the log and only then into the index.
//
//   staged items ─▶ data slots (one gathered write) ─▶ summary entries (one write) ─▶ index
//
// A batch is split only where a segment ends. What failed is not in the index, and never comes to count:
//  - data that failed to be written has no entry; the next commit uses the same slots again
//  - entries that failed may be on disk all the same, so their segment is sealed before them: its successor's
//    header says where it ends. Appending over them would not do, as a power cut may mix sectors of both
//  - a header that failed may be there too: its sequence is given up, and the segment before it stays sealed
// NO_SPACE and LOG_FULL leave the log usable. Anything else poisons it.

import { assert, VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteOffset, formatBytes, roundUp } from "../../foundations/units.ts";
import {
	blocksForRecords,
	ENTRY_SIZE,
	encodeHeader,
	FLAG_EPOCH_START,
	FORMAT_VERSION,
	KIND_DATA,
	KIND_DROP,
	offsetOfPlace,
	Summary,
} from "./format.ts";
import type { PinnedBytes } from "./host-file.ts";
import { GatherList } from "./host-file.ts";
import { ZERO } from "./index-map.ts";
import { Segment } from "./segments.ts";
import { Staging } from "./staging.ts";
import type { LogState } from "./state.ts";
import { datasync, headPosition, isHarmless, poison, refusePoisoned } from "./state.ts";

/** Segments that guest writes leave to the cleaner, whose drop entries are what makes room again. */
export const RESERVED_SEGMENTS = 2;

export class Appender {
	readonly staging = new Staging();
	/** Why the last commit did less than everything. */
	error: VmsweepError | undefined;
	readonly #state: LogState;
	readonly #checksum: (bytes: Uint8Array) => number;
	readonly #beforeEpoch: () => void;
	readonly #data = new GatherList();
	readonly #entries = new GatherList();
	readonly #summaryMemory: PinnedBytes;
	readonly #summary: Summary;
	readonly #headerMemory: PinnedBytes;
	/** Bytes of the active segment's summary area written in this life of it, a multiple of 4 KiB. */
	#summaryWritten = 0;
	/** The next segment is the epoch's first: durable before anything follows. */
	#epochPending = true;

	/** `beforeEpoch` runs, until it succeeds once, before anything of the new epoch is written. */
	constructor(
		state: LogState,
		checksum: (bytes: Uint8Array) => number,
		allocatePinned: (length: number) => PinnedBytes,
		beforeEpoch: () => void,
	) {
		this.#state = state;
		this.#beforeEpoch = beforeEpoch;
		this.#checksum = checksum;
		this.#summaryMemory = allocatePinned(state.geometry.summaryBytes);
		this.#summary = new Summary(this.#summaryMemory.bytes);
		this.#headerMemory = allocatePinned(BLOCK_SIZE);
	}

	/** Appends everything staged. Returns how many items are completely in the log; `error` tells why not all. */
	commit(): number {
		const staging = this.staging;
		this.error = undefined;
		try {
			refusePoisoned(this.#state);
			while (!staging.finished) this.#appendTo(this.#segmentWithRoom());
		} catch (error) {
			// A bug here leaves memory and disk in doubt as an I/O error does.
			this.error = isHarmless(error) ? error : poison(this.#state, error);
		}
		const done = staging.cursor;
		staging.clear();
		return done;
	}

	/** Begins the epoch: its first segment's header is durable on return. Throws NO_SPACE, IO. */
	startEpoch(): void {
		if (this.#epochPending) this.#open(Number.POSITIVE_INFINITY);
	}

	get epochStarted(): boolean {
		return !this.#epochPending;
	}

	/** The active segment if the next staged item can go there, else a new one. */
	#segmentWithRoom(): Segment {
		const { staging } = this;
		const { table, geometry } = this.#state;
		const kind = staging.kinds[staging.cursor]!;
		const active = table.chain.at(-1);
		const hasRoom =
			active !== undefined &&
			!active.sealed &&
			active.entryCount < geometry.entriesPerSegment &&
			(kind !== KIND_DATA || active.usedSlots < geometry.slotsPerSegment);
		if (hasRoom) return active;
		return this.#open(table.placesMax - (kind === KIND_DROP ? 0 : RESERVED_SEGMENTS));
	}

	/** Starts a segment, unless the log then had more than `placesMax`. */
	#open(placesMax: number): Segment {
		const state = this.#state;
		const { table, geometry, file } = state;
		if (table.usedPlaces >= placesMax)
			throw new VmsweepError(
				"LOG_FULL",
				`${state.name}: full at ${formatBytes(table.usedPlaces * geometry.segmentBytes)}; clean the disk or raise its limit`,
			);
		if (this.#epochPending) this.#beforeEpoch();
		const last = table.chain.at(-1);
		const place = this.#takePlace();
		const at = offsetOfPlace(geometry, place);
		if (last) last.sealed = true;
		const sequence = ++state.lastSequence;
		encodeHeader(this.#headerMemory.bytes, state.uuid, {
			sequence,
			previousSequence: last?.sequence ?? state.freedSequence,
			epoch: state.epoch,
			flags: this.#epochPending ? FLAG_EPOCH_START : 0,
			firstEntry: state.nextEntry,
			durableEntries: state.durableEntries,
		});
		try {
			this.#entries.clear();
			this.#entries.push(this.#headerMemory, 0, BLOCK_SIZE);
			file.writeGather(this.#entries, byteOffset(at));
		} catch (error) {
			table.untake(place);
			throw error;
		}
		if (this.#epochPending) datasync(state);
		this.#epochPending = false;
		const life = { sequence, epoch: state.epoch, version: FORMAT_VERSION, firstEntry: state.nextEntry };
		const segment = new Segment(life, place, geometry.slotsPerSegment);
		table.push(segment);
		this.#summaryMemory.bytes.fill(0);
		this.#summary.bind(state.uuid, segment);
		this.#summaryWritten = 0;
		return segment;
	}

	/** A place for which the host has space. */
	#takePlace(): number {
		const { table, geometry, file } = this.#state;
		const { place, warm } = table.take();
		if (warm) return place;
		try {
			file.allocate(byteOffset(offsetOfPlace(geometry, place)), geometry.segmentBytes);
		} catch (error) {
			table.untake(place);
			throw error;
		}
		return place;
	}

	/** Appends as many of the staged items as fit into the segment; the staging's cursor follows. */
	#appendTo(segment: Segment): void {
		const { staging } = this;
		const state = this.#state;
		const { geometry } = state;
		const firstEntry = segment.entryCount;
		const firstSlot = segment.usedSlots;
		let entry = firstEntry;
		let slot = firstSlot;
		let item = staging.cursor;
		let within = staging.cursorBlocks;
		this.#data.clear();
		while (item < staging.count && entry < geometry.entriesPerSegment) {
			const kind = staging.kinds[item]!;
			const block = staging.blocks[item]! + within;
			let count = staging.counts[item]! - within;
			if (kind === KIND_DATA) {
				count = Math.min(count, geometry.slotsPerSegment - slot, blocksForRecords(geometry.entriesPerSegment - entry));
				if (count === 0) break;
				const source = staging.sources[item]!;
				const offset = staging.offsets[item]! + within * BLOCK_SIZE;
				this.#data.push(source, offset, count * BLOCK_SIZE);
				this.#sum(source.bytes, offset, count, segment.sums, slot);
				entry += this.#summary.putData(entry, block, count, slot, segment.sums, state.durableEntries);
				slot += count;
			} else {
				const where = kind === KIND_DROP ? staging.offsets[item]! : 0;
				this.#summary.put(entry++, kind, block, count, slot, where, state.durableEntries);
			}
			within += count;
			if (within === staging.counts[item]) {
				item++;
				within = 0;
			}
		}
		assert(entry > firstEntry, "a segment with room took nothing");
		this.#write(segment, firstEntry, entry, firstSlot);
		this.#apply(segment, firstEntry, entry);
		staging.cursor = item;
		staging.cursorBlocks = within;
	}

	/** Notes the checksum of each of `count` blocks at `offset`. */
	#sum(bytes: Uint8Array, offset: number, count: number, sums: Uint32Array, slot: number): void {
		for (let i = 0; i < count; i++) {
			const at = offset + i * BLOCK_SIZE;
			sums[slot + i] = this.#checksum(bytes.subarray(at, at + BLOCK_SIZE));
		}
	}

	/** Writes the gathered data, then the entries `[first, end)`. */
	#write(segment: Segment, first: number, end: number, firstSlot: number): void {
		const { file, geometry } = this.#state;
		const at = offsetOfPlace(geometry, segment.place);
		try {
			if (this.#data.count > 0)
				file.writeGather(this.#data, byteOffset(at + (geometry.leadBlocks + firstSlot) * BLOCK_SIZE));
		} catch (error) {
			this.#summary.erase(first, end);
			throw error;
		}
		// A page of the summary is written whole the first time, so that the host need not read what it held.
		let endByte = end * ENTRY_SIZE;
		if (endByte > this.#summaryWritten) endByte = this.#summaryWritten = roundUp(endByte, BLOCK_SIZE);
		this.#entries.clear();
		this.#entries.push(this.#summaryMemory, first * ENTRY_SIZE, endByte - first * ENTRY_SIZE);
		try {
			file.writeGather(this.#entries, byteOffset(at + BLOCK_SIZE + first * ENTRY_SIZE));
		} catch (error) {
			segment.sealed = true;
			throw error;
		}
	}

	/** What was written is part of the log now: into the index with it. */
	#apply(segment: Segment, first: number, end: number): void {
		for (let entry = first; entry < end; entry += this.#summary.records(entry))
			applyEntry(this.#state, segment, this.#summary, entry);
	}
}

/**
 * Makes one entry of `segment` count: used by commits and by recovery alike. What lies beyond the end of a disk that
 * shrank since is passed over.
 */
export function applyEntry(state: LogState, segment: Segment, summary: Summary, entry: number): void {
	const { table, index } = state;
	const block = summary.block(entry);
	const count = summary.count(entry);
	const within = Math.max(0, Math.min(count, index.blocks - block));
	const kind = summary.kind(entry);
	if (kind === KIND_DATA) {
		const slot = summary.slot(entry);
		segment.usedSlots = slot + count;
		table.addLive(segment, within);
		index.setSlots(block, within, table.firstSlotOf(segment.place) + slot);
	} else {
		segment.zeros.add(segment.entryCount, kind === KIND_DROP, block, count);
		if (kind === KIND_DROP) table.droppingAt = headPosition(state);
		index.fill(block, within, ZERO);
		table.droppingAt = -1;
	}
	const records = summary.records(entry);
	segment.entryCount += records;
	state.nextEntry += records;
	if (kind !== KIND_DROP) state.guestEntries++;
	segment.endGuestEntries = state.guestEntries;
}
