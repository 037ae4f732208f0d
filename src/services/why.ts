// Why: everything that is known about one block of a disk, for an operator who wonders why it takes space, or why it is gone.
//
//   byte ─► block of the disk ─► its volume ─► used or free by the guest map ─► the rule's evidence
//                             └► first image | second image | zeros ─► its last write ─► may it be dropped now?
//                             └► who else holds it: snapshots, the quarantine
//
// A volume that a live rule follows is asked for its newest verdict, which is what the cleaner itself goes by; whether the block
// may be dropped is decided by the dropper's own arithmetic (`planDrops`). Of any other volume the guest map tells, as
// `vmsweep map` would show it.

import { unpackLocated, unpackSnapshotRuns } from "../adapters/plane/located.ts";
import { IN_NONE, type PlanePort, type ViewHandle } from "../adapters/plane/messages.ts";
import { type PlacedRun, planDrops, unpackLiveRuns, wholeBlocks } from "../core/cleaner/plan.ts";
import { ABSENT, ZERO } from "../core/log/first-image.ts";
import { placeInVolume, runsOnDisk } from "../core/volumes/pieces.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { allVolumes } from "../foundations/guest-map.ts";
import {
	BLOCK_SIZE,
	type ByteCount,
	byteCount,
	byteOffset,
	formatBytes,
	logPosition,
	roundDown,
} from "../foundations/units.ts";
import type { Judged } from "./clean/cleaner.ts";
import { heldBlocks } from "./clean/held-blocks.ts";
import { settledBefore } from "./clean/proven.ts";
import { missingFor, ruleOf, waitsForOf } from "./clean/volume-status.ts";
import type { ServedVolume } from "./clean/volumes.ts";
import type { DiskDirectory } from "./disk-directory.ts";
import { readGuestMap } from "./guest-map.ts";
import { viewSource } from "./view-source.ts";

/** What the guest's file system says of a block. */
export type BlockUse = "used" | "metadata" | "journal" | "free" | "unknown";

/** The volume that a byte lies in. Positions and sizes in bytes. */
export interface BlockVolume {
	readonly id: string;
	readonly type: string;
	/** Where the byte lies in it; null where that can't be told. */
	readonly offset: number | null;
	/** Number of the file system's own block; null where its layout isn't known. */
	readonly fileSystemBlock: number | null;
}

/** What the volume's live rule goes by. */
export interface BlockEvidence {
	readonly rule: string;
	/** Evidence counts within one incarnation of the file system only. */
	readonly incarnation: number;
	readonly commits: number;
	/** Log position of the view that was judged; null before the first verdict. */
	readonly judgedAt: number | null;
	/** Free blocks last written before this log position may be dropped; null where none may. */
	readonly settledBefore: number | null;
}

/** Where a block's bytes are. */
export type BlockPlace =
	| {
			readonly kind: "first-image";
			readonly path: string;
			/** Byte in that file. */
			readonly at: number;
			/** Sequence number of its segment; null where it has just gone. */
			readonly segment: number | null;
	  }
	| {
			readonly kind: "second-image";
			readonly path: string;
			/** False for a hole, which reads as zeros. */
			readonly allocated: boolean;
	  }
	| {
			/** It was dropped or zeroed; the first image says so. */
			readonly kind: "zeros";
	  };

/** When a block was written last, in log positions. */
export interface LastWrite {
	/** Null where zeros were written or it was dropped, which take no place in the log. */
	readonly position: number | null;
	/** False: not later than this. The second image knows it by the MiB, or only that it was before the disk was opened. */
	readonly exact: boolean;
}

/** All that is known about one block. */
export interface BlockReport {
	/** The byte that was asked about, and the 4 KiB block of the disk around it. */
	readonly at: number;
	readonly block: { readonly start: number; readonly length: number };
	readonly volume: BlockVolume | null;
	readonly use: BlockUse;
	readonly evidence: BlockEvidence | null;
	readonly place: BlockPlace;
	readonly lastWrite: LastWrite;
	/** May it be dropped now? And why not, in one sentence. */
	readonly droppable: boolean;
	readonly because: string | null;
	/** Snapshots that show it, oldest first; `keepsCopy`: what it was then is kept in the snapshot itself. */
	readonly snapshots: readonly { readonly name: string; readonly keepsCopy: boolean }[];
	/** It was dropped, and `undo` could bring it back. */
	readonly undoable: boolean;
}

/** What the report is made from. */
export interface WhyParts {
	readonly directory: DiskDirectory;
	readonly plane: PlanePort;
	/** Judges the volumes now. */
	readonly judged: () => Promise<Judged>;
}

/** Where a block is, and when it was written. */
interface Placed {
	readonly place: BlockPlace;
	readonly lastWrite: LastWrite;
	/** For the dropper's arithmetic; undefined where there is nothing to drop. */
	readonly run: PlacedRun | undefined;
}

/**
 * Tells all about the block that holds byte `at`; drops and moves nothing. No round of the cleaner may run meanwhile.
 * Throws OUT_OF_RANGE behind the disk's end, DISK_STOPPED or IO.
 */
export async function explainBlock(parts: WhyParts, at: number): Promise<BlockReport> {
	const { directory, plane } = parts;
	const size = byteCount(directory.description.size);
	if (at >= size)
		throw new VmsweepError(
			"OUT_OF_RANGE",
			`${directory.path} has ${size} bytes (${formatBytes(size)}); byte ${at} lies behind its end. Choose one below it.`,
		);
	const judged = await parts.judged();
	const view = await plane.ask("takeView");
	try {
		const start = roundDown(at, BLOCK_SIZE);
		const block = start / BLOCK_SIZE;
		const placed = await placeOf(parts, view, judged, block);
		const followed = judged.volumes.find(
			({ live, areas }) => live !== undefined && placeInVolume(areas, at) !== undefined,
		);
		const known =
			followed === undefined
				? await byGuestMap(parts, view, judged.volumes, size, at)
				: { volume: followed, ...followedBlock(followed, at, start), because: followed.reason };
		const reason =
			followed === undefined ? `it is kept: ${known.because}` : whyKept(followed, known.use, placed, judged);
		return {
			at,
			block: { start, length: BLOCK_SIZE },
			volume: known.where,
			use: known.use,
			evidence: followed === undefined ? null : evidenceOf(followed),
			place: placed.place,
			lastWrite: placed.lastWrite,
			droppable: reason === null,
			because: reason,
			snapshots: await snapshotsOf(parts, block),
			undoable: placed.place.kind === "zeros" && (await isUndoable(parts, block)),
		};
	} finally {
		await plane.ask("releaseView", view.id);
	}
}

async function placeOf(
	{ directory, plane }: WhyParts,
	view: ViewHandle,
	{ lastWritten }: Judged,
	block: number,
): Promise<Placed> {
	const [run] = unpackLocated(await plane.ask("locate", { view: view.id, block, count: 1 }));
	const { value, at, position } = run!;
	if (value === ZERO) return { place: { kind: "zeros" }, lastWrite: { position: null, exact: true }, run: undefined };
	if (value !== ABSENT) {
		const segments = await plane.ask("segments");
		const segment = segments.find(
			({ firstPosition, endPosition }) => firstPosition <= position && position < endPosition,
		);
		return {
			place: { kind: "first-image", path: directory.firstPath, at, segment: segment?.sequence ?? null },
			lastWrite: { position, exact: true },
			run: { block, count: 1, place: "first", position },
		};
	}
	const { second } = directory;
	let allocated = false;
	for await (const _ of heldBlocks(second.held, second.size, { block, count: 1 })) allocated = true;
	const [bound] = lastWritten.parts({ block, count: 1 });
	return {
		place: { kind: "second-image", path: second.path, allocated },
		lastWrite: { position: bound!.position, exact: false },
		run: allocated ? { block, count: 1, place: "second", position: -1 } : undefined,
	};
}

interface KnownBlock {
	readonly where: BlockVolume | null;
	readonly use: BlockUse;
}

/** What a followed volume's newest verdict says. */
function followedBlock({ id, type, areas, live, verdict }: ServedVolume, at: number, blockStart: number): KnownBlock {
	const offset = placeInVolume(areas, at)!;
	const found = live!.blockAt?.(byteOffset(offset));
	const where = { id, type, offset, fileSystemBlock: found?.number ?? null };
	if (found !== undefined && found.role !== "data") return { where, use: found.role };
	if (verdict?.kind !== "ready") return { where, use: "unknown" };
	// The whole block of the disk counts, though the file system's own blocks may be smaller.
	const block = { start: byteOffset(blockStart), length: byteCount(BLOCK_SIZE) };
	const free = [...runsOnDisk(areas, [block], (from, to) => live!.freeRuns(from, to))];
	return { where, use: free.some((run) => wholeBlocks(run) !== undefined) ? "free" : "used" };
}

/** What a reader finds in a view of the disk, for a volume that no live rule follows. */
async function byGuestMap(
	{ directory, plane }: WhyParts,
	view: ViewHandle,
	volumes: readonly ServedVolume[],
	size: ByteCount,
	at: number,
): Promise<KnownBlock & { readonly because: string }> {
	const map = await readGuestMap(viewSource(plane, view, directory.firstFd, directory.second, size));
	for (const { start, length, state, volume: id } of map.extents) {
		if (at < start || at >= start + length) continue;
		if (id === null)
			return { where: null, use: state, because: "it lies in no volume (a partition table, a gap, a boot area)" };
		const volume = [...allVolumes(map.volumes)].find((each) => each.id === id)!;
		const known = volumes.find((each) => each.id === id);
		const offset = known === undefined ? null : (placeInVolume(known.areas, at) ?? null);
		const { type, blockSize } = volume;
		const number = offset === null || blockSize === null ? null : Math.floor(offset / blockSize);
		return {
			where: { id, type, offset, fileSystemBlock: number },
			use: state,
			because: volume.kept ?? known?.reason ?? `no rule proves blocks of ${type} unused while its VM runs`,
		};
	}
	throw new VmsweepError("BUG", `internal error: byte ${at} lies in no extent. Please report it.`);
}

function evidenceOf(volume: ServedVolume): BlockEvidence {
	const { verdict } = volume;
	const live = volume.live!;
	return {
		rule: ruleOf(volume),
		incarnation: live.incarnation,
		commits: live.commits,
		judgedAt: verdict?.position ?? null,
		settledBefore: verdict?.kind === "ready" ? settledBefore(verdict) : null,
	};
}

/** Why a block of a followed volume may not be dropped now; null where it may. */
function whyKept(
	{ live, verdict }: ServedVolume,
	use: BlockUse,
	{ run, place, lastWrite }: Placed,
	judged: Judged,
): string | null {
	if (verdict === undefined) return "its volume was not judged yet: the guest's next commits decide";
	if (verdict.kind === "keep") return `its volume is kept (waits for ${waitsForOf(verdict)}): ${verdict.reason}`;
	if (use === "metadata" || use === "journal") return `it is in use: the file system's own ${use}`;
	if (use !== "free") return "it is in use by the file system, at least a part of it";
	if (run === undefined)
		return place.kind === "zeros"
			? "there is nothing to drop: it reads as zeros already"
			: "there is nothing to drop: it takes no space";
	const { settled } = planDrops([run], settledBefore(verdict), judged.lastWritten);
	if (settled.length > 0) return null;
	return `it is free but young: ${missingFor(live!, logPosition(lastWrite.position ?? verdict.position)) ?? "its last write isn't known exactly, and may be newer than the evidence"}`;
}

async function snapshotsOf({ directory, plane }: WhyParts, block: number): Promise<BlockReport["snapshots"]> {
	const found: { name: string; keepsCopy: boolean }[] = [];
	for (const { name, size } of directory.snapshots.readable()) {
		if ((block + 1) * BLOCK_SIZE > size) continue;
		const input = { name, block, count: 1, own: true };
		const [run] = unpackSnapshotRuns(await plane.ask("locateInSnapshot", input));
		found.push({ name, keepsCopy: run !== undefined && run.fd !== IN_NONE });
	}
	return found;
}

async function isUndoable({ directory, plane }: WhyParts, block: number): Promise<boolean> {
	const runs = unpackLiveRuns(await plane.ask("undoable"));
	const run = runs.find(({ block: first, count }) => first <= block && block < first + count);
	if (run === undefined) return false;
	if (run.slot !== ABSENT) return true;
	for await (const _ of heldBlocks(directory.second.held, directory.second.size, { block, count: 1 })) return true;
	return false;
}
