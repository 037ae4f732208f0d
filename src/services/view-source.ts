// View source: a served disk at one instant, as the guest map's readers want it.
//
// The data plane says where the blocks of the view are; the bytes are read here, from both images' files, so that
// reading metadata never occupies the data plane. The view holds its segments, and the second image is changed
// only by the cleaner, which is who reads here: so what is read is that instant, however long it takes.

import { type SnapshotRun, unpackLocated, unpackSnapshotRuns } from "../adapters/plane/located.ts";
import { IN_NOTHING, IN_SECOND, IN_ZEROS, type PlanePort } from "../adapters/plane/messages.ts";
import { ABSENT, ZERO } from "../core/log/first-image.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { type ByteSource, checkRange } from "../foundations/source.ts";
import { BLOCK_SIZE, type ByteCount, type ByteOffset, byteOffset } from "../foundations/units.ts";
import { readFully, verifyBlocks } from "./verified-read.ts";

/** Fills all of `into` from byte `at` of an open file. Throws IO. */
export type ReadAll = typeof readFully;

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
			const runs = unpackLocated(await plane.ask("locate", { view, block, count }));
			return runs.map(({ value, ...run }) => {
				const fd = value === ZERO ? IN_ZEROS : value === ABSENT ? IN_SECOND : firstFd;
				return { ...run, fd };
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
		async (block, count) => unpackSnapshotRuns(await plane.ask("locateInSnapshot", { name, block, count, own: false })),
		(block, count) => plane.ask("snapshotSums", { name, block, count }),
	);

/** Reads whole blocks, wherever they are, compares them with their checksums, and gives what was asked for. */
function blockSource(
	size: ByteCount,
	second: ByteSource,
	readAll: ReadAll,
	locate: (block: number, count: number) => Promise<readonly SnapshotRun[]>,
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
