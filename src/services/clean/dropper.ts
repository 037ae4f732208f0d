// Dropper: lets go of blocks that a volume's file system has proved unused, in both images.
//
//   free runs ─ locate in a fresh view ─► settled | young
//   settled ─► data plane: compare and swap to "reads as zeros" ─► punch the second image ─► flush it
//           ─► data plane: nothing left in the first image either
//
// Where each condition of docs/live-safety.md is kept: E1, E5, E6, E7 in the file system's reader, E2 in `planDrops`,
// E3 and L5 in the data plane's `dropped` (unchanged since the view), E4 and L4 by `isDurable`, L8 in `wholeBlocks`.

import type { HeldParts, SecondImage } from "../../adapters/images/second-image.ts";
import { LOCATED_AT_ONCE, unpackLocated } from "../../adapters/plane/located.ts";
import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import type { LastWritten } from "../../core/cleaner/last-written.ts";
import { type PlacedRun, planDrops } from "../../core/cleaner/plan.ts";
import { type BlockRun, BoundedRuns, blocksIn, packRuns, piecesOf, unpackRuns } from "../../core/cleaner/runs.ts";
import { ABSENT, ZERO } from "../../core/log/first-image.ts";
import { BLOCK_SIZE, type LogPosition } from "../../foundations/units.ts";
import { heldBlocks } from "./held-blocks.ts";
import { makeDurable } from "./make-durable.ts";
import type { SecondWriter } from "./second-writer.ts";

/** Runs handed to the data plane at once: bounds how long the guest waits for it. */
const RUNS_PER_CALL = 4096;
/** Young runs that are remembered one by one: bounds memory, however a file system's free blocks lie. */
const YOUNG_RUNS_MAX = 1 << 18;

/** What one pass dropped and what has to wait. */
export interface Dropped {
	readonly droppedBytes: number;
	/** Free, but written too recently. */
	readonly young: readonly BlockRun[];
	/** Where more such blocks lie that found no room in `young`; undefined for none. */
	readonly rest: BlockRun | undefined;
}

export class Dropper {
	readonly #plane: PlanePort;
	readonly #second: SecondImage;
	readonly #writer: SecondWriter;
	readonly #lastWritten: LastWritten;
	readonly #held: HeldParts;
	/** Dropped blocks may be wanted back: they are punched later, with their segment. */
	quarantined = false;
	youngRunsMax = YOUNG_RUNS_MAX;
	/**
	 * In guest entries: of zeros up to here, the first image may have forgotten some that were punched. A block may have been
	 * written and trimmed again meanwhile, and the punch stands for the later zeros, too.
	 */
	forgottenThrough = 0;

	/** @param held which parts of the second image take space; by default it is asked itself */
	constructor(
		plane: PlanePort,
		second: SecondImage,
		writer: SecondWriter,
		lastWritten: LastWritten,
		held: HeldParts = second.held,
	) {
		this.#plane = plane;
		this.#second = second;
		this.#writer = writer;
		this.#lastWritten = lastWritten;
		this.#held = held;
	}

	/**
	 * Drops what of `free` (sorted; unused by the evidence at an earlier position) was last written before `settledBefore`.
	 * The blocks' last writes are judged now, on a fresh view: what was written since the evidence is young, and what
	 * was merely moved since then is not.
	 */
	async drop(free: Iterable<BlockRun>, settledBefore: LogPosition): Promise<Dropped> {
		const view = await this.#plane.ask("takeView");
		try {
			await makeDurable(this.#plane, view);
			return await this.#dropIn(view, free, settledBefore);
		} finally {
			await this.#plane.ask("releaseView", view.id);
		}
	}

	/**
	 * Drops blocks that nothing uses in `view`, where they still are as it shows them: also what the second image has lost, and
	 * which its checksum wouldn't let be zeros. Returns the bytes.
	 */
	async giveUp(view: ViewHandle, runs: readonly BlockRun[]): Promise<number> {
		await makeDurable(this.#plane, view);
		let droppedBytes = 0;
		for (let from = 0; from < runs.length; from += RUNS_PER_CALL)
			droppedBytes += await this.#apply(view, runs.slice(from, from + RUNS_PER_CALL));
		return droppedBytes;
	}

	async #dropIn(view: ViewHandle, free: Iterable<BlockRun>, settledBefore: LogPosition): Promise<Dropped> {
		const young = new BoundedRuns(this.youngRunsMax);
		let droppedBytes = 0;
		let batch: BlockRun[] = [];
		for (const run of free)
			for (const piece of piecesOf(run, LOCATED_AT_ONCE)) {
				const plan = planDrops(await this.#worthDropping(view, piece), settledBefore, this.#lastWritten);
				for (const { block, count } of plan.young) young.append(block, count);
				batch.push(...plan.settled);
				if (batch.length < RUNS_PER_CALL) continue;
				droppedBytes += await this.#apply(view, batch);
				batch = [];
			}
		if (batch.length > 0) droppedBytes += await this.#apply(view, batch);
		return { droppedBytes, young: young.list, rest: young.rest };
	}

	/** The parts of a run that hold something: blocks in the first image, and allocated ones in the second. */
	async #worthDropping(view: ViewHandle, run: BlockRun): Promise<PlacedRun[]> {
		const located = await this.#plane.ask("locate", { view: view.id, block: run.block, count: run.count });
		const placed: PlacedRun[] = [];
		for (const { block, count, value, position } of unpackLocated(located)) {
			if (value === ZERO) continue;
			if (value !== ABSENT) placed.push({ block, count, place: "first", position });
			else
				for await (const stored of this.#storedBlocks({ block, count }))
					placed.push({ ...stored, place: "second", position: -1 });
		}
		return placed;
	}

	/** The blocks of a run that take space in the second image. */
	#storedBlocks(run: BlockRun): AsyncGenerator<BlockRun> {
		return heldBlocks(this.#held, this.#second.size, run);
	}

	async #apply(view: ViewHandle, runs: readonly BlockRun[]): Promise<number> {
		const applied = unpackRuns(await this.#plane.ask("dropped", { runs: packRuns(runs), view: view.id }));
		if (!this.quarantined) await this.punch(applied);
		return blocksIn(applied) * BLOCK_SIZE;
	}

	/** Frees blocks that read as zeros in the second image, and then takes their mark off the first. */
	async punch(runs: readonly BlockRun[]): Promise<void> {
		await this.clear(runs);
		if (runs.length > 0) this.forgottenThrough = await this.#plane.ask("punched", packRuns(runs));
	}

	/** Frees blocks that read as zeros in the second image; they stay marked in the first, where `undo` looks for them. */
	async clear(runs: readonly BlockRun[]): Promise<void> {
		if (runs.length === 0) return;
		const stored: BlockRun[] = [];
		for (const run of runs) for await (const held of this.#storedBlocks(run)) stored.push(held);
		await this.#writer.punch(runs, stored);
	}
}
