// Sweep: the offline, in-place job. Gives an image's free space back to the host, with the VM off.
//
//   no overlay on top? ─► open with a writer's locks ─► guest map ─► droppable runs, in whole units (prediction.ts)
//                                    ├─► dry run: what would they give back?
//                                    └─► drop ─► flush ─► compact (qcow2)
//
// Invariants
//  - only bytes are dropped that the file system proves free (droppable.ts); so every moment of the work, a crash or
//    an interruption included, leaves an image that is right or that its format repairs at the next open
//  - nobody else writes the image meanwhile: QEMU's locks, no loop device, an exclusive claim of a block device
//  - a dry run opens the image for reading and counts exactly the bytes that a sweep would give back

import type { DiskImage, SweepableImage } from "../adapters/images/disk-image.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { allVolumes, type GuestMap, type VolumeMap } from "../foundations/guest-map.ts";
import { type DropPolicy, whyKept } from "./droppable.ts";
import { readGuestMap } from "./guest-map.ts";
import { openNamedForSweep } from "./named-image.ts";
import { checkNoOverlay } from "./overlays.ts";
import { type Prediction, predict, walkDroppable } from "./prediction.ts";
import { checkpoint, type LongRunning } from "./progress.ts";
import { checkNotSaved } from "./saved-machines.ts";

export interface SweepOptions extends LongRunning, DropPolicy {
	/** Changes nothing, and counts what a sweep would give back. */
	readonly dryRun: boolean;
	/** Also makes the file shorter where its format keeps free space inside (qcow2). */
	readonly compact: boolean;
	/** Keeps what lies in the free extents of LVM. */
	readonly keepLvmFree: boolean;
	/** Images that were made on top of others: refused where this image is below one of them. */
	readonly overlays: readonly string[];
	/** Data files of a qcow2 image that lie in other folders than the image. */
	readonly dataFiles: readonly string[];
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
	readonly format: DiskImage["format"];
	readonly dryRun: boolean;
	readonly size: number;
	/** Host space before, and after (for a dry run: as it would be). A block device's is its size. */
	readonly hostBytesBefore: number;
	readonly hostBytesAfter: number;
	readonly droppedBytes: number;
	readonly volumes: readonly SweptVolume[];
	/** About the image and the disk as a whole. */
	readonly warnings: readonly string[];
}

/**
 * Sweeps a raw or qcow2 image or a block device in place. Volumes that can't be swept are kept, and say why; it is no
 * error. Throws FILE_NOT_FOUND, FILE_WRONG_TYPE, IMAGE_LOCKED, IMAGE_UNSUPPORTED, IMAGE_DAMAGED, IMAGE_HAS_OVERLAY,
 * DISK_IMAGES_MIXED, INTERRUPTED (the image is right, a part of its free space is given back), NO_SPACE or IO.
 */
export async function sweepImage(path: string, options: SweepOptions): Promise<SweepReport> {
	await checkNoOverlay(path, options.overlays);
	await checkNotSaved(path);
	await using image = await openNamedForSweep(path, { dryRun: options.dryRun, dataFiles: options.dataFiles });
	if (options.compact && image.compact === undefined)
		throw new VmsweepError("USAGE", `${path} is a ${image.format} image; --compact is for qcow2. Leave it out.`);
	options.onProgress?.({ step: "reading the guest's file systems", done: 0, total: null });
	const map = await readGuestMap(image, { vmOff: options.vmOff, keepFreeExtents: options.keepLvmFree });
	await checkpoint(options.signal, stopped(path, false));
	return await new Sweeper(image, map, { ...options, keepNeverUsed: !image.dropsToZeros }).run();
}

class Sweeper {
	readonly #image: SweepableImage;
	readonly #map: GuestMap;
	readonly #options: SweepOptions;

	constructor(image: SweepableImage, map: GuestMap, options: SweepOptions) {
		this.#image = image;
		this.#map = map;
		this.#options = options;
	}

	async run(): Promise<SweepReport> {
		const image = this.#image;
		const { dryRun, compact, signal, onProgress } = this.#options;
		const hostBytesBefore = await hostBytes(image);
		const isKept = [...allVolumes(this.#map.volumes)].every((volume) => whyKept(volume, this.#options) !== null);
		// Where every volume is kept, the image stays as it is, with whatever its format could give back.
		const { bytes, byVolume } =
			dryRun || isKept ? await predict(image, this.#map, this.#options, { signal, onProgress }) : await this.#drop();
		if (compact && !dryRun) await this.#compact();
		const hostBytesAfter = dryRun ? Math.max(0, hostBytesBefore - bytes) : await hostBytes(image);
		return {
			image: image.path,
			format: image.format,
			dryRun,
			size: image.size,
			hostBytesBefore,
			hostBytesAfter,
			droppedBytes: bytes,
			volumes: [...allVolumes(this.#map.volumes)].map((volume) => this.#reportOf(volume, byVolume.get(volume.id) ?? 0)),
			warnings: [...image.warnings, ...this.#map.warnings],
		};
	}

	async #drop(): Promise<Prediction> {
		const image = this.#image;
		const { signal, onProgress } = this.#options;
		const dropped = await walkDroppable(image, this.#map, this.#options, {
			signal,
			onProgress,
			step: "dropping free blocks",
			stoppedAs: stopped(image.path, true),
			act: (start, length) => image.drop(start, length),
		}).catch(async (error: unknown) => {
			// After an interruption, too, what was dropped is given back durably. Of two failures the first one tells more.
			await image.flush().catch(() => {});
			throw error;
		});
		await image.flush();
		return dropped;
	}

	async #compact(): Promise<void> {
		const { signal, onProgress } = this.#options;
		await this.#image.compact?.({
			...(signal === undefined ? {} : { signal }),
			onProgress: (done, total) => onProgress?.({ step: "moving clusters into holes", done, total }),
		});
		await this.#image.flush();
	}

	#reportOf(volume: VolumeMap, droppedBytes: number): SweptVolume {
		const { id, type, state, label, freeBytes, warnings } = volume;
		return { id, type, state, label, freeBytes, droppedBytes, kept: whyKept(volume, this.#options), warnings };
	}
}

const hostBytes = async (image: DiskImage): Promise<number> => (await image.allocatedBytes()) ?? image.size;

const stopped = (path: string, isPartly: boolean): string =>
	`stopped before the end; ${path} is as good as before${isPartly ? ", with a part of its free space given back" : ""}. Run the same command to finish.`;

/**
 * Throws NOTHING_TO_SWEEP where every volume had to be kept, and no space came back otherwise: the user hoped for
 * something and should know why not.
 */
export function checkSwept({ image, volumes, hostBytesBefore, hostBytesAfter }: SweepReport): void {
	if (volumes.some(({ kept }) => kept === null) || hostBytesAfter < hostBytesBefore) return;
	const reasons = volumes.map(({ id, type, kept }) => `${id} (${type}): ${kept?.replace(/\.$/, "")}`);
	const why = reasons.length === 0 ? "there is no volume on it" : reasons.join("; ");
	throw new VmsweepError("NOTHING_TO_SWEEP", `${image}: nothing can be dropped safely. ${why}.`);
}
