// Scrub: reads everything that a disk holds again and compares it with the checksums that it was written with.
//
//   first image    its live blocks, segment by segment, by the data plane in small pieces
//   second image   the blocks that are read from there and of which vmsweep knows the checksum
//   snapshots      what each one kept
//
// Runs beside the VM: it takes turns with the cleaner, and no more bytes per second than it is allowed.

import { crc32 } from "node:zlib";
import type { SecondImage } from "../adapters/images/second-image.ts";
import { IN_NONE, IN_ZEROS, LOCATED_STRIDE, type PlanePort, SNAPSHOT_STRIDE } from "../adapters/plane/messages.ts";
import { ABSENT } from "../core/log/first-image.ts";
import { isVmsweepError } from "../foundations/errors.ts";
import { BLOCK_SIZE, byteOffset } from "../foundations/units.ts";
import { checkpoint, type LongRunning } from "./progress.ts";
import { readFully } from "./verified-read.ts";

/** Blocks read at once: 1 MiB. */
const BLOCKS_AT_ONCE = 256;

/** Where a rotten block lies. */
export type RottenIn = "first-image" | "second-image" | `snapshot ${string}`;

/** A block that doesn't match its checksum. */
export interface RottenBlock {
	readonly block: number;
	readonly where: RottenIn;
}

/** What a scrub read and found. Sizes in bytes. */
export interface ScrubReport {
	readonly firstBytes: number;
	readonly secondBytes: number;
	readonly snapshotBytes: number;
	/** Of the second image: in use, but not written by vmsweep, so that nothing is known to compare it with. */
	readonly unknownBytes: number;
	readonly rotten: readonly RottenBlock[];
	/** Records of the first image that aren't as they were written; the blocks that they describe are listed if rotten. */
	readonly rottenRecords: number;
}

export interface ScrubParts {
	readonly plane: PlanePort;
	readonly second: SecondImage;
	readonly size: number;
	readonly snapshots: readonly { readonly name: string; readonly size: number }[];
	/** Runs work while nothing is moved. */
	readonly exclusive: <T>(work: () => Promise<T>) => Promise<T>;
}

export interface ScrubOptions extends LongRunning {
	/** Bytes read per second, at most; Infinity where not given. */
	readonly bytesPerSecond?: number;
}

/** Throws INTERRUPTED, DISK_STOPPED or IO where something can't be read at all. */
export async function scrub(parts: ScrubParts, options: ScrubOptions): Promise<ScrubReport> {
	const scrubber = new Scrubber(parts, options);
	await scrubber.firstImage();
	await scrubber.secondImage();
	for (const { name, size } of parts.snapshots) await scrubber.snapshot(name, size);
	return scrubber.report();
}

class Scrubber {
	readonly #parts: ScrubParts;
	readonly #options: ScrubOptions;
	readonly #rotten: RottenBlock[] = [];
	#firstBytes = 0;
	#secondBytes = 0;
	#snapshotBytes = 0;
	#unknownBytes = 0;
	#rottenRecords = 0;
	#paceStart = performance.now();
	#paceBytes = 0;

	constructor(parts: ScrubParts, options: ScrubOptions) {
		this.#parts = parts;
		this.#options = options;
	}

	report(): ScrubReport {
		return {
			firstBytes: this.#firstBytes,
			secondBytes: this.#secondBytes,
			snapshotBytes: this.#snapshotBytes,
			unknownBytes: this.#unknownBytes,
			rotten: this.#rotten,
			rottenRecords: this.#rottenRecords,
		};
	}

	async firstImage(): Promise<void> {
		const { plane } = this.#parts;
		for (const { sequence } of await plane.ask("segments"))
			for (let from = 0; from >= 0; ) {
				const part = await plane.ask("scrub", { sequence, from });
				for (const block of part.rotten) this.#rotten.push({ block, where: "first-image" });
				this.#rottenRecords += part.rottenRecords;
				this.#firstBytes += part.bytes;
				from = part.next;
				await this.#pace(part.bytes, "checking the first image");
			}
	}

	async secondImage(): Promise<void> {
		const { second, exclusive } = this.#parts;
		for await (const { start, length } of second.allocatedRanges()) {
			const end = Math.ceil((start + length) / BLOCK_SIZE);
			for (let block = Math.floor(start / BLOCK_SIZE); block < end; block += BLOCKS_AT_ONCE) {
				const count = Math.min(BLOCKS_AT_ONCE, end - block);
				await exclusive(() => this.#secondPiece(block, count));
				await this.#pace(count * BLOCK_SIZE, "checking the second image");
			}
		}
	}

	/** Compares blocks that are read from the second image; all others may have any content there. */
	async #secondPiece(block: number, count: number): Promise<void> {
		const { plane, second } = this.#parts;
		const view = await plane.ask("takeView");
		try {
			const sums = await plane.ask("secondSums", { block, count });
			const located = await plane.ask("locate", { view: view.id, block, count });
			for (let i = 0; i < located.length; i += LOCATED_STRIDE) {
				const [start, length, value] = located.subarray(i);
				if (value !== ABSENT) continue;
				const part = sums.subarray(start! - block, start! - block + length!);
				this.#secondBytes += length! * BLOCK_SIZE;
				this.#unknownBytes += part.reduce((unknown, sum) => unknown + (sum === 0 ? BLOCK_SIZE : 0), 0);
				const bytes = new Uint8Array(length! * BLOCK_SIZE);
				const readable = await second.read(byteOffset(start! * BLOCK_SIZE), bytes).then(
					() => true,
					(error: unknown) => this.#tellUnreadable(error, start!, "second-image"),
				);
				if (readable) this.#compare(bytes, start!, part, "second-image");
			}
		} finally {
			await plane.ask("releaseView", view.id);
		}
	}

	async snapshot(name: string, size: number): Promise<void> {
		const { plane } = this.#parts;
		const kept = await plane.ask("locateInSnapshot", { name, block: 0, count: size / BLOCK_SIZE, own: true });
		for (let i = 0; i < kept.length; i += SNAPSHOT_STRIDE) {
			const [start, length, fd, at] = kept.subarray(i);
			if (fd === IN_NONE || fd === IN_ZEROS) continue;
			for (let from = 0; from < length!; from += BLOCKS_AT_ONCE) {
				const block = start! + from;
				const count = Math.min(BLOCKS_AT_ONCE, length! - from);
				const bytes = new Uint8Array(count * BLOCK_SIZE);
				await readFully(fd!, at! + from * BLOCK_SIZE, bytes);
				this.#compare(bytes, block, await plane.ask("snapshotSums", { name, block, count }), `snapshot ${name}`);
				this.#snapshotBytes += bytes.length;
				await this.#pace(bytes.length, `checking snapshot ${name}`);
			}
		}
	}

	#compare(bytes: Uint8Array, block: number, sums: Uint32Array, where: RottenIn): void {
		for (const [i, sum] of sums.entries())
			if (sum !== 0 && crc32(bytes.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE)) !== sum)
				this.#rotten.push({ block: block + i, where });
	}

	/** A block that the storage refuses to give is as good as a rotten one. */
	#tellUnreadable(error: unknown, block: number, where: RottenIn): false {
		if (!isVmsweepError(error, "IO")) throw error;
		this.#rotten.push({ block, where });
		return false;
	}

	async #pace(bytes: number, step: string): Promise<void> {
		const { bytesPerSecond = Number.POSITIVE_INFINITY, onProgress, signal } = this.#options;
		this.#paceBytes += bytes;
		onProgress?.({ step, done: this.#paceBytes, total: null });
		await checkpoint(signal, "the check was stopped; what it had found until then is not told");
		const early = (this.#paceBytes / bytesPerSecond) * 1000 - (performance.now() - this.#paceStart);
		if (early > 0) await new Promise((resolve) => setTimeout(resolve, Math.min(early, 1000)));
	}
}
