// Watches: how the control plane learns which metadata the guest wrote, without looking at every write.
//
//   regions  one flag per MiB of disk: a write outside of flagged regions costs one look-up
//   ranges   the exact byte ranges, sorted; a write inside one becomes a notice: where, when, and the bytes
//   identity ranges whose change may change what lies where at all: only whether one was touched is kept
//   mark     a range may carry a pattern: a write whose last block begins with it (a journal's commit record)
//            is a point at which the control plane may ask for a view; other volumes' views are taken as they are collected
//
// The data plane knows no file system: patterns and ranges come from the guest map's readers.
// Notices are bounded. When more is written than fits, `lost` says so, and the control plane starts afresh.

import type { ByteRange } from "../../foundations/guest-map.ts";
import type { ByteCount, ByteOffset, LogPosition } from "../../foundations/units.ts";

/** A byte range of the disk whose writes are noticed. */
export interface WatchRange {
	/** Index into the plan's volumes. */
	readonly volume: number;
	/** Byte position on the disk. */
	readonly start: ByteOffset;
	readonly length: ByteCount;
	/**
	 * Blocks of `every` bytes that begin with `pattern` are view points. They are counted from `origin`: where on the disk
	 * the volume would start if all of it lay as this range does, perhaps before the disk.
	 */
	readonly mark?: { readonly pattern: Uint8Array; readonly every: ByteCount; readonly origin: number };
	/** The notice has no bytes: only where and when is asked for. */
	readonly withoutBytes?: true;
}

/** Parts of the disk whose last write is remembered. */
export interface WatchedVolume {
	/** Sorted, without overlap. */
	readonly runs: readonly ByteRange[];
	/** A view is taken whenever notices are collected and the volume was written since the last time. */
	readonly viewWhenCollected?: boolean;
}

/** What is watched; a new plan replaces the old one and everything not yet collected. */
export interface WatchPlan {
	readonly volumes: readonly WatchedVolume[];
	/** Sorted by `start`, without overlap. */
	readonly ranges: readonly WatchRange[];
	/** Sorted, without overlap among themselves. */
	readonly identity: readonly ByteRange[];
}

/** One watched piece of a guest write. */
export interface Notice {
	readonly volume: number;
	/** Byte position on the disk. */
	readonly at: ByteOffset;
	readonly length: ByteCount;
	/** The bytes as they were written; undefined where the range was zeroed or trimmed, or is watched without them. */
	readonly bytes: Uint8Array | undefined;
	/** Log position of the write's first slot. */
	readonly position: LogPosition;
	/** Log position right after the write. */
	readonly end: LogPosition;
}

/** A view that was handed out; it lives until it is released. */
export interface KeptView {
	readonly id: number;
	readonly position: LogPosition;
	/** Entries in the log when it was taken: tells instants apart that have the same position. */
	readonly entry: number;
	/** Tells views apart by what the guest did, drops aside; see the log's view. */
	readonly guestEntries: number;
}

/** What was noticed since the last collection. */
export interface Collected {
	readonly notices: readonly Notice[];
	/** More was written than could be kept: nothing may be concluded from the notices. */
	readonly lost: boolean;
	readonly identityTouched: boolean;
	/** Per volume, the position of its last write since the plan was set; -1 for none. */
	readonly lastWrite: readonly number[];
	/** Per volume, a view taken exactly after the newest view point since the last collection. */
	readonly views: readonly (KeptView | undefined)[];
}

/** How much was written to the volumes of the plan, at one moment between two requests. */
export interface WriteCounts {
	/** Per volume, as in {@link Collected}. */
	readonly lastWrite: readonly number[];
	/** Per volume, how many writes came since the plan was set, zeros and trims too. */
	readonly writes: readonly number[];
	/** A client's request is under way: it may be a write that is in no count yet. */
	readonly isReceiving: boolean;
}

const REGION_BYTES = 1024 * 1024;
/** Bytes of notices kept between two collections. */
const NOTICE_BYTES_MAX = 64 * 1024 * 1024;
const NOTICES_MAX = 256 * 1024;

export class WatchSet {
	readonly plan: WatchPlan;
	readonly #regions: Uint8Array;
	readonly lastWrite: number[];
	/** Per volume, how many writes came, zeros and trims too, which have no position of their own. */
	readonly writeCounts: number[];
	#notices: Notice[] = [];
	#noticeBytes = 0;
	#lost = false;
	#identityTouched = false;

	constructor(plan: WatchPlan, diskSize: ByteCount) {
		this.plan = plan;
		this.lastWrite = plan.volumes.map(() => -1);
		this.writeCounts = plan.volumes.map(() => 0);
		this.#regions = new Uint8Array(Math.ceil(diskSize / REGION_BYTES));
		for (const { start, length } of [...plan.ranges, ...plan.identity])
			this.#regions.fill(1, Math.floor(start / REGION_BYTES), Math.ceil((start + length) / REGION_BYTES));
	}

	/** Something that may change what lies where was written since the last collection. */
	get identityTouched(): boolean {
		return this.#identityTouched;
	}

	/** True where a write may touch a watched range: the one question on the hot path. */
	mayTouch(at: number, length: number): boolean {
		const last = Math.floor((at + length - 1) / REGION_BYTES);
		for (let region = Math.floor(at / REGION_BYTES); region <= last; region++) if (this.#regions[region]) return true;
		return false;
	}

	/** Remembers that a volume was written. */
	touchVolumes(at: number, length: number, position: number): void {
		const volumes = this.plan.volumes;
		for (let i = 0; i < volumes.length; i++) {
			const runs = volumes[i]!.runs;
			const run = runs[firstEndingBehind(runs, at)];
			if (run === undefined || at + length <= run.start) continue;
			this.lastWrite[i] = position;
			this.writeCounts[i]!++;
		}
	}

	/**
	 * The volume for which this write ends in a view point (a commit record in its last block), or -1.
	 * `source` holds the written bytes from `from` on.
	 */
	viewPointOf(at: number, length: number, source: Uint8Array, from: number): number {
		for (const range of overlapping(this.plan.ranges, at, length)) {
			const mark = range.mark;
			if (mark === undefined) continue;
			const end = at + length;
			const first = end - mark.every;
			const isInRange = first >= range.start && end <= range.start + range.length;
			if (!isInRange || first < at || (first - mark.origin) % mark.every !== 0) continue;
			if (startsWith(source, from + length - mark.every, mark.pattern)) return range.volume;
		}
		return -1;
	}

	/** Notes the watched parts of a write; `source` holds its bytes from `from` on, or is undefined for zeros. */
	note(
		at: number,
		length: number,
		source: Uint8Array | undefined,
		from: number,
		position: LogPosition,
		end: LogPosition,
	): void {
		if (overlapping(this.plan.identity, at, length).length > 0) this.#identityTouched = true;
		for (const range of overlapping(this.plan.ranges, at, length)) {
			const start = Math.max(at, range.start);
			const stop = Math.min(at + length, range.start + range.length);
			const bytes = range.withoutBytes === true ? undefined : source?.slice(from + start - at, from + stop - at);
			const size = bytes?.length ?? 0;
			if (this.#noticeBytes + size > NOTICE_BYTES_MAX || this.#notices.length >= NOTICES_MAX) {
				this.#lost = true;
				return;
			}
			this.#noticeBytes += size;
			const where = { volume: range.volume, at: start as ByteOffset, length: (stop - start) as ByteCount };
			this.#notices.push({ ...where, bytes, position, end });
		}
	}

	/** Hands over what was noticed and begins anew. */
	collect(): Pick<Collected, "notices" | "lost" | "identityTouched"> {
		const collected = { notices: this.#notices, lost: this.#lost, identityTouched: this.#identityTouched };
		this.#identityTouched = false;
		this.#notices = [];
		this.#noticeBytes = 0;
		this.#lost = false;
		return collected;
	}
}

/** The ranges that overlap a write, in order. */
function overlapping<R extends ByteRange>(ranges: readonly R[], at: number, length: number): readonly R[] {
	const first = firstEndingBehind(ranges, at);
	let end = first;
	while (end < ranges.length && ranges[end]!.start < at + length) end++;
	return ranges.slice(first, end);
}

/** Index of the first range that reaches past `at`. */
function firstEndingBehind(ranges: readonly ByteRange[], at: number): number {
	let low = 0;
	let high = ranges.length;
	while (low < high) {
		const middle = (low + high) >>> 1;
		const range = ranges[middle]!;
		if (range.start + range.length <= at) low = middle + 1;
		else high = middle;
	}
	return low;
}

function startsWith(source: Uint8Array, at: number, pattern: Uint8Array): boolean {
	for (let i = 0; i < pattern.length; i++) if (source[at + i] !== pattern[i]) return false;
	return true;
}
