// Volumes: the file systems of a served disk over time. Finds them, watches their metadata, and asks their live
// rules what may be dropped.
//
//   identify ─► live volumes ─► watch plan ─► (data plane) ─► notices, views at commit records
//       ▲                                                        │
//       └── a table or signature changed, notices were lost ◄────┤
//                                                                └─► observe, advance ─► verdicts
//
// A watch plan must be in force before the view on which a live volume starts: otherwise a write between the two
// would be missed. So identification sets the plan, takes a newer view, and starts over where the plan changed.
//
// A live rule counts bytes from its volume's start. Where those lie, in one run of the disk or in many pieces of it
// (core/volumes/pieces.ts), is known here alone: what it watches, what was written, and what is free is translated.

import type { PlanePort, ViewHandle } from "../../adapters/plane/messages.ts";
import type { Collected, Notice, WatchPlan, WatchRange } from "../../adapters/plane/watch.ts";
import { isVolumeError } from "../../core/filesystems/kept-volume.ts";
import type { FrozenMoment, LiveState, LiveVolume, MetadataWrite } from "../../core/filesystems/live.ts";
import { UnopenedVolume } from "../../core/filesystems/unopened.ts";
import type { Area } from "../../core/volumes/areas.ts";
import { cutOut, inDiskOrder, piecesOf, placeInVolume } from "../../core/volumes/pieces.ts";
import { joinRanges } from "../../foundations/byte-ranges.ts";
import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { byteOffset, type LogPosition, logPosition } from "../../foundations/units.ts";
import { fileSystemReaders } from "../file-systems.ts";
import { contentOf, type IdentifiedVolume, identifyVolumes } from "../identify-volumes.ts";
import type { FreezePoint } from "./freeze-point.ts";
import { liveRuleOf } from "./live-rules.ts";
import type { PhysicalVolumes } from "./physical-volumes.ts";
import type { CleaningPolicy } from "./policy.ts";

/** Rounds in which the watch plan may still change while a disk is identified; a guest that formats it needs some. */
const IDENTIFY_ROUNDS_MAX = 5;
/** Runs of the disk that are watched for one volume; a journal in very small stripes would need more. */
const WATCHED_RUNS_MAX = 1 << 16;

/** Reading all of a volume's metadata for a verdict may take this share of the time, at most. */
const LOOK_SHARE = 1 / 20;

/** What systems hibernate to. */
const MAY_SLEEP = ["swap", "ntfs"];
const ALL = logPosition(Number.POSITIVE_INFINITY);

/** One volume of the served disk. */
export interface ServedVolume {
	readonly id: string;
	readonly type: string;
	/**
	 * Where it lies, in the disk's order; no other volume's. A physical volume of LVM has what no logical volume has.
	 */
	readonly areas: readonly Area[];
	/** Its bytes, in a view of the disk. */
	readonly contentOf: (disk: ByteSource) => ByteSource;
	/** Undefined where no live rule applies; `reason` says why. */
	readonly live: LiveVolume | undefined;
	/** The latest verdict. */
	verdict: LiveState | undefined;
	/** Why nothing is dropped, or undefined. */
	reason: string | undefined;
	/** Notices that are newer than the last view. */
	waiting: Notice[];
	/** End position of its last write as of the previous round, -1 for none since the watch began. */
	lastWrite: number;
	/** The last write when a clean unmount was last looked for; undefined before the first look. */
	lookedAt: number | undefined;
	/** Not before this moment of `performance.now()` all of its metadata is read again on a mere chance. */
	nextLook?: number;
	/**
	 * Through which position it was judged as unmounted, or frozen. A freeze that proved nothing counts: another one without
	 * further writes would not, either. Absent before the first time.
	 */
	restedAt?: number;
	/** When the newest freeze point was that proved something, ISO 8601. */
	frozenAt?: string;
}

/** A verdict with the view that it was reached in; the view must be released. */
export interface Verdict {
	readonly volume: ServedVolume;
	readonly view: ViewHandle;
	readonly state: LiveState;
}

/** What is asked of a served disk to find its volumes. */
export interface VolumesDisk {
	readonly plane: PlanePort;
	readonly readView: ReadView;
	readonly policy: CleaningPolicy;
	/** Follows LVM's free extents; where not given, they are kept. */
	readonly physicalVolumes?: PhysicalVolumes | undefined;
}

/** How a view of the disk is read. */
export type ReadView = (view: ViewHandle) => ByteSource;

export class Volumes {
	readonly #plane: PlanePort;
	readonly #readView: ReadView;
	readonly #identity: string;
	readonly list: readonly ServedVolume[];

	private constructor(plane: PlanePort, readView: ReadView, list: readonly ServedVolume[], identity: string) {
		this.#plane = plane;
		this.#readView = readView;
		this.list = list;
		this.#identity = identity;
	}

	/** Identifies the disk's volumes and starts to watch them; undefined where the guest divides the disk all the while. */
	static async identify(disk: VolumesDisk): Promise<Volumes | undefined> {
		const { plane, readView } = disk;
		let planned = "";
		for (let round = 0; round <= IDENTIFY_ROUNDS_MAX; round++) {
			const view = await plane.ask("takeView");
			try {
				const { volumes, identity } = await identifyVolumes(readView(view));
				const all = volumes.flatMap((volume) => [volume, ...volume.children]);
				const list = await Promise.all(all.map((volume) => openVolume(disk, view, volume)));
				const plan = watchPlan(list, identity);
				const key = JSON.stringify(plan, (_, value: unknown) => (value instanceof Uint8Array ? [...value] : value));
				if (key === planned) return new Volumes(plane, readView, list, identityKey(volumes));
				await plane.ask("watch", plan);
				planned = key;
			} finally {
				await plane.ask("releaseView", view.id);
			}
		}
		return undefined;
	}

	/** True where the disk is divided as before and its volumes have the same owners. */
	async isStillTheSame(): Promise<boolean> {
		const view = await this.#plane.ask("takeView");
		try {
			const { volumes } = await identifyVolumes(this.#readView(view));
			return identityKey(volumes) === this.#identity;
		} finally {
			await this.#plane.ask("releaseView", view.id);
		}
	}

	/** Feeds what was collected, and judges every volume that has a new view point or may have been unmounted. */
	async judge(collected: Collected): Promise<Verdict[]> {
		for (const notice of collected.notices) this.list[notice.volume]?.waiting.push(notice);
		const verdicts: Verdict[] = [];
		for (const [index, volume] of this.list.entries()) {
			if (volume.live === undefined) continue;
			// Such a volume may not be judged for long; its notices must not pile up until then.
			if (volume.live.viewPoints === "none") await volume.live.observe(takeWritesUpTo(volume, ALL));
			const point = collected.views[index];
			const lastWrite = collected.lastWrite[index] ?? -1;
			const verdict =
				point !== undefined ? await this.#judgeAt(volume, point) : await this.#judgeQuiet(volume, index, lastWrite);
			volume.lastWrite = lastWrite;
			if (verdict !== undefined) verdicts.push(verdict);
		}
		return verdicts;
	}

	/** Judges a view at one of the volume's view points. */
	async #judgeAt(volume: ServedVolume, view: ViewHandle): Promise<Verdict | undefined> {
		const live = volume.live!;
		await live.observe(takeWritesUpTo(volume, view.position));
		const state = mayLook(volume)
			? await timed(volume, () => live.advance(this.#contentOf(volume, view), view.position))
			: undefined;
		if (state !== undefined && !(live.readsAll === true && keepsItsVerdict(volume, state)))
			return this.#conclude(volume, view, state);
		await this.#plane.ask("releaseView", view.id);
		return undefined;
	}

	/** Without new commits: once the volume has come to rest, was it unmounted cleanly? Asked once per rest. */
	async #judgeQuiet(volume: ServedVolume, index: number, lastWrite: number): Promise<Verdict | undefined> {
		if (lastWrite !== volume.lastWrite || volume.lookedAt === lastWrite || !mayLook(volume)) return undefined;
		// Whoever writes just now may have mounted it by the time of the view.
		const view = await this.#plane.ask("takeViewAtRest", { volume: index, lastWrite });
		if (view === undefined) return undefined;
		const state = await this.#unlessAsleep(view, await this.#advanceClean(volume, view, lastWrite));
		if (keepsItsVerdict(volume, state)) {
			await this.#plane.ask("releaseView", view.id);
			return undefined;
		}
		if (state.kind === "ready" && !Number.isFinite(state.settled)) volume.restedAt = view.position;
		return this.#conclude(volume, view, state);
	}

	async #advanceClean(volume: ServedVolume, view: ViewHandle, lastWrite: number): Promise<LiveState> {
		volume.lookedAt = lastWrite;
		const live = volume.live!;
		await live.observe(takeWritesUpTo(volume, view.position));
		const end = lastWrite < 0 ? null : (lastWrite as LogPosition);
		return await timed(volume, () => live.advanceClean(this.#contentOf(volume, view), view.position, end));
	}

	/** A hibernated system goes on with all file systems that it has in memory, and need not have marked each of them. */
	async #unlessAsleep(view: ViewHandle, state: LiveState): Promise<LiveState> {
		if (state.kind === "keep") return state;
		for (const { id, type, contentOf } of this.list) {
			if (!MAY_SLEEP.includes(type)) continue;
			const map = await fileSystemReaders.get(type)!(contentOf(this.#readView(view)), { vmOff: false });
			if (map?.isAsleep !== true) continue;
			const { position, metadataBytesRead, watchChanged } = state;
			const reason = `a hibernated system lies in ${id}; start the guest and shut it down`;
			return { kind: "keep", position, reason, pending: true, metadataBytesRead, watchChanged };
		}
		return state;
	}

	/** True where a freeze would let something go that nothing else can: a volume was written since it last rested for sure. */
	wantsFreeze(): boolean {
		return this.list.some(needsFreeze);
	}

	/**
	 * Judges the views of a freeze point, which are used up, in the midst of what was collected after it. Returns what was
	 * proved, and the ids of volumes that were written while they should have been frozen.
	 */
	async judgeFrozen(point: FreezePoint, collected: Collected): Promise<{ verdicts: Verdict[]; refused: string[] }> {
		for (const notice of collected.notices) this.list[notice.volume]?.waiting.push(notice);
		const verdicts: Verdict[] = [];
		const refused: string[] = [];
		for (const [index, volume] of this.list.entries()) {
			const marked = collected.views[index];
			const frozen = point.views[index];
			const judgeMarked = async (): Promise<void> => {
				const verdict = marked && (await this.#judgeAt(volume, marked));
				if (verdict !== undefined) verdicts.push(verdict);
			};
			// Views are judged in their order: a commit may lie before the freeze, or behind the thaw.
			const isBefore = marked !== undefined && frozen !== undefined && marked.position <= frozen.position;
			if (isBefore) await judgeMarked();
			if (frozen !== undefined) {
				const moment = point.momentOf(index);
				if (moment === undefined) refused.push(volume.id);
				const verdict = moment && (await this.#judgeFrozen(volume, frozen, moment));
				if (verdict === undefined) await this.#plane.ask("releaseView", frozen.id);
				else verdicts.push(verdict);
			}
			if (!isBefore) await judgeMarked();
		}
		point.views = [];
		return { verdicts, refused };
	}

	async #judgeFrozen(volume: ServedVolume, view: ViewHandle, moment: FrozenMoment): Promise<Verdict | undefined> {
		const { live } = volume;
		if (live?.advanceFrozen === undefined) return undefined;
		await live.observe(takeWritesUpTo(volume, view.position));
		const state = await live.advanceFrozen(this.#contentOf(volume, view), view.position, moment);
		volume.restedAt = view.position;
		if (keepsItsVerdict(volume, state)) return undefined;
		if (state.kind === "ready") volume.frozenAt = new Date().toISOString();
		return this.#conclude(volume, view, state);
	}

	#contentOf(volume: ServedVolume, view: ViewHandle): ByteSource {
		return volume.contentOf(this.#readView(view));
	}

	#conclude(volume: ServedVolume, view: ViewHandle, state: LiveState): Verdict {
		volume.verdict = state;
		volume.reason = state.kind === "keep" ? state.reason : undefined;
		return { volume, view, state };
	}
}

/** A mounted volume that merely rests keeps the verdict that its commits or a freeze gave. */
const keepsItsVerdict = ({ verdict }: ServedVolume, state: LiveState): boolean =>
	state.kind === "keep" && !state.watchChanged && verdict?.kind === "ready" && Number.isFinite(verdict.settled);

/** True of a volume that nothing but a freeze proves anything of while it is mounted, and that was written since the last one. */
export const needsFreeze = ({ live, lastWrite, restedAt = -1 }: ServedVolume): boolean =>
	live?.gainsByFreeze === true && lastWrite > restedAt;

/** False as long as the volume was read whole a short while ago. */
const mayLook = ({ live, nextLook = 0 }: ServedVolume): boolean =>
	live?.readsAll !== true || performance.now() >= nextLook;

/** Notes how long a look took, and so when the next one may be. */
async function timed(volume: ServedVolume, look: () => Promise<LiveState>): Promise<LiveState> {
	const began = performance.now();
	try {
		return await look();
	} finally {
		const ended = performance.now();
		volume.nextLook = ended + (ended - began) / LOOK_SHARE;
	}
}

async function openVolume(disk: VolumesDisk, view: ViewHandle, volume: IdentifiedVolume): Promise<ServedVolume> {
	const { id, type } = volume;
	const served = {
		id,
		type,
		areas: ownAreas(volume),
		contentOf: (source: ByteSource) => contentOf(source, volume),
		verdict: undefined,
		waiting: [],
		lastWrite: -1,
		lookedAt: undefined,
	};
	const kept = (reason: string): ServedVolume => ({ ...served, live: undefined, reason });
	if (volume.kept !== null) return kept(volume.kept);
	try {
		const live = await openLive(disk, view, volume);
		if (typeof live === "string") return kept(live);
		const watched = live.watch().reduce((runs, range) => runs + piecesOf(served.areas, range).length, 0);
		if (watched > WATCHED_RUNS_MAX) return kept("its metadata lies in more pieces than can be watched");
		return { ...served, type: live.type, live, reason: undefined };
	} catch (error) {
		if (!isVolumeError(error)) throw error;
		const open = liveRuleOf(type, disk.policy);
		if (open === undefined) return kept(error.message);
		const live = new UnopenedVolume(type, open, error);
		return { ...served, live, verdict: live.keptAt(view.position), reason: error.message };
	}
}

/** Starts to follow a volume; or the sentence why that isn't done. */
async function openLive(
	{ plane, readView, policy, physicalVolumes }: VolumesDisk,
	view: ViewHandle,
	volume: IdentifiedVolume,
): Promise<LiveVolume | string> {
	const { type, offset } = volume;
	const content = contentOf(readView(view), volume);
	if (type === "lvm-pv")
		return (
			(await physicalVolumes?.open(plane, view, offset, content)) ??
			"its free extents are kept; vmsweep serve --lvm-free drop gives them back"
		);
	return (await liveRuleOf(type, policy)?.(content)) ?? `${type} is not cleaned while its VM runs yet`;
}

/** Where a volume lies, without what lies in volumes inside it. */
function ownAreas({ areas, children }: IdentifiedVolume): readonly Area[] {
	const inside = inDiskOrder(children.flatMap((child) => child.areas));
	return inside.length === 0 ? inDiskOrder(areas) : cutOut(inDiskOrder(areas), inside);
}

/** The writes of a volume up to a position, taken off those that wait. */
function takeWritesUpTo(volume: ServedVolume, position: LogPosition): MetadataWrite[] {
	const later = volume.waiting.findIndex(({ end }) => end > position);
	const due = later < 0 ? volume.waiting : volume.waiting.slice(0, later);
	volume.waiting = later < 0 ? [] : volume.waiting.slice(later);
	return due.map(({ at, length, bytes, position: from, end }) => ({
		at: byteOffset(placeInVolume(volume.areas, at)!),
		length,
		position: from,
		end,
		read: () => Promise.resolve(bytes ?? new Uint8Array(length)),
	}));
}

function watchPlan(list: readonly ServedVolume[], identity: readonly ByteRange[]): WatchPlan {
	return {
		volumes: list.map(({ areas, live }) => ({
			runs: live === undefined ? [] : joinRanges(areas.map(({ diskStart: start, length }) => ({ start, length }))),
			viewWhenCollected: live?.viewPoints === "any",
		})),
		ranges: list.flatMap(watchRanges).toSorted((a, b) => a.start - b.start),
		identity: joinRanges(identity),
	};
}

/** What a volume's rule watches, on the disk: a range for each piece that it lies in. */
function watchRanges({ areas, live }: ServedVolume, volume: number): WatchRange[] {
	return (live?.watch() ?? []).flatMap(({ mark, withoutBytes, ...range }) =>
		piecesOf(areas, range).map(({ diskStart, volumeStart, length }) => ({
			volume,
			start: diskStart,
			length,
			...(mark === undefined ? {} : { mark: { ...mark, origin: diskStart - volumeStart } }),
			...(withoutBytes === undefined ? {} : { withoutBytes }),
		})),
	);
}

/** Tells one state of how the disk is divided from every other; each change of LVM's metadata is one. */
const identityKey = (volumes: readonly IdentifiedVolume[]): string =>
	volumes
		.flatMap((volume) => [volume, ...volume.children])
		.map(({ id, offset, size, type, kept, metadata }) => `${id} ${offset} ${size} ${type} ${kept} ${metadata}`)
		.join("\n");
