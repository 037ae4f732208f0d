// Zeros: what is left out of a copy because it reads as zeros anyway.

import type { Piece } from "./target.ts";

/** Smallest run of zeros that is left out, in bytes: what hosts allocate. */
const ZERO_BLOCK = 4096;
const zeros = Buffer.alloc(ZERO_BLOCK);

/**
 * The runs of blocks in `bytes` that don't read as zeros, as positions in `bytes`. `blockSize` is a multiple of 4 KiB.
 */
export function* runsWithContent(bytes: Uint8Array, blockSize: number = ZERO_BLOCK): Generator<Piece> {
	let start = -1;
	for (let at = 0; at < bytes.length; at += blockSize) {
		const isEmpty = isZero(bytes, at, Math.min(at + blockSize, bytes.length));
		if (!isEmpty && start < 0) start = at;
		if (!isEmpty || start < 0) continue;
		yield { start, end: at };
		start = -1;
	}
	if (start >= 0) yield { start, end: bytes.length };
}

/** Most blocks show by their first bytes that they hold something. */
function isZero(bytes: Uint8Array, from: number, to: number): boolean {
	for (let at = from; at < to; at += ZERO_BLOCK) {
		if (bytes[at] !== 0) return false;
		const block = bytes.subarray(at, Math.min(at + ZERO_BLOCK, to));
		if (Buffer.compare(block, block.length === ZERO_BLOCK ? zeros : zeros.subarray(0, block.length)) !== 0)
			return false;
	}
	return true;
}
