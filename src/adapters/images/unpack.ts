// Unpacking compressed clusters with Node's zlib, on its thread pool, never to more than a cluster.

import { promisify } from "node:util";
import { constants, inflateRaw, zstdDecompress } from "node:zlib";
import type { Decompress } from "../../core/images/qcow2/disk.ts";
import { zstdFrameLength } from "../../core/images/qcow2/zstd-frame.ts";

const inflateRawAsync = promisify<Uint8Array, object, Uint8Array>(inflateRaw);
const zstdDecompressAsync = promisify<Uint8Array, object, Uint8Array>(zstdDecompress);

/** What follows the packed data in its last sector is ignored. */
export const unpack: Decompress = async (compression, packed, lengthMax) => {
	if (compression === "deflate")
		return await inflateRawAsync(packed, { finishFlush: constants.Z_SYNC_FLUSH, maxOutputLength: lengthMax });
	const frame = packed.subarray(0, zstdFrameLength(packed) ?? 0);
	return await zstdDecompressAsync(frame, { maxOutputLength: lengthMax });
};
