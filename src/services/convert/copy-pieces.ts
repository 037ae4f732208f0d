// Copying pieces of a disk image into a target, several at once.
//
//   pieces ─► cut to 2 MiB ─┬─► read ─► zero what is free in it ─► write what holds something
//                           ├─► read ─► …
//                           └─► …            each worker has one buffer, so memory is bounded
//
// Reads and writes run on Node's threads, so two or more under way keep the host's storage and both sides busy.
//
// A piece consists of the target's granules. Of one that is used in part only, the free rest holds what the guest
// deleted: zeroed, it takes no space, packs to nothing, and doesn't get into the copy.

import type { DiskImage } from "../../adapters/images/disk-image.ts";
import { byteOffset } from "../../foundations/units.ts";
import type { ConvertTarget, Piece } from "./target.ts";

const WORKERS = 8;
/** Longest piece that is read at once, in bytes; a multiple of every granule. */
const PIECE_BYTES = 2 * 1024 * 1024;

export interface Copying {
	/** In order. */
	readonly pieces: AsyncIterable<Piece>;
	/** The runs in order, which don't overlap, that are to read as zeros in the target. */
	readonly free: Iterable<Piece>;
	/** Called after each copy with its length, at most 2 MiB. What it throws ends the copying. */
	onCopied(bytes: number): void;
}

/**
 * Copies all pieces; returns how many bytes were written. Throws what reading, writing, `pieces` and `onCopied` throw,
 * when nothing is under way any more.
 */
export async function copyPieces(image: DiskImage, target: ConvertTarget, copying: Copying): Promise<number> {
	const queue = shortPieces(copying);
	let copied = 0;
	const worker = async (): Promise<void> => {
		const buffer = new Uint8Array(PIECE_BYTES);
		try {
			for (let next = await queue.next(); next.done !== true; next = await queue.next()) {
				const { start, end, free } = next.value;
				const bytes = buffer.subarray(0, end - start);
				await image.read(byteOffset(start), bytes);
				for (const gap of free) bytes.fill(0, gap.start - start, gap.end - start);
				const written = await target.write(start, bytes);
				copied += written; // not in one line with the await: other workers count meanwhile
				copying.onCopied(end - start);
			}
		} catch (error) {
			await queue.return(undefined); // the other workers end, too
			throw error;
		}
	};
	const results = await Promise.allSettled(Array.from({ length: WORKERS }, worker));
	const failed = results.find((result) => result.status === "rejected");
	if (failed !== undefined) throw failed.reason;
	return copied;
}

/** A piece, and what is free in it. */
interface ShortPiece extends Piece {
	readonly free: readonly Piece[];
}

/** No piece crosses a multiple of PIECE_BYTES, so none is cut inside of a granule. */
async function* shortPieces({ pieces, free }: Copying): AsyncGenerator<ShortPiece, undefined> {
	const freeRuns = new RunsWithin(free);
	for await (const { start, end } of pieces)
		for (let at = start; at < end; ) {
			const stop = Math.min(end, (Math.floor(at / PIECE_BYTES) + 1) * PIECE_BYTES);
			yield { start: at, end: stop, free: freeRuns.within(at, stop) };
			at = stop;
		}
}

/** Cuts what is asked for out of runs, both in order. */
class RunsWithin {
	readonly #runs: Iterator<Piece>;
	#run: Piece | undefined;

	constructor(runs: Iterable<Piece>) {
		this.#runs = runs[Symbol.iterator]();
		this.#advance();
	}

	within(start: number, end: number): Piece[] {
		const found: Piece[] = [];
		while (this.#run !== undefined && this.#run.start < end) {
			const cut = { start: Math.max(start, this.#run.start), end: Math.min(end, this.#run.end) };
			if (cut.start < cut.end) found.push(cut);
			if (this.#run.end > end) break; // the next piece may need it, too
			this.#advance();
		}
		return found;
	}

	#advance(): void {
		const next = this.#runs.next();
		this.#run = next.done === true ? undefined : next.value;
	}
}
