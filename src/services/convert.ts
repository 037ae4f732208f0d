// Convert: copies what the guest uses of an image into a new one. What its file systems prove free stays behind.
//
//   source ─► guest map ─► kept runs ─► those with data ─► pieces ─► read ─► leave free blocks and zeros out ─► target
//             (droppable.ts)            (in whole granules)          several under way at once (copy-pieces.ts)
//
// Invariants
//  - what is not proven free is copied; blocks that are left out read as zeros in the target
//  - a target file appears under its name only when it is complete and durable; until then, and where anything fails,
//    it is a file TARGET.vmsweep-….part that the end of the work removes
//  - the source is opened for reading only

import type { DiskFormat, DiskImage } from "../adapters/images/disk-image.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { allVolumes, type GuestMap, type VolumeMap } from "../foundations/guest-map.ts";
import { byteOffset, roundDown, roundUp } from "../foundations/units.ts";
import { copyPieces } from "./convert/copy-pieces.ts";
import { openTarget, type TargetOptions } from "./convert/open-target.ts";
import { aboutTarget, type ConvertTarget, type Piece } from "./convert/target.ts";
import { type DropPolicy, droppableRuns, whyKept } from "./droppable.ts";
import { readGuestMap } from "./guest-map.ts";
import { openNamedImage } from "./named-image.ts";
import { checkpoint, type LongRunning } from "./progress.ts";

export interface ConvertOptions extends LongRunning, DropPolicy, TargetOptions {}

/** What became of one volume. */
export interface ConvertedVolume {
	readonly id: string;
	readonly type: string;
	readonly state: VolumeMap["state"];
	readonly label: string | null;
	/** Bytes of the disk that were proven free and left out. */
	readonly leftOutBytes: number;
	/** Why all of it was copied; null where its free space was left out. */
	readonly kept: string | null;
	readonly warnings: readonly string[];
}

/** What a conversion did. Sizes in bytes. */
export interface ConvertReport {
	readonly source: string;
	readonly sourceFormat: DiskFormat;
	readonly target: string;
	readonly format: "raw" | "qcow2";
	readonly size: number;
	/** Guest bytes that were written to the target: used, and not all zeros. */
	readonly copiedBytes: number;
	/** Guest bytes that were proven free. */
	readonly leftOutBytes: number;
	/** Space on the host; null for an NBD source. */
	readonly sourceHostBytes: number | null;
	readonly targetHostBytes: number;
	readonly volumes: readonly ConvertedVolume[];
	readonly warnings: readonly string[];
}

/**
 * Converts an image in any format to a raw or qcow2 image. Throws USAGE (an option that the target's format doesn't
 * have), FILE_EXISTS, INTERRUPTED (with nothing left of a target file), NO_SPACE, what opening the source throws, and IO.
 */
export async function convertImage(source: string, target: string, options: ConvertOptions): Promise<ConvertReport> {
	await using image = await openNamedImage(source);
	// Before the long work: what is wrong with the target shows at once.
	const copy = await openTarget(target, image, options).catch((error: unknown) => {
		throw aboutTarget(error);
	});
	try {
		options.onProgress?.({ step: "reading the guest's file systems", done: 0, total: null });
		const map = await readGuestMap(image, { vmOff: options.vmOff });
		await checkpoint(options.signal, stopped(copy));
		const copiedBytes = await copyKept(image, map, copy, target, options);
		await copy.finish();
		return await reportOf(image, map, copy, { target, copiedBytes }, options);
	} catch (error) {
		await copy.abandon();
		throw aboutTarget(error);
	}
}

async function copyKept(
	image: DiskImage,
	map: GuestMap,
	target: ConvertTarget,
	name: string,
	options: ConvertOptions,
): Promise<number> {
	const { signal, onProgress } = options;
	const granule = target.granule;
	let total = 0;
	for (const { start, end } of keptRuns(map, options, granule)) total += end - start;
	let done = 0;
	/** After each piece: a volume that is kept whole is one run, however large it is. */
	const passed = (bytes: number): void => {
		done += bytes;
		onProgress?.({ step: `copying to ${name}`, done, total });
		if (signal?.aborted) throw new VmsweepError("INTERRUPTED", stopped(target));
	};
	async function* pieces(): AsyncGenerator<Piece> {
		for (const kept of keptRuns(map, options, granule)) {
			let empty = kept.end - kept.start;
			for await (const data of dataIn(image, kept, granule)) {
				empty -= data.end - data.start;
				yield data;
			}
			passed(empty);
		}
	}
	const free = droppableRuns(map, options);
	const copiedBytes = await copyPieces(image, target, { pieces: pieces(), free, onCopied: passed });
	await checkpoint(signal, stopped(target));
	return copiedBytes;
}

/** What has to be kept, in order, in whole granules. Neighbours are joined. */
function* keptRuns(map: GuestMap, policy: DropPolicy, granule: number): Generator<Piece> {
	let start = 0;
	for (const free of droppableRuns(map, policy)) {
		const end = roundUp(free.start, granule);
		const next = free.end === map.size ? map.size : roundDown(free.end, granule);
		if (next <= end) continue;
		if (end > start) yield { start, end };
		start = next;
	}
	if (map.size > start) yield { start, end: map.size };
}

/** The parts of a kept run that may hold something, in whole granules. */
async function* dataIn(image: DiskImage, { start, end }: Piece, granule: number): AsyncGenerator<Piece> {
	let last: { start: number; end: number } | undefined;
	for await (const run of image.runs(byteOffset(start), byteOffset(end))) {
		if (run.kind !== "data") continue;
		const from = roundDown(run.start, granule);
		const to = Math.min(end, roundUp(run.start + run.length, granule));
		if (last !== undefined && from <= last.end) last.end = Math.max(last.end, to);
		else {
			if (last !== undefined) yield last;
			last = { start: from, end: to };
		}
	}
	if (last !== undefined) yield last;
}

async function reportOf(
	image: DiskImage,
	map: GuestMap,
	copy: ConvertTarget,
	done: { readonly target: string; readonly copiedBytes: number },
	options: ConvertOptions,
): Promise<ConvertReport> {
	const leftOut = new Map<string, number>();
	for (const { start, end, volume } of droppableRuns(map, options))
		leftOut.set(volume, (leftOut.get(volume) ?? 0) + end - start);
	return {
		source: image.path,
		sourceFormat: image.format,
		target: done.target,
		format: copy.format,
		size: image.size,
		copiedBytes: done.copiedBytes,
		leftOutBytes: [...leftOut.values()].reduce((sum, each) => sum + each, 0),
		sourceHostBytes: await image.allocatedBytes(),
		targetHostBytes: copy.hostBytes,
		volumes: [...allVolumes(map.volumes)].map((volume) => {
			const { id, type, state, label, warnings } = volume;
			return { id, type, state, label, leftOutBytes: leftOut.get(id) ?? 0, kept: whyKept(volume, options), warnings };
		}),
		warnings: [...image.warnings, ...map.warnings],
	};
}

const stopped = ({ left }: ConvertTarget): string => `stopped before the end; ${left}. Run the same command again.`;
