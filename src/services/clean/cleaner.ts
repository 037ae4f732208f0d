// Cleaner: the rounds of one served disk. Each round drops what became provably unused, moves what has settled
// in the first image to the second, and gives the host its space back.
//
//   round:  collect ─► judge ─► drop ─► move the oldest segments ─► flush until segments are free ─► punch them
//
// The first verdict on a volume reads all of its groups (initialization phase); from then on a verdict names only
// the groups whose metadata was written (continuous phase). `metadataBytesRead` shows it.
//
// How fast it goes is said in pace.ts, where it rests in rests.ts, and when the second image is made complete in folding.ts.

import type { HeldParts, SecondImage } from "../../adapters/images/second-image.ts";
import type { Liveness } from "../../adapters/plane/connection.ts";
import type { PlanePort, PlaneStatus, ViewHandle } from "../../adapters/plane/messages.ts";
import type { Collected } from "../../adapters/plane/watch.ts";
import { LastWritten } from "../../core/cleaner/last-written.ts";
import { type BatchLimits, type BlockRun, blocksIn } from "../../core/cleaner/runs.ts";
import type { LiveState } from "../../core/filesystems/live.ts";
import type { SegmentInfo } from "../../core/log/first-image.ts";
import { isVmsweepError } from "../../foundations/errors.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import { BLOCK_SIZE, divCeil, type LogPosition } from "../../foundations/units.ts";
import type { RateLimit } from "../rate-limit.ts";
import { Chronicle } from "./chronicle.ts";
import { noCounters, progressOf } from "./counters.ts";
import { Dropper } from "./dropper.ts";
import { Fold } from "./fold.ts";
import { Folding, type Silence } from "./folding.ts";
import { FreezePoint } from "./freeze-point.ts";
import { makeDurable } from "./make-durable.ts";
import { Mover } from "./mover.ts";
import { EAGER_SHARE, isUrgent, Pace, SETTLE_MS } from "./pace.ts";
import { PhysicalVolumes } from "./physical-volumes.ts";
import type { CleaningPolicy } from "./policy.ts";
import { provenRuns, settledBefore } from "./proven.ts";
import { type FirstSpace, punchSomeFree } from "./punch-free.ts";
import { Quarantine } from "./quarantine.ts";
import { Rests } from "./rests.ts";
import { SecondWriter } from "./second-writer.ts";
import type { Outlook } from "./turns.ts";
import { type VolumeStatus, volumeStatus } from "./volume-status.ts";
import { type ReadView, type ServedVolume, type Verdict, Volumes } from "./volumes.ts";
import { WaitingBlocks } from "./waiting-blocks.ts";

/** Segments emptied before verdicts are looked for and space is freed again. */
const SEGMENTS_PER_ROUND = 4;
/** Segments of which it is remembered since when they are closed: the oldest, so that a round of a large log asks for little. */
const LOOKED_AT = 64;
/** Rounds of flushing in one go: two make a segment free, one more starts when writes came in between. */
const FREEING_FLUSHES = 3;
/** Times that volumes are looked at anew for `proven`, where the guest divides its disk meanwhile. */
const JUDGE_ATTEMPTS = 3;

/** What the cleaner works on. */
export interface CleanerDisk {
	readonly plane: PlanePort;
	readonly firstFd: number;
	readonly firstSpace: FirstSpace;
	readonly second: SecondImage;
	readonly readView: ReadView;
	/** The newest complete snapshot; undefined for none. */
	readonly newestSnapshot: () => string | undefined;
	/** See `SecondWriterParts`. */
	readonly onLost: (snapshot: string, blocks: readonly number[]) => Promise<void>;
	/** Resolves once it is durably noted that the second image doesn't stand by itself any more. */
	readonly beforeChange: () => Promise<void>;
	/** The second image equals the disk as this view shows it, a guest's commit point where one is known, durably. */
	readonly onFolded: (view: ViewHandle) => Promise<void>;
	/** Ends a fold early: the disk is being closed. */
	readonly closing: AbortSignal;
	/**
	 * Lets the guest through for this long or longer, in milliseconds; resolves early with false where somebody waits for the
	 * round's end. Only in rounds in the background.
	 */
	readonly rest: (milliseconds: number) => Promise<boolean>;
	/** What cleaning in the background may read and write per second, perhaps together with other disks; no limit where not given. */
	readonly limit?: RateLimit | undefined;
	/** For how long dropped blocks can be brought back; 0: not at all. */
	readonly quarantineMs: number;
	/** One line about a volume, whenever its state changes. */
	readonly onVolume?: (line: string) => void;
	readonly policy: CleaningPolicy;
}

/** What the cleaner asks of the world around the disk. The crash simulation has a world of its own. */
export interface CleanerWorld {
	/** Undefined where the guest divides the disk all the while. */
	readonly identify: (
		plane: PlanePort,
		readView: ReadView,
	) => Promise<
		| (Pick<Volumes, "list" | "judge" | "isStillTheSame"> & Partial<Pick<Volumes, "wantsFreeze" | "judgeFrozen">>)
		| undefined
	>;
	readonly allocated: (second: SecondImage) => HeldParts;
	/** Milliseconds from some start; only grows. */
	readonly now: () => number;
	/** Copied between two rests; as the pace says where not given. */
	readonly piece?: () => BatchLimits;
	/** Free runs that are too young for a drop are remembered one by one up to this many; as many as are sensible where not given. */
	readonly youngRunsMax?: number;
}

function realWorld({ policy }: CleanerDisk, opened: LogPosition): CleanerWorld {
	const physicalVolumes = policy.lvmFree === "drop" ? new PhysicalVolumes(opened) : undefined;
	return {
		identify: (plane, readView) => Volumes.identify({ plane, readView, policy, physicalVolumes }),
		allocated: ({ held }) => held,
		now: () => performance.now(),
	};
}

type ReadyState = LiveState & { readonly kind: "ready" };

/** What a round is for. */
export interface RoundOptions {
	/** Nobody waits for it: it gives way to the guest, and keeps to the limit, unless room is short. */
	readonly inBackground?: boolean;
	/** Moves every closed segment, whatever its age. */
	readonly everything?: boolean;
	/** Moves blocks that only wait to be dropped as well. */
	readonly evenYoung?: boolean;
}

/** The volumes by their latest verdicts, and what bounds the last writes of blocks in the second image. */
export interface Judged {
	readonly volumes: readonly ServedVolume[];
	readonly lastWritten: LastWritten;
}

export class Cleaner {
	readonly #disk: CleanerDisk;
	readonly #world: CleanerWorld;
	readonly #dropper: Dropper;
	readonly #mover: Mover;
	readonly #quarantine: Quarantine;
	readonly #lastWritten: LastWritten;
	readonly #firstSeen = new Map<number, number>();
	/** Segments from which all was moved; those that the quarantine holds stay, and nothing more is to be done there until then. */
	readonly #emptied = new Set<number>();
	/** Verdicts of which nothing was dropped yet, and what of the guest's their views show. */
	readonly #remembered = new Map<ServedVolume, { readonly state: ReadyState; readonly guestEntries: number }>();
	readonly #waiting = new WaitingBlocks();
	readonly counters = noCounters();
	#volumes: Awaited<ReturnType<CleanerWorld["identify"]>> | undefined;
	readonly #pace: Pace;
	readonly #chronicle: Chronicle;
	readonly #rests: Rests;
	readonly #folding: Folding;
	#silence: Silence = { guestEntries: -1, since: 0 };

	/** @param opened the log's position when the disk was opened */
	constructor(disk: CleanerDisk, opened: LogPosition, world: CleanerWorld = realWorld(disk, opened)) {
		const { plane, firstFd, second, newestSnapshot, onLost, beforeChange, onFolded, closing } = disk;
		const { rest, limit, quarantineMs } = disk;
		const { now } = world;
		const lastWritten = new LastWritten(divCeil(second.size, BLOCK_SIZE), opened);
		const pace = new Pace(now(), opened);
		const rests = new Rests({ plane, pace, now, rest, limit, piece: world.piece });
		const piece = (): BatchLimits => rests.piece();
		const onCopied = (bytes: number): Promise<void> => rests.copied(bytes);
		const writer = new SecondWriter({ plane, firstFd, second, newestSnapshot, onLost, beforeChange, piece, onCopied });
		const dropper = new Dropper(plane, second, writer, lastWritten, world.allocated(second));
		dropper.quarantined = quarantineMs > 0;
		if (world.youngRunsMax !== undefined) dropper.youngRunsMax = world.youngRunsMax;
		this.#disk = disk;
		this.#world = world;
		this.#lastWritten = lastWritten;
		this.#pace = pace;
		this.#rests = rests;
		this.#chronicle = new Chronicle(disk.onVolume ?? (() => {}));
		this.#dropper = dropper;
		this.#mover = new Mover(plane, writer, dropper, lastWritten);
		this.#folding = new Folding({
			plane,
			second,
			fold: new Fold(plane, writer, dropper, lastWritten),
			dropper,
			waiting: this.#waiting,
			pace,
			rests,
			counters: this.counters,
			closing,
			onFolded,
		});
		this.#quarantine = new Quarantine(plane, quarantineMs, now);
	}

	volumes(): VolumeStatus[] {
		return (this.#volumes?.list ?? []).map((volume) =>
			volumeStatus(volume, blocksIn(this.#waiting.of(volume)) * BLOCK_SIZE, this.#chronicle.pointOf(volume.id)),
		);
	}

	/** What the next round may bring; a guess. */
	async outlook(): Promise<Outlook> {
		const { plane } = this.#disk;
		const status = await plane.ask("status");
		const oldest = (await plane.ask("oldestSegments", SEGMENTS_PER_ROUND)).filter(({ state }) => state === "sealed");
		const bytes = oldest.reduce((sum, segment) => sum + segment.bytes, 0);
		const movedBytes = oldest.reduce((sum, { liveSlots }) => sum + liveSlots * BLOCK_SIZE, 0);
		const { usedBytes, limitBytes } = status;
		return {
			isUrgent: isUrgent(status),
			fill: usedBytes / limitBytes,
			backBytes: bytes - movedBytes + this.#waiting.bytes,
			movedBytes,
		};
	}

	/** Guest entries of the log when the last round began. */
	get roundEntries(): number {
		return this.#silence.guestEntries;
	}

	/** One round. Rounds must not overlap. Returns the bytes that it dropped, moved or gave back. */
	async round(options: RoundOptions = {}): Promise<number> {
		const before = progressOf(this.counters);
		this.counters.rounds++;
		this.#rests.beginRound(options.inBackground === true);
		const status = await this.#measureGuest();
		if (!isUrgent(status)) this.#rests.beGentle();
		await this.#quarantine.hold(EAGER_SHARE);
		try {
			await this.#judge((verdict) => this.#act(verdict));
			await this.#actOnRemembered();
			await this.#moveSettled(options);
			await this.#folding.foldSettled(this.#world.now(), this.#silence);
			await this.#free(options.everything === true);
		} catch (error) {
			if (isVmsweepError(error, "NO_SPACE")) this.#quarantine.giveWay();
			throw error;
		} finally {
			this.#rests.endRound();
		}
		const progress = progressOf(this.counters) - before;
		if (progress > 0) this.#pace.look(await this.#disk.plane.ask("status"), this.#world.now(), "work");
		return progress;
	}

	async #measureGuest(): Promise<PlaneStatus> {
		const status = await this.#disk.plane.ask("status");
		const { guestEntries } = status;
		const now = this.#world.now();
		if (guestEntries !== this.#silence.guestEntries) this.#silence = { guestEntries, since: now };
		this.#pace.look(status, now, "rest");
		return status;
	}

	/** What is proven about the disk's blocks now; drops nothing. Not while a round runs. */
	async proven(): Promise<Liveness> {
		return provenRuns((await this.judged()).volumes);
	}

	/** The volumes as they are judged now, for who only looks; drops nothing. Not while a round runs. */
	async judged(): Promise<Judged> {
		for (let attempt = 0; attempt < JUDGE_ATTEMPTS; attempt++) {
			await this.#judge((verdict) => Promise.resolve(this.#rememberVerdict(verdict)));
			if (this.#volumes !== undefined) return { volumes: this.#volumes.list, lastWritten: this.#lastWritten };
		}
		return { volumes: [], lastWritten: this.#lastWritten };
	}

	/** Leaves what a verdict lets go to the next round. */
	#rememberVerdict({ volume, view, state }: Verdict): void {
		this.#countReading(state);
		if (state.kind !== "ready") return;
		this.#remembered.set(volume, { state, guestEntries: view.guestEntries });
		this.#waiting.postpone(volume, state.changed, this.#dropper.youngRunsMax);
	}

	// ---- Dropping -----------------------------------------------------------------------------------------

	/** Looks at what the guest wrote, and has `act` done with each new verdict. */
	async #judge(act: (verdict: Verdict) => Promise<void>): Promise<void> {
		const { plane, readView } = this.#disk;
		if (this.#volumes === undefined) {
			this.#waiting.clear();
			this.#volumes = await this.#world.identify(plane, readView);
			if (this.#volumes === undefined) return;
		}
		const collected = await this.#collect();
		if (collected === undefined) return;
		const { list } = this.#volumes;
		for (const verdict of await this.#volumes.judge(collected)) await this.#conclude(verdict, act);
		this.#chronicle.note(list);
	}

	/** What the guest wrote since the last time; undefined, and the volumes forgotten, where nothing may be concluded from that. */
	async #collect(): Promise<Collected | undefined> {
		const { plane } = this.#disk;
		const collected = await plane.ask("collect");
		if (!collected.lost && !(collected.identityTouched && !(await this.#volumes?.isStillTheSame()))) return collected;
		for (const view of collected.views) if (view !== undefined) await plane.ask("releaseView", view.id);
		this.#volumes = undefined;
		return undefined;
	}

	async #conclude(verdict: Verdict, act: (verdict: Verdict) => Promise<void>): Promise<void> {
		try {
			await act(verdict);
		} finally {
			await this.#folding.keepPoint(verdict);
		}
		if (verdict.state.watchChanged) this.#volumes = undefined;
	}

	// ---- Freezing -----------------------------------------------------------------------------------------

	/** True where a freeze of the guest would let something go that nothing else can. */
	get wantsFreeze(): boolean {
		return this.#volumes?.wantsFreeze?.() ?? false;
	}

	/** Before a freeze is asked for; undefined where nothing is known of the volumes. Rounds must not run until it is judged. */
	async prepareFreeze(): Promise<FreezePoint | undefined> {
		const { plane } = this.#disk;
		return this.#volumes === undefined ? undefined : new FreezePoint(plane, (await plane.ask("status")).position);
	}

	/** After the thaw: drops what the point proves. Returns the ids of volumes that were written while they should have been frozen. */
	async judgeFrozen(point: FreezePoint): Promise<readonly string[]> {
		const collected = await this.#collect();
		const judged = collected && (await this.#volumes?.judgeFrozen?.(point, collected));
		if (judged === undefined) {
			await point.release();
			return [];
		}
		for (const verdict of judged.verdicts) await this.#conclude(verdict, (each) => this.#act(each));
		this.#chronicle.note(this.#volumes?.list ?? []);
		return judged.refused;
	}

	async #act({ volume, view, state }: Verdict): Promise<void> {
		this.#countReading(state);
		if (state.kind === "ready") await this.#drop(volume, state, state.changed, view.guestEntries);
	}

	/** Drops what verdicts let go that were asked for since the last round, where no newer ones came: a guest at rest brings none. */
	async #actOnRemembered(): Promise<void> {
		const remembered = [...this.#remembered];
		this.#remembered.clear();
		for (const [volume, { state, guestEntries }] of remembered)
			if (volume.verdict === state && this.#volumes?.list.includes(volume) === true)
				await this.#drop(volume, state, [], guestEntries);
	}

	async #drop(
		volume: ServedVolume,
		state: ReadyState,
		changed: readonly ByteRange[],
		guestEntries: number,
	): Promise<void> {
		const free = this.#waiting.candidates(volume, changed);
		this.#folding.noteChanged(guestEntries);
		const { droppedBytes, ...waiting } = await this.#dropper.drop(free, settledBefore(state));
		this.#waiting.set(volume, waiting);
		this.counters.droppedBytes += droppedBytes;
	}

	#countReading(state: LiveState): void {
		const { counters } = this;
		counters.metadataBytesRead += state.metadataBytesRead;
		this.#rests.spend(state.metadataBytesRead);
		if (state.metadataBytesRead === 0) return;
		counters.metadataBytesLastPass = state.metadataBytesRead;
		if (state.kind === "ready") counters.groupsLastPass = state.groupsRead;
	}

	// ---- Moving -------------------------------------------------------------------------------------------

	/** Empties some of the oldest segments that are due. */
	async #moveSettled({ everything = false, evenYoung = false }: RoundOptions): Promise<void> {
		const { plane } = this.#disk;
		const status = await plane.ask("status");
		const urgent = isUrgent(status);
		const view = await plane.ask("takeView");
		try {
			const sealed = (await plane.ask("oldestSegments", LOOKED_AT)).filter(
				({ state, endPosition }) => state === "sealed" && endPosition <= view.position,
			);
			this.#remember(sealed);
			const due = sealed
				.filter(({ isHeld, sequence }) => !(isHeld && this.#emptied.has(sequence)))
				.slice(0, SEGMENTS_PER_ROUND)
				.filter((segment) => urgent || everything || this.#isDue(segment, status));
			if (due.length === 0) return;
			await makeDurable(plane, view);
			const keep = urgent || evenYoung ? [] : this.#waiting.all();
			if (!urgent) this.#rests.beGentle();
			for (const segment of due) {
				const wasGentle = this.#rests.isGentle;
				const { movedBytes, keptBlocks } = await this.#mover.moveSegment(segment, view, keep);
				this.#folding.noteChanged(segment.endGuestEntries);
				this.counters.movedBytes += movedBytes;
				if (keptBlocks === 0) this.#emptied.add(segment.sequence);
				// Later segments can't be freed before this one.
				if (keptBlocks > 0) break;
				if (movedBytes === 0 || !wasGentle) continue;
				if (this.#rests.isGentle) await this.#rests.breathe(segment.bytes - movedBytes);
				if (!this.#rests.isGentle) break;
			}
		} finally {
			await plane.ask("releaseView", view.id);
		}
	}

	#remember(sealed: readonly SegmentInfo[]): void {
		const now = this.#world.now();
		const known = new Set(sealed.map(({ sequence }) => sequence));
		for (const sequence of this.#firstSeen.keys()) if (!known.has(sequence)) this.#firstSeen.delete(sequence);
		for (const sequence of this.#emptied) if (!known.has(sequence)) this.#emptied.delete(sequence);
		for (const { sequence } of sealed) if (!this.#firstSeen.has(sequence)) this.#firstSeen.set(sequence, now);
	}

	#isDue(segment: SegmentInfo, status: PlaneStatus): boolean {
		if (segment.liveSlots === 0 || status.usedBytes > EAGER_SHARE * status.limitBytes) return true;
		return this.#pace.isQuiet && this.#world.now() - this.#firstSeen.get(segment.sequence)! >= SETTLE_MS;
	}

	// ---- For operators ------------------------------------------------------------------------------------

	/**
	 * Makes the second image equal a view, which must be durable. Returns the bytes moved, undefined where the disk is being closed.
	 */
	foldView(view: ViewHandle): Promise<number | undefined> {
		return this.#folding.foldView(view);
	}

	/** The disk has another size: what was known of how it is divided is out of date. */
	resized(): void {
		const { second } = this.#disk;
		this.#lastWritten.resize(divCeil(second.size, BLOCK_SIZE));
		this.#volumes = undefined;
	}

	/** Gives up blocks that the guest map of a resting disk proves unused, where they still are as `view` shows them. Returns how many. */
	async giveUp(runs: readonly BlockRun[], view: ViewHandle): Promise<number> {
		this.#folding.noteChanged(view.guestEntries);
		return (await this.#dropper.giveUp(view, runs)) / BLOCK_SIZE;
	}

	/** Drops runs that nothing needs in `view`, with the VM off: nobody knows more than the disk shows. Returns the bytes. */
	async dropUnused(runs: Iterable<BlockRun>, view: ViewHandle): Promise<number> {
		this.#folding.noteChanged(view.guestEntries);
		const { droppedBytes } = await this.#dropper.drop(runs, view.position);
		this.counters.droppedBytes += droppedBytes;
		return droppedBytes;
	}

	// ---- Freeing ------------------------------------------------------------------------------------------

	/** Flushes until emptied segments are free, and gives their space back. */
	async #free(thorough: boolean): Promise<void> {
		const { plane } = this.#disk;
		for (let flush = 0; flush < FREEING_FLUSHES; flush++) {
			if (!(await plane.ask("status")).needsFlush) break;
			await plane.ask("flush");
		}
		if (thorough) while ((await this.#punchSome(0)) > 0);
		// A busy guest writes into free segments while they are still allocated.
		else if (this.#pace.isQuiet) await this.#punchFree();
	}

	/** Gives free segments' space back, but for what the guest will soon need, until a rest is due. */
	async #punchFree(): Promise<void> {
		this.#rests.beGentle();
		for (;;) {
			const bytes = await this.#punchSome(this.#pace.warmBytes);
			if (bytes === 0 || (await this.#rests.breathe(bytes))) return;
			this.#rests.beGentle();
		}
	}

	/** As `punchSomeFree`, and counts it. */
	async #punchSome(warmBytes: number): Promise<number> {
		const bytes = await punchSomeFree(this.#disk.plane, this.#disk.firstSpace, warmBytes);
		this.counters.punchedBytes += bytes;
		return bytes;
	}
}
