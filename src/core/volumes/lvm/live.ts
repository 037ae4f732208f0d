// The live rule of LVM's free extents (docs/live-safety.md, "Free extents of LVM"), for one physical volume.
//
//   | label | metadata areas: header, ring of texts | free | lv | free … |
//     watched: whatever is written here             watched: nobody may write here
//
//   settled = m, the position at which the text that lists the extents as free was committed: LVM commits before it
//   loads tables that use the extents, so what was written earlier is of an owner who gave it up
//
// Invariants
//  - one object follows one text. With another text, `advance` keeps everything, and the disk is identified anew
//  - a write to a free extent that no new text came before is somebody's whom LVM does not know: then everything is
//    kept, for as long as the disk is served (`FreeExtentsPast` outlives this object)

import { VmsweepError } from "../../../foundations/errors.ts";
import type { ByteRange, VolumeState } from "../../../foundations/guest-map.ts";
import type { ByteSource } from "../../../foundations/source.ts";
import { metered } from "../../../foundations/source.ts";
import type { ByteOffset, LogPosition } from "../../../foundations/units.ts";
import { byteCount, byteOffset, logPosition } from "../../../foundations/units.ts";
import type { LiveState, LiveVolume, MetadataWrite, ViewPoints, WatchRange } from "../../filesystems/live.ts";
import { type PhysicalVolume, readLvm } from "./index.ts";

/** What is known of a physical volume's free extents from before: its owner keeps it while the disk is served. */
export interface FreeExtentsPast {
	/** The newest position that no newer text than the present one was committed after; the disk's opening at first. */
	committed: LogPosition;
	/** Something wrote to a free extent. */
	hasForeignWrites: boolean;
}

/** The position of the last write to the disk block that holds a byte of the volume; null where it is not known. */
export type LastWriteOf = (at: ByteOffset) => Promise<LogPosition | null>;

export class LvmLiveVolume implements LiveVolume {
	readonly type = "lvm-pv";
	readonly state: VolumeState = "clean";
	readonly incarnation = 1;
	readonly commits = 0;
	readonly viewPoints: ViewPoints = "any";
	readonly rule = "LVM's newest metadata lists the extents free, and nobody has written there since";
	readonly uuid: string | null;
	readonly #physical: PhysicalVolume;
	readonly #past: FreeExtentsPast;
	#metadataWritten = false;
	#isReady = false;
	#isReported = false;

	private constructor(physical: PhysicalVolume, past: FreeExtentsPast) {
		this.uuid = physical.uuid;
		this.#physical = physical;
		this.#past = past;
	}

	/**
	 * Starts to follow a physical volume in a view. `past` gives what is remembered of the one with this UUID. Throws
	 * VOLUME_UNSUPPORTED or VOLUME_DAMAGED where its free extents must be kept.
	 */
	static async open(
		view: ByteSource,
		past: (uuid: string) => FreeExtentsPast,
		lastWriteOf: LastWriteOf,
	): Promise<LvmLiveVolume> {
		const physical = await readAlone(view);
		const kept = physical.keptLive ?? physical.kept;
		if (kept !== null || physical.uuid === null) throw new VmsweepError("VOLUME_UNSUPPORTED", kept ?? "it has no UUID");
		const known = past(physical.uuid);
		const written: LogPosition[] = [];
		for (const header of physical.headers) {
			const position = await lastWriteOf(header);
			if (position !== null) written.push(position);
		}
		// All headers say the same; the first of them to be written may be what a new owner of extents waited for.
		const committed = written.length === 0 ? known.committed : Math.min(...written);
		known.committed = logPosition(Math.max(known.committed, committed));
		return new LvmLiveVolume(physical, known);
	}

	watch(): readonly WatchRange[] {
		const { identity, free } = this.#physical;
		return [...identity, ...free].map((range) => ({ ...range, kind: "structure", withoutBytes: true }));
	}

	observe(writes: readonly MetadataWrite[]): Promise<void> {
		const { identity, free } = this.#physical;
		for (const write of writes) {
			if (touches(identity, write)) this.#metadataWritten = true;
			// Behind a new text the extents may have got an owner.
			else if (!this.#metadataWritten && touches(free, write)) this.#past.hasForeignWrites = true;
		}
		return Promise.resolve();
	}

	advance(view: ByteSource, at: LogPosition): Promise<LiveState> {
		return this.#judge(view, at);
	}

	/** Nothing of LVM is in memory that its text does not say: a resting volume is judged like any other. */
	advanceClean(view: ByteSource, at: LogPosition): Promise<LiveState> {
		return this.#judge(view, at);
	}

	async #judge(view: ByteSource, at: LogPosition): Promise<LiveState> {
		const source = metered(view, byteCount(Number.MAX_SAFE_INTEGER));
		const kept = await this.#whyKept(source);
		this.#isReady = kept === null;
		const rest = { position: at, metadataBytesRead: source.bytesRead, watchChanged: false };
		if (kept !== null) return { kind: "keep", ...rest, reason: kept, pending: this.#metadataWritten };
		const changed = this.#isReported ? [] : this.#physical.free;
		this.#isReported = true;
		return {
			kind: "ready",
			...rest,
			settled: this.#past.committed,
			changed,
			groupsRead: source.bytesRead > 0 ? 1 : 0,
			warnings: [],
		};
	}

	async #whyKept(view: ByteSource): Promise<string | null> {
		if (this.#past.hasForeignWrites)
			return "something that LVM does not know of writes to its free extents, which are kept therefore";
		if (!this.#metadataWritten) return null;
		const { text, kept } = await readAlone(view);
		if (text !== this.#physical.text) return kept ?? "its LVM metadata was changed, and is read again";
		this.#metadataWritten = false;
		return null;
	}

	*freeRuns(from: ByteOffset, to: ByteOffset): Generator<ByteRange> {
		if (!this.#isReady) return;
		for (const { start, length } of this.#physical.free) {
			const first = Math.max(start, from);
			const end = Math.min(start + length, to);
			if (end > first) yield { start: byteOffset(first), length: byteCount(end - first) };
		}
	}
}

/** Reads a physical volume as if it were the only one: some copies of a few MiB at most. Throws what the view throws. */
async function readAlone(view: ByteSource): Promise<PhysicalVolume> {
	const [physical] = await readLvm([{ id: "pv", offset: byteOffset(0), source: view }]);
	return physical!;
}

const touches = (ranges: readonly ByteRange[], write: Pick<MetadataWrite, "at" | "length">): boolean =>
	ranges.some(({ start, length }) => start < write.at + write.length && write.at < start + length);
