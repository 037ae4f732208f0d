// Volumes at rest: live volumes of file systems that have no commits to count. They are judged when they have come to
// rest, or were frozen (docs/live-safety.md, "Without commits to count").
//
//   observe       ─▶ the newest write to the marks: the bytes that an unmount, or a freeze, writes last
//   advanceClean  ─▶ was that the newest write to any byte of the volume, and says it "unmounted"? ─▶ all that is free goes
//   advance       ─▶ only where a file system writes to nothing that it calls used before that is given up durably:
//                    what was used at the look before, and is free now, goes
//   advanceFrozen ─▶ did the freeze write the marks, and nothing came after? ─▶ all that was free at that moment goes
//
// Invariants
//  - a clean mark alone is never believed: whoever wrote after it, be it a driver that knows no marks, uses the volume
//  - where nothing was written since the volume is followed, a clean mark is believed only if drivers take it away
//    before they change anything (`marksMounts`): only this server may be new here, and the guest not
//  - what is free is read anew for every verdict: there is no cache that could be of another moment

import { assert } from "../../foundations/errors.ts";
import type { ByteRange, FileSystemMap, FileSystemReader, VolumeState } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import { metered } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset, LogPosition } from "../../foundations/units.ts";
import { byteCount, byteOffset, logPosition } from "../../foundations/units.ts";
import { isVolumeError, solutionOf } from "./kept-volume.ts";
import type { FrozenMoment, LiveState, LiveVolume, MetadataWrite, ViewPoints, WaitsFor, WatchRange } from "./live.ts";
import { checkSoleOwner } from "./signatures.ts";

/** What a kind of file system shows of itself at rest. */
export interface AtRestKind {
	/** As identification names it. */
	readonly type: string;
	/** Why nothing is dropped as long as it doesn't rest as it should, for an operator. */
	readonly whileMounted: string;
	/** May throw VOLUME_DAMAGED and VOLUME_UNSUPPORTED besides what the source throws. */
	readonly read: FileSystemReader;
	/** The bytes that an unmount or a freeze writes last. Throws VOLUME_DAMAGED or VOLUME_UNSUPPORTED. */
	marks(view: ByteSource): Promise<readonly ByteRange[]>;
	/** Its map says "clean" only where it was unmounted, given that the marks were written last. */
	readonly showsUnmount: boolean;
	/** Drivers take "clean" away before they change anything else. */
	readonly marksMounts: boolean;
	/**
	 * Nothing that the newest state on disk calls used is written by a new owner before a newer state, in which it is free, is
	 * durable (btrfs). Then whoever had written a block has given it up, where it was used after that write and is free now.
	 */
	readonly neverReusesEarly: boolean;
	/** Reads it as frozen: not unmounted. Absent where a freeze leaves no trace on the disk. */
	readonly readFrozen?: FileSystemReader;
}

const NOTHING_SHOWS_FREEZE = "the guest's agent says that it is frozen, but nothing on the disk shows it";

export class AtRestVolume implements LiveVolume {
	readonly viewPoints: ViewPoints;
	readonly gainsByFreeze: boolean;
	readonly readsAll = true;
	readonly incarnation = 0;
	readonly commits = 0;
	readonly advanceFrozen?: NonNullable<LiveVolume["advanceFrozen"]>;
	readonly #kind: AtRestKind;
	readonly #size: ByteCount;
	#marks: readonly ByteRange[] = [];
	#watchChanged = false;
	/** End of the newest write to the marks; null for none since the volume is followed. */
	#marked: LogPosition | null = null;
	#observed: LogPosition | null = null;
	/** What the newest look that could be believed showed, and where the log was; null before the first one. */
	#seen: { readonly map: FileSystemMap; readonly at: LogPosition } | null = null;
	/** What may go by the newest verdict. */
	#free: FileSystemMap["freeRuns"] = () => [];

	private constructor(kind: AtRestKind, size: ByteCount) {
		this.#kind = kind;
		this.#size = size;
		const { readFrozen } = kind;
		this.viewPoints = kind.neverReusesEarly ? "any" : "none";
		this.gainsByFreeze = readFrozen !== undefined;
		if (readFrozen !== undefined)
			this.advanceFrozen = (view, at, moment) => this.#judgeFrozen(view, at, moment, readFrozen);
	}

	/** Starts to follow the volume in `view`. One that can't be believed is followed, too, and says so when it is judged. */
	static async open(view: ByteSource, kind: AtRestKind): Promise<AtRestVolume> {
		const volume = new AtRestVolume(kind, view.size);
		volume.#marks = await volume.#marksIn(volume.#meter(view));
		return volume;
	}

	get rule(): string {
		const atRest = this.gainsByFreeze ? "clean unmount or freeze" : "clean unmount only";
		return this.#kind.neverReusesEarly
			? `in use at an earlier look, free at a later one, not written in between; or ${atRest}`
			: atRest;
	}
	get type(): string {
		return this.#seen?.map.type ?? this.#kind.type;
	}
	get uuid(): string | null {
		return this.#seen?.map.uuid ?? null;
	}
	get state(): VolumeState {
		return this.#seen?.map.state ?? "unknown";
	}

	watch(): readonly WatchRange[] {
		this.#watchChanged = false;
		return this.#marks.map(({ start, length }) => ({ start, length, kind: "structure", withoutBytes: true }));
	}

	observe(writes: readonly MetadataWrite[]): Promise<void> {
		for (const { at, length, end } of writes) {
			assert(this.#observed === null || end >= this.#observed, "metadata writes arrive out of order");
			this.#observed = end;
			if (this.#marks.some((mark) => mark.start < at + length && at < mark.start + mark.length)) this.#marked = end;
		}
		return Promise.resolve();
	}

	/** Any view is a state that a power cut could have left, and looked at as such. */
	async advance(view: ByteSource, at: LogPosition): Promise<LiveState> {
		const { read, whileMounted, neverReusesEarly } = this.#kind;
		if (!neverReusesEarly) return this.#keep(at, 0, whileMounted);
		const before = this.#seen;
		const source = this.#meter(view);
		const seen = await this.#look(source, at, read);
		if ("kind" in seen) return seen;
		if (before === null || before.map.uuid !== seen.uuid || before.map.size !== seen.size)
			return this.#keep(at, source.bytesRead, whileMounted);
		const freeRuns: FileSystemMap["freeRuns"] = (from, to) =>
			without(seen.freeRuns(from, to), before.map.freeRuns(from, to));
		return this.#ready({ ...seen, freeRuns }, at, before.at, source.bytesRead);
	}

	async advanceClean(view: ByteSource, at: LogPosition, lastWrite: LogPosition | null): Promise<LiveState> {
		const { read, whileMounted, showsUnmount, marksMounts, neverReusesEarly } = this.#kind;
		if (neverReusesEarly) return await this.advance(view, at);
		const source = this.#meter(view);
		if (!(await this.#isWatchedIn(source))) return this.#keepMoved(at, source.bytesRead);
		const isUnmounted = showsUnmount && (lastWrite === null ? marksMounts : this.#isMark(lastWrite));
		if (!isUnmounted) return this.#keep(at, source.bytesRead, whileMounted);
		const seen = await this.#look(source, at, read);
		if ("kind" in seen) return seen;
		return seen.state === "clean"
			? this.#ready(seen, at, logPosition(Number.POSITIVE_INFINITY), source.bytesRead)
			: this.#keep(at, source.bytesRead, whileMounted);
	}

	async #judgeFrozen(
		view: ByteSource,
		at: LogPosition,
		{ asked, lastWrite }: FrozenMoment,
		read: FileSystemReader,
	): Promise<LiveState> {
		const source = this.#meter(view);
		if (!(await this.#isWatchedIn(source))) return this.#keepMoved(at, source.bytesRead);
		// Written by the freeze itself: another mount that the agent doesn't see could have rested since any earlier moment.
		const isShown = lastWrite !== null && this.#isMark(lastWrite) && lastWrite > asked;
		if (!isShown) return this.#keep(at, source.bytesRead, NOTHING_SHOWS_FREEZE);
		const seen = await this.#look(source, at, read);
		return "kind" in seen ? seen : this.#ready(seen, at, at, source.bytesRead);
	}

	/** True where the write that ended there is the newest one to the marks. */
	#isMark(lastWrite: LogPosition): boolean {
		return this.#marked !== null && lastWrite <= this.#marked;
	}

	/** Reads the volume, or says why it is kept. */
	async #look(
		view: ByteSource & { readonly bytesRead: number },
		at: LogPosition,
		read: FileSystemReader,
	): Promise<FileSystemMap | LiveState> {
		assert(this.#observed === null || this.#observed <= at, "a view is older than the writes that were observed");
		const keep = (reason: string, waitsFor: WaitsFor): LiveState => this.#keep(at, view.bytesRead, reason, waitsFor);
		try {
			await checkSoleOwner(view, this.#kind.type);
			const map = await read(view, { vmOff: false });
			if (map === null) return keep("its superblock is gone", "support");
			if (map.kept !== null) return keep(map.kept, map.state === "clean" ? "support" : "rest");
			this.#seen = { map, at };
			return map;
		} catch (error) {
			if (!isVolumeError(error)) throw error;
			return keep(error.message, solutionOf(error));
		}
	}

	/** False where the marks lie elsewhere by now: it was made anew, or found before it was made. */
	async #isWatchedIn(view: ByteSource): Promise<boolean> {
		return sameRanges(await this.#marksIn(view), this.#marks);
	}

	/** Writes to the new places were not seen: whoever follows the volume starts afresh. */
	#keepMoved(at: LogPosition, bytesRead: number): LiveState {
		this.#watchChanged = true;
		return this.#keep(at, bytesRead, "it has another layout than before; it is looked at anew");
	}

	/** The marks, none where the volume can't be believed: then no write is taken for one. */
	async #marksIn(view: ByteSource): Promise<readonly ByteRange[]> {
		try {
			return (await this.#kind.marks(view)).toSorted((a, b) => a.start - b.start);
		} catch (error) {
			if (!isVolumeError(error)) throw error;
			return [];
		}
	}

	#meter(view: ByteSource): ByteSource & { readonly bytesRead: number } {
		return metered(view, byteCount(Math.ceil(this.#size / 1024) + 3 * 2 ** 30));
	}

	#ready(
		{ freeRuns, size, warnings }: FileSystemMap,
		position: LogPosition,
		settled: LogPosition,
		metadataBytesRead: number,
	): LiveState {
		this.#free = freeRuns;
		const changed = [{ start: byteOffset(0), length: size }];
		const watchChanged = this.#watchChanged;
		return { kind: "ready", position, settled, changed, metadataBytesRead, groupsRead: 1, watchChanged, warnings };
	}

	#keep(position: LogPosition, metadataBytesRead: number, reason: string, waitsFor: WaitsFor = "rest"): LiveState {
		this.#free = () => [];
		const pending = waitsFor === "rest";
		return { kind: "keep", position, reason, pending, waitsFor, metadataBytesRead, watchChanged: this.#watchChanged };
	}

	freeRuns(from: ByteOffset, to: ByteOffset): Iterable<ByteRange> {
		return this.#free(from, to);
	}
}

const sameRanges = (a: readonly ByteRange[], b: readonly ByteRange[]): boolean =>
	a.length === b.length && a.every(({ start, length }, i) => start === b[i]!.start && length === b[i]!.length);

/** The parts of sorted runs that no other (sorted) run covers. */
export function* without(runs: Iterable<ByteRange>, others: Iterable<ByteRange>): Generator<ByteRange> {
	const holes = others[Symbol.iterator]();
	let hole = holes.next();
	for (const { start, length } of runs) {
		const end = start + length;
		for (let at: number = start; at < end; ) {
			while (!hole.done && hole.value.start + hole.value.length <= at) hole = holes.next();
			const stop = hole.done ? end : Math.min(end, Math.max(at, hole.value.start));
			if (stop > at) yield { start: byteOffset(at), length: byteCount(stop - at) };
			at = hole.done || hole.value.start >= end ? end : hole.value.start + hole.value.length;
		}
	}
}
