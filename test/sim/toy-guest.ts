// A guest with the smallest file system that has what matters: blocks are used and freed in memory, and now and then a
// commit record in block 0 says which blocks are used. Data goes to disk before, while and after a record is written,
// as on real journaling file systems.
//
//   freeze: what the next record will say ─► writes of the transaction after it go on ─► the record, in one write
//
// A record freezes only after the one before it was written. So what a block held before record n-1 was known to the
// guest when record n froze: a block that n calls free, and that was written before n-1, is unused. That is the whole
// live rule, and it is exact, so that every drop that hits a block in use is the product's fault.

import type { PlanePort } from "../../src/adapters/plane/messages.ts";
import type { Collected } from "../../src/adapters/plane/watch.ts";
import type { LiveState, LiveVolume } from "../../src/core/filesystems/live.ts";
import { linearArea } from "../../src/core/volumes/areas.ts";
import { BLOCK_SIZE, byteCount, byteOffset, type LogPosition } from "../../src/foundations/units.ts";
import type { ReadView, ServedVolume, Verdict } from "../../src/services/clean/volumes.ts";
import { valueIn } from "./blocks.ts";

/** What a record says. */
export interface Commit {
	/** Blocks that the file system calls used. */
	readonly used: ReadonlySet<number>;
	/** Of these, blocks whose content it relies on: written since they were taken. */
	readonly written: ReadonlySet<number>;
}

/** Block of the record. */
export const RECORD_BLOCK = 0;

/** The guest's memory. */
export class ToyGuest {
	readonly blocks: number;
	/** Every record ever written or tried, by its value. */
	readonly commits: Map<number, Commit>;
	used = new Set<number>();
	written = new Set<number>();
	/** What the next record will say, once frozen. */
	frozen: Commit | undefined;

	constructor(blocks: number, commits: Map<number, Commit>) {
		this.blocks = blocks;
		this.commits = commits;
	}

	/** Mounts what the disk holds: the record's value counts. */
	mount(record: number): void {
		const commit = this.commits.get(record);
		this.used = new Set(commit?.used);
		this.written = new Set(commit?.written);
		this.frozen = undefined;
	}

	freeze(): void {
		this.frozen = { used: new Set(this.used), written: new Set(this.written) };
	}

	/** A block's content counts from now on. */
	write(block: number): void {
		this.used.add(block);
		this.written.add(block);
	}

	free(block: number): void {
		this.used.delete(block);
		this.written.delete(block);
	}
}

interface SeenRecord {
	readonly value: number;
	readonly position: LogPosition;
	readonly end: LogPosition;
}

/** The toy file system's part in the cleaner, in the place of the product's `Volumes`. */
export class ToyVolumes {
	readonly list: readonly ServedVolume[];
	readonly #readView: ReadView;
	readonly #guest: ToyGuest;
	/** Records seen since the watch began, in log order. */
	#records: SeenRecord[] = [];
	#known: ReadonlySet<number> | undefined;
	#commits = 0;

	private constructor(readView: ReadView, guest: ToyGuest) {
		this.#readView = readView;
		this.#guest = guest;
		const live: Pick<LiveVolume, "commits" | "freeRuns"> = {
			commits: 0,
			freeRuns: (from, to) => this.#freeRuns(from, to),
		};
		this.list = [
			{
				id: "disk",
				type: "toy",
				areas: [linearArea(byteOffset(0), byteCount(guest.blocks * BLOCK_SIZE))],
				contentOf: (disk) => disk,
				live: live as LiveVolume,
				verdict: undefined,
				reason: undefined,
				waiting: [],
				lastWrite: -1,
				lookedAt: undefined,
			},
		];
	}

	static async identify(plane: PlanePort, readView: ReadView, guest: ToyGuest): Promise<ToyVolumes> {
		const whole = { start: byteOffset(0), length: byteCount(guest.blocks * BLOCK_SIZE) };
		const record = { start: byteOffset(RECORD_BLOCK * BLOCK_SIZE), length: byteCount(BLOCK_SIZE) };
		const mark = { pattern: new Uint8Array(0), every: byteCount(BLOCK_SIZE), origin: 0 };
		await plane.ask("watch", { volumes: [{ runs: [whole] }], ranges: [{ volume: 0, ...record, mark }], identity: [] });
		return new ToyVolumes(readView, guest);
	}

	isStillTheSame(): Promise<boolean> {
		return Promise.resolve(true);
	}

	async judge({ notices, views: [view] }: Collected): Promise<Verdict[]> {
		for (const { bytes, position, end } of notices)
			if (bytes !== undefined) this.#records.push({ value: valueIn(bytes), position, end });
		if (view === undefined) return [];
		const block = new Uint8Array(BLOCK_SIZE);
		await this.#readView(view).read(byteOffset(RECORD_BLOCK * BLOCK_SIZE), block);
		const record = valueIn(block);
		const index = this.#records.findLastIndex(({ end }) => end <= view.position);
		const commit = this.#guest.commits.get(record);
		if (index >= 0 && this.#records[index]!.value !== record)
			throw new RangeError(`a view at ${view.position} shows record ${record}, not ${this.#records[index]!.value}`);
		const before = this.#records[index - 1];
		if (commit === undefined || before === undefined)
			return [{ volume: this.list[0]!, view, state: keep(view.position) }];
		const used = commit.used;
		const changed = Array.from({ length: this.#guest.blocks }, (_, at) => at).filter(
			(at) => this.#known === undefined || this.#known.has(at) !== used.has(at),
		);
		this.#known = used;
		this.#commits++;
		const state: LiveState = {
			kind: "ready",
			position: view.position,
			settled: before.position,
			changed: changed.map((at) => ({ start: byteOffset(at * BLOCK_SIZE), length: byteCount(BLOCK_SIZE) })),
			metadataBytesRead: BLOCK_SIZE,
			groupsRead: this.#commits,
			watchChanged: false,
			warnings: [],
		};
		return [{ volume: this.list[0]!, view, state }];
	}

	*#freeRuns(from: number, to: number): ReturnType<LiveVolume["freeRuns"]> {
		for (let at = Math.ceil(from / BLOCK_SIZE); (at + 1) * BLOCK_SIZE <= to; at++)
			if (at !== RECORD_BLOCK && this.#known?.has(at) === false)
				yield { start: byteOffset(at * BLOCK_SIZE), length: byteCount(BLOCK_SIZE) };
	}
}

const keep = (position: LogPosition): LiveState => ({
	kind: "keep",
	position,
	reason: "too few records",
	pending: true,
	metadataBytesRead: 0,
	watchChanged: false,
});
