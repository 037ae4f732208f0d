// Sweep: the offline, in-place job. Gives a raw image's free space back to the host, with the VM off.
//
//   open with a writer's locks ─► guest map ─► clean volumes ─► their free extents ─► whole host blocks with data
//                                                                                        └─► punch ─► flush
//
// Invariants
//  - only bytes are punched that the file system proves free in a volume that was unmounted cleanly; so every moment
//    of the work, a crash or an interruption included, leaves an image that is right
//  - nobody else writes the image meanwhile: QEMU's locks, no loop device, an exclusive claim of a block device
//  - a dry run opens the image for reading and counts exactly the bytes that a sweep would punch
//
// Only what takes space is punched: a punch of part of a host block frees nothing, and one of a hole costs a call.

import { readdir, readFile, realpath, statfs } from "node:fs/promises";
import type { RawImage } from "../adapters/images/raw-image.ts";
import { AllocatedRuns } from "../adapters/os/allocated-runs.ts";
import type { DataRun } from "../adapters/os/data-runs.ts";
import { VmsweepError } from "../foundations/errors.ts";
import type { GuestMap, VolumeMap } from "../foundations/guest-map.ts";
import { byteCount, byteOffset, isPowerOfTwo, roundDown, roundUp } from "../foundations/units.ts";
import { readGuestMap } from "./guest-map.ts";
import { openNamedImage } from "./map-report.ts";
import { checkpoint, type LongRunning } from "./progress.ts";

export interface SweepOptions extends LongRunning {
	/** Changes nothing, and counts what a sweep would give back. */
	readonly dryRun: boolean;
}

/** What became of one volume. Sizes in bytes. */
export interface SweptVolume {
	readonly id: string;
	readonly type: string;
	readonly state: VolumeMap["state"];
	readonly label: string | null;
	/** What its file system calls free; null where it isn't known. */
	readonly freeBytes: number | null;
	/** Host bytes given back, or that a sweep would give back. */
	readonly droppedBytes: number;
	/** Why nothing was dropped, and what to do; null where the volume was swept. */
	readonly kept: string | null;
	readonly warnings: readonly string[];
}

/** What a sweep did. Sizes in bytes. */
export interface SweepReport {
	readonly image: string;
	readonly dryRun: boolean;
	readonly size: number;
	/** Host space before, and after (for a dry run: as it would be). A block device's is its size. */
	readonly hostBytesBefore: number;
	readonly hostBytesAfter: number;
	readonly droppedBytes: number;
	readonly volumes: readonly SweptVolume[];
	/** About the disk as a whole. */
	readonly warnings: readonly string[];
}

/**
 * Sweeps a raw image or block device in place. Volumes that can't be swept are kept, and say why; it is no error.
 * Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED, IMAGE_UNSUPPORTED, DISK_IMAGES_MIXED, INTERRUPTED (the image
 * is right, a part of its free space is given back) or IO.
 */
export async function sweepImage(path: string, options: SweepOptions): Promise<SweepReport> {
	await using image = await openNamedImage(path, options.dryRun ? "read" : "write");
	if (!options.dryRun) await checkNoLoopDevice(path);
	options.onProgress?.({ step: "reading the guest's file systems", done: 0, total: null });
	const map = await readGuestMap(image);
	await checkpoint(options.signal, stopped(path, 0));
	return await new Sweeper(image, map, options).run();
}

/** Longest punch in one call, in bytes: bounds how long an interruption waits. */
const PUNCH_BYTES_MAX = 256 * 1024 * 1024;
/** Extents that are looked at between two checkpoints. */
const EXTENTS_PER_TURN = 4096;

class Sweeper {
	readonly #image: RawImage;
	readonly #map: GuestMap;
	readonly #options: SweepOptions;
	readonly #allocated: AllocatedRuns;
	readonly #dropped = new Map<string, number>();
	#droppedBytes = 0;
	#hostBlock = 0;

	constructor(image: RawImage, map: GuestMap, options: SweepOptions) {
		this.#image = image;
		this.#allocated = new AllocatedRuns(image.fd);
		this.#map = map;
		this.#options = options;
	}

	async run(): Promise<SweepReport> {
		const image = this.#image;
		const { dryRun } = this.#options;
		const hostBytesBefore = await image.allocatedBytes();
		this.#hostBlock = await hostBlockBytes(image);
		try {
			await this.#sweep();
		} finally {
			// Also after an interruption: what was given back is then given back durably.
			if (!dryRun && this.#droppedBytes > 0) await image.flush();
		}
		const hostBytesAfter = dryRun ? Math.max(0, hostBytesBefore - this.#droppedBytes) : await image.allocatedBytes();
		return {
			image: image.path,
			dryRun,
			size: image.size,
			hostBytesBefore,
			hostBytesAfter,
			droppedBytes: this.#droppedBytes,
			volumes: this.#map.volumes.map((volume) => this.#reportOf(volume)),
			warnings: this.#map.warnings,
		};
	}

	async #sweep(): Promise<void> {
		const { signal, onProgress, dryRun } = this.#options;
		const swept = new Set(this.#map.volumes.filter((volume) => whyKept(volume) === null).map(({ id }) => id));
		if (swept.size === 0) return;
		const step = dryRun ? "looking at free blocks" : "dropping free blocks";
		let extents = 0;
		for (const { start, length, state, volume } of this.#map.extents) {
			if (++extents % EXTENTS_PER_TURN === 0) await this.#checkpoint();
			if (state !== "free" || volume === null || !swept.has(volume)) continue;
			for (const run of this.#runsToPunch(start, start + length)) {
				if (!dryRun) await this.#punch(run);
				this.#count(volume, run.end - run.start);
			}
			onProgress?.({ step, done: start + length, total: this.#map.size });
			if (signal?.aborted) await this.#checkpoint();
		}
	}

	/** The whole host blocks inside `[from, to)` that take space. */
	*#runsToPunch(from: number, to: number): Generator<DataRun> {
		const start = roundUp(from, this.#hostBlock);
		const end = roundDown(to, this.#hostBlock);
		if (end <= start) return;
		for (const run of this.#allocated.within(start, end))
			for (let at = run.start; at < run.end; at += PUNCH_BYTES_MAX)
				yield { start: at, end: Math.min(run.end, at + PUNCH_BYTES_MAX) };
	}

	async #punch({ start, end }: DataRun): Promise<void> {
		await this.#image.punch(byteOffset(start), byteCount(end - start));
		await this.#checkpoint();
	}

	#count(volume: string, bytes: number): void {
		this.#droppedBytes += bytes;
		this.#dropped.set(volume, (this.#dropped.get(volume) ?? 0) + bytes);
	}

	async #checkpoint(): Promise<void> {
		await checkpoint(this.#options.signal, stopped(this.#image.path, this.#options.dryRun ? 0 : this.#droppedBytes));
	}

	#reportOf(volume: VolumeMap): SweptVolume {
		const { id, type, state, label, freeBytes, warnings } = volume;
		const droppedBytes = this.#dropped.get(id) ?? 0;
		return { id, type, state, label, freeBytes, droppedBytes, kept: whyKept(volume), warnings };
	}
}

/** Why a volume's free space stays, or null where it may go. */
function whyKept(volume: VolumeMap): string | null {
	if (volume.kept !== null) return volume.kept;
	if (volume.state === "dirty")
		return "it was not shut down cleanly; start the VM, shut it down cleanly, then sweep again";
	return volume.state === "clean" ? null : "nobody can tell whether it was shut down cleanly";
}

const stopped = (path: string, bytes: number): string =>
	`stopped before the end; ${path} is as good as before${bytes > 0 ? ", with a part of its free space given back" : ""}. Run the same command to finish.`;

/** The unit in which the image's host gives space back, in bytes. */
async function hostBlockBytes(image: RawImage): Promise<number> {
	const usual = 4096;
	if (image.kind === "block-device") return usual;
	const { bsize } = await statfs(image.path);
	// Network file systems report their transfer size here; half of the disk would then be too small to be punched.
	return isPowerOfTwo(bsize) && bsize >= 512 && bsize <= 64 * 1024 ? bsize : usual;
}

/** Loop devices take no locks, so they are looked up: a mounted image must not change below its file system. */
async function checkNoLoopDevice(path: string): Promise<void> {
	const real = await realpath(path);
	const devices = (await readdir("/sys/block").catch(() => [])).filter((name) => name.startsWith("loop"));
	for (const device of devices) {
		const backing = await readFile(`/sys/block/${device}/loop/backing_file`, "utf8").catch(() => "");
		if (backing.trimEnd() !== real) continue;
		throw new VmsweepError(
			"IMAGE_LOCKED",
			`${path} is in use by the loop device /dev/${device}. Unmount what is on it, then: losetup -d /dev/${device}.`,
		);
	}
}

/** Throws NOTHING_TO_SWEEP where every volume had to be kept: the user hoped for something and should know why not. */
export function checkSwept({ image, volumes }: SweepReport): void {
	if (volumes.some(({ kept }) => kept === null)) return;
	const reasons = volumes.map(({ id, type, kept }) => `${id} (${type}): ${kept?.replace(/\.$/, "")}`);
	const why = reasons.length === 0 ? "there is no volume on it" : reasons.join("; ");
	throw new VmsweepError("NOTHING_TO_SWEEP", `${image}: nothing can be dropped safely. ${why}.`);
}
