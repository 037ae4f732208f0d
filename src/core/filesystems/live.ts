// The contract of a live volume: a mounted file system whose writes are all seen, in log order, and
// of which blocks may be dropped only by the proofs of the live-safety rules (docs/live-safety.md).
//
//   data plane ── writes to watched bytes ──▶ observe() ─┐
//              ── view right after a commit ─▶ advance() ─┴▶ LiveState: what is free, settled before which position
//
// How to drive it
//  1. `open` (per file system) on a view at some position; no later write has been fed yet.
//  2. For a view at one of the volume's view points (`viewPoints`): `observe` every watched write up to that view's
//     position, in order and none later, then `advance(view, position)`.
//  3. While the answer is `ready`: a disk block b may be dropped iff its last write W(b) < `settled` (or is older
//     than the log), `freeRuns` covers it whole, and W(b) is still the same when the drop is applied (L5, compare
//     and swap). The prefix that ends at `position` must be durable first (L4). Both are the caller's part.
//  4. After `watchChanged`, ask `watch()` again and tell the data plane. Writes between the view and the new watch
//     list taking effect must be fed as well: hand over all writes to the new ranges since `position`.
//
// W(b) is the log position of b's own data slot: how many slots were appended before it.

import type { ByteRange, VolumeState } from "../../foundations/guest-map.ts";
import type { ByteSource } from "../../foundations/source.ts";
import type { ByteCount, ByteOffset, LogPosition } from "../../foundations/units.ts";

/** One guest write that touched watched bytes of the volume. */
export interface MetadataWrite {
	/** First byte, counted from the volume's start. */
	readonly at: ByteOffset;
	readonly length: ByteCount;
	/** Log position of the write's first slot: how many slots were appended before it. */
	readonly position: LogPosition;
	/** Log position right after the write: a view at this position holds it and nothing later. */
	readonly end: LogPosition;
	/**
	 * The bytes as this write wrote them, `length` long, whatever was written there since (zeros for a trim or write-zeroes,
	 * and where the range is watched without its bytes).
	 */
	read(): Promise<Uint8Array>;
}

/** A pattern by which the data plane recognises a possible commit point without understanding it. */
export interface CommitMark {
	/** Bytes at the start of a unit. */
	readonly pattern: Uint8Array;
	/** Units are `every` bytes long and aligned to it, counted from the volume's start. */
	readonly every: ByteCount;
}

/** Bytes of the volume whose writes must be fed to `observe`. */
export interface WatchRange extends ByteRange {
	readonly kind: "structure" | "journal";
	/**
	 * Set on the journal: take an O(1) view right after a write whose *last* unit begins with the pattern. Such a
	 * write is only a candidate; `advance` decides.
	 */
	readonly mark?: CommitMark;
	/** Only where and when it was written is asked for: its bytes are read from views. */
	readonly withoutBytes?: true;
}

/**
 * The positions whose views `advance` can judge: those that end in a marked write, any one after a write to the volume,
 * or none (then only `advanceClean` judges).
 */
export type ViewPoints = "marked" | "any" | "none";

/**
 * What a volume of which nothing may be dropped waits for: more commits of the guest, a clean unmount or a freeze, a repair, or
 * a vmsweep that understands it.
 */
export type WaitsFor = "commits" | "rest" | "repair" | "support";

/** How far the evidence for one block has come: of what the rule counts, how many came after its last write. */
export interface Evidence {
	readonly counted: number;
	readonly needed: number;
	/** What is counted, in the plural: "commits". */
	readonly unit: string;
}

/** A file-system block of a volume, for an operator. */
export interface FileSystemBlock {
	readonly number: number;
	/** `data` where it is neither metadata that the rule follows nor the journal. */
	readonly role: "metadata" | "journal" | "data";
}

/** What is known of a freeze besides its view. */
export interface FrozenMoment {
	/** Where the log was when the freeze was asked for: what the freeze itself wrote lies behind. */
	readonly asked: LogPosition;
	/** As for `advanceClean`. */
	readonly lastWrite: LogPosition | null;
}

/** What may be dropped now, or why nothing may. */
export type LiveState =
	| {
			readonly kind: "ready";
			/** The view's position: everything below is judged from exactly this prefix of the log. */
			readonly position: LogPosition;
			/**
			 * Blocks with W(b) < settled qualify, where they also are in the view: W(b) < position. Infinity after a clean unmount:
			 * every free block of the view does.
			 */
			readonly settled: LogPosition;
			/**
			 * Byte ranges of the volume whose allocation was read again by this pass, sorted: decide only these again, and
			 * the blocks that were free before but written too lately, which `settled` may have passed by now.
			 */
			readonly changed: readonly ByteRange[];
			readonly metadataBytesRead: number;
			readonly groupsRead: number;
			readonly watchChanged: boolean;
			readonly warnings: readonly string[];
	  }
	| {
			readonly kind: "keep";
			readonly position: LogPosition;
			/** Why nothing may be dropped, for an operator. */
			readonly reason: string;
			/** True where more commits of the guest will change it; false where it needs another feature or a repair. */
			readonly pending: boolean;
			/** Absent: commits where it is pending, else support. */
			readonly waitsFor?: WaitsFor;
			readonly metadataBytesRead: number;
			readonly watchChanged: boolean;
	  };

/** A mounted (or not) file system over time. Not safe for concurrent calls: one at a time, in order. */
export interface LiveVolume {
	readonly type: string;
	readonly uuid: string | null;
	readonly state: VolumeState;
	/** Counts discontinuities (live-safety L6): evidence is never carried from one incarnation into the next. */
	readonly incarnation: number;
	/** Valid commit records counted in the current incarnation. */
	readonly commits: number;
	readonly viewPoints: ViewPoints;
	/** The rule in force, for an operator: what proves a free block unused. */
	readonly rule?: string;
	/** True where each verdict reads all metadata anew, so that few are better; absent for false. */
	readonly readsAll?: boolean;
	/** True where much of what is free is proven by freezes only, as long as it is mounted; absent for false. */
	readonly gainsByFreeze?: boolean;
	watch(): readonly WatchRange[];
	/** Feeds writes in log order. Writes outside the watched ranges are ignored. */
	observe(writes: readonly MetadataWrite[]): Promise<void>;
	/** Judges a view at `at`, one of the volume's view points: all writes up to there were fed, and none later. */
	advance(view: ByteSource, at: LogPosition): Promise<LiveState>;
	/**
	 * F3: judges a view at `at` of a volume that may have been unmounted cleanly. `lastWrite` is the end position of the
	 * newest write to *any* byte of the volume, or null where none came since the volume was opened here.
	 */
	advanceClean(view: ByteSource, at: LogPosition, lastWrite: LogPosition | null): Promise<LiveState>;
	/**
	 * F1: judges a view at `at`, taken while the guest's agent said that all is frozen, and with no write to the volume in
	 * the whole window: what the agent says is believed only where the disk shows it, too. All watched writes up to `at` were
	 * fed, and none later. Absent where a freeze proves nothing.
	 */
	advanceFrozen?(view: ByteSource, at: LogPosition, moment: FrozenMoment): Promise<LiveState>;
	/**
	 * Free runs in `[from, to)` of the volume as last judged, in order, in whole file-system blocks. Nothing unless the
	 * last judgement was `ready`; but that a mounted volume merely rests (`advanceClean`) takes nothing back.
	 */
	freeRuns(from: ByteOffset, to: ByteOffset): Iterable<ByteRange>;
	/** How much of the evidence for a block that was last written at `position` is there. */
	evidenceFor?(position: LogPosition): Evidence;
	/** The file-system block that a byte of the volume lies in; undefined where its layout isn't known. */
	blockAt?(at: ByteOffset): FileSystemBlock | undefined;
}
