// Scrub: reads everything that a disk holds again and compares it with the checksums that it was written with.
//
//   first image    its live blocks, segment by segment, by the data plane in small pieces
//   second image   the blocks that are read from there and of which vmsweep knows the checksum
//   snapshots      what each one kept, and what it reads from the second image although the disk doesn't any more
//
// Runs beside the VM: it takes turns with the cleaner, and no more bytes per second than it is allowed.

import { setTimeout as delay } from "node:timers/promises";
import type { SecondImage } from "../adapters/images/second-image.ts";
import {
	LOCATED_AT_ONCE,
	type LocatedRun,
	type SnapshotRun,
	unpackLocated,
	unpackSnapshotRuns,
} from "../adapters/plane/located.ts";
import { IN_NONE, IN_NOTHING, IN_SECOND, IN_ZEROS, type PlanePort } from "../adapters/plane/messages.ts";
import { type BlockRun, intersect, piecesOf, unpackRuns } from "../core/cleaner/runs.ts";
import { ABSENT } from "../core/log/first-image.ts";
import { isVmsweepError } from "../foundations/errors.ts";
import type { ByteSource } from "../foundations/source.ts";
import { BLOCK_SIZE, divCeil } from "../foundations/units.ts";
import { heldBlocks } from "./clean/held-blocks.ts";
import { checkpoint, type LongRunning } from "./progress.ts";
import { RateLimit } from "./rate-limit.ts";
import { readFully, readSome } from "./verified-read.ts";

/** Blocks read at once: 1 MiB. */
const BLOCKS_AT_ONCE = 256;
const SECOND_STEP = "checking the second image";
const STOPPED = "the check was stopped; what it had found until then is not told";

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
	readonly #limit: RateLimit;
	#doneBytes = 0;

	constructor(parts: ScrubParts, options: ScrubOptions) {
		this.#parts = parts;
		this.#options = options;
		this.#limit = new RateLimit(options.bytesPerSecond ?? Number.POSITIVE_INFINITY);
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
		const { plane, second } = this.#parts;
		// Where a checksum is known the block must be there, whether the image has something in its place or not.
		for (let from = 0; from >= 0; ) {
			const { runs, next } = await plane.ask("knownSums", { from });
			for (const run of unpackRuns(runs)) await this.#secondRun(run, true);
			await this.#pace(0, SECOND_STEP);
			from = next;
		}
		const all = { block: 0, count: divCeil(second.size, BLOCK_SIZE) };
		for (const step of piecesOf(all, LOCATED_AT_ONCE)) {
			for await (const run of heldBlocks(second.held, second.size, step)) await this.#secondRun(run, false);
			await this.#pace(0, SECOND_STEP);
		}
	}

	async #secondRun(run: BlockRun, isKnown: boolean): Promise<void> {
		for (const piece of piecesOf(run, BLOCKS_AT_ONCE))
			await this.#pace(await this.#parts.exclusive(() => this.#secondPiece(piece, isKnown)), SECOND_STEP);
	}

	/**
	 * Reads blocks that the disk reads from the second image, all others may have any content there: those with a known
	 * checksum, or those without one. Returns the bytes.
	 */
	async #secondPiece({ block, count }: BlockRun, isKnown: boolean): Promise<number> {
		const { plane, second } = this.#parts;
		const sums = await plane.ask("secondSums", { block, count });
		let bytes = 0;
		for (const { block: start, count: length, value } of await this.#locate(block, count)) {
			if (value !== ABSENT) continue;
			for (let from = start; from < start + length; from++) {
				let to = from;
				while (to < start + length && (sums[to - block] !== 0) === isKnown) to++;
				if (to === from) continue;
				bytes += await this.#read(second, from, sums.subarray(from - block, to - block), "second-image");
				from = to;
			}
		}
		this.#secondBytes += bytes;
		if (!isKnown) this.#unknownBytes += bytes;
		return bytes;
	}

	/** Where blocks of the disk are now. */
	async #locate(block: number, count: number): Promise<LocatedRun[]> {
		const { plane } = this.#parts;
		const view = await plane.ask("takeView");
		try {
			return unpackLocated(await plane.ask("locate", { view: view.id, block, count }));
		} finally {
			await plane.ask("releaseView", view.id);
		}
	}

	/** What a snapshot kept itself, and what it reads from the second image where the disk doesn't any more. */
	async snapshot(name: string, size: number): Promise<void> {
		const { exclusive } = this.#parts;
		for (const step of piecesOf({ block: 0, count: size / BLOCK_SIZE }, LOCATED_AT_ONCE)) {
			const placed = await exclusive(() => this.#placesIn(name, step));
			for (const run of placed)
				for (const piece of piecesOf(run, BLOCKS_AT_ONCE))
					await this.#pace(await exclusive(() => this.#snapshotPiece(name, piece)), `checking snapshot ${name}`);
			await checkpoint(this.#options.signal, STOPPED);
		}
	}

	async #snapshotPiece(name: string, piece: BlockRun): Promise<number> {
		const { plane, second } = this.#parts;
		const where = `snapshot ${name}` as const;
		let bytes = 0;
		// Looked up again: meanwhile it may have been deleted, or have kept more.
		for (const { block, count, fd, at } of await this.#placesIn(name, piece))
			if (fd === IN_NOTHING) for (let i = 0; i < count; i++) this.#rotten.push({ block: block + i, where });
			else {
				const own = { size: second.size, read: readOwn(fd, at - block * BLOCK_SIZE) };
				const sums = await plane.ask("snapshotSums", { name, block, count });
				bytes += await this.#read(fd === IN_SECOND ? second : own, block, sums, where);
			}
		this.#snapshotBytes += bytes;
		return bytes;
	}

	/** Nothing where the snapshot is gone. */
	async #placesIn(name: string, { block, count }: BlockRun): Promise<SnapshotRun[]> {
		const { plane } = this.#parts;
		const ask = async (own: boolean): Promise<SnapshotRun[]> =>
			unpackSnapshotRuns(await plane.ask("locateInSnapshot", { name, block, count, own }));
		try {
			const kept = (await ask(true)).filter(({ fd }) => fd !== IN_NONE && fd !== IN_ZEROS);
			const inSecond = (await ask(false)).filter(({ fd }) => fd === IN_SECOND);
			const logged = (await this.#locate(block, count)).filter(({ value }) => value !== ABSENT);
			return [...kept, ...inSecond.flatMap((run) => intersect(run, logged).map((part) => ({ ...run, ...part })))];
		} catch (error) {
			if (isVmsweepError(error, "FILE_NOT_FOUND")) return [];
			throw error;
		}
	}

	/** Reads blocks and compares them with their checksums, one each. Returns the bytes. */
	async #read(source: ByteSource, block: number, sums: Uint32Array, where: RottenIn): Promise<number> {
		const bytes = new Uint8Array(sums.length * BLOCK_SIZE);
		// A block that the storage refuses to give is as good as a rotten one.
		const { rotten, refused } = await readSome(source, block, bytes, sums);
		for (const i of [...rotten, ...refused]) this.#rotten.push({ block: block + i, where });
		return bytes.length;
	}

	async #pace(bytes: number, step: string): Promise<void> {
		const { onProgress, signal } = this.#options;
		this.#doneBytes += bytes;
		this.#limit.spend(bytes);
		onProgress?.({ step, done: this.#doneBytes, total: null });
		await checkpoint(signal, STOPPED);
		const { waitMs } = this.#limit;
		if (waitMs === 0) return;
		await delay(waitMs, undefined, { signal }).catch(() => {});
		await checkpoint(signal, STOPPED);
	}
}

const readOwn =
	(fd: number, from: number): ByteSource["read"] =>
	(at, into) =>
		readFully(fd, at + from, into);
