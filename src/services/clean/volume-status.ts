// Volume status: what an operator is told about a volume that is followed while its guest runs, in words and as fields.
//
//   rule in force ─ last point at which it was judged ─ what is free and waits, and for what
//
// `waitsFor` has one word for each kind of waiting, which is what scripts look at; `waiting` says the same in a sentence, with
// what the operator can do about it.

import type { Evidence, LiveState, LiveVolume, WaitsFor } from "../../core/filesystems/live.ts";
import { formatBytes, type LogPosition, logPosition } from "../../foundations/units.ts";
import { needsFreeze, type ServedVolume } from "./volumes.ts";

/** A point at which a volume was judged. */
export interface JudgedPoint {
	/** Log position of the view. */
	readonly position: number;
	/** When the verdict was reached, ISO 8601. */
	readonly at: string;
}

/** What waits in a volume, and why. */
export interface VolumeStatus {
	readonly id: string;
	readonly type: string;
	/** `initialization` until the first verdict, then `continuous`; `kept` where no rule applies. */
	readonly phase: "initialization" | "continuous" | "kept";
	/** What proves a free block unused, in words. */
	readonly rule: string;
	readonly commits: number;
	/** The newest point whose free blocks are known: a commit of the guest, or a clean unmount. */
	readonly lastPoint: JudgedPoint | null;
	/** Free, but written too recently to be dropped. In bytes. */
	readonly pendingBytes: number;
	/** `young`: what is pending needs more commits of the guest; `nothing`: all that is free was dropped. */
	readonly waitsFor: "nothing" | "young" | WaitsFor;
	/** The same for people; null for `nothing`. */
	readonly waiting: string | null;
	/** Only a freeze point can let what was deleted since go, as long as it is mounted. */
	readonly needsFreeze: boolean;
	/** When the newest freeze point proved what was free, ISO 8601; null for none. */
	readonly frozenAt: string | null;
	/** Why nothing is dropped; null where something may be. */
	readonly reason: string | null;
}

/** @param pendingBytes free, but too young */
export function volumeStatus(volume: ServedVolume, pendingBytes: number, lastPoint: JudgedPoint | null): VolumeStatus {
	const { id, type, live, verdict } = volume;
	const [waitsFor, waiting] = waitingOf(volume, pendingBytes);
	return {
		id,
		type,
		phase: isKept(volume) ? "kept" : verdict?.kind === "ready" ? "continuous" : "initialization",
		rule: ruleOf(volume),
		commits: live?.commits ?? 0,
		lastPoint,
		pendingBytes,
		waitsFor,
		waiting,
		needsFreeze: needsFreeze(volume),
		frozenAt: volume.frozenAt ?? null,
		reason: volume.reason ?? null,
	};
}

/** The rule in force, in words. */
export function ruleOf(volume: ServedVolume): string {
	const { live, reason } = volume;
	if (live === undefined || isKept(volume)) return `kept: ${reason ?? "no rule is known for it"}`;
	return live.rule ?? defaultRules[live.viewPoints];
}

const defaultRules: Readonly<Record<LiveVolume["viewPoints"], string>> = {
	marked: "commits of its journal after a block's last write",
	any: "records of its log after a block's last write",
	none: "clean unmount or freeze only",
};

/** True of a volume that no rule follows: of which nothing would be dropped whatever the guest does. */
const isKept = ({ live, verdict }: ServedVolume): boolean =>
	live === undefined || (verdict?.kind === "keep" && waitsForOf(verdict) === "support");

/** What a kept volume waits for. */
export const waitsForOf = (state: LiveState & { readonly kind: "keep" }): WaitsFor =>
	state.waitsFor ?? (state.pending ? "commits" : "support");

function waitingOf(volume: ServedVolume, pendingBytes: number): [VolumeStatus["waitsFor"], string | null] {
	const { live, verdict, type, reason } = volume;
	if (live === undefined) return ["support", `all of it is kept: ${reason ?? "no rule is known for it"}`];
	if (verdict === undefined) return ["commits", `not judged yet: ${COMMITS_COME}`];
	if (verdict.kind === "keep") {
		const waitsFor = waitsForOf(verdict);
		return [waitsFor, `nothing is dropped: ${withoutStop(verdict.reason)}${adviceFor(waitsFor, type)}`];
	}
	if (needsFreeze(volume))
		return [
			"rest",
			"what was deleted since its last freeze or unmount waits for the next one; see vmsweep serve --qga",
		];
	if (pendingBytes === 0) return ["nothing", null];
	const evidence = live.evidenceFor?.(verdict.position);
	return ["young", `${formatBytes(pendingBytes)} free but young: ${neededWords(evidence)}`];
}

const COMMITS_COME = "commits of the guest come with its next writes or syncs";

/** "needs 2 more commits of the guest, …". */
function neededWords(evidence: Evidence | undefined): string {
	if (evidence === undefined) return `needs more evidence of the guest: ${COMMITS_COME}`;
	const more = evidence.needed - evidence.counted;
	return `needs up to ${more} more ${evidence.unit} of the guest, which come with its next writes or syncs`;
}

/** What is missing for a block that was last written at `position`; null where nothing is. */
export function missingFor(live: LiveVolume, position: LogPosition): string | null {
	const evidence = live.evidenceFor?.(logPosition(position));
	if (evidence === undefined) return "more evidence of the guest is needed, which comes with its next writes or syncs";
	const more = evidence.needed - evidence.counted;
	if (more <= 0) return null;
	const unit = more === 1 ? evidence.unit.replace(/s$/, "") : evidence.unit;
	return `${more} more ${unit} of the guest ${more === 1 ? "is" : "are"} needed, which come with its next writes or syncs`;
}

/** How an operator gets a volume out of its waiting. */
function adviceFor(waitsFor: WaitsFor, type: string): string {
	switch (waitsFor) {
		case "commits":
			return `; ${COMMITS_COME}`;
		case "rest":
			return "; it is cleaned when it is cleanly unmounted or frozen";
		case "repair":
			return `; repair: ${repairs[type] ?? "its checker"} in the guest, with the volume unmounted`;
		case "support":
			return "";
		default:
			return waitsFor satisfies never;
	}
}

const repairs: Readonly<Record<string, string>> = {
	ext2: "e2fsck -f",
	ext3: "e2fsck -f",
	ext4: "e2fsck -f",
	xfs: "xfs_repair",
	btrfs: "btrfs check",
	ntfs: "chkdsk",
	exfat: "fsck.exfat",
	f2fs: "fsck.f2fs",
};

const withoutStop = (text: string): string => text.replace(/\.$/, "");
