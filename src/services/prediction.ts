// Prediction: what a sweep would give back, found by asking the image about every droppable run. Changes nothing.
//
// `sweep --dry-run`, `explain` and the sweep itself all walk these runs here, so they can't contradict each other.

import type { SweepableImage } from "../adapters/images/disk-image.ts";
import type { GuestMap } from "../foundations/guest-map.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset } from "../foundations/units.ts";
import { type DropPolicy, wholeUnits } from "./droppable.ts";
import { checkpoint, type OnProgress, Turns } from "./progress.ts";

/** A run of the disk that a sweep would give back. Sizes in bytes. */
export interface ReclaimableArea {
	readonly start: number;
	readonly length: number;
	readonly volume: string;
	/** Host bytes that it takes now. */
	readonly hostBytes: number;
}

/** What a sweep gives back, or would, in host bytes. */
export interface Prediction {
	readonly bytes: number;
	/** By the volumes' ids. */
	readonly byVolume: ReadonlyMap<string, number>;
	/** The largest areas, largest first. */
	readonly largest: readonly ReclaimableArea[];
}

const LARGEST_COUNT = 10;

/** Asks about all droppable runs. Throws INTERRUPTED or IO. */
export async function predict(
	image: SweepableImage,
	map: GuestMap,
	policy: DropPolicy,
	options: { readonly signal: AbortSignal | undefined; readonly onProgress: OnProgress | undefined },
): Promise<Prediction> {
	return await walkDroppable(image, map, policy, {
		...options,
		step: "looking at free blocks",
		stoppedAs: `stopped before the end; ${image.path} is as it was. Run the same command again.`,
		act: (start, length) => image.wouldDrop(start, length),
	});
}

/** What is done to each droppable run. */
interface Work {
	readonly signal: AbortSignal | undefined;
	readonly onProgress: OnProgress | undefined;
	/** For progress. */
	readonly step: string;
	/** What an interruption says. */
	readonly stoppedAs: string;
	/** Returns the host bytes that come back. */
	readonly act: (start: ByteOffset, length: ByteCount) => Promise<number>;
}

/** Does something to all droppable runs, in order, and sums up what comes back. Throws INTERRUPTED, and what `act` throws. */
export async function walkDroppable(
	image: SweepableImage,
	map: GuestMap,
	policy: DropPolicy,
	{ signal, onProgress, step, stoppedAs, act }: Work,
): Promise<Prediction> {
	const byVolume = new Map<string, number>();
	const largest = new Largest();
	let bytes = 0;
	const turns = new Turns();
	for (const { start, end, volume } of wholeUnits(map, policy, image.unit)) {
		const hostBytes = await act(byteOffset(start), byteCount(end - start));
		if (hostBytes > 0) {
			bytes += hostBytes;
			byVolume.set(volume, (byVolume.get(volume) ?? 0) + hostBytes);
			largest.add({ start, length: end - start, volume, hostBytes });
		}
		if (!turns.isOver()) continue;
		onProgress?.({ step, done: end, total: map.size });
		await checkpoint(signal, stoppedAs);
		turns.begin();
	}
	return { bytes, byVolume, largest: largest.areas };
}

/** The largest areas seen so far. Pieces of one run follow each other and count as one. */
class Largest {
	readonly #areas: ReclaimableArea[] = [];
	#last: ReclaimableArea | undefined;

	add(area: ReclaimableArea): void {
		const last = this.#last;
		if (last !== undefined && last.volume === area.volume && last.start + last.length === area.start) {
			this.#last = { ...last, length: last.length + area.length, hostBytes: last.hostBytes + area.hostBytes };
			return;
		}
		this.#settle();
		this.#last = area;
	}

	get areas(): readonly ReclaimableArea[] {
		this.#settle();
		this.#sort();
		return this.#areas.slice(0, LARGEST_COUNT);
	}

	#settle(): void {
		if (this.#last === undefined) return;
		this.#areas.push(this.#last);
		this.#last = undefined;
		if (this.#areas.length < 16 * LARGEST_COUNT) return;
		this.#sort();
		this.#areas.length = LARGEST_COUNT;
	}

	#sort(): void {
		this.#areas.sort((a, b) => b.hostBytes - a.hostBytes);
	}
}
