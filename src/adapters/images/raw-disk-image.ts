// Raw disk image: a sparse file or a block device, byte for byte what the guest sees, that a user named.
//
// The served disk's second image is raw, too, but open under another contract: raw-image.ts.

import type { DiskRun } from "../../core/images/virtual-disk.ts";
import { checkRange } from "../../foundations/source.ts";
import { UnderWay } from "../../foundations/under-way.ts";
import { type ByteCount, type ByteOffset, byteCount, byteOffset, roundDown, roundUp } from "../../foundations/units.ts";
import type { HeldRun, ImagePart, SweepableImage } from "./disk-image.ts";
import type { HostImageFile } from "./host-image-file.ts";
import type { SecondLayout } from "./second-layout.ts";

/** Longest punch in one call, in bytes: bounds how long an interruption waits. */
const PUNCH_BYTES_MAX = 256 * 1024 * 1024;
/** The host works on one while the next is looked for. */
const PUNCHES_AT_ONCE = 8;
/** Runs that are looked at before others get their turn. */
const RUNS_PER_TURN = 1024;

/** Takes the file over: closing the image closes it. */
export class RawDiskImage implements SweepableImage {
	readonly path: string;
	readonly format = "raw";
	readonly size: ByteCount;
	readonly unit: ByteCount;
	readonly snapshots = [];
	readonly warnings = [];
	readonly #file: HostImageFile;
	readonly #punches = new UnderWay(PUNCHES_AT_ONCE);

	private constructor(file: HostImageFile, unit: ByteCount) {
		this.#file = file;
		this.path = file.path;
		this.size = file.size;
		this.unit = unit;
	}

	static async open(file: HostImageFile): Promise<RawDiskImage> {
		return new RawDiskImage(file, await file.hostBlock());
	}

	async read(at: ByteOffset, into: Uint8Array): Promise<void> {
		await this.#file.read(at, into);
	}

	async *runs(from: ByteOffset, to: ByteOffset): AsyncGenerator<DiskRun> {
		let at: number = from;
		for await (const { start, end } of inTurns(this.#file.data(from, to))) {
			if (start > at) yield { start: byteOffset(at), length: byteCount(start - at), kind: "zero" };
			yield { start: byteOffset(start), length: byteCount(end - start), kind: "data" };
			at = end;
		}
		if (at < to) yield { start: byteOffset(at), length: byteCount(to - at), kind: "zero" };
	}

	async *held(from: ByteOffset, to: ByteOffset): AsyncGenerator<HeldRun> {
		for await (const { start, end } of inTurns(this.#file.allocated(from, to)))
			yield { start: byteOffset(start), length: byteCount(end - start) };
	}

	async drop(start: ByteOffset, length: ByteCount): Promise<number> {
		let bytes = 0;
		for (const run of Array.from(this.#takingSpace(start, length))) {
			for (let at = run.start; at < run.end; at += PUNCH_BYTES_MAX)
				await this.#punches.add(
					this.#file.giveBack(byteOffset(at), byteCount(Math.min(run.end - at, PUNCH_BYTES_MAX))),
				);
			bytes += run.end - run.start;
		}
		return bytes;
	}

	get dropsToZeros(): boolean {
		return this.#file.punchesToZeros;
	}

	async wouldDrop(start: ByteOffset, length: ByteCount): Promise<number> {
		let bytes = 0;
		for (const run of this.#takingSpace(start, length)) bytes += run.end - run.start;
		return bytes;
	}

	async snapshotBytes(): Promise<ByteCount> {
		return byteCount(0);
	}

	async flush(): Promise<void> {
		await this.#punches.settled();
		await this.#file.flush();
	}

	layout(): SecondLayout {
		return { kind: "flat", fd: this.#file.fd, size: this.size };
	}

	async allocatedBytes(): Promise<ByteCount> {
		return await this.#file.allocatedBytes();
	}

	async parts(): Promise<readonly ImagePart[]> {
		return [{ path: this.path, format: "raw", role: "image", hostBytes: await this.allocatedBytes() }];
	}

	async close(): Promise<void> {
		await this.#punches.settled().catch(() => {}); // whoever drops also flushes, and was told there
		await this.#file.close();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.close();
	}

	/** The whole units inside a range, as far as they take space: a punch of a hole would only cost a call. */
	#takingSpace(start: number, length: number): Iterable<{ readonly start: number; readonly end: number }> {
		checkRange(this.size, start, length, this.path);
		const from = roundUp(start, this.unit);
		const end = start + length;
		const to = end === this.size ? end : roundDown(end, this.unit);
		return this.#file.allocated(from, Math.max(from, to));
	}
}

/** Each step may read the host's metadata; others get their turn in between. */
async function* inTurns<T>(items: Iterable<T>): AsyncGenerator<T> {
	let count = 0;
	for (const item of items) {
		yield item;
		if (++count % RUNS_PER_TURN === 0) await new Promise(setImmediate);
	}
}
