// Summary reader: a segment's summary, read back from the file. What of a segment is only needed now and then (which
// block a slot was written for, for one) isn't kept in memory: that would be 4 bytes for each slot of the log.

import { VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteOffset, formatBytes } from "../../foundations/units.ts";
import type { Geometry } from "./format.ts";
import { KIND_DATA, offsetOfPlace, Summary } from "./format.ts";
import type { HostFile } from "./host-file.ts";
import type { Segment } from "./segments.ts";

/** A part of a segment's entries; those without data count as a slot each. */
export interface SummaryPart {
	readonly from: number;
	readonly slotsMax: number;
}

export class SummaryReader {
	readonly #file: HostFile;
	readonly #name: string;
	readonly #uuid: Uint8Array;
	readonly #geometry: Geometry;
	#memory: Uint8Array | undefined;
	#summary: Summary | undefined;

	constructor(file: HostFile, name: string, uuid: Uint8Array, geometry: Geometry) {
		this.#file = file;
		this.#name = name;
		this.#uuid = uuid;
		this.#geometry = geometry;
	}

	/** A segment's summary as it is in the file, damaged or not; valid until the next call. Throws IO. */
	read(segment: Segment): Summary {
		this.#memory ??= new Uint8Array(this.#geometry.summaryBytes);
		this.#summary ??= new Summary(this.#memory);
		this.#file.read(byteOffset(offsetOfPlace(this.#geometry, segment.place) + BLOCK_SIZE), this.#memory);
		this.#summary.bind(this.#uuid, segment);
		return this.#summary;
	}

	/** Visits a segment's entries in order. Throws IO, and LOG_DAMAGED at the first that is not as it was written. */
	forEach(segment: Segment, visit: (summary: Summary, entry: number) => void): void {
		this.forSome(segment, { from: 0, slotsMax: Number.POSITIVE_INFINITY }, visit);
	}

	/** The same from one entry on, until they have some slots together. Returns the entry to go on with, -1 at the end. */
	forSome(segment: Segment, { from, slotsMax }: SummaryPart, visit: (summary: Summary, entry: number) => void): number {
		const summary = this.read(segment);
		let slots = 0;
		for (let entry = from; entry < segment.entryCount; entry += summary.records(entry)) {
			if (slots >= slotsMax) return entry;
			if (!this.#isWhole(summary, entry, segment)) this.#refuse(segment, entry);
			slots += summary.kind(entry) === KIND_DATA ? summary.count(entry) : 1;
			visit(summary, entry);
		}
		return -1;
	}

	#isWhole(summary: Summary, entry: number, segment: Segment): boolean {
		if (!summary.intactThrough(entry, segment.entryCount)) return false;
		return summary.kind(entry) !== KIND_DATA || summary.slot(entry) + summary.count(entry) <= segment.usedSlots;
	}

	#refuse(segment: Segment, entry: number): never {
		const at = formatBytes(offsetOfPlace(this.#geometry, segment.place));
		throw new VmsweepError(
			"LOG_DAMAGED",
			`${this.#name}: entry ${entry} of segment ${segment.sequence} (at ${at}) is damaged. ` +
				"Stop the disk and run vmsweep check",
		);
	}
}
