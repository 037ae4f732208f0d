// A disk's data plane on a simulated host: the product's handlers, log and view points, without threads and clients.
//
//   cleaner ── ask ─► turn ─► handlers ─► log, view points ─► turn ─► answer
//
// Flushes are the plane's own in miniature: one at a time, each for all who waited when it began.

import type { Pinned } from "../../src/adapters/os/syscalls.ts";
import * as sys from "../../src/adapters/os/syscalls.ts";
import type { CalledPlane } from "../../src/adapters/plane/called.ts";
import { newCounters } from "../../src/adapters/plane/counters.ts";
import { type PlaneHandlers, planeHandlers } from "../../src/adapters/plane/handlers.ts";
import { Latencies } from "../../src/adapters/plane/latencies.ts";
import type { PlaneCall, PlaneCalls, PlanePort, ViewHandle } from "../../src/adapters/plane/messages.ts";
import type { Snapshots } from "../../src/adapters/plane/snapshots.ts";
import { ViewPoints } from "../../src/adapters/plane/view-points.ts";
import { WriteAges } from "../../src/adapters/plane/write-ages.ts";
import type { FirstImage } from "../../src/core/log/first-image.ts";
import type { SecondSums } from "../../src/core/log/second-sums.ts";
import { errno } from "../../src/core/nbd/protocol.ts";
import { BLOCK_SIZE, byteOffset } from "../../src/foundations/units.ts";
import type { Scheduler } from "./scheduler.ts";
import { PowerCut, type SimFile, type World } from "./sim-file.ts";

/** What the history wants to know of the plane's doing, at the moment when it happens. */
export interface PlaneWatcher {
	/** Blocks became zeros because the cleaner holds them unused: pairs [block, count]. */
	dropped(pairs: Float64Array): void;
	/** A view was taken, of the disk as it is right now. */
	viewTaken(id: number): void;
	/** Blocks are about to be brought back (see `restore`); what it returns is told whether that was done. */
	restoring(runs: Float64Array): (done: boolean) => void;
	/** Blocks that were to be dropped when that failed: the entry may be there all the same. */
	maybeDropped(pairs: Float64Array): void;
	/** A flush begins; what it returns is called once everything written by now is durable. */
	flushBegins(): () => void;
}

/** Descriptor of the second image's checksums. */
const SUMS_FD = 1_000_002;

/** The files of a disk, and what the product makes of them. */
export interface SimFiles {
	readonly first: SimFile;
	/** What the second image holds of a block. */
	readonly stored: (block: number) => Uint8Array;
	readonly sums: SimFile;
	readonly secondSums: SecondSums;
	readonly snapshots: Snapshots;
	/** Logs of snapshots, by descriptor. */
	readonly snapshotLogs: ReadonlyMap<number, SimFile>;
}

export class SimPlane implements PlanePort {
	readonly log: FirstImage;
	readonly viewPoints: ViewPoints;
	readonly ages: WriteAges;
	/** Clients that wait for room. */
	stalled = 0;
	readonly #files: SimFiles;
	readonly #world: World;
	readonly #scheduler: Scheduler;
	readonly #watcher: PlaneWatcher;
	readonly #handlers: PlaneHandlers;
	#waiters: ((error: number) => void)[] = [];
	#flushing = false;

	constructor(log: FirstImage, files: SimFiles, world: World, scheduler: Scheduler, watcher: PlaneWatcher) {
		this.log = log;
		this.viewPoints = new ViewPoints(log);
		this.ages = new WriteAges(log);
		this.#files = files;
		this.#world = world;
		this.#scheduler = scheduler;
		this.#watcher = watcher;
		this.#handlers = planeHandlers(this.#called(), {
			sums: files.secondSums,
			sumsFd: SUMS_FD,
			snapshots: files.snapshots,
		});
	}

	#called(): CalledPlane {
		const stalled = (): number => this.stalled;
		return {
			log: this.log,
			viewPoints: this.viewPoints,
			ages: this.ages,
			counters: newCounters(),
			latencies: new Latencies(),
			awaitWrites: () => {
				throw new RangeError("nobody waits for the guest here");
			},
			clientCount: 0,
			get stalledCount() {
				return stalled();
			},
			isReceiving: false,
			refuseWhenFull: () => {},
			attach: () => {
				throw new RangeError("no clients here");
			},
			flush: (done) => this.flush(done),
			datasync: (fd, done) => this.#datasync(fd, done),
			resize: () => {
				throw new RangeError("this disk keeps its size");
			},
			writeSecondTables: () => {
				throw new RangeError("its second image is raw");
			},
			readWhole: ({ block, count, at }) => this.#readWhole(block, count, at),
			drain: (_, done) => done(),
			stop: () => {},
		};
	}

	async ask<K extends PlaneCall>(
		kind: K,
		...input: undefined extends PlaneCalls[K]["input"] ? [] : [PlaneCalls[K]["input"]]
	): Promise<PlaneCalls[K]["output"]> {
		await this.#scheduler.turn();
		// Whoever still waits here belongs to a process that is gone.
		if (this.#world.isCut) return new Promise(() => {});
		const output = await new Promise<PlaneCalls[K]["output"]>((resolve, reject) => {
			const done = (answer: unknown): void => {
				if (kind === "takeView") this.#watcher.viewTaken((answer as ViewHandle).id);
				if (kind === "dropped") this.#watcher.dropped(answer as Float64Array);
				if (kind === "dropped" && this.log.commitError !== undefined)
					this.#watcher.maybeDropped((input[0] as PlaneCalls["dropped"]["input"]).runs);
				resolve(answer as PlaneCalls[K]["output"]);
			};
			const fail = (error: unknown): void => {
				if (kind === "dropped") this.#watcher.maybeDropped((input[0] as PlaneCalls["dropped"]["input"]).runs);
				reject(error);
			};
			let restored: ((done: boolean) => void) | undefined;
			try {
				if (kind === "restore") restored = this.#watcher.restoring(input[0] as Float64Array);
				this.#handlers.handle(kind, input[0], done, fail);
				restored?.(true);
			} catch (error) {
				restored?.(false);
				reject(error);
			}
		});
		if (!this.#scheduler.everyTurn) await this.#scheduler.turn();
		return output;
	}

	/** See `Plane.datasync`. */
	#datasync(fd: number, done: (result: number) => void): void {
		const file = fd === SUMS_FD ? this.#files.sums : this.#files.snapshotLogs.get(fd)!;
		const cover = file.beginSync();
		this.#scheduler.spawn(async () => {
			await this.#scheduler.later();
			try {
				file.completeSync(cover);
			} catch {
				if (!this.#world.isCut) done(-sys.EIO);
				return;
			}
			done(0);
		});
	}

	/** See `Plane.readWhole`. */
	#readWhole(block: number, count: number, at?: number): Pinned {
		const bytes = sys.pin(count * BLOCK_SIZE);
		if (at === undefined)
			for (let i = 0; i < count; i++) bytes.bytes.set(this.#files.stored(block + i), i * BLOCK_SIZE);
		else this.#files.first.read(byteOffset(at), bytes.bytes);
		return bytes;
	}

	/** See `Plane.flush`. */
	flush(done: (error: number) => void): void {
		this.#waiters.push(done);
		this.#startFlush();
	}

	#startFlush(): void {
		if (this.#flushing || this.#waiters.length === 0) return;
		const waiters = this.#waiters;
		this.#waiters = [];
		const answer = (error: number): void => {
			this.#flushing = false;
			for (const done of waiters) done(error);
			this.#startFlush();
		};
		this.#flushing = true;
		if (this.log.poisoned) {
			answer(errno.EIO);
			return;
		}
		const position = this.log.beginFlush();
		const durable = this.#watcher.flushBegins();
		const cover = this.#files.first.beginSync();
		this.#scheduler.spawn(async () => {
			await this.#scheduler.later();
			try {
				try {
					this.#files.first.completeSync(cover);
				} catch (error) {
					if (error instanceof PowerCut) return;
					this.log.failFlush(error);
					throw error;
				}
				// The promise starts here, whatever completeFlush itself meets.
				if (!this.log.poisoned) durable();
				this.log.completeFlush(position);
			} catch {
				if (!this.#world.isCut) answer(errno.EIO);
				return;
			}
			answer(0);
		});
	}
}
