// Served disk: one disk while it is in use. Owns everything that must be opened, watched and closed together: the
// disk's directory with its locks, the data-plane threads, the cleaner.
//
//   open:  directory (locks, identities) ─► note that the first image is needed ─► data plane ─► cleaner
//   close: cleaner ─► data plane (flush, log closed) ─► directory (second image durable, closed cleanly)
//
// Whatever fails on the way leaves the disk as a crash would: the next open recovers it.

import { basename } from "node:path";
import type { NbdClient } from "../adapters/nbd/listener.ts";
import { trimMemorySoon } from "../adapters/os/memory.ts";
import type { Liveness } from "../adapters/plane/connection.ts";
import { DataPlane } from "../adapters/plane/data-plane.ts";
import type { PlaneStatus } from "../adapters/plane/messages.ts";
import { assert, isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import type { ByteSource } from "../foundations/source.ts";
import { BLOCK_SIZE, type ByteCount, byteCount, formatBytes, type LogPosition } from "../foundations/units.ts";
import { Cleaner } from "./clean/cleaner.ts";
import type { CleanerCounters } from "./clean/counters.ts";
import { type CleaningPolicy, KEEP_ALL } from "./clean/policy.ts";
import { CleaningTurns, type Outlook, type Turn } from "./clean/turns.ts";
import type { VolumeStatus } from "./clean/volume-status.ts";
import type { ReadView } from "./clean/volumes.ts";
import { type ClientLimits, clientSetup, shared } from "./client-setup.ts";
import { type DiskDirectory, openDiskDirectory, type SecondImageStand } from "./disk-directory.ts";
import type { FreezableDisk, Freezer, FreezerStatus } from "./freezer.ts";
import { Nap } from "./nap.ts";
import type { RateLimit } from "./rate-limit.ts";
import type { ReadableSnapshot, SnapshotStatus } from "./snapshots.ts";
import { Upkeep } from "./upkeep.ts";
import { droppableAt, type VerifyPoint } from "./verify/point.ts";
import { snapshotSource, viewSource } from "./view-source.ts";
import { type BlockReport, explainBlock } from "./why.ts";

/** Time between two rounds of cleaning that found nothing to do. */
const ROUND_MS = 1_000;
/** The same at most, where the guest writes nothing: each is twice as long as the one before. */
const ROUND_MS_MAX = 8_000;
/** Rounds of urgent cleaning in a row that freed nothing, before waiting writes get ENOSPC. */
const HOPELESS_ROUNDS = 3;
/** The log is flushed at least this often while the guest writes: bounds what recovery must check. */
const DURABLE_MS = 5_000;
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

/** What `vmsweep status` shows of a served disk. Sizes in bytes. */
export interface DiskStatus {
	readonly name: string;
	readonly uuid: string;
	readonly size: number;
	readonly served: true;
	readonly clients: number;
	readonly cleaning: "continuous" | "off";
	readonly first: {
		readonly path: string;
		/** Host bytes of the file, free segments kept ready included. */
		readonly hostBytes: number;
		/** Host bytes of segments in use. */
		readonly usedBytes: number;
		readonly limitBytes: number;
		readonly position: number;
		readonly durablePosition: number;
	};
	readonly second: {
		readonly path: string;
		readonly hostBytes: number;
		readonly copyMethod: string;
		/** How far it stands by itself; see `SecondImageRecord`. */
		readonly state: SecondImageStand["state"];
		readonly standsAt: number;
		/** When it last stood by itself, ISO 8601; null where nobody noted it. */
		readonly stoodAt: string | null;
	};
	readonly guest: PlaneStatus["counters"];
	readonly cleaner: CleanerCounters;
	/** Metadata read for each GiB that the guest wrote since the disk is served, in bytes; null before it wrote anything. */
	readonly metadataBytesPerGuestGiB: number | null;
	readonly volumes: readonly VolumeStatus[];
	/** Of its VM's guest; null without a guest agent. */
	readonly freezes: FreezerStatus | null;
	readonly snapshots: readonly SnapshotStatus[];
	/** Clients that wait for room in the first image. */
	readonly stalled: number;
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

export type CommitReport = CleanReport;

/** Where nobody has to wait for a turn. */
const NOTHING_KNOWN: Outlook = { isUrgent: false, fill: 0, backBytes: 0, movedBytes: 0 };

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
	readonly #turns: CleaningTurns;
	/** The present one, of rounds in the background. */
	#turn: Turn | undefined;
	/** Between rounds that found nothing to do. */
	readonly #idle = new Nap();
	/** Within a round. */
	readonly #resting = new Nap();
	readonly #durable = new Nap();
	/** The next round is wanted at once. */
	#isHurried = false;
	/** Since which guest entry the data plane was asked to say when the guest writes. */
	#awaitedSince = -1;
	#cleaning: Promise<void> | undefined;
	#flushing: Promise<void>;
	/** The round in progress; rounds never overlap. */
	#round: Promise<unknown> = Promise.resolve();
	/** How many wait for its end. */
	#queued = 0;
	/** However often clients come and go, one of these at most keeps the cleaner from its work. */
	readonly #proven = shared((): Promise<Liveness> => this.#exclusive(() => this.#cleaner.proven()));
	#hopelessRounds = 0;
	#refusing = false;
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
		this.#turns = turns;
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
				rest: (milliseconds) => this.#rest(milliseconds),
				limit,
			},
			opened,
		);
		this.#upkeep = new Upkeep({
			directory,
			plane,
			cleaner: this.#cleaner,
			exclusive: (work) => this.#exclusive(work),
		});
		this.#flushing = this.#keepDurable();
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
			if (disk !== undefined) disk.#endNaps();
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
		this.#isHurried = true;
		this.#turn?.hurry();
		this.#idle.wake();
		this.#resting.wake();
	}

	/** Cleans in the background until the disk is closed. */
	startCleaning(): void {
		this.#cleaning ??= this.#cleanContinuously();
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
		const before = await this.#sizes();
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
	async commit(onProgress: (counters: CleanerCounters) => void = () => {}): Promise<CommitReport> {
		await this.#upkeep.refuseClients("commit");
		const status = await this.#plane.ask("status");
		return await this.#exclusive(async () => {
			const before = await this.#sizes();
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

	async status(): Promise<DiskStatus> {
		const plane = await this.#plane.ask("status");
		const { second, description, stand } = this.#directory;
		const sizes = await this.#sizes();
		return {
			name: this.name,
			uuid: description.uuid,
			size: this.size,
			served: true,
			clients: plane.clients,
			cleaning: this.#cleaning === undefined ? "off" : "continuous",
			first: {
				path: this.#directory.firstPath,
				hostBytes: sizes.first,
				usedBytes: plane.usedBytes,
				limitBytes: plane.limitBytes,
				position: plane.position,
				durablePosition: plane.durablePosition,
			},
			second: {
				path: second.path,
				hostBytes: sizes.second,
				copyMethod: second.copyMethod,
				state: stand.state,
				standsAt: stand.position,
				stoodAt: stand.stoodAt,
			},
			guest: plane.counters,
			cleaner: { ...this.#cleaner.counters },
			metadataBytesPerGuestGiB: perGiB(this.#cleaner.counters.metadataBytesRead, plane.counters.writtenBytes),
			volumes: this.#cleaner.volumes(),
			freezes: this.freezer?.status ?? null,
			snapshots: await this.#directory.snapshots.status(),
			stalled: plane.stalled,
		};
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
		this.#endNaps();
		await Promise.all([this.#cleaning, this.#flushing, this.#round]);
		try {
			await this.#plane.stop();
		} catch (error) {
			await this.#directory[Symbol.asyncDispose]();
			throw error;
		}
		await this.#directory.close();
	}

	// ---- Background work ----------------------------------------------------------------------------------

	#endNaps(): void {
		this.#closing.abort();
		this.#turn?.end();
		for (const nap of [this.#idle, this.#resting, this.#durable]) nap.wake();
	}

	async #cleanContinuously(): Promise<void> {
		await this.#plane.ask("refuseWhenFull", false);
		let [pauseMs, seenEntries] = [ROUND_MS, -1];
		while (!this.#closing.signal.aborted) {
			try {
				this.#isHurried = false;
				const progress = await this.#roundInTurn();
				await this.#faceFullLog(progress);
				const { roundEntries } = this.#cleaner;
				// Clients that find no room write nothing, and yet need the next round soon.
				const isIdle = progress === 0 && roundEntries === seenEntries && this.#hopelessRounds === 0;
				pauseMs = isIdle ? Math.min(2 * pauseMs, ROUND_MS_MAX) : ROUND_MS;
				seenEntries = roundEntries;
				if (progress > 0) continue;
				// What the guest writes first isn't worth a round of its own.
				if (isIdle) this.#askForWrites(roundEntries);
				const isOver = await this.#sleep(this.#idle, pauseMs);
				if (isIdle && !isOver && !this.#isHurried) await this.#sleep(this.#idle, ROUND_MS);
			} catch (error) {
				if (this.#closing.signal.aborted) return;
				this.#onEvent(`cleaning ${this.path}: ${error instanceof Error ? error.message : String(error)}`);
				if (isVmsweepError(error, "DISK_STOPPED")) return;
				await this.#sleep(this.#idle, 10 * ROUND_MS);
			}
		}
	}

	/** A round when it is this disk's turn. Returns its progress. */
	async #roundInTurn(): Promise<number> {
		// Whoever has the disk for himself now shouldn't hold a turn meanwhile.
		await this.#round;
		const turn = await this.#takeTurn();
		try {
			await this.#awaitTurn(turn, this.#idle, () => false);
			if (this.#closing.signal.aborted) return 0;
			return await this.#exclusive(() => this.#cleaner.round({ inBackground: true }));
		} finally {
			this.#turn?.end();
			this.#turn = undefined;
		}
	}

	/** Asks for a turn; see `#awaitTurn`. */
	async #takeTurn(): Promise<Turn> {
		const outlook = this.#turns.isFree ? NOTHING_KNOWN : await this.#cleaner.outlook();
		this.#turn = this.#turns.take(outlook);
		if (this.#closing.signal.aborted) this.#turn.end();
		return this.#turn;
	}

	/** Until it is there, the disk is being closed, or `isEnough`; `nap` is woken for that. */
	async #awaitTurn(turn: Turn, nap: Nap, isEnough: () => boolean): Promise<void> {
		void turn.granted.then(() => nap.wake());
		while (!turn.isGranted && !isEnough() && !this.#closing.signal.aborted) {
			const isOver = await this.#sleep(nap, ROUND_MS);
			// Others may take long, and the guest goes on writing.
			if (isOver && !turn.isGranted && (await this.#cleaner.outlook()).isUrgent) turn.hurry();
		}
	}

	/** See `CleanerDisk`. Meanwhile other disks have their turns. */
	async #rest(milliseconds: number): Promise<boolean> {
		this.#turn?.end();
		if (this.#queued > 0 || !(await this.#sleep(this.#resting, milliseconds))) return false;
		await this.#awaitTurn(await this.#takeTurn(), this.#resting, () => this.#queued > 0);
		return this.#queued === 0 && !this.#closing.signal.aborted;
	}

	/** Wakes who waits for the guest to write once it has. However often this is asked, the data plane is asked once. */
	#askForWrites(since: number): void {
		if (this.#awaitedSince === since) return;
		this.#awaitedSince = since;
		const wake = (): void => {
			if (this.#awaitedSince === since) this.#awaitedSince = -1;
			this.#idle.wake();
			this.#durable.wake();
		};
		this.#plane.ask("written", since).then(wake, wake);
	}

	/** Clients that wait for room get ENOSPC while cleaning has shown that it can't make any. */
	async #faceFullLog(progress: number): Promise<void> {
		const { stalled, usedBytes, limitBytes } = await this.#plane.ask("status");
		this.#hopelessRounds = progress === 0 && (stalled > 0 || this.#refusing) ? this.#hopelessRounds + 1 : 0;
		const refuse = this.#hopelessRounds >= HOPELESS_ROUNDS;
		if (refuse === this.#refusing) return;
		this.#refusing = refuse;
		await this.#plane.ask("refuseWhenFull", refuse);
		if (refuse)
			this.#onEvent(
				`${this.path}: the first image is full (${formatBytes(usedBytes)} of ${formatBytes(limitBytes)}) and can't be cleaned; writes fail with ENOSPC until it can`,
			);
	}

	/** Flushes now and then, so that little has to be checked after a crash, and proofs are durable soon. */
	async #keepDurable(): Promise<void> {
		while (!this.#closing.signal.aborted) {
			await this.#sleep(this.#durable, DURABLE_MS);
			try {
				const { position, durablePosition, poisoned, guestEntries } = await this.#plane.ask("status");
				if (poisoned) continue;
				if (position > durablePosition) await this.#plane.ask("flush");
				else {
					this.#askForWrites(guestEntries);
					await this.#sleep(this.#durable, Number.POSITIVE_INFINITY);
				}
			} catch (error) {
				if (isVmsweepError(error, "DISK_STOPPED")) return;
				this.#onEvent(`${this.path}: ${error instanceof Error ? error.message : String(error)}`);
			}
		}
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

	/** Runs `work` when no other round runs. */
	async #exclusive<T>(work: () => Promise<T>): Promise<T> {
		const before = this.#round;
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#round = promise;
		this.#queued++;
		this.#resting.wake();
		await before;
		this.#queued--;
		try {
			return await work();
		} finally {
			resolve();
		}
	}

	/** True once the time is over; false where it was woken, or the disk is being closed. */
	async #sleep(nap: Nap, milliseconds: number): Promise<boolean> {
		if (this.#closing.signal.aborted) return false;
		return await nap.sleep(milliseconds);
	}

	async #sizes(): Promise<{ first: number; second: number }> {
		const [first, second] = await Promise.all([
			this.#directory.firstHostBytes(),
			this.#directory.second.allocatedBytes(),
		]);
		return { first, second };
	}

	async #report(before: { first: number; second: number }, counters: CleanerCounters): Promise<CleanReport> {
		const after = await this.#sizes();
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

const perGiB = (bytes: number, of: number): number | null => (of === 0 ? null : Math.round((bytes / of) * 2 ** 30));

const describeRot = (path: string, block: number): string =>
	`${path}: the block at byte ${block * BLOCK_SIZE} doesn't match its checksum: the host's storage has damaged it. Whoever reads it gets an error. Find all such blocks with vmsweep check.`;
