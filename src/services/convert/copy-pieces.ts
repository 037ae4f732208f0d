// Copying pieces of a disk image into a target, several at once.
//
//   pieces ─► cut to 1 MiB ─┬─► read ─► which 4 KiB blocks hold something? ─► write
//                           ├─► read ─► …
//                           └─► …            each worker has one buffer, so memory is bounded
//
// Reads and writes run on Node's threads, so two or more under way keep the host's storage and both sides busy.

import type { DiskImage } from "../../adapters/images/disk-image.ts";
import { byteOffset } from "../../foundations/units.ts";
import type { ConvertTarget, Piece } from "./target.ts";

const WORKERS = 8;
/** Longest piece that is read at once, in bytes; a multiple of every granule. */
const PIECE_BYTES = 2 * 1024 * 1024;

/**
 * Copies all pieces; returns how many bytes were written. `onPiece` is called after each. Throws what reading, writing
 * and `pieces` throw, when nothing is under way any more.
 */
export async function copyPieces(
	image: DiskImage,
	pieces: AsyncIterable<Piece>,
	target: ConvertTarget,
	onPiece: () => void,
): Promise<number> {
	const queue = shortPieces(pieces);
	let copied = 0;
	const worker = async (): Promise<void> => {
		const buffer = new Uint8Array(PIECE_BYTES);
		try {
			for (let next = await queue.next(); next.done !== true; next = await queue.next()) {
				const { start, end } = next.value;
				const bytes = buffer.subarray(0, end - start);
				await image.read(byteOffset(start), bytes);
				const written = await target.write(start, bytes);
				copied += written; // not in one line with the await: other workers count meanwhile
				onPiece();
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

/** No piece crosses a multiple of PIECE_BYTES, so none is cut inside of a granule. */
async function* shortPieces(pieces: AsyncIterable<Piece>): AsyncGenerator<Piece, undefined> {
	for await (const { start, end } of pieces)
		for (let at = start; at < end; ) {
			const stop = Math.min(end, (Math.floor(at / PIECE_BYTES) + 1) * PIECE_BYTES);
			yield { start: at, end: stop };
			at = stop;
		}
}
