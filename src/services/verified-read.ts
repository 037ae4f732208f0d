// Verified read: blocks read by the control plane, compared with their checksums as the data plane does for clients.
// A file system's metadata decides what is dropped, so a rotten bit in it must not be believed.

import { read } from "node:fs";
import { promisify } from "node:util";
import { crc32 } from "node:zlib";
import { ioError } from "../adapters/images/write-run.ts";
import { isVmsweepError, VmsweepError } from "../foundations/errors.ts";
import type { ByteSource } from "../foundations/source.ts";
import { BLOCK_SIZE, byteOffset, formatBytes } from "../foundations/units.ts";

/** Fills `into` with whole blocks from `block` on. `sums`: one per block, 0 where nothing is known. Throws IO. */
export async function readVerified(
	source: ByteSource,
	block: number,
	into: Uint8Array,
	sums: Uint32Array,
): Promise<void> {
	await source.read(byteOffset(block * BLOCK_SIZE), into);
	verifyBlocks(into, block, sums);
}

/** Blocks that could not be had, counted from the first of a read. */
export interface FailedBlocks {
	/** They were read, and aren't what was written. */
	readonly rotten: ReadonlySet<number>;
	/** The storage refused to give them. */
	readonly refused: ReadonlySet<number>;
}

/**
 * As `readVerified`, but goes on past blocks that can't be had; their bytes are worth nothing. Throws what is no failure
 * of the storage.
 */
export async function readSome(
	source: ByteSource,
	block: number,
	into: Uint8Array,
	sums: Uint32Array,
): Promise<FailedBlocks> {
	const rotten = new Set<number>();
	const refused = new Set<number>();
	const failed = { rotten, refused };
	const isWhole = await readVerified(source, block, into, sums).then(
		() => true,
		(error: unknown) => {
			if (!isVmsweepError(error, "IO")) throw error;
			return false;
		},
	);
	if (isWhole) return failed;
	for (let i = 0; i < sums.length; i++) {
		const bytes = into.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
		try {
			await source.read(byteOffset((block + i) * BLOCK_SIZE), bytes);
		} catch (error) {
			if (!isVmsweepError(error, "IO")) throw error;
			refused.add(i);
			continue;
		}
		if (sums[i] !== 0 && crc32(bytes) !== sums[i]) rotten.add(i);
	}
	return failed;
}

/** Compares whole blocks with their checksums. Throws IO at the first that doesn't match. */
export function verifyBlocks(bytes: Uint8Array, block: number, sums: Uint32Array): void {
	for (const [i, sum] of sums.entries()) {
		if (sum === 0 || crc32(bytes.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE)) === sum) continue;
		throw new VmsweepError(
			"IO",
			`the block at ${formatBytes((block + i) * BLOCK_SIZE)} of the disk (byte ${(block + i) * BLOCK_SIZE}) doesn't match its checksum: its storage has damaged it. Find all such blocks with vmsweep check.`,
		);
	}
}

const readFile = promisify(read);

/** Fills `into` from a file of the disk. Throws IO where it ends before. */
export async function readFully(fd: number, at: number, into: Uint8Array): Promise<void> {
	for (let done = 0; done < into.length; ) {
		const { bytesRead } = await readFile(fd, into, done, into.length - done, at + done).catch((error: unknown) => {
			throw ioError(error, `reading byte ${at + done} of a log of the disk failed`);
		});
		if (bytesRead === 0)
			throw new VmsweepError("IO", "the first image ends inside a segment. Check the host's storage.");
		done += bytesRead;
	}
}
