// Cleaner: the rounds of one served disk. Each round drops what became provably unused, moves what has settled
// in the first image to the second, and gives the host its space back.
//
//   round:  collect ─► judge ─► drop ─► move the oldest segments ─► flush until segments are free ─► punch them
//
// The first verdict on a volume reads all of its groups (initialization phase); from then on a verdict names only
// the groups whose metadata was written (continuous phase). `metadataBytesRead` shows it.
//
// Pace, by how full the log is and how busy the guest:
//   quiet guest     segments are moved once they have been closed for SETTLE_MS, and free ones given back
//   busy guest      the log is left to absorb: much of it will be overwritten or deleted, and needs no copy;
//                   free segments stay allocated, since writing into warm ones is several times faster
//   EAGER_SHARE     of the limit used: segments are moved all the same, resting as long as each batch took
//   URGENT_SHARE    used, or clients wait for room: no rests, and blocks that only wait to be dropped are moved
//                   like used ones, since moving is always right

import type { SecondImage } from "../../adapters/images/second-image.ts";
import type { DataPlane } from "../../adapters/plane/data-plane.ts";
import type { PlaneStatus } from "../../adapters/plane/messages.ts";
import { LastWritten } from "../../core/cleaner/last-written.ts";
import { wholeBlocks } from "../../core/cleaner/plan.ts";
import { type BlockRun, blocksIn, joinRuns } from "../../core/cleaner/runs.ts";
import type { SegmentInfo } from "../../core/log/first-image.ts";
import { assert } from "../../foundations/errors.ts";
import { BLOCK_SIZE, byteOffset, divCeil, type LogPosition } from "../../foundations/units.ts";
import { Dropper } from "./dropper.ts";
import { Mover } from "./mover.ts";
import { type ReadView, type ServedVolume, type Verdict, Volumes } from "./volumes.ts";

/** A segment is moved once it has been closed for this long: what is deleted soon is never copied. */
const SETTLE_MS = 5_000;
/** Above this share of the log's limit segments are moved whatever their age. */
const EAGER_SHARE = 0.5;
const URGENT_SHARE = 0.75;
/** A guest that appends less than this per second is quiet. */
const QUIET_BYTES_PER_SECOND = 16 * 1024 * 1024;
const MEASURE_SECONDS = 0.5;
/** Segments emptied before verdicts are looked for and space is freed again. */
const SEGMENTS_PER_ROUND = 4;
/** Rounds of flushing in one go: two make a segment free, one more starts when writes came in between. */
const FREEING_FLUSHES = 3;

/** What the cleaner works on. */
export interface CleanerDisk {
	readonly plane: DataPlane;
	readonly firstFd: number;
	readonly second: SecondImage;
	readonly readView: ReadView;
}

/** Totals since the disk is served. */
export interface CleanerCounters {
	rounds: number;
	droppedBytes: number;
	movedBytes: number;
	/** Metadata read by all verdicts, and by the latest one that read any. */
	metadataBytesRead: number;
	metadataBytesLastPass: number;
	groupsLastPass: number;
	/** Host bytes of the first image given back. */
	punchedBytes: number;
}

/** What waits in a volume, and why. */
export interface VolumeStatus {
	readonly id: string;
	readonly type: string;
	/** `initialization` until the first verdict, then `continuous`; `kept` where no rule applies. */
	readonly phase: "initialization" | "continuous" | "kept";
	readonly commits: number;
	/** Free, but written too recently to be dropped. In bytes. */
	readonly pendingBytes: number;
	readonly reason: string | null;
}

/** How thorough a round is. */
export interface RoundOptions {
	/** Moves every closed segment, whatever its age. */
	readonly everything?: boolean;
	/** Moves blocks that only wait to be dropped as well. */
	readonly evenYoung?: boolean;
}

export class Cleaner {
	readonly #disk: CleanerDisk;
	readonly #dropper: Dropper;
	readonly #mover: Mover;
	readonly #firstSeen = new Map<number, number>();
	/** Per volume: free blocks that were too young when they were last looked at. */
	readonly #young = new Map<ServedVolume, readonly BlockRun[]>();
	readonly counters: CleanerCounters = {
		rounds: 0,
		droppedBytes: 0,
		movedBytes: 0,
		metadataBytesRead: 0,
		metadataBytesLastPass: 0,
		groupsLastPass: 0,
		punchedBytes: 0,
	};
	#volumes: Volumes | undefined;
	/** What the guest wrote by when, for its rate. */
	#measured: { at: number; position: number };
	#quiet = true;

	/** @param opened the log's position when the disk was opened */
	constructor(disk: CleanerDisk, opened: LogPosition) {
		const { plane, firstFd, second } = disk;
		const lastWritten = new LastWritten(divCeil(second.size, BLOCK_SIZE), opened);
		this.#disk = disk;
		this.#measured = { at: performance.now(), position: opened };
		this.#dropper = new Dropper(plane, second, lastWritten);
		this.#mover = new Mover(plane, firstFd, second, this.#dropper, lastWritten);
	}

	volumes(): VolumeStatus[] {
		return (this.#volumes?.list ?? []).map((volume) => ({
			id: volume.id,
			type: volume.type,
			phase: volume.live === undefined ? "kept" : volume.verdict?.kind === "ready" ? "continuous" : "initialization",
			commits: volume.live?.commits ?? 0,
			pendingBytes: blocksIn(this.#young.get(volume) ?? []) * BLOCK_SIZE,
			reason: volume.reason ?? null,
		}));
	}

	/** One round. Rounds must not overlap. Returns the bytes that it dropped, moved or gave back. */
	async round(options: RoundOptions = {}): Promise<number> {
		const before = progressOf(this.counters);
		this.counters.rounds++;
		await this.#measureGuest();
		await this.#dropUnused();
		await this.#moveSettled(options);
		await this.#free(options.everything === true);
		return progressOf(this.counters) - before;
	}

	async #measureGuest(): Promise<void> {
		const { position } = await this.#disk.plane.ask("status");
		const now = performance.now();
		const seconds = (now - this.#measured.at) / 1000;
		if (seconds < MEASURE_SECONDS) return;
		const rate = ((position - this.#measured.position) * BLOCK_SIZE) / seconds;
		this.#quiet = rate < QUIET_BYTES_PER_SECOND;
		this.#measured = { at: now, position };
	}

	// ---- Dropping -----------------------------------------------------------------------------------------

	async #dropUnused(): Promise<void> {
		const { plane, readView } = this.#disk;
		if (this.#volumes === undefined) {
			this.#young.clear();
			this.#volumes = await Volumes.identify(plane, readView);
		}
		const collected = await plane.ask("collect");
		if (collected.lost || (collected.identityTouched && !(await this.#volumes.isStillTheSame()))) {
			for (const view of collected.views) if (view !== undefined) await plane.ask("releaseView", view.id);
			this.#volumes = undefined;
			return;
		}
		for (const verdict of await this.#volumes.judge(collected)) {
			try {
				await this.#act(verdict);
			} finally {
				await plane.ask("releaseView", verdict.view.id);
			}
			if (verdict.state.watchChanged) this.#volumes = undefined;
		}
	}

	async #act({ volume, state }: Verdict): Promise<void> {
		const { counters } = this;
		counters.metadataBytesRead += state.metadataBytesRead;
		if (state.metadataBytesRead > 0) counters.metadataBytesLastPass = state.metadataBytesRead;
		if (state.kind !== "ready") return;
		if (state.metadataBytesRead > 0) counters.groupsLastPass = state.groupsRead;
		const free = this.#candidates(volume, state.changed);
		const { droppedBytes, young } = await this.#dropper.drop(free, state.settled);
		this.#young.set(volume, young);
		counters.droppedBytes += droppedBytes;
	}

	/** Free whole blocks in the changed areas, and what was too young before, where it is still free. Sorted. */
	#candidates(
		volume: ServedVolume,
		changed: readonly { readonly start: number; readonly length: number }[],
	): BlockRun[] {
		const live = volume.live!;
		const runs: BlockRun[] = [];
		for (const { start, length } of changed)
			for (const range of live.freeRuns(byteOffset(start), byteOffset(start + length))) {
				const run = wholeBlocks(range, volume.start);
				if (run !== undefined) runs.push(run);
			}
		for (const waiting of this.#young.get(volume) ?? []) {
			const from = Math.max(0, waiting.block * BLOCK_SIZE - volume.start);
			const to = (waiting.block + waiting.count) * BLOCK_SIZE - volume.start;
			for (const range of live.freeRuns(byteOffset(from), byteOffset(to))) {
				const run = wholeBlocks(range, volume.start);
				if (run !== undefined) runs.push(run);
			}
		}
		return joinRuns(runs);
	}

	// ---- Moving -------------------------------------------------------------------------------------------

	/** Empties some of the oldest segments that are due. */
	async #moveSettled({ everything = false, evenYoung = false }: RoundOptions): Promise<void> {
		const { plane } = this.#disk;
		const status = await plane.ask("status");
		const urgent = isUrgent(status);
		const started = performance.now();
		const view = await plane.ask("takeView");
		try {
			const sealed = (await plane.ask("segments")).filter(
				({ state, endPosition }) => state === "sealed" && endPosition <= view.position,
			);
			this.#remember(sealed);
			const due = sealed
				.slice(0, SEGMENTS_PER_ROUND)
				.filter((segment) => urgent || everything || this.#isDue(segment, status));
			if (due.length === 0) return;
			await plane.ask("flush");
			assert(await plane.ask("isDurable", view.id), "a flush that began after a view makes it durable");
			const keep = urgent || evenYoung ? [] : joinRuns([...this.#young.values()].flat());
			for (const segment of due) {
				const { movedBytes, keptBlocks } = await this.#mover.moveSegment(segment, view, keep);
				this.counters.movedBytes += movedBytes;
				// Later segments can't be freed before this one.
				if (keptBlocks > 0) break;
			}
		} finally {
			await plane.ask("releaseView", view.id);
		}
		if (!urgent && !everything) await this.#rest(status, performance.now() - started);
	}

	/** While the guest is active, rests as long as the last batch took. */
	async #rest(before: PlaneStatus, milliseconds: number): Promise<void> {
		const status = await this.#disk.plane.ask("status");
		if (activityOf(status) === activityOf(before) || isUrgent(status)) return;
		await new Promise((resolve) => setTimeout(resolve, milliseconds));
	}

	#remember(sealed: readonly SegmentInfo[]): void {
		const now = performance.now();
		const known = new Set(sealed.map(({ sequence }) => sequence));
		for (const sequence of this.#firstSeen.keys()) if (!known.has(sequence)) this.#firstSeen.delete(sequence);
		for (const { sequence } of sealed) if (!this.#firstSeen.has(sequence)) this.#firstSeen.set(sequence, now);
	}

	#isDue(segment: SegmentInfo, status: PlaneStatus): boolean {
		if (segment.liveSlots === 0 || status.usedBytes > EAGER_SHARE * status.limitBytes) return true;
		return this.#quiet && performance.now() - this.#firstSeen.get(segment.sequence)! >= SETTLE_MS;
	}

	// ---- Freeing ------------------------------------------------------------------------------------------

	/** Flushes until emptied segments are free, and gives their space back. */
	async #free(thorough: boolean): Promise<void> {
		const { plane } = this.#disk;
		for (let flush = 0; flush < FREEING_FLUSHES; flush++) {
			if (!(await plane.ask("status")).needsFlush) break;
			await plane.ask("flush");
		}
		if (!this.#quiet && !thorough) return;
		for (let bytes = await plane.ask("trim"); bytes > 0; bytes = await plane.ask("trim"))
			this.counters.punchedBytes += bytes;
	}
}

const isUrgent = (status: PlaneStatus): boolean =>
	status.stalled > 0 || status.usedBytes > URGENT_SHARE * status.limitBytes;

const activityOf = ({ counters }: PlaneStatus): number => counters.reads + counters.writes;

const progressOf = (counters: CleanerCounters): number =>
	counters.droppedBytes + counters.movedBytes + counters.punchedBytes;
