// Second writer: the one place where a served disk's second image is changed. Whoever moves or punches does it through
// here, so that what must happen before, in this order, can't be forgotten:
//
//   changes ─► the record beside the image says that it doesn't stand by itself any more
//           ─► what snapshots still need of it is kept for them      (live-safety L7)
//           ─► checksums of what is punched are forgotten
//           ─► copy or punch ─► new checksums ─► all durable
//           ─► only then the data plane is told to look there: after a copy by `move`, after a punch by the caller

import type { SecondImage } from "../../adapters/images/second-image.ts";
import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import { type LiveRun, packLiveRuns, partOf, planCopies } from "../../core/cleaner/plan.ts";
import {
	appendRun,
	type BatchLimits,
	type BlockRun,
	batchesOf,
	blockRun,
	blocksIn,
	packRuns,
	unpackRuns,
} from "../../core/cleaner/runs.ts";
import { concatBytes } from "../../foundations/bytes.ts";
import { VmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../foundations/units.ts";
import { readSome } from "../verified-read.ts";
import { forgetSums } from "./forget-sums.ts";

/** Blocks that are kept for a snapshot in one call to the data plane: bounds memory and how long the guest waits. */
const KEPT_AT_ONCE = { blocks: 256 };
/** Blocks whose checksums are noted in one call, with the same aim, and those that are moved. */
const NOTED_AT_ONCE = { blocks: 256, runs: 64 };
const MOVED_AT_ONCE = { blocks: 256, runs: 128 };
const REFUSALS_MAX = 3;
const ALL: BatchLimits = { blocks: Number.POSITIVE_INFINITY };

export interface SecondWriterParts {
	readonly plane: PlanePort;
	readonly firstFd: number;
	readonly second: SecondImage;
	/** The newest complete snapshot: what changes is kept for it, and by it for all older ones. Undefined for none. */
	readonly newestSnapshot: () => string | undefined;
	/** Resolves once it is durably noted that a snapshot has lost blocks, which were rotten when they were to be kept. */
	readonly onLost: (snapshot: string, blocks: readonly number[]) => Promise<void>;
	/** Resolves once it is durably noted that the second image doesn't stand by itself any more. */
	readonly beforeChange: () => Promise<void>;
	/** How much is copied between two calls of `onCopied`; all at once where not given. */
	readonly piece?: () => BatchLimits;
	/** So many bytes were copied: the place to let the guest through. */
	readonly onCopied?: (bytes: number) => Promise<void>;
}

export class SecondWriter {
	readonly #parts: SecondWriterParts;
	/** How often the storage refused to give a block. */
	readonly #refusals = new Map<number, number>();

	constructor(parts: SecondWriterParts) {
		this.#parts = parts;
	}

	/**
	 * Copies blocks of the first image to their places, durably, and has the data plane read them there, where they still are as
	 * `view` shows them. They must be durable in the first image. Returns how many are read there from now on.
	 */
	async move(runs: readonly LiveRun[], view: ViewHandle): Promise<number> {
		if (runs.length === 0) return 0;
		const { plane, firstFd, second } = this.#parts;
		await this.#prepare(runs);
		for (const piece of batchesOf(runs, this.#parts.piece?.() ?? ALL, partOf)) {
			await second.copyFrom(firstFd, planCopies(piece));
			await this.#parts.onCopied?.(blocksIn(piece) * BLOCK_SIZE);
		}
		await Promise.all([second.flush(), this.#noteCopied(runs)]);
		let moved = 0;
		for (const some of batchesOf(runs, MOVED_AT_ONCE, partOf))
			moved += await plane.ask("moved", { runs: packLiveRuns(some), view: view.id });
		return moved;
	}

	/** In the order of the disk, in which their checksums lie. */
	async #noteCopied(runs: readonly LiveRun[]): Promise<void> {
		const { plane } = this.#parts;
		const sorted = runs.toSorted((a, b) => a.block - b.block);
		for (const some of batchesOf(sorted, NOTED_AT_ONCE, partOf)) await plane.ask("noteCopied", packLiveRuns(some));
		await plane.ask("flushSums");
	}

	/**
	 * Makes blocks read as zeros, durably once resolved, and gives back the space of those that take some (`stored`). Of the
	 * others, too, a crash may have left a checksum of what was to be copied there, or a punch that isn't durable yet.
	 */
	async punch(runs: readonly BlockRun[], stored: readonly BlockRun[]): Promise<void> {
		if (runs.length === 0) return;
		const { plane, second } = this.#parts;
		if (stored.length > 0) await this.#prepare(stored);
		await forgetSums(plane, runs);
		for (const { block, count } of stored)
			await second.punch(byteOffset(block * BLOCK_SIZE), byteCount(count * BLOCK_SIZE));
		await second.flush();
	}

	async #prepare(runs: readonly BlockRun[]): Promise<void> {
		const { newestSnapshot, beforeChange } = this.#parts;
		await beforeChange();
		const snapshot = newestSnapshot();
		if (snapshot !== undefined) await this.#keepFor(snapshot, runs);
	}

	/** Copies what a snapshot hasn't kept yet of blocks that are about to change; durable once resolved. */
	async #keepFor(name: string, runs: readonly BlockRun[]): Promise<void> {
		const { plane } = this.#parts;
		const wanted = unpackRuns(await plane.ask("notKept", { name, runs: packRuns(runs) }));
		for (const batch of batchesOf(wanted, KEPT_AT_ONCE, blockRun)) await this.#keepBatch(name, batch);
	}

	/** Storage that refuses a block may give it in a while: only a third refusal is taken for an answer. Throws IO before. */
	#noteRefused(first: number, refused: ReadonlySet<number>): void {
		let isNew = false;
		for (const i of refused) {
			const times = (this.#refusals.get(first + i) ?? 0) + 1;
			this.#refusals.set(first + i, times);
			if (times < REFUSALS_MAX) isNew = true;
		}
		if (!isNew) return;
		throw new VmsweepError(
			"IO",
			`${this.#parts.second.path}: a block from byte ${first * BLOCK_SIZE} on can't be read, which a snapshot needs. It's tried again.`,
		);
	}

	async #keepBatch(name: string, batch: readonly BlockRun[]): Promise<void> {
		const { plane, second } = this.#parts;
		const runs: BlockRun[] = [];
		const zeros: BlockRun[] = [];
		const pieces: Uint8Array[] = [];
		const lost: number[] = [];
		for (const { block, count } of batch) {
			const sums = await plane.ask("secondSums", { block, count });
			const bytes = new Uint8Array(count * BLOCK_SIZE);
			const { rotten, refused } = await readSome(second, block, bytes, sums);
			this.#noteRefused(block, refused);
			for (let i = 0; i < count; i++) {
				if (rotten.has(i) || refused.has(i)) {
					lost.push(block + i);
					continue;
				}
				const piece = bytes.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
				if (piece.every((byte) => byte === 0)) appendRun(zeros, block + i, 1);
				else {
					appendRun(runs, block + i, 1);
					pieces.push(piece);
				}
			}
		}
		// Cleaning must go on: the storage has destroyed them, not what is written over them now.
		if (lost.length > 0) await this.#parts.onLost(name, lost);
		await plane.ask("keep", { name, runs: packRuns(runs), bytes: concatBytes(pieces), zeros: packRuns(zeros) });
		await this.#parts.onCopied?.(blocksIn(runs) * BLOCK_SIZE);
	}
}
