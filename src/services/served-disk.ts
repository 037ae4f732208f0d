// Served disk: one disk while it is in use. Owns everything that must be opened, watched and closed together: the
// disk's directory with its locks, the data-plane threads, the cleaner.
//
//   open:  directory (locks, identities) ─► note that the first image is needed ─► data plane ─► cleaner, background work
//   close: background work ─► data plane (flush, log closed) ─► directory (second image durable, closed cleanly)
//
// Whatever fails on the way leaves the disk as a crash would: the next open recovers it.

import { basename } from "node:path";
import type { NbdClient } from "../adapters/nbd/listener.ts";
import { trimMemorySoon } from "../adapters/os/memory.ts";
import type { Liveness } from "../adapters/plane/connection.ts";
import { DataPlane } from "../adapters/plane/data-plane.ts";
import { assert, VmsweepError } from "../foundations/errors.ts";
import type { ByteSource } from "../foundations/source.ts";
import { BLOCK_SIZE, type ByteCount, byteCount, type LogPosition } from "../foundations/units.ts";
import { BackgroundWork } from "./background-work.ts";
import { Cleaner } from "./clean/cleaner.ts";
import type { CleanerCounters } from "./clean/counters.ts";
import { type CleaningPolicy, KEEP_ALL } from "./clean/policy.ts";
import { CleaningTurns } from "./clean/turns.ts";
import type { VolumeStatus } from "./clean/volume-status.ts";
import type { ReadView } from "./clean/volumes.ts";
import { type ClientLimits, clientSetup, shared } from "./client-setup.ts";
import { type DiskDirectory, type HostBytes, openDiskDirectory } from "./disk-directory.ts";
import { type DiskStatus, servedStatus } from "./disk-status.ts";
import type { FreezableDisk, Freezer } from "./freezer.ts";
import type { RateLimit } from "./rate-limit.ts";
import type { ReadableSnapshot, SnapshotStatus } from "./snapshots.ts";
import { Upkeep } from "./upkeep.ts";
import { droppableAt, type VerifyPoint } from "./verify/point.ts";
import { snapshotSource, viewSource } from "./view-source.ts";
import { type BlockReport, explainBlock } from "./why.ts";

/** Rounds after which "clean now" gives up on a guest that never rests. */
const CLEAN_ROUNDS_MAX = 64;

export interface ServedDiskOptions {
	/** Most host bytes that the first image may fill; default: what it was created with. */
	readonly limitBytes?: number;
	/** Serve although the second image was changed since the last clean close. */
	readonly acceptChangedImage?: boolean;
	/** For how long dropped blocks can be brought back, in milliseconds; default 0: not at all. */
	readonly quarantineMs?: number;
	readonly policy?: CleaningPolicy;
	/** Disks that take turns with this one; its own where not given. */
	readonly turns?: CleaningTurns;
	/** What cleaning may read and write per second, with the other disks that share this; no limit where not given. */
	readonly limit?: RateLimit | undefined;
	/** One line about something an operator should know. */
	readonly onEvent?: (line: string) => void;
	/** One line about a volume, whenever its state changes. */
	readonly onVolume?: (line: string) => void;
	/** The disk can't be served any more; clients will see errors. */
	readonly onBroken?: (error: Error) => void;
}

/** What a thorough cleaning did. Sizes in bytes. */
export interface CleanReport {
	readonly droppedBytes: number;
	readonly movedBytes: number;
	readonly firstBytesBefore: number;
	readonly firstBytesAfter: number;
	readonly secondBytesBefore: number;
	readonly secondBytesAfter: number;
	readonly volumes: readonly VolumeStatus[];
}

export class ServedDisk implements AsyncDisposable {
	readonly path: string;
	readonly name: string;
	/** Of its VM's guest, where that has an agent; closed by whoever set it. */
	freezer: Freezer | undefined;
	readonly #directory: DiskDirectory;
	readonly #plane: DataPlane;
	readonly #policy: CleaningPolicy;
	readonly #cleaner: Cleaner;
	readonly #upkeep: Upkeep;
	readonly #onEvent: (line: string) => void;
	readonly #closing = new AbortController();
	readonly #background: BackgroundWork;
	/** However often clients come and go, one of these at most keeps the cleaner from its work. */
	readonly #proven = shared((): Promise<Liveness> => this.#exclusive(() => this.#cleaner.proven()));
	#closed: Promise<void> | undefined;

	private constructor(
		directory: DiskDirectory,
		plane: DataPlane,
		opened: LogPosition,
		{
			onEvent = () => {},
			onVolume = () => {},
			quarantineMs = 0,
			policy = KEEP_ALL,
			turns = new CleaningTurns(1),
			limit,
		}: ServedDiskOptions,
	) {
		this.#directory = directory;
		this.#plane = plane;
		this.#policy = policy;
		this.#onEvent = onEvent;
		this.path = directory.path;
		this.name = basename(directory.path);
		const { firstFd, firstSpace, second, snapshots } = directory;
		const readView: ReadView = (view) => viewSource(plane, view, firstFd, second, this.size);
		this.#cleaner = new Cleaner(
			{
				plane,
				firstFd,
				firstSpace,
				second,
				readView,
				quarantineMs,
				onVolume,
				policy,
				newestSnapshot: () => snapshots.newest,
				onLost: async (name, blocks) => {
					await snapshots.lose(name, blocks, plane);
					onEvent(
						`${directory.path}: ${blocks.length} rotten blocks are lost to snapshot ${name} and older ones; reading them there is an error`,
					);
				},
				beforeChange: () => directory.recordStand({ ...directory.stand, state: "needs-first-image" }),
				onFolded: ({ position }) => this.#recordStand("stands", position),
				closing: this.#closing.signal,
				rest: (milliseconds) => this.#background.rest(milliseconds),
				limit,
			},
			opened,
		);
		this.#background = new BackgroundWork({
			path: directory.path,
			plane,
			cleaner: this.#cleaner,
			turns,
			closing: this.#closing.signal,
			onEvent,
		});
		this.#upkeep = new Upkeep({
			directory,
			plane,
			cleaner: this.#cleaner,
			exclusive: (work) => this.#exclusive(work),
		});
	}

	/** Opens a disk for its one server. Throws what opening its directory or recovering its log throws. */
	static async open(path: string, options: ServedDiskOptions = {}): Promise<ServedDisk> {
		const { acceptChangedImage = false, quarantineMs = 0 } = options;
		const { onEvent = () => {}, onBroken = () => {} } = options;
		const directory = await openDiskDirectory(path, { acceptChangedImage });
		let disk: ServedDisk | undefined;
		let plane: DataPlane | undefined;
		try {
			if (directory.wasChanged && directory.snapshots.count > 0)
				onEvent(`${directory.path}: its second image was changed, and its snapshots show the change as well`);
			if (!directory.wasClean) onEvent(`${directory.path} was not closed cleanly: recovering its first image`);
			const { stand } = directory;
			if (stand.state === "whole") await directory.recordStand({ ...stand, state: "stands" });
			const started = await DataPlane.start({
				logFd: directory.firstFd,
				logName: directory.firstPath,
				second: directory.second.layout,
				sumsFd: directory.sumsFd,
				sumsName: directory.sumsPath,
				snapshots: directory.snapshots.setups(),
				viewsAtEntries: directory.snapshots.entries,
				holdsAll: quarantineMs > 0,
				uuid: directory.uuid,
				...(options.limitBytes === undefined ? {} : { limitBytes: options.limitBytes }),
				onEvent: (event) => {
					if (event.kind === "stalled") disk?.hurry();
					else if (event.kind === "rested") trimMemorySoon();
					else if (event.kind === "rotten") onEvent(describeRot(directory.path, event.block));
					else onBroken(new VmsweepError("LOG_POISONED", event.reason));
				},
				onDeath: onBroken,
			});
			plane = started;
			directory.second.writeTablesBy((update) => started.ask("writeSecondTables", update));
			// As long as nobody cleans, waiting for room would be waiting for ever.
			await started.ask("refuseWhenFull", true);
			const { position } = await started.ask("status");
			disk = new ServedDisk(directory, started, position, options);
			await disk.#upkeep.resumeResize();
			disk.#resume();
			return disk;
		} catch (error) {
			// Nothing of it may go on with descriptors that are about to be others'.
			if (disk !== undefined) disk.#closing.abort();
			await plane?.stop().catch(() => {});
			await directory[Symbol.asyncDispose]();
			throw error;
		}
	}

	async clientCount(): Promise<number> {
		return (await this.#plane.ask("status")).clients;
	}

	/** Hands a connected client to the data plane. */
	async attach(client: NbdClient, limits: ClientLimits, snapshot?: string): Promise<void> {
		const setup = await clientSetup(client, limits, this.#proven);
		await this.#plane.ask("attach", snapshot === undefined ? setup : { ...setup, snapshot });
	}

	/** In bytes; grows and shrinks with `resize`. */
	get size(): ByteCount {
		return byteCount(this.#directory.description.size);
	}

	/** Snapshots that clients can read, oldest first. */
	snapshots(): ReadableSnapshot[] {
		return this.#directory.snapshots.readable();
	}

	/** How the freezer of its VM reaches it. */
	get freezable(): FreezableDisk {
		const cleaner = this.#cleaner;
		return {
			path: this.path,
			exclusive: (work) => this.#exclusive(work),
			get wantsFreeze() {
				return cleaner.wantsFreeze;
			},
			prepareFreeze: () => cleaner.prepareFreeze(),
			makeRoom: async () => {
				if ((await this.#plane.ask("status")).stalled > 0) await cleaner.round();
			},
			judgeFrozen: (point) => cleaner.judgeFrozen(point),
		};
	}

	/** Begins the next round of cleaning now. */
	hurry(): void {
		this.#background.hurry();
	}

	/** Cleans in the background until the disk is closed. */
	startCleaning(): void {
		this.#background.startCleaning();
	}

	/**
	 * Cleans everything that can be cleaned now, and waits for it. `vmOff`: first drops what only the guest's memory could still
	 * have needed. Throws what {@link Upkeep.dropWithVmOff} throws.
	 */
	async cleanNow({
		vmOff = false,
		onProgress = () => {},
	}: {
		readonly vmOff?: boolean;
		readonly onProgress?: (counters: CleanerCounters) => void;
	} = {}): Promise<CleanReport> {
		const before = await this.#directory.hostBytes();
		const counters = { ...this.#cleaner.counters };
		const kept = vmOff ? await this.#upkeep.dropWithVmOff(this.#policy.lvmFree === "keep") : undefined;
		return await this.#exclusive(async () => {
			for (let round = 0; round < CLEAN_ROUNDS_MAX; round++) {
				await this.#plane.ask("seal");
				const progress = await this.#cleaner.round({ everything: true });
				onProgress(this.#cleaner.counters);
				// The first rounds only begin to watch; what they learn is used by the next.
				if (progress === 0 && round >= 2) break;
			}
			const report = await this.#report(before, counters);
			// What the volumes wait for while their guest runs is not the question then.
			const volumes = report.volumes.map((volume) => ({ ...volume, reason: kept?.get(volume.id) ?? null }));
			return kept === undefined ? report : { ...report, volumes };
		});
	}

	/** Folds the first image into the second completely; afterwards the second image is the whole disk. */
	async commit(onProgress: (counters: CleanerCounters) => void = () => {}): Promise<CleanReport> {
		await this.#upkeep.refuseClients("commit");
		const status = await this.#plane.ask("status");
		return await this.#exclusive(async () => {
			const before = await this.#directory.hostBytes();
			const counters = { ...this.#cleaner.counters };
			// First drop what can be dropped, so that it is not copied; then move all the rest, young or not.
			for (let round = 0; round < CLEAN_ROUNDS_MAX; round++) {
				await this.#plane.ask("seal");
				const evenYoung = round >= 2;
				const progress = await this.#cleaner.round({ everything: true, evenYoung });
				onProgress(this.#cleaner.counters);
				if (progress === 0 && evenYoung) break;
			}
			const left = (await this.#plane.ask("segments")).reduce((slots, { liveSlots }) => slots + liveSlots, 0);
			assert(left === 0, `${left} blocks are left in the first image after a commit`);
			await this.#directory.second.flush();
			await this.#recordStand("whole", status.position);
			return await this.#report(before, counters);
		});
	}

	/** Takes a snapshot of the disk as it is now. Throws what {@link DiskSnapshots.take} throws. */
	async takeSnapshot(name: string): Promise<SnapshotStatus> {
		const { snapshots } = this.#directory;
		return await this.#exclusive(async () => {
			const taken = await snapshots.take(name, this.size, this.#plane, this.#cleaner);
			await this.#recordStand("stands", taken.position as LogPosition);
			return taken;
		});
	}

	/** Takes a snapshot, and tells what of the disk the cleaner might drop at that instant. Throws as `takeSnapshot` does. */
	async verifyPoint(name: string): Promise<VerifyPoint> {
		const { snapshots } = this.#directory;
		return await this.#exclusive(async () => {
			const judged = await this.#cleaner.judged();
			let point: VerifyPoint | undefined;
			const taken = await snapshots.take(name, this.size, this.#plane, {
				foldView: async (view) => {
					point = await droppableAt(this.#plane, view, judged);
					return await this.#cleaner.foldView(view);
				},
			});
			await this.#recordStand("stands", taken.position as LogPosition);
			return point!;
		});
	}

	/** The disk as it is now, and what of it the cleaner might drop; nothing is moved or dropped while `work` reads it. */
	async withVerifyPoint<T>(work: (source: ByteSource, point: VerifyPoint) => Promise<T>): Promise<T> {
		return await this.#exclusive(async () => {
			const judged = await this.#cleaner.judged();
			const view = await this.#plane.ask("takeView");
			try {
				const { firstFd, second } = this.#directory;
				const source = viewSource(this.#plane, view, firstFd, second, this.size);
				return await work(source, await droppableAt(this.#plane, view, judged));
			} finally {
				await this.#plane.ask("releaseView", view.id);
			}
		});
	}

	/** Throws FILE_NOT_FOUND, DISK_LOCKED where clients read it, NO_SPACE or IO. */
	async deleteSnapshot(name: string): Promise<void> {
		await this.#exclusive(() => this.#directory.snapshots.delete(name, this.#plane));
	}

	/** A snapshot's bytes; nothing is moved while `work` reads them. */
	async withSnapshot<T>(name: string, work: (source: ByteSource) => Promise<T>): Promise<T> {
		const size = byteCount(this.#directory.snapshots.sizeOf(name));
		return await this.#exclusive(() => work(snapshotSource(this.#plane, name, this.#directory.second, size)));
	}

	/** Everything known about the block that holds byte `at`. Throws OUT_OF_RANGE. */
	async why(at: number): Promise<BlockReport> {
		const parts = { directory: this.#directory, plane: this.#plane, judged: () => this.#cleaner.judged() };
		return await this.#exclusive(() => explainBlock(parts, at));
	}

	/** What operators do to a disk beside its service: check, undo, resize. */
	get upkeep(): Upkeep {
		return this.#upkeep;
	}

	status(): Promise<DiskStatus> {
		return servedStatus({
			directory: this.#directory,
			plane: this.#plane,
			cleaner: this.#cleaner,
			isCleaning: this.#background.isCleaning,
			freezer: this.freezer,
		});
	}

	/** Ends cleanly: what clients still have in flight is done, everything is durable, nothing has to be recovered. */
	close(): Promise<void> {
		this.#closed ??= this.#close();
		return this.#closed;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	async #close(): Promise<void> {
		this.#closing.abort();
		await this.#background.ended();
		try {
			await this.#plane.stop();
		} catch (error) {
			await this.#directory[Symbol.asyncDispose]();
			throw error;
		}
		await this.#directory.close();
	}

	/** Goes on with snapshots that a crash interrupted, before anything else is moved. */
	#resume(): void {
		const { snapshots } = this.#directory;
		if (snapshots.entries.length === 0) return;
		void this.#exclusive(async () => {
			for (const name of await snapshots.resume(this.#plane, this.#cleaner))
				this.#onEvent(`${this.path}: snapshot ${name} could not be completed after a crash, and is gone`);
		}).catch((error: unknown) => {
			if (this.#closing.signal.aborted) return;
			this.#onEvent(`${this.path}: completing a snapshot: ${error instanceof Error ? error.message : String(error)}`);
		});
	}

	async #recordStand(state: "whole" | "stands", position: LogPosition): Promise<void> {
		await this.#directory.recordStand({ state, position, stoodAt: new Date().toISOString() });
	}

	/** Does `work` when no round runs, and nothing else that must have the images for itself. */
	#exclusive<T>(work: () => Promise<T>): Promise<T> {
		return this.#background.exclusive.run(work);
	}

	async #report(before: HostBytes, counters: CleanerCounters): Promise<CleanReport> {
		const after = await this.#directory.hostBytes();
		const now = this.#cleaner.counters;
		return {
			droppedBytes: now.droppedBytes - counters.droppedBytes,
			movedBytes: now.movedBytes - counters.movedBytes,
			firstBytesBefore: before.first,
			firstBytesAfter: after.first,
			secondBytesBefore: before.second,
			secondBytesAfter: after.second,
			volumes: this.#cleaner.volumes(),
		};
	}
}

const describeRot = (path: string, block: number): string =>
	`${path}: the block at byte ${block * BLOCK_SIZE} doesn't match its checksum: the host's storage has damaged it. Whoever reads it gets an error. Find all such blocks with vmsweep check.`;
