// Waiting blocks: per volume, free blocks that may not be dropped yet, since their last writes are younger than the
// evidence. Each verdict looks at them again, together with the areas that the guest has changed since.

import { touchedBlocks, wholeBlocks } from "../../core/cleaner/plan.ts";
import { type BlockRun, BoundedRuns, blocksIn, joinRuns } from "../../core/cleaner/runs.ts";
import { rangesOnDisk } from "../../core/volumes/areas.ts";
import { runsOnDisk } from "../../core/volumes/pieces.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../foundations/units.ts";
import type { Dropped } from "./dropper.ts";
import type { ServedVolume } from "./volumes.ts";

type Waiting = Pick<Dropped, "young" | "rest">;

export class WaitingBlocks {
	readonly #byVolume = new Map<ServedVolume, Waiting>();

	clear(): void {
		this.#byVolume.clear();
	}

	/** What a drop left behind. */
	set(volume: ServedVolume, waiting: Waiting): void {
		this.#byVolume.set(volume, waiting);
	}

	/** Has all candidates wait, `runsMax` of them one by one. */
	postpone(volume: ServedVolume, changed: readonly ByteRange[], runsMax: number): void {
		const waiting = new BoundedRuns(runsMax);
		for (const { block, count } of this.candidates(volume, changed)) waiting.append(block, count);
		this.#byVolume.set(volume, { young: waiting.list, rest: waiting.rest });
	}

	/** Those of a volume that are known one by one, sorted. */
	of(volume: ServedVolume): readonly BlockRun[] {
		return this.#byVolume.get(volume)?.young ?? [];
	}

	/** Those of all volumes that are known one by one, sorted. */
	all(): BlockRun[] {
		return joinRuns([...this.#byVolume.values()].flatMap(({ young }) => young));
	}

	get bytes(): number {
		return [...this.#byVolume.values()].reduce((sum, { young }) => sum + blocksIn(young) * BLOCK_SIZE, 0);
	}

	/** Free whole blocks in the changed areas, and what waited before, where it is still free. Sorted, found as it is walked. */
	*candidates(volume: ServedVolume, changed: readonly ByteRange[]): Generator<BlockRun> {
		const { live, areas } = volume;
		const { young = [], rest } = this.#byVolume.get(volume) ?? {};
		const looked = joinRuns([
			...changed.flatMap((range) => rangesOnDisk(areas, range)).map(touchedBlocks),
			...young,
			...(rest === undefined ? [] : [rest]),
		]);
		const within = looked.map(({ block, count }) => ({
			start: byteOffset(block * BLOCK_SIZE),
			length: byteCount(count * BLOCK_SIZE),
		}));
		for (const range of runsOnDisk(areas, within, (from, to) => live!.freeRuns(from, to))) {
			const run = wholeBlocks(range);
			if (run !== undefined) yield run;
		}
	}
}
