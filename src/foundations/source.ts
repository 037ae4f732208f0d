// What a guest-map reader reads from: a disk image, a volume inside one, a view of a served disk.

import { VmsweepError } from "./errors.ts";
import type { ByteCount, ByteOffset } from "./units.ts";
import { byteOffset } from "./units.ts";

/** Read-only random access to `size` bytes. Everything that a reader of the guest map may do to a disk. */
export interface ByteSource {
	readonly size: ByteCount;
	/** Fills all of `into`, or throws (OUT_OF_RANGE past the end, IO). Never returns short. Concurrent reads are fine. */
	read(at: ByteOffset, into: Uint8Array): Promise<void>;
}

/** Throws OUT_OF_RANGE unless `[at, at + length)` lies inside `size` bytes. */
export function checkRange(size: ByteCount, at: number, length: number, what: string): void {
	if (!(at >= 0 && length >= 0 && at + length <= size))
		throw new VmsweepError("OUT_OF_RANGE", `${what}: bytes ${at} to ${at + length} lie outside its ${size} bytes`);
}

/** A part of another source, as a source of its own: how a volume is cut out of a disk. */
export function slice(source: ByteSource, offset: ByteOffset, size: ByteCount): ByteSource {
	checkRange(source.size, offset, size, "slice");
	return {
		size,
		async read(at, into) {
			checkRange(size, at, into.length, "volume");
			await source.read(byteOffset(offset + at), into);
		},
	};
}

/** Counts what a reader reads, and stops it past `limit` bytes: how "metadata only" is kept against hostile images. */
export function metered(
	source: ByteSource,
	limit: ByteCount,
): ByteSource & { readonly bytesRead: number; readonly reads: number } {
	let bytesRead = 0;
	let reads = 0;
	return {
		size: source.size,
		get bytesRead() {
			return bytesRead;
		},
		get reads() {
			return reads;
		},
		async read(at, into) {
			bytesRead += into.length;
			reads++;
			if (bytesRead > limit)
				throw new VmsweepError(
					"READ_BUDGET",
					`the guest's metadata asks for more than ${limit} bytes to be read; the volume is kept whole`,
				);
			await source.read(at, into);
		},
	};
}

/** Reads `length` bytes at `at` into a new array. */
export async function readBytes(source: ByteSource, at: ByteOffset, length: number): Promise<Uint8Array> {
	const into = new Uint8Array(length);
	await source.read(at, into);
	return into;
}
