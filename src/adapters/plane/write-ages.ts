// Write ages: what the data plane can say about when a block was last written, in log positions.
//
//   in the first image      its slot's position, exactly
//   in the second image     a bound per MiB of disk: the newest position that anything moved there had (last-written.ts)
//   marked as zeros         unknown, since zeroing takes no slot
//
// Unknown counts as written now, always: who asks wants to leave out what surely was not written.

import { LastWritten } from "../../core/cleaner/last-written.ts";
import { ABSENT, type FirstImage, ZERO } from "../../core/log/first-image.ts";

/** Told of a run of blocks: written before the position asked about, or maybe not. */
export type AgeVisitor = (block: number, count: number, isOlder: boolean) => void;

export class WriteAges {
	/** The log's position when it was opened. */
	readonly opened: number;
	readonly #log: FirstImage;
	readonly #lastWritten: LastWritten;

	/** Made when the log is opened: what the second image holds by then counts as written at that moment. */
	constructor(log: FirstImage) {
		this.#log = log;
		this.opened = log.position;
		this.#lastWritten = new LastWritten(log.diskBlocks, this.opened);
	}

	/** Triples [block, count, first slot] whose blocks will be in the second image, where they still are at that slot. */
	moving(runs: Float64Array): void {
		for (let i = 0; i + 2 < runs.length; i += 3) {
			const first = runs[i]!;
			const slot = runs[i + 2]!;
			this.#log.resolve(first, runs[i + 1]!, (value, block, count) => {
				if (value <= ZERO || value !== slot + (block - first)) return;
				this.#lastWritten.moved({ block, count }, this.#log.positionOfSlot(value + count - 1) + 1);
			});
		}
	}

	/** Pairs [block, count] whose mark as zeros is taken away, since the second image holds zeros there now. */
	clearing(runs: Float64Array): void {
		for (let i = 0; i + 1 < runs.length; i += 2) this.changed(runs[i]!, runs[i + 1]!);
	}

	/** The blocks may be other ones than they were up to now. */
	changed(block: number, count: number): void {
		// Beyond every position that could have been asked about by now, also where no slot was taken since.
		if (count > 0) this.#lastWritten.moved({ block, count }, this.#log.position + 1);
	}

	/** Visits `[block, block + count)` in order: was it written before `position`, for sure? */
	visit(block: number, count: number, position: number, visit: AgeVisitor): void {
		this.#log.resolve(block, count, (value, start, length) => {
			if (value === ZERO) visit(start, length, false);
			else if (value === ABSENT)
				for (const part of this.#lastWritten.parts({ block: start, count: length }))
					visit(part.block, part.count, part.position <= position);
			else {
				const older = Math.max(0, Math.min(length, position - this.#log.positionOfSlot(value)));
				if (older > 0) visit(start, older, true);
				if (older < length) visit(start + older, length - older, false);
			}
		});
	}
}
