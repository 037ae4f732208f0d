// Unpacking compressed clusters with Node's zlib, never to more than a cluster.

import { promisify } from "node:util";
import { constants, inflateRaw, inflateRawSync, zstdDecompress, zstdDecompressSync } from "node:zlib";
import type { Decompress } from "../../core/images/qcow2/disk.ts";
import type { Qcow2Header } from "../../core/images/qcow2/header.ts";
import { zstdFrameLength } from "../../core/images/qcow2/zstd-frame.ts";

const inflateRawAsync = promisify<Uint8Array, object, Uint8Array>(inflateRaw);
const zstdDecompressAsync = promisify<Uint8Array, object, Uint8Array>(zstdDecompress);

/** On Node's thread pool. What follows the packed data in its last sector is ignored. */
export const unpack: Decompress = async (compression, packed, lengthMax) => {
	if (compression === "deflate") return await inflateRawAsync(packed, deflateOptions(lengthMax));
	return await zstdDecompressAsync(zstdFrame(packed), { maxOutputLength: lengthMax });
};

/** The same in this thread. */
export function unpackSync(compression: Qcow2Header["compression"], packed: Uint8Array, lengthMax: number): Uint8Array {
	if (compression === "deflate") return inflateRawSync(packed, deflateOptions(lengthMax));
	return zstdDecompressSync(zstdFrame(packed), { maxOutputLength: lengthMax });
}

const deflateOptions = (lengthMax: number): { readonly finishFlush: number; readonly maxOutputLength: number } => ({
	finishFlush: constants.Z_SYNC_FLUSH,
	maxOutputLength: lengthMax,
});

const zstdFrame = (packed: Uint8Array): Uint8Array => packed.subarray(0, zstdFrameLength(packed) ?? 0);
