// Flusher: what is durable, and the freeing of segments, which rides on flushes.
//
// The order that makes a power cut harmless. Let S be the oldest segment, with nothing in it needed any more: each
// of its slots was superseded by a later entry, or copied to the second image (durable there before `moved`); each of
// its zero runs superseded, or punched in the second image (durable there before `punched`).
//
//   flush 1 begins      S is a candidate: everything that supersedes it is already written
//   flush 1 completes   so that is durable now; the superblock that names S freed is written
//   flush 2 completes   that superblock is durable; S's place may be overwritten, punched, cut off
//
// Cut before the superblock is durable: recovery may or may not see it. If not, S is still as it was, since nothing has
// touched its place: it is replayed and superseded again by what follows, which is durable. If so, S is left out, and
// what supersedes it is durable. Cut after: S is never looked at. Segments are freed oldest first, so an older
// entry for a block never outlives the newer one that superseded it; that is also why zero and drop entries can
// leave with their segment: no older data entry is left that they would have to hide.
// S is never the last segment of the chain, which holds the end of the log.
//
// The two superblock copies are written alternately and never both between two flushes: one is always whole.

import { assert, isVmsweepError } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteOffset } from "../../foundations/units.ts";
import type { Superblock } from "./format.ts";
import { encodeSuperblock } from "./format.ts";
import type { Pin } from "./segments.ts";
import type { LogState } from "./state.ts";
import { datasync, headPosition, isHarmless, poison, refusePoisoned } from "./state.ts";

interface RunningFlush {
	readonly entries: number;
	readonly position: number;
	/** Oldest segments that may go when it completes. */
	readonly freeable: number;
}

export class Flusher {
	readonly #state: LogState;
	readonly #pins: readonly Pin[];
	#superblock: Superblock;
	#copy: 0 | 1;
	#running: RunningFlush | undefined;
	/** A superblock was written since the last flush began. */
	#superblockPending = false;

	constructor(state: LogState, superblock: Superblock, copy: 0 | 1, pins: readonly Pin[]) {
		this.#state = state;
		this.#superblock = superblock;
		this.#copy = copy;
		this.#pins = pins;
	}

	get limitBytes(): number {
		return this.#superblock.limitBytes;
	}

	begin(): number {
		const state = this.#state;
		refusePoisoned(state);
		assert(!this.#running, "a flush begins while another one runs");
		if (!state.safeguards.supersededDurably) this.#free(this.#countFreeable());
		this.#running = { entries: state.nextEntry, position: headPosition(state), freeable: this.#countFreeable() };
		return this.#running.position;
	}

	complete(position: number): void {
		const state = this.#state;
		refusePoisoned(state);
		const flush = this.#running;
		assert(flush?.position === position, "a flush completes that did not begin");
		this.#running = undefined;
		state.durableEntries = flush.entries;
		state.durablePosition = flush.position;
		// Written before this flush began, so it's durable now.
		if (this.#superblockPending) state.table.freeRetired();
		this.#superblockPending = false;
		this.#free(flush.freeable);
	}

	fail(cause: unknown): void {
		this.#running = undefined;
		poison(this.#state, cause);
	}

	get needsFlush(): boolean {
		return this.#superblockPending || this.#countFreeable() > 0;
	}

	get freeableSegments(): number {
		return this.#countFreeable() + this.#state.table.retired.length;
	}

	/**
	 * Writes both superblocks, one after the other is durable: a log of an older version becomes one of this version
	 * before anything of it is written that an older vmsweep would misread. A cut leaves one that it can read, or none.
	 */
	upgrade(): void {
		// What a flush that runs meanwhile freed must be durable before the other copy is written over.
		datasync(this.#state);
		this.#replaceSuperblock({});
		this.#replaceSuperblock({});
	}

	/**
	 * Notes another size of the disk, durably. Throws LOG_POISONED, IO, and for a larger size NO_SPACE: then either size may
	 * be found at the next opening. A smaller one that may be on disk or not ends all writing, since a write beyond it
	 * could be lost.
	 */
	resize(diskBytes: number): void {
		refusePoisoned(this.#state);
		const grows = diskBytes > this.#superblock.diskBytes;
		const largestDiskBytes = Math.max(this.#superblock.largestDiskBytes, diskBytes);
		try {
			datasync(this.#state);
			this.#replaceSuperblock({ diskBytes, largestDiskBytes });
		} catch (error) {
			if (grows && isVmsweepError(error, "NO_SPACE")) throw error;
			throw poison(this.#state, error);
		}
		try {
			this.#replaceSuperblock({});
		} catch (error) {
			// One copy is enough; the other is only there should the first be damaged.
			if (!isVmsweepError(error, "NO_SPACE")) throw poison(this.#state, error);
		}
	}

	/** Makes all durable and notes that it is. */
	close(): void {
		const state = this.#state;
		try {
			const position = this.begin();
			datasync(state);
			this.complete(position);
			datasync(state);
			this.#writeSuperblock({});
			datasync(state);
		} catch (error) {
			if (!isHarmless(error)) this.fail(error);
			throw error;
		}
	}

	/** Writes the superblock that frees the `count` oldest segments. */
	#free(count: number): void {
		if (count === 0) return;
		const { table, safeguards } = this.#state;
		const newest = table.chain[count - 1]!;
		const freedEntries = table.chain[count]!.firstEntry;
		try {
			this.#writeSuperblock({ freedSequence: newest.sequence, freedEntries });
		} catch (error) {
			// The other copy is whole, and the segments stay until a later flush tries again.
			if (isVmsweepError(error, "NO_SPACE")) return;
			throw poison(this.#state, error);
		}
		this.#state.freedSequence = newest.sequence;
		table.retire(count);
		this.#superblockPending = true;
		if (!safeguards.tailDurably) table.freeRetired();
	}

	#replaceSuperblock(changes: Partial<Superblock>): void {
		this.#writeSuperblock(changes);
		datasync(this.#state);
	}

	#writeSuperblock(changes: Partial<Superblock>): void {
		const state = this.#state;
		const copy = this.#copy === 0 ? 1 : 0;
		const superblock: Superblock = {
			...this.#superblock,
			...changes,
			generation: this.#superblock.generation + 1,
			durableEntries: state.durableEntries,
			epoch: state.epoch,
		};
		const record = new Uint8Array(BLOCK_SIZE);
		encodeSuperblock(record, superblock);
		state.file.write(record, byteOffset(copy * BLOCK_SIZE));
		this.#superblock = superblock;
		this.#copy = copy;
	}

	#countFreeable(): number {
		const { table, index, safeguards } = this.#state;
		return table.countFreeable(index, safeguards.viewsHold ? this.#pins : []);
	}
}
