// Compacting a qcow2 image: what lies at the end of the file moves into its holes, then the file is cut.
//
//   round:  verify ─▶ plan ─▶ per kind of object:  copy, raise the counts of the new places
//                                                   flush
//                                                   let the pointers lead there
//                                                   flush
//                                                   lower the counts of the old places, punch them
//           flush, cut the file behind the last cluster in use
//
// Invariants, also after a power cut at any point
//  - a pointer leads to the old place or to the new one, and both hold the same until no pointer can lead to the old
//  - no count is ever lower than the pointers that may lead to its cluster: it is raised, durably, before the first
//    pointer changes and lowered after the last one has. So a cut leaks clusters at worst
//  - each round begins with a verification of the whole image, and ends the work if that finds anything wrong

import { assert, VmsweepError } from "../../../foundations/errors.ts";
import { readBytes } from "../../../foundations/source.ts";
import { viewOf } from "../../../foundations/struct.ts";
import { type ByteCount, byteCount, byteOffset } from "../../../foundations/units.ts";
import type { WritableImageFile } from "../image-file.ts";
import {
	type CompactTarget,
	clustersToMove,
	kindsInOrder,
	type Move,
	type ObjectKind,
	planMoves,
} from "./compact-plan.ts";
import { clearUnknownAutoclear, readHeader } from "./header.ts";
import { entryOffset } from "./layout.ts";
import { RefcountBlocks } from "./refcounts.ts";
import { readSnapshots } from "./snapshots.ts";
import { type HostRange, punchAll } from "./sweep.ts";
import { verifyImage } from "./verify.ts";

export interface CompactOptions {
	readonly onProgress?: (done: ByteCount, total: ByteCount) => void;
	/** Aborted: stop after the round that is under way. */
	readonly signal?: { readonly aborted: boolean };
	/** What a round moves at most, in clusters. Default: by size. */
	readonly roundClusters?: number;
}

/** What a round moves, in bytes: so much host space is needed twice for a while. */
const ROUND_BYTES = 512 << 20;
/** Bounds the memory of a round's plan where clusters are small. */
const ROUND_CLUSTERS_MAX = 65_536;
/** Longest copy through memory at once, in bytes. */
const COPY_BYTES = 8 << 20;

/**
 * Makes the file as short as it gets without moving compressed clusters. The header, and the places of all tables, are
 * others afterwards. Throws IMAGE_DAMAGED and IMAGE_UNSUPPORTED (nothing is changed), INTERRUPTED (the image is right,
 * and a part of the work is done), NO_SPACE, IO.
 */
export async function compactImage(file: WritableImageFile, path: string, options: CompactOptions = {}): Promise<void> {
	let done = 0;
	let total: number | undefined;
	for (;;) {
		const target = await openTarget(file, path);
		const { clusterSize } = target.header;
		total ??= clustersToMove(target) * clusterSize;
		options.onProgress?.(byteCount(Math.min(done, total)), byteCount(total));
		if (options.signal?.aborted === true)
			throw new VmsweepError(
				"INTERRUPTED",
				`stopped before the end; ${path} is as good as before. Run the same command to finish.`,
			);
		const usual = Math.max(1, Math.min(ROUND_CLUSTERS_MAX, ROUND_BYTES / clusterSize));
		const moves = await planMoves(target, options.roundClusters ?? usual);
		if (moves.length > 0 && target.header.unknownAutoclear) await clearUnknownAutoclear(file, target.header);
		for (const kind of kindsInOrder) {
			const some = moves.filter((move) => move.kind === kind);
			if (some.length > 0) await moveAll(file, target, kind, some);
		}
		await cut(file, target, moves);
		if (moves.length === 0) break;
		done += moves.reduce((sum, { clusters }) => sum + clusters * clusterSize, 0);
	}
}

async function openTarget(file: WritableImageFile, path: string): Promise<CompactTarget> {
	const header = await readHeader(file, path);
	assert(header.dataFile === null, "an image with a data file is compacted");
	const snapshotTable = await readSnapshots(file, header, path);
	const image = await verifyImage(file, header, path, snapshotTable);
	return { path, file, header, snapshotTable, image };
}

/** Moves objects of one kind. */
async function moveAll(
	file: WritableImageFile,
	target: CompactTarget,
	kind: ObjectKind,
	moves: readonly Move[],
): Promise<void> {
	const { header, path } = target;
	const { counts } = target.image;
	const isCounting = kind === "refcount-block" || kind === "refcount-table";
	const raised = new Map<number, number>();
	const lowered = new Map<number, number>();
	for (const { from, to, clusters } of moves)
		for (let each = 0; each < clusters; each++) {
			const count = counts.count(from + each);
			raised.set(to + each, count);
			lowered.set(from + each, -count);
		}
	// Kinds before may have moved nothing of this; but it is cheap to look at the table as it is now.
	const blocks = await RefcountBlocks.open(file, header, path);
	await blocks.change(file, raised);
	// A copy of counts must hold the new counts, too.
	if (isCounting) await file.flush();
	await copyAll(file, header.clusterSize, moves);
	await file.flush();
	await repointAll(file, header.clusterSize, moves);
	await file.flush();
	const now = isCounting ? await readHeader(file, path) : header;
	await (await RefcountBlocks.open(file, now, path)).change(file, lowered);
	await punchAll(file, runsOf([...lowered.keys()], header.clusterSize, file.size));
}

/** Copies the contents; neighbours that stay neighbours go together. */
async function copyAll(file: WritableImageFile, clusterSize: number, moves: readonly Move[]): Promise<void> {
	const sorted = moves.toSorted((a, b) => a.from - b.from);
	let run: { from: number; to: number; length: number } | undefined;
	const copy = async ({ from, to, length }: { from: number; to: number; length: number }): Promise<void> => {
		for (let done = 0; done < length; done += COPY_BYTES) {
			const bytes = new Uint8Array(Math.min(COPY_BYTES, length - done));
			// The file's last cluster may be short; the rest of it reads as zeros.
			const there = Math.max(0, Math.min(bytes.length, file.size - from - done));
			await file.read(byteOffset(from + done), bytes.subarray(0, there));
			await file.write(byteOffset(to + done), bytes);
		}
	};
	for (const move of sorted) {
		const [from, to, length] = [move.from * clusterSize, move.to * clusterSize, move.clusters * clusterSize];
		if (run !== undefined && run.from + run.length === from && run.to + run.length === to) run.length += length;
		else {
			if (run !== undefined) await copy(run);
			run = { from, to, length };
		}
	}
	if (run !== undefined) await copy(run);
}

/** Changes the offsets in all pointers, sector by sector; the other bits of a pointer stay. */
async function repointAll(file: WritableImageFile, clusterSize: number, moves: readonly Move[]): Promise<void> {
	const words = moves
		.flatMap(({ from, to, pointers }) => pointers.map((at) => ({ at, from: from * clusterSize, to: to * clusterSize })))
		.sort((a, b) => a.at - b.at);
	const windowBytes = Math.max(512, Math.min(clusterSize, 65_536));
	for (let index = 0; index < words.length; ) {
		const start = Math.floor(words[index]!.at / windowBytes) * windowBytes;
		const bytes = await readBytes(file, byteOffset(start), Math.min(windowBytes, file.size - start));
		const view = viewOf(bytes);
		const first = words[index]!.at - start;
		let last = first;
		for (; index < words.length && words[index]!.at < start + windowBytes; index++) {
			const { at, from, to } = words[index]!;
			last = at - start;
			const [high, low] = [view.getUint32(last), view.getUint32(last + 4)];
			assert(entryOffset(high, low) === from, `the word at byte ${at} leads elsewhere`);
			view.setUint32(last, (((high & 0xff00_0000) >>> 0) + Math.floor(to / 0x1_0000_0000)) >>> 0);
			view.setUint32(last + 4, ((low & 0x1ff) + (to % 0x1_0000_0000)) >>> 0);
		}
		const [from, to] = [Math.floor(first / 512) * 512, Math.min(bytes.length, Math.ceil((last + 8) / 512) * 512)];
		await file.write(byteOffset(start + from), bytes.subarray(from, to));
	}
}

/** Cuts the file behind the last cluster that anything refers to, or that is counted for a reason not known. */
async function cut(file: WritableImageFile, { header, image }: CompactTarget, moves: readonly Move[]): Promise<void> {
	const { counts, leaks } = image;
	const gone = new Set<number>();
	let last = 0;
	for (const { from, to, clusters } of moves)
		for (let each = 0; each < clusters; each++) {
			gone.add(from + each);
			last = Math.max(last, to + each);
		}
	for (let cluster = counts.clusters - 1; cluster > last; cluster--)
		if ((counts.count(cluster) !== 0 && !gone.has(cluster)) || leaks.has(cluster)) last = cluster;
	const size = (last + 1) * header.clusterSize;
	if (size < file.size) {
		// First the lowered counts: behind the file's end nobody looks for leaks.
		await file.flush();
		await file.truncate(byteCount(size));
	}
	await file.flush();
}

function runsOf(clusters: readonly number[], clusterSize: number, fileSize: number): HostRange[] {
	const runs: { start: number; end: number }[] = [];
	for (const cluster of clusters.toSorted((a, b) => a - b)) {
		const start = cluster * clusterSize;
		const end = Math.min(start + clusterSize, fileSize);
		const last = runs.at(-1);
		if (last?.end === start) last.end = end;
		else if (end > start) runs.push({ start, end });
	}
	return runs;
}
