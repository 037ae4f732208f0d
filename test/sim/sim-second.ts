// The product's second images on a simulated host: RawImage, and qcow2 over its HostImageFile, with everything behind it (batches, copies, punches,
// short reads and writes), over a file handle that is none.
//
//   RawImage ── read, writev, datasync ─► SimHandle ── turns of the scheduler ─► SimFile
//
// The handle's descriptor is an eventfd: a file that the kernel can neither punch nor share, so the product falls back to
// what goes through the handle. Copies stay below the length from which on the kernel would be asked for them.

import type { FileHandle } from "node:fs/promises";
import { RangeCopier, type ReadSource } from "../../src/adapters/images/copy-ranges.ts";
import { HostImageFile } from "../../src/adapters/images/host-image-file.ts";
import type { Opening } from "../../src/adapters/images/opening.ts";
import { SpaceReturner } from "../../src/adapters/images/punch.ts";
import { openQcow2Second, type Qcow2SecondImage } from "../../src/adapters/images/qcow2-second.ts";
import { RawImage } from "../../src/adapters/images/raw-image.ts";
import type { HeldParts } from "../../src/adapters/images/second-image.ts";
import type { DataRun } from "../../src/adapters/os/data-runs.ts";
import * as sys from "../../src/adapters/os/syscalls.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../src/foundations/units.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SimFile, World } from "./sim-file.ts";

/** Blocks of the largest simulated disk: one copy of all stays below 128 KiB. */
export const DISK_BLOCKS_MAX = 31;

let descriptor: number | undefined;

/** One descriptor for all simulated files of this process; nothing is ever read from it or written to it. */
function noFile(): number {
	descriptor ??= sys.eventfd(0, sys.EFD_NONBLOCK | sys.EFD_CLOEXEC);
	return descriptor;
}

/** What RawImage uses of a FileHandle. */
class SimHandle implements Pick<FileHandle, "fd"> {
	readonly fd = noFile();
	readonly #file: SimFile;
	readonly #world: World;
	readonly #scheduler: Scheduler;

	constructor(file: SimFile, world: World, scheduler: Scheduler) {
		this.#file = file;
		this.#world = world;
		this.#scheduler = scheduler;
	}

	async read(into: Uint8Array, offset: number, length: number, at: number): Promise<{ bytesRead: number }> {
		await this.#scheduler.turn();
		const bytesRead = this.#shortened(length);
		const piece = into.subarray(offset, offset + bytesRead);
		asHost(() => this.#file.read(byteOffset(at), piece));
		return { bytesRead };
	}

	async writev(buffers: readonly Uint8Array[], at: number): Promise<{ bytesWritten: number }> {
		await this.#scheduler.turn();
		const bytes = new Uint8Array(Buffer.concat(buffers));
		const bytesWritten = this.#shortened(bytes.length);
		asHost(() => this.#file.write(bytes.subarray(0, bytesWritten), at));
		return { bytesWritten };
	}

	async truncate(size: number): Promise<void> {
		await this.#scheduler.turn();
		asHost(() => this.#file.truncate(size));
	}

	sync(): Promise<void> {
		return this.datasync();
	}

	stat(): Promise<{ readonly nlink: number; readonly blksize: number }> {
		return Promise.resolve({ nlink: 1, blksize: BLOCK_SIZE });
	}

	async datasync(): Promise<void> {
		const cover = this.#file.beginSync();
		await this.#scheduler.turn();
		asHost(() => this.#file.completeSync(cover));
	}

	/** Hosts may read and write less than they were asked for, though never nothing. */
	#shortened(length: number): number {
		const { random, shortPercent } = this.#world;
		return shortPercent > 0 && length > 1 && random.chance(shortPercent) ? 1 + random.below(length - 1) : length;
	}
}

/** Failures as Node reports them. */
function asHost(call: () => void): void {
	try {
		call();
	} catch (error) {
		if (!isVmsweepError(error)) throw error;
		throw Object.assign(new Error("simulated"), { code: error.code === "NO_SPACE" ? "ENOSPC" : "EIO" });
	}
}

/** Opens the product's raw image over simulated files; `copyFrom` reads from `first`. */
export function openSimSecond(
	first: SimFile,
	second: SimFile,
	world: World,
	scheduler: Scheduler,
	diskBytes: number,
): RawImage {
	const handle = new SimHandle(second, world, scheduler) as unknown as FileHandle;
	return new RawImage(handle, "second.raw", "file", byteCount(diskBytes), async (_, into, at) => {
		await scheduler.turn();
		first.read(byteOffset(at), into);
	});
}

/** The product's file of an image, but for what asks the host's kernel. */
class SimImageFile extends HostImageFile {
	readonly #handle: FileHandle;
	readonly #sim: SimFile;
	readonly #scheduler: Scheduler;
	readonly #readSource: ReadSource;

	constructor(handle: FileHandle, sim: SimFile, scheduler: Scheduler, returner: SpaceReturner, readSource: ReadSource) {
		const locked = { file: handle, kind: "file", size: byteCount(sim.size()), identity: "second.qcow2" } as const;
		super("second.qcow2", locked, returner);
		this.#handle = handle;
		this.#sim = sim;
		this.#scheduler = scheduler;
		this.#readSource = readSource;
	}

	override copier(): RangeCopier {
		return new RangeCopier(this.#handle, this.path, this.#readSource);
	}

	override async punch(at: number, length: number): Promise<void> {
		await this.#scheduler.turn();
		this.#sim.punch(byteOffset(at), length);
	}

	override allocated(from: number, to: number): Iterable<DataRun> {
		return from < to ? [{ start: from, end: to }] : [];
	}
}

/** Opens the product's qcow2 second image over simulated files. Who waits must get turns meanwhile. */
export async function openSimQcow2(
	first: SimFile,
	second: SimFile,
	world: World,
	scheduler: Scheduler,
): Promise<Qcow2SecondImage> {
	const handle = new SimHandle(second, world, scheduler) as unknown as FileHandle;
	const returner = await SpaceReturner.of(handle, "second.qcow2", "file");
	const file = new SimImageFile(handle, second, scheduler, returner, async (_, into, at) => {
		await scheduler.turn();
		first.read(byteOffset(at), into);
	});
	const noBacking = {
		openBacking: () => {
			throw new RangeError("nothing lies below");
		},
	} as unknown as Opening;
	return await openQcow2Second(file, noBacking);
}

/** Blocks with content take space, others don't. */
export const allocatedIn = (file: SimFile): HeldParts => ({
	*within(from: number, to: number): Generator<DataRun> {
		for (let at = from - (from % BLOCK_SIZE); at < to; at += BLOCK_SIZE)
			if (!file.isZero(at, BLOCK_SIZE)) yield { start: Math.max(at, from), end: Math.min(at + BLOCK_SIZE, to) };
	},
});
