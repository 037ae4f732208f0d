// Reads many small blocks of a volume with few large requests: neighbours are read together, several at once.

import type { ByteSource } from "../../../foundations/source.ts";
import { byteOffset } from "../../../foundations/units.ts";

const MAX_REQUEST_BYTES = 1 << 20;
/** Requests under way at once, so that a disk with latency is kept busy; the memory held is this many requests. */
const MAX_PARALLEL = 8;

/**
 * Reads the file-system blocks `blocks` (any order, repeats allowed) and calls `visit` once per entry with its index in
 * `blocks` and the block's bytes, which are valid only during the call. The order of calls is not defined.
 */
export async function readBlocks(
	volume: ByteSource,
	blockSize: number,
	blocks: readonly number[],
	visit: (index: number, bytes: Uint8Array) => void,
): Promise<void> {
	const order = blocks.map((_, index) => index).sort((a, b) => blocks[a]! - blocks[b]!);
	const maxBlocks = Math.max(1, Math.floor(MAX_REQUEST_BYTES / blockSize));
	const requests: { first: number; count: number; indexes: number[] }[] = [];
	for (const index of order) {
		const block = blocks[index]!;
		const last = requests.at(-1);
		if (last !== undefined && block <= last.first + last.count && block - last.first < maxBlocks) {
			last.count = Math.max(last.count, block - last.first + 1);
			last.indexes.push(index);
		} else requests.push({ first: block, count: 1, indexes: [index] });
	}
	let next = 0;
	const worker = async (): Promise<void> => {
		while (next < requests.length) {
			const request = requests[next++]!;
			const bytes = new Uint8Array(request.count * blockSize);
			await volume.read(byteOffset(request.first * blockSize), bytes);
			for (const index of request.indexes) {
				const at = (blocks[index]! - request.first) * blockSize;
				visit(index, bytes.subarray(at, at + blockSize));
			}
		}
	};
	await Promise.all(Array.from({ length: Math.min(MAX_PARALLEL, requests.length) }, worker));
}
