// A packer thread; see packers.ts.

import { parentPort } from "node:worker_threads";
import { zstdCompressSync } from "node:zlib";
import type { PackAnswer, PackRequest } from "./pack-messages.ts";

/** Room for what zstd adds to data that it can't make smaller, so that its output is one piece. In bytes. */
const SLACK = 1024;

parentPort!.on("message", ({ id, bytes, clusterSize }: PackRequest) => {
	// Told the size beforehand, zstd sets up tables for so much only, which otherwise takes most of its time.
	const options = { pledgedSrcSize: clusterSize, chunkSize: clusterSize + SLACK };
	const packed: (Uint8Array | null)[] = [];
	for (let at = 0; at < bytes.length; at += clusterSize) {
		const frame = zstdCompressSync(bytes.subarray(at, at + clusterSize), options);
		packed.push(frame.length < clusterSize ? new Uint8Array(frame) : null);
	}
	const answer: PackAnswer = { id, packed };
	parentPort!.postMessage(answer);
});
