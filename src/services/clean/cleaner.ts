// Cleaner: the rounds of one served disk. Each round drops what became provably unused, moves what has settled
// in the first image to the second, and gives the host its space back.
//
//   round:  collect ─► judge ─► drop ─► move the oldest segments ─► flush until segments are free ─► punch them
//
// The first verdict on a volume reads all of its groups (initialization phase); from then on a verdict names only
// the groups whose metadata was written (continuous phase). `metadataBytesRead` shows it.
//
// How fast it goes is said in pace.ts.

import type { HeldParts, SecondImage } from "../../adapters/images/second-image.ts";
import type { Liveness } from "../../adapters/plane/connection.ts";
import type { PlanePort, PlaneStatus, ViewHandle } from "../../adapters/plane/messages.ts";
import type { Collected } from "../../adapters/plane/watch.ts";
import { LastWritten } from "../../core/cleaner/last-written.ts";
import { touchedBlocks, wholeBlocks } from "../../core/cleaner/plan.ts";
import { type BatchLimits, type BlockRun, BoundedRuns, blocksIn, joinRuns } from "../../core/cleaner/runs.ts";
import type { LiveState } from "../../core/filesystems/live.ts";
import type { SegmentInfo } from "../../core/log/first-image.ts";
import { rangesOnDisk } from "../../core/volumes/areas.ts";
import { runsOnDisk } from "../../core/volumes/pieces.ts";
import { assert, isVmsweepError } from "../../foundations/errors.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import { BLOCK_SIZE, byteCount, byteOffset, divCeil, type LogPosition } from "../../foundations/units.ts";
import type { RateLimit } from "../rate-limit.ts";
import { Chronicle } from "./chronicle.ts";
import { type Dropped, Dropper } from "./dropper.ts";
import { Fold } from "./fold.ts";
import { FreezePoint } from "./freeze-point.ts";
import { makeDurable } from "./make-durable.ts";
import { Mover } from "./mover.ts";
import { EAGER_SHARE, isUrgent, Pace, SETTLE_MS } from "./pace.ts";
import { PhysicalVolumes } from "./physical-volumes.ts";
import type { CleaningPolicy } from "./policy.ts";
import { provenRuns, settledBefore } from "./proven.ts";
import { type FirstSpace, punchSomeFree } from "./punch-free.ts";
import { Quarantine } from "./quarantine.ts";
import { SecondWriter } from "./second-writer.ts";
import type { Outlook } from "./turns.ts";
import { type VolumeStatus, volumeStatus } from "./volume-status.ts";
import { type ReadView, type ServedVolume, type Verdict, Volumes } from "./volumes.ts";

/** Segments emptied before verdicts are looked for and space is freed again. */
const SEGMENTS_PER_ROUND = 4;
/** Segments of which it is remembered since when they are closed: the oldest, so that a round of a large log asks for little. */
const LOOKED_AT = 64;
/** Rounds of flushing in one go: two make a segment free, one more starts when writes came in between. */
const FREEING_FLUSHES = 3;
/** With a limit on bytes, what it allows in this time is copied at once. */
const PAID_AT_ONCE_MS = 250;
/** The second image is made complete at most this often: each time costs two durable records. */
const FOLD_MS = 30_000;
/** Only when so little is left that ordinary rounds have moved the rest, in bytes: what is deleted soon isn't copied. */
const FOLD_BYTES_MAX = 32 * 1024 * 1024;

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
	readonly #fold: Fold;
	readonly #quarantine: Quarantine;
	readonly #lastWritten: LastWritten;
	readonly #firstSeen = new Map<number, number>();
	/** Segments from which all was moved; those that the quarantine holds stay, and nothing more is to be done there until then. */
	readonly #emptied = new Set<number>();
	/** Verdicts of which nothing was dropped yet, and what of the guest's their views show. */
	readonly #remembered = new Map<ServedVolume, { readonly state: ReadyState; readonly guestEntries: number }>();
	/** Per volume: free blocks that were too young when they were last looked at, and where others lie. */
	readonly #young = new Map<ServedVolume, Pick<Dropped, "young" | "rest">>();
	readonly counters: CleanerCounters = {
		rounds: 0,
		droppedBytes: 0,
		movedBytes: 0,
		metadataBytesRead: 0,
		metadataBytesLastPass: 0,
		groupsLastPass: 0,
		punchedBytes: 0,
	};
	#volumes: Awaited<ReturnType<CleanerWorld["identify"]>> | undefined;
	readonly #pace: Pace;
	readonly #chronicle: Chronicle;
	/** The present round's; see `RoundOptions`. */
	#inBackground = false;
	/** It gives way to the guest and the limit now. */
	#isGentle = false;
	#pieceBegan = 0;
	/** The newest verdict's volume, and the view in which it was reached. */
	#point: { readonly volume: ServedVolume; readonly view: ViewHandle } | undefined;
	#foldedTime = Number.NEGATIVE_INFINITY;
	/** In guest entries. */
	#foldedAt = -1;
	/** Since when the guest has written nothing. */
	#silence = { guestEntries: -1, since: 0 };
	#movedThrough = 0;

	/** @param opened the log's position when the disk was opened */
	constructor(disk: CleanerDisk, opened: LogPosition, world: CleanerWorld = realWorld(disk, opened)) {
		const { plane, firstFd, second } = disk;
		const lastWritten = new LastWritten(divCeil(second.size, BLOCK_SIZE), opened);
		this.#disk = disk;
		this.#lastWritten = lastWritten;
		this.#world = world;
		this.#pace = new Pace(world.now(), opened);
		this.#chronicle = new Chronicle(disk.onVolume ?? (() => {}));
		const { newestSnapshot, onLost, beforeChange, quarantineMs } = disk;
		const piece = (): BatchLimits => this.#piece();
		const onCopied = (bytes: number): Promise<void> => this.#copied(bytes);
		const writer = new SecondWriter({ plane, firstFd, second, newestSnapshot, onLost, beforeChange, piece, onCopied });
		this.#dropper = new Dropper(plane, second, writer, lastWritten, world.allocated(second));
		this.#mover = new Mover(plane, writer, this.#dropper, lastWritten);
		this.#fold = new Fold(plane, writer, this.#dropper, lastWritten);
		this.#quarantine = new Quarantine(plane, quarantineMs, world.now);
		this.#dropper.quarantined = quarantineMs > 0;
		if (world.youngRunsMax !== undefined) this.#dropper.youngRunsMax = world.youngRunsMax;
	}

	volumes(): VolumeStatus[] {
		return (this.#volumes?.list ?? []).map((volume) =>
			volumeStatus(volume, blocksIn(this.#youngIn(volume)) * BLOCK_SIZE, this.#chronicle.pointOf(volume.id)),
		);
	}

	/** What the next round may bring; a guess. */
	async outlook(): Promise<Outlook> {
		const { plane } = this.#disk;
		const status = await plane.ask("status");
		const oldest = (await plane.ask("oldestSegments", SEGMENTS_PER_ROUND)).filter(({ state }) => state === "sealed");
		const bytes = oldest.reduce((sum, segment) => sum + segment.bytes, 0);
		const movedBytes = oldest.reduce((sum, { liveSlots }) => sum + liveSlots * BLOCK_SIZE, 0);
		const waiting = [...this.#young.values()].reduce((sum, { young }) => sum + blocksIn(young) * BLOCK_SIZE, 0);
		const { usedBytes, limitBytes } = status;
		return {
			isUrgent: isUrgent(status),
			fill: usedBytes / limitBytes,
			backBytes: bytes - movedBytes + waiting,
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
		this.#inBackground = options.inBackground === true;
		const status = await this.#measureGuest();
		if (!isUrgent(status)) this.#beGentle();
		await this.#quarantine.hold(EAGER_SHARE);
		try {
			await this.#judge((verdict) => this.#act(verdict));
			await this.#actOnRemembered();
			await this.#moveSettled(options);
			await this.#foldSettled();
			await this.#free(options.everything === true);
		} catch (error) {
			if (isVmsweepError(error, "NO_SPACE")) this.#quarantine.giveWay();
			throw error;
		} finally {
			this.#inBackground = false;
			this.#isGentle = false;
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

	// ---- Rests --------------------------------------------------------------------------------------------

	#beGentle(): void {
		this.#isGentle = this.#inBackground;
		this.#pieceBegan = this.#world.now();
	}

	/** What is copied before the guest, and the limit, have their turn. */
	#piece(): BatchLimits {
		if (!this.#isGentle) return { blocks: Number.POSITIVE_INFINITY };
		const { blocks, ...rest } = this.#world.piece?.() ?? this.#pace.pieceAt(this.#world.now());
		const paidBytes = this.#disk.limit?.bytesIn(PAID_AT_ONCE_MS) ?? Number.POSITIVE_INFINITY;
		return { blocks: Math.min(blocks, Math.max(1, Math.floor(paidBytes / 2 / BLOCK_SIZE))), ...rest };
	}

	async #copied(bytes: number): Promise<void> {
		if (!this.#isGentle) return;
		// Read and written.
		this.#disk.limit?.spend(2 * bytes);
		await this.#breathe(bytes);
	}

	/** After a piece of work that emptied so many bytes of the log: rests, for the guest and for the limit. True where it rested. */
	async #breathe(bytes: number): Promise<boolean> {
		const { plane, limit, rest } = this.#disk;
		const status = await plane.ask("status");
		const now = this.#world.now();
		this.#pace.look(status, now, "work");
		if (isUrgent(status)) this.#isGentle = false;
		if (!this.#isGentle) return false;
		const milliseconds = this.#pace.restAfter(bytes, now - this.#pieceBegan, status, now);
		const wait = Math.max(milliseconds, limit?.waitMs ?? 0);
		if (wait > 0) {
			if (!(await rest(wait))) this.#isGentle = false;
			this.#pace.look(await plane.ask("status"), this.#world.now(), "rest");
		}
		this.#pieceBegan = this.#world.now();
		return wait > 0;
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
		const waiting = new BoundedRuns(this.#dropper.youngRunsMax);
		for (const { block, count } of this.#candidates(volume, state.changed)) waiting.append(block, count);
		this.#young.set(volume, { young: waiting.list, rest: waiting.rest });
	}

	#youngIn(volume: ServedVolume): readonly BlockRun[] {
		return this.#young.get(volume)?.young ?? [];
	}

	// ---- Dropping -----------------------------------------------------------------------------------------

	/** Looks at what the guest wrote, and has `act` done with each new verdict. */
	async #judge(act: (verdict: Verdict) => Promise<void>): Promise<void> {
		const { plane, readView } = this.#disk;
		if (this.#volumes === undefined) {
			this.#young.clear();
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
			await this.#keepPoint(verdict);
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
		const free = this.#candidates(volume, changed);
		this.#noteChanged(guestEntries);
		const { droppedBytes, ...waiting } = await this.#dropper.drop(free, settledBefore(state));
		this.#young.set(volume, waiting);
		this.counters.droppedBytes += droppedBytes;
	}

	#countReading(state: LiveState): void {
		const { counters } = this;
		counters.metadataBytesRead += state.metadataBytesRead;
		if (this.#isGentle) this.#disk.limit?.spend(state.metadataBytesRead);
		if (state.metadataBytesRead === 0) return;
		counters.metadataBytesLastPass = state.metadataBytesRead;
		if (state.kind === "ready") counters.groupsLastPass = state.groupsRead;
	}

	/** Free whole blocks in the changed areas, and what was too young before, where it is still free. Sorted, found as it is walked. */
	*#candidates(volume: ServedVolume, changed: readonly ByteRange[]): Generator<BlockRun> {
		const { live, areas } = volume;
		const { young = [], rest } = this.#young.get(volume) ?? {};
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
			const keep = urgent || evenYoung ? [] : joinRuns([...this.#young.values()].flatMap(({ young }) => young));
			if (!urgent) this.#beGentle();
			for (const segment of due) {
				const wasGentle = this.#isGentle;
				const { movedBytes, keptBlocks } = await this.#mover.moveSegment(segment, view, keep);
				this.#noteChanged(segment.endGuestEntries);
				this.counters.movedBytes += movedBytes;
				if (keptBlocks === 0) this.#emptied.add(segment.sequence);
				// Later segments can't be freed before this one.
				if (keptBlocks > 0) break;
				if (movedBytes === 0 || !wasGentle) continue;
				if (this.#isGentle) await this.#breathe(segment.bytes - movedBytes);
				if (!this.#isGentle) break;
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

	/** In guest entries: the second image holds nothing newer, and nothing was given up on account of anything newer. */
	get #changedThrough(): number {
		return Math.max(this.#movedThrough, this.#dropper.forgottenThrough);
	}

	#noteChanged(guestEntries: number): void {
		this.#movedThrough = Math.max(this.#movedThrough, guestEntries);
	}

	// ---- Folding ------------------------------------------------------------------------------------------

	/** Keeps the view of the newest verdict: a commit point of the guest, worth folding. */
	async #keepPoint({ volume, view, state }: Verdict): Promise<void> {
		const old = state.kind === "ready" ? this.#point?.view : view;
		if (state.kind === "ready") this.#point = { volume, view };
		if (old !== undefined) await this.#disk.plane.ask("releaseView", old.id);
	}

	/** Lets go of the newest commit point's view, which holds segments. */
	async #forgetPoint(): Promise<void> {
		const point = this.#point;
		this.#point = undefined;
		if (point !== undefined) await this.#disk.plane.ask("releaseView", point.view.id);
	}

	/**
	 * Now and then, while the guest is quiet, makes the second image complete: at the newest commit point that a verdict
	 * was reached at, or as the disk is once the guest has rested for a while.
	 */
	async #foldSettled(): Promise<void> {
		const { plane, onFolded } = this.#disk;
		const now = this.#world.now();
		const isDue = this.#pace.isQuiet && now - this.#foldedTime >= FOLD_MS;
		// A view holds segments: it's let go of unless it is folded now.
		if (!isDue || isUrgent(await plane.ask("status")) || (await this.#liveBytes()) > FOLD_BYTES_MAX)
			return await this.#forgetPoint();
		const target = await this.#foldTarget(now);
		if (target === undefined) return;
		const { view, unused } = target;
		this.#beGentle();
		try {
			await makeDurable(plane, view);
			if ((await this.foldView(view, unused)) === undefined) return;
			this.#foldedTime = now;
			this.#foldedAt = view.guestEntries;
			await onFolded(view);
		} finally {
			await plane.ask("releaseView", view.id);
		}
	}

	/** What is worth folding now, and which of its blocks nothing uses; the view is the caller's to release. */
	async #foldTarget(now: number): Promise<{ view: ViewHandle; unused: readonly BlockRun[] } | undefined> {
		const isWorthIt = ({ guestEntries }: ViewHandle): boolean =>
			guestEntries >= this.#changedThrough && guestEntries > this.#foldedAt;
		const point = this.#point;
		if (point !== undefined && isWorthIt(point.view)) {
			this.#point = undefined;
			return { view: point.view, unused: this.#youngIn(point.volume) };
		}
		await this.#forgetPoint();
		if (now - this.#silence.since < SETTLE_MS || this.#silence.guestEntries <= this.#foldedAt) return undefined;
		return { view: await this.#disk.plane.ask("takeView"), unused: [] };
	}

	/** What of the guest's data is in the first image. */
	async #liveBytes(): Promise<number> {
		const segments = await this.#disk.plane.ask("segments");
		return segments.reduce((bytes, { liveSlots }) => bytes + liveSlots * BLOCK_SIZE, 0);
	}

	/**
	 * Makes the second image equal a view, which must be durable, but for blocks that nothing in it uses. Returns the bytes moved,
	 * undefined where the disk is being closed.
	 */
	async foldView(view: ViewHandle, unused: readonly BlockRun[] = []): Promise<number | undefined> {
		assert(view.guestEntries >= this.#changedThrough, "a view is folded over newer content");
		const { second, closing } = this.#disk;
		// From the first block on: a fold that fails halfway leaves the second image newer than any older view.
		this.#noteChanged(view.guestEntries);
		const moved = await this.#fold.run(view, second.size / BLOCK_SIZE, { unused, signal: closing });
		this.counters.movedBytes += moved ?? 0;
		return moved;
	}

	/** The disk has another size: what was known of how it is divided is out of date. */
	resized(): void {
		const { second } = this.#disk;
		this.#lastWritten.resize(divCeil(second.size, BLOCK_SIZE));
		this.#volumes = undefined;
	}

	/** Gives up blocks that the guest map of a resting disk proves unused, where they still are as `view` shows them. Returns how many. */
	async giveUp(runs: readonly BlockRun[], view: ViewHandle): Promise<number> {
		this.#noteChanged(view.guestEntries);
		return (await this.#dropper.giveUp(view, runs)) / BLOCK_SIZE;
	}

	/** Drops runs that nothing needs in `view`, with the VM off: nobody knows more than the disk shows. Returns the bytes. */
	async dropUnused(runs: Iterable<BlockRun>, view: ViewHandle): Promise<number> {
		this.#noteChanged(view.guestEntries);
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
		this.#beGentle();
		for (;;) {
			const bytes = await this.#punchSome(this.#pace.warmBytes);
			if (bytes === 0 || (await this.#breathe(bytes))) return;
			this.#beGentle();
		}
	}

	/** As `punchSomeFree`, and counts it. */
	async #punchSome(warmBytes: number): Promise<number> {
		const bytes = await punchSomeFree(this.#disk.plane, this.#disk.firstSpace, warmBytes);
		this.counters.punchedBytes += bytes;
		return bytes;
	}
}

const progressOf = (counters: CleanerCounters): number =>
	counters.droppedBytes + counters.movedBytes + counters.punchedBytes;
