// View source: a served disk at one instant, as the guest map's readers want it.
//
// The data plane says where the blocks of the view are; the bytes are read here, from both images' files, so that
// reading metadata never occupies the data plane. The view holds its segments, and the second image is changed
// only by the cleaner, which is who reads here: so what is read is that instant, however long it takes.

import {
	IN_NOTHING,
	IN_SECOND,
	IN_ZEROS,
	LOCATED_STRIDE,
	type PlanePort,
	SNAPSHOT_STRIDE,
} from "../adapters/plane/messages.ts";
import { ABSENT, ZERO } from "../core/log/first-image.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { type ByteSource, checkRange } from "../foundations/source.ts";
import { BLOCK_SIZE, type ByteCount, type ByteOffset, byteOffset } from "../foundations/units.ts";
import { readFully, verifyBlocks } from "./verified-read.ts";

/** Fills all of `into` from byte `at` of an open file. Throws IO. */
export type ReadAll = typeof readFully;

/** Where a run of blocks is: a byte of a file, the second image, or nowhere (zeros). */
interface PlacedBlocks {
	readonly block: number;
	readonly count: number;
	readonly fd: number;
	readonly at: number;
}

/** Reads a view that `plane` handed out; the caller releases the view afterwards. */
export const viewSource = (
	plane: PlanePort,
	{ id: view }: { readonly id: number },
	firstFd: number,
	second: ByteSource,
	size: ByteCount,
	readAll: ReadAll = readFully,
): ByteSource =>
	blockSource(
		size,
		second,
		readAll,
		async (block, count) => {
			const runs = await plane.ask("locate", { view, block, count });
			return Array.from({ length: runs.length / LOCATED_STRIDE }, (_, i) => {
				const [start, length, value, at] = runs.subarray(i * LOCATED_STRIDE);
				const fd = value === ZERO ? IN_ZEROS : value === ABSENT ? IN_SECOND : firstFd;
				return { block: start!, count: length!, fd, at: at! };
			});
		},
		(block, count) => plane.ask("sums", { view, block, count }),
	);

/** Reads a snapshot. */
export const snapshotSource = (
	plane: PlanePort,
	name: string,
	second: ByteSource,
	size: ByteCount,
	readAll: ReadAll = readFully,
): ByteSource =>
	blockSource(
		size,
		second,
		readAll,
		async (block, count) => {
			const runs = await plane.ask("locateInSnapshot", { name, block, count, own: false });
			return Array.from({ length: runs.length / SNAPSHOT_STRIDE }, (_, i) => {
				const [start, length, fd, at] = runs.subarray(i * SNAPSHOT_STRIDE);
				return { block: start!, count: length!, fd: fd!, at: at! };
			});
		},
		(block, count) => plane.ask("snapshotSums", { name, block, count }),
	);

/** Reads whole blocks, wherever they are, compares them with their checksums, and gives what was asked for. */
function blockSource(
	size: ByteCount,
	second: ByteSource,
	readAll: ReadAll,
	locate: (block: number, count: number) => Promise<readonly PlacedBlocks[]>,
	sumsOf: (block: number, count: number) => Promise<Uint32Array>,
): ByteSource {
	return {
		size,
		async read(at: ByteOffset, into: Uint8Array): Promise<void> {
			checkRange(size, at, into.length, "disk");
			if (into.length === 0) return;
			const first = Math.floor(at / BLOCK_SIZE);
			const count = Math.ceil((at + into.length) / BLOCK_SIZE) - first;
			const isWhole = at === first * BLOCK_SIZE && into.length === count * BLOCK_SIZE;
			const bytes = isWhole ? into : new Uint8Array(count * BLOCK_SIZE);
			// Asked at the same time: in between nothing may be moved from one place to another.
			const [placed, sums] = await Promise.all([locate(first, count), sumsOf(first, count)]);
			await Promise.all(
				placed.map(async ({ block, count: length, fd, at: from }) => {
					const part = (block - first) * BLOCK_SIZE;
					const target = bytes.subarray(part, part + length * BLOCK_SIZE);
					if (fd === IN_ZEROS) target.fill(0);
					else if (fd === IN_NOTHING)
						throw new VmsweepError("IO", `block ${block} was rotten when the snapshot was to keep it`);
					else if (fd === IN_SECOND) await second.read(byteOffset(block * BLOCK_SIZE), target);
					else await readAll(fd, from, target);
				}),
			);
			verifyBlocks(bytes, first, sums);
			if (!isWhole) into.set(bytes.subarray(at - first * BLOCK_SIZE, at - first * BLOCK_SIZE + into.length));
		},
	};
}
