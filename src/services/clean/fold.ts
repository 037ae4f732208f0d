// Fold: makes the second image by itself what a view of the disk shows.
//
//   view ─► its blocks in the first image ─► copied, in the order of the disk ┐
//        └► its zeros                      ─► punched                         ┴► the second image equals the view
//
// The cleaner's ordinary rounds move what the oldest segments still hold now; a fold moves what its view held, also
// what the guest has overwritten since. The view must be durable, and nobody else changes the second image meanwhile.
//
// What must never happen: older content over newer. So only blocks are touched of which the log has something now, the
// view's content or newer: the guest reads that, whatever the fold writes. And the caller sees to it that nothing newer than
// the view was moved or punched before: a power cut could otherwise take back the log's newer content, and show the
// fold's (docs/live-safety.md, "Earlier states").

import { LOCATED_AT_ONCE, unpackLocated } from "../../adapters/plane/located.ts";
import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import type { LastWritten } from "../../core/cleaner/last-written.ts";
import { type LiveRun, partOf, unpackLiveRuns } from "../../core/cleaner/plan.ts";
import { type BlockRun, blocksIn, intersect, joinRuns, subtract } from "../../core/cleaner/runs.ts";
import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import { BLOCK_SIZE, byteOffset } from "../../foundations/units.ts";
import type { Dropper } from "./dropper.ts";
import type { SecondWriter } from "./second-writer.ts";

/** Blocks copied before they are made durable: 8 MiB. */
const COPIED_AT_ONCE = 2048;

export interface FoldOptions {
	/** Blocks of the view that nothing in it uses: left where they are. Sorted. */
	readonly unused: readonly BlockRun[];
	/** Stops early; the second image is then between two states. */
	readonly signal: AbortSignal;
}

export class Fold {
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

	/** Returns the bytes that were moved, or undefined where it was stopped. */
	async run(view: ViewHandle, blocks: number, { unused, signal }: FoldOptions): Promise<number | undefined> {
		// Dropped blocks that an operator may still want back stay dropped in the log; what undo would read from the second
		// image stays there, too. Nothing in the view uses any of them.
		const { inSecond, inLog } = await this.#recoverable();
		const spared = joinRuns([...unused, ...inSecond]);
		let moved = 0;
		let batch: LiveRun[] = [];
		let batchBlocks = 0;
		for (let block = 0; block < blocks; block += LOCATED_AT_ONCE) {
			const count = Math.min(LOCATED_AT_ONCE, blocks - block);
			const located = await this.#plane.ask("locateLogged", { view: view.id, block, count });
			const zeros: BlockRun[] = [];
			for (const { value, at, ...run } of unpackLocated(located)) {
				if (value === ABSENT) continue;
				for (const part of subtract(run, spared)) {
					if (value === ZERO) {
						zeros.push(part);
						continue;
					}
					const logged = { ...run, slot: value, at: byteOffset(at) };
					for (let from = 0; from < part.count; ) {
						const step = Math.min(part.count - from, COPIED_AT_ONCE - batchBlocks);
						batch.push(partOf(logged, part.block + from, step));
						batchBlocks += step;
						from += step;
						if (batchBlocks < COPIED_AT_ONCE) continue;
						moved += await this.#move(batch, view);
						batch = [];
						batchBlocks = 0;
						if (signal.aborted) return undefined;
					}
				}
			}
			await this.#dropper.punch(zeros.flatMap((run) => subtract(run, inLog)));
			await this.#dropper.clear(zeros.flatMap((run) => intersect(run, inLog)));
			if (signal.aborted) return undefined;
		}
		return moved + (await this.#move(batch, view));
	}

	async #move(runs: readonly LiveRun[], view: ViewHandle): Promise<number> {
		if (runs.length === 0) return 0;
		for (const run of runs) this.#lastWritten.moved(run, view.position);
		await this.#writer.move(runs, view);
		return blocksIn(runs) * BLOCK_SIZE;
	}

	/** What `undo` could bring back: from the second image, or from the log. Sorted. */
	async #recoverable(): Promise<{ readonly inSecond: readonly BlockRun[]; readonly inLog: readonly BlockRun[] }> {
		const inSecond: BlockRun[] = [];
		const inLog: BlockRun[] = [];
		for (const { block, count, slot } of unpackLiveRuns(await this.#plane.ask("undoable")))
			(slot === ABSENT ? inSecond : inLog).push({ block, count });
		return { inSecond: joinRuns(inSecond), inLog: joinRuns(inLog) };
	}
}
