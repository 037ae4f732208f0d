// Explain: why an image is as large as it is. Two lists are walked side by side, the guest's and the host's:
//
//   guest map   | table | used | free    | used   | swap  | unknown |
//   held        |████████████|      |████|   |██████████████|       |   + snapshots + the format's own records
//                  ▲       ▲    ▲              ▲
//                  used    free but held       never written
//
// Each byte that the image takes on the host ends up in exactly one share. What a sweep would give back is asked in
// the way in which the sweep itself asks (prediction.ts). Changes nothing.

import { realpath, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import type { DiskFormat, DiskImage, ImagePart, InternalSnapshot } from "../adapters/images/disk-image.ts";
import { isVmsweepError } from "../foundations/errors.ts";
import { allVolumes, type Extent, type GuestMap, type VolumeMap } from "../foundations/guest-map.ts";
import { byteOffset } from "../foundations/units.ts";
import { diskJsonPath, secondImageRecordPath } from "./disk-paths.ts";
import { type DropPolicy, whyKept } from "./droppable.ts";
import { readGuestMap } from "./guest-map.ts";
import { openNamedForPrediction } from "./named-image.ts";
import { checkNoOverlay } from "./overlays.ts";
import { type Prediction, predict, type ReclaimableArea } from "./prediction.ts";
import { checkpoint, type LongRunning, Turns } from "./progress.ts";

export interface ExplainOptions extends LongRunning, DropPolicy {}

/**
 * What host space is taken by. `used`: what the guest uses. `free`: what it doesn't need, but the image still holds.
 * `swap`: swap areas. `unknown`: volumes that no reader could look into. `outside`: partition tables and gaps.
 * `snapshots`: what only snapshots inside the image keep. `format`: the image format's own records; below zero where
 * compression saves more than they take. `first-image`: the log of a vmsweep disk. `second-image`: the second image
 * of a disk that needs its first one, so that nobody can look inside now.
 */
export type ShareKind =
	| "used"
	| "free"
	| "swap"
	| "unknown"
	| "outside"
	| "snapshots"
	| "format"
	| "first-image"
	| "second-image";

export interface Share {
	readonly kind: ShareKind;
	readonly hostBytes: number;
}

/** One volume. Sizes in bytes of the guest's disk. */
export interface ExplainedVolume {
	readonly id: string;
	readonly type: string;
	readonly label: string | null;
	readonly state: VolumeMap["state"];
	readonly size: number;
	/** Used and held by the image; used and not held (reads as zeros: never written, or preallocated). */
	readonly usedHeldBytes: number;
	readonly usedNotHeldBytes: number;
	/** Not needed by the guest, and held all the same; and not held. */
	readonly freeHeldBytes: number;
	readonly freeNotHeldBytes: number;
	readonly unknownHeldBytes: number;
	readonly unknownNotHeldBytes: number;
	/** Host bytes that a sweep would give back; null where the image isn't swept in place. */
	readonly reclaimableBytes: number | null;
	/** Why a sweep would keep the whole volume; null where it wouldn't. */
	readonly kept: string | null;
}

export interface Explanation {
	readonly image: string;
	readonly format: DiskFormat | "vmsweep-disk";
	/** The guest's disk, in bytes. */
	readonly size: number;
	/** Bytes on the host; null for an NBD export, whose server doesn't tell. */
	readonly hostBytes: number | null;
	/** Their sum is `hostBytes`. */
	readonly shares: readonly Share[];
	/** Those inside others follow them. */
	readonly volumes: readonly ExplainedVolume[];
	/**
	 * Exactly what `sweep --dry-run` says, for a vmsweep disk what `clean` would drop; null where the format is not swept
	 * in place, or this image can't be.
	 */
	readonly reclaimableBytes: number | null;
	/** The largest areas that a sweep would give back, largest first. */
	readonly largest: readonly ReclaimableArea[];
	readonly snapshots: readonly InternalSnapshot[];
	/** Images below, which are not counted in `hostBytes`. */
	readonly backing: readonly ImagePart[];
	/** The command that gives space back; null where there is none to give back. */
	readonly command: string | null;
	/** What an operator should know, one line each. */
	readonly notes: readonly string[];
}

/**
 * Explains an image in any format, or a vmsweep disk by its folder or its second image. Throws what opening an image
 * throws (named-image.ts), and INTERRUPTED.
 */
export async function explainImage(name: string, options: ExplainOptions): Promise<Explanation> {
	const disk = await diskOf(name);
	if (disk !== undefined) return await explainDisk(disk, options);
	return await explainFile(name, options, (map) => map);
}

/** `swept`: what a sweep sees of the map, or whoever else is to give space back. */
async function explainFile(
	name: string,
	options: ExplainOptions,
	swept: (map: GuestMap) => GuestMap,
): Promise<Explanation> {
	options.onProgress?.({ step: "reading the guest's file systems", done: 0, total: null });
	const { image, sweepable, whyNot } = await openNamedForPrediction(name);
	await using _image = image;
	const overlay = await checkNoOverlay(name, []).catch((error: unknown) => error);
	const refusal = isVmsweepError(overlay, "IMAGE_HAS_OVERLAY") ? overlay.message : whyNot;
	const map = await readGuestMap(image, { vmOff: options.vmOff });
	const sums = await sumUp(image, map, options);
	const snapshotBytes = (await sweepable?.snapshotBytes()) ?? 0;
	const { signal, onProgress } = options;
	const isSwept = sweepable !== undefined && refusal === null;
	const prediction = isSwept ? await predict(sweepable, swept(map), options, { signal, onProgress }) : undefined;
	const hostBytes = await image.allocatedBytes();
	return {
		image: name,
		format: image.format,
		size: image.size,
		hostBytes,
		shares: sharesOf(sums, map, snapshotBytes, hostBytes),
		volumes: [...allVolumes(map.volumes)].map((volume) => explained(volume, sums, prediction, options)),
		reclaimableBytes: prediction?.bytes ?? null,
		largest: prediction?.largest ?? [],
		snapshots: image.snapshots,
		backing: (await image.parts()).filter(({ role }) => role === "backing"),
		command: refusal === null ? commandFor(name, prediction, sums, options) : null,
		notes: [...(refusal === null ? [] : [`no sweep now: ${refusal}`]), ...image.warnings, ...map.warnings],
	};
}

/** Guest bytes of one volume, or of what lies between volumes (null), by state and by whether the image holds them. */
interface Sums {
	readonly held: Record<Extent["state"], number>;
	readonly notHeld: Record<Extent["state"], number>;
}
type AllSums = ReadonlyMap<string | null, Sums>;

const noSums = (): Sums => ({
	held: { used: 0, free: 0, unknown: 0 },
	notHeld: { used: 0, free: 0, unknown: 0 },
});

/** Walks the guest's extents and the image's held runs side by side. */
async function sumUp(image: DiskImage, map: GuestMap, { signal, onProgress }: LongRunning): Promise<AllSums> {
	const all = new Map<string | null, Sums>();
	const held = image.held(byteOffset(0), byteOffset(image.size))[Symbol.asyncIterator]();
	let run = await held.next();
	const turns = new Turns();
	for (const { start, length, state, volume, neverUsed } of map.extents) {
		const end = start + length;
		let heldBytes = 0;
		while (run.done !== true && run.value.start < end) {
			const runEnd = run.value.start + run.value.length;
			heldBytes += Math.max(0, Math.min(end, runEnd) - Math.max(start, run.value.start));
			if (runEnd > end) break;
			run = await held.next();
		}
		const sums = all.get(volume) ?? noSums();
		all.set(volume, sums);
		const shown = neverUsed === true ? "free" : state;
		sums.held[shown] += heldBytes;
		sums.notHeld[shown] += length - heldBytes;
		if (!turns.isOver()) continue;
		onProgress?.({ step: "comparing the guest's blocks with the host's", done: end, total: map.size });
		await checkpoint(signal, `stopped before the end; nothing was changed. Run the same command again.`);
		turns.begin();
	}
	await held.return?.();
	return all;
}

function sharesOf(sums: AllSums, map: GuestMap, snapshotBytes: number, hostBytes: number | null): Share[] {
	const bytes: Record<ShareKind, number> = {
		used: 0,
		free: 0,
		swap: 0,
		unknown: 0,
		outside: 0,
		snapshots: snapshotBytes,
		format: 0,
		"first-image": 0,
		"second-image": 0,
	};
	const types = new Map([...allVolumes(map.volumes)].map(({ id, type }) => [id, type]));
	for (const [volume, { held }] of sums) {
		if (volume === null) bytes.outside += held.used + held.free + held.unknown;
		else if (types.get(volume) === "swap") {
			bytes.swap += held.used + held.unknown;
			bytes.free += held.free;
		} else {
			bytes.used += held.used;
			bytes.free += held.free;
			bytes.unknown += held.unknown;
		}
	}
	const known = Object.values(bytes).reduce((sum, each) => sum + each, 0);
	if (hostBytes !== null) bytes.format = hostBytes - known;
	return (Object.keys(bytes) as ShareKind[])
		.filter((kind) => bytes[kind] !== 0)
		.map((kind) => ({ kind, hostBytes: bytes[kind] }));
}

function explained(
	volume: VolumeMap,
	sums: AllSums,
	prediction: Prediction | undefined,
	policy: DropPolicy,
): ExplainedVolume {
	const { id, type, label, state, size } = volume;
	const { held, notHeld } = sums.get(id) ?? noSums();
	return {
		id,
		type,
		label,
		state,
		size,
		usedHeldBytes: held.used,
		usedNotHeldBytes: notHeld.used,
		freeHeldBytes: held.free,
		freeNotHeldBytes: notHeld.free,
		unknownHeldBytes: held.unknown,
		unknownNotHeldBytes: notHeld.unknown,
		reclaimableBytes: prediction === undefined ? null : (prediction.byVolume.get(id) ?? 0),
		kept: whyKept(volume, policy),
	};
}

/** Less than this is not worth a command, in bytes. */
const WORTH_A_COMMAND = 64 * 1024;

function commandFor(
	name: string,
	prediction: Prediction | undefined,
	sums: AllSums,
	{ vmOff }: DropPolicy,
): string | null {
	const words = (...given: readonly string[]): string => [...given, ...(vmOff ? ["--vm-off"] : [])].join(" ");
	if (prediction !== undefined)
		return prediction.bytes >= WORTH_A_COMMAND ? words("vmsweep", "sweep", shellWord(name)) : null;
	let free = 0;
	for (const { held } of sums.values()) free += held.free;
	return free >= WORTH_A_COMMAND ? words("vmsweep", "convert", shellWord(name), "NEW.qcow2") : null;
}

/** A word as a shell takes it, so that the command can be copied. */
const shellWord = (text: string): string =>
	/^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

/** The folder of the vmsweep disk that a path names: the folder itself, or the one that a second image belongs to. */
async function diskOf(name: string): Promise<string | undefined> {
	if ((await stat(diskJsonPath(name)).catch(() => undefined))?.isFile()) return name;
	const real = await realpath(name).catch(() => undefined);
	if (real === undefined) return undefined;
	for (const path of new Set([resolve(name), real])) {
		const recordPath = secondImageRecordPath(dirname(path), path, "file");
		if (!(await stat(recordPath).catch(() => undefined))?.isFile()) continue;
		const { readDiskDescription, readSecondImageRecord } = await import("./disk-records.ts");
		const record = await readSecondImageRecord(recordPath);
		const owner = record && (await readDiskDescription(record.disk).catch(() => undefined));
		if (record !== undefined && owner?.uuid === record.uuid) return record.disk;
	}
	return undefined;
}

/**
 * What cleaning a disk with its VM off gives back: only free blocks, and only of what has a live rule
 * (docs/live-safety.md); all else is used.
 */
function asCleaned(map: GuestMap): GuestMap {
	const ids = new Set(map.volumes.filter(({ type }) => /^ext[234]$/.test(type)).map(({ id }) => id));
	return {
		...map,
		extents: {
			*[Symbol.iterator]() {
				for (const { neverUsed: _, ...extent } of map.extents)
					yield extent.volume !== null && ids.has(extent.volume) ? extent : { ...extent, state: "used" as const };
			},
		},
	};
}

/** A disk: the first image's share, and the second image in full where it is whole by itself and nobody serves it. */
async function explainDisk(directory: string, options: ExplainOptions): Promise<Explanation> {
	const { diskStatus } = await import("./control-at-rest.ts");
	const status = await diskStatus(directory);
	const firstBytes = status.first.hostBytes ?? 0;
	const firstShare: Share = { kind: "first-image", hostBytes: firstBytes };
	const command = `vmsweep ${status.served ? "clean" : "commit"} ${shellWord(directory)}`;
	if (!status.served && status.second.state === "whole" && status.second.hostBytes !== null) {
		const second = await explainFile(status.second.path, options, asCleaned);
		const hasSpace = firstBytes >= WORTH_A_COMMAND || second.command !== null;
		return {
			...second,
			image: directory,
			format: "vmsweep-disk",
			hostBytes: firstBytes + (second.hostBytes ?? 0),
			shares: [...second.shares, firstShare],
			command: hasSpace ? `vmsweep clean ${shellWord(directory)}` : null,
			notes: [...second.notes, ...status.problems],
		};
	}
	const secondBytes = status.second.hostBytes ?? 0;
	return {
		image: directory,
		format: "vmsweep-disk",
		size: status.size,
		hostBytes: firstBytes + secondBytes,
		shares: [{ kind: "second-image", hostBytes: secondBytes }, firstShare],
		volumes: [],
		reclaimableBytes: null,
		largest: [],
		snapshots: [],
		backing: [],
		command,
		notes: [
			status.served
				? `the disk is served now, and cleaned by its server; "vmsweep status ${directory}" shows its volumes`
				: "the second image needs the first one, so the guest's file systems can't be read before both are folded together",
			...(status.served ? [] : status.problems),
		],
	};
}
