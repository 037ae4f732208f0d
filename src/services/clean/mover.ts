// Mover: empties segments of the first image, oldest first, into the second image.
//
//   live blocks of a segment ─► copy, sorted by target ─► flush the second image ─► data plane: point there
//   zeroed ranges            ─► punch                  ─┘
//
// Moving keeps the content, so it needs no proof. Two things must hold all the same:
//  - only what is durable in the log may be copied: otherwise a power cut would leave the second image ahead of
//    the log, and the disk would no longer be a prefix of what the guest wrote
//  - the copy is durable before the index points at it
// A crash at any point leaves the segment's blocks where they were; they are moved again.

import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import type { LastWritten } from "../../core/cleaner/last-written.ts";
import { type LiveRun, partOf, unpackLiveRuns } from "../../core/cleaner/plan.ts";
import { type BlockRun, blocksIn, subtract, unpackRuns } from "../../core/cleaner/runs.ts";
import type { SegmentInfo } from "../../core/log/first-image.ts";
import { BLOCK_SIZE } from "../../foundations/units.ts";
import type { Dropper } from "./dropper.ts";
import type { SecondWriter } from "./second-writer.ts";

/** What became of one segment. */
export interface SegmentOutcome {
	readonly movedBytes: number;
	/** Blocks left in it on purpose: unused, but too young to be dropped. */
	readonly keptBlocks: number;
}

export class Mover {
	readonly #plane: PlanePort;
	readonly #writer: SecondWriter;
	readonly #dropper: Dropper;
	readonly #lastWritten: LastWritten;

	constructor(plane: PlanePort, writer: SecondWriter, dropper: Dropper, lastWritten: LastWritten) {
		this.#plane = plane;
		this.#writer = writer;
		this.#dropper = dropper;
		this.#lastWritten = lastWritten;
	}

	/**
	 * Moves what a sealed segment still holds, but for blocks in `keep` (sorted): they wait to be dropped.
	 * `view` is durable and at or behind the segment's end.
	 */
	async moveSegment(segment: SegmentInfo, view: ViewHandle, keep: readonly BlockRun[]): Promise<SegmentOutcome> {
		const live = await this.#liveRuns(segment);
		const used = live.flatMap((run) => subtract(run, keep).map(({ block, count }) => partOf(run, block, count)));
		// Noted first: a bound that is too new only makes the dropper wait.
		for (const run of used) this.#lastWritten.moved(run, segment.endPosition);
		const movedBytes = (await this.#writer.move(used, view)) * BLOCK_SIZE;
		await this.#dropper.punch(unpackRuns(await this.#plane.ask("zeroRuns", segment.sequence)));
		return { movedBytes, keptBlocks: blocksIn(live) - blocksIn(used) };
	}

	async #liveRuns({ sequence }: SegmentInfo): Promise<LiveRun[]> {
		const live: LiveRun[] = [];
		for (let from = 0; from >= 0; ) {
			const { runs, next } = await this.#plane.ask("liveRuns", { sequence, from });
			live.push(...unpackLiveRuns(runs));
			from = next;
		}
		return live;
	}
}
