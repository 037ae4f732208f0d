// View source: a served disk at one instant, as the guest map's readers want it.
//
// The data plane says where the blocks of the view are; the bytes are read here, from both images' files, so that
// reading metadata never occupies the data plane. The view holds its segments, and the second image is changed
// only by the cleaner, which is who reads here: so what is read is that instant, however long it takes.

import { read } from "node:fs";
import { promisify } from "node:util";
import type { DataPlane } from "../adapters/plane/data-plane.ts";
import { LOCATED_STRIDE, type ViewHandle } from "../adapters/plane/messages.ts";
import { ABSENT, ZERO } from "../core/log/first-image.ts";
import { VmsweepError } from "../foundations/errors.ts";
import { type ByteSource, checkRange } from "../foundations/source.ts";
import { BLOCK_SIZE, type ByteCount, type ByteOffset, byteOffset } from "../foundations/units.ts";

/** Reads a view that `plane` handed out; the caller releases the view afterwards. */
export function viewSource(
	plane: DataPlane,
	view: ViewHandle,
	firstFd: number,
	second: ByteSource,
	size: ByteCount,
): ByteSource {
	return {
		size,
		async read(at: ByteOffset, into: Uint8Array): Promise<void> {
			checkRange(size, at, into.length, "disk");
			if (into.length === 0) return;
			const firstBlock = Math.floor(at / BLOCK_SIZE);
			const count = Math.ceil((at + into.length) / BLOCK_SIZE) - firstBlock;
			const runs = await plane.ask("locate", { view: view.id, block: firstBlock, count });
			const reads: Promise<void>[] = [];
			for (let run = 0; run < runs.length; run += LOCATED_STRIDE) {
				const start = runs[run]! * BLOCK_SIZE;
				const from = Math.max(start, at);
				const to = Math.min(start + runs[run + 1]! * BLOCK_SIZE, at + into.length);
				const target = into.subarray(from - at, to - at);
				const value = runs[run + 2]!;
				if (value === ZERO) target.fill(0);
				else if (value === ABSENT) reads.push(second.read(byteOffset(from), target));
				else reads.push(readFully(firstFd, runs[run + 3]! + from - start, target));
			}
			await Promise.all(reads);
		},
	};
}

const readFile = promisify(read);

async function readFully(fd: number, at: number, into: Uint8Array): Promise<void> {
	for (let done = 0; done < into.length; ) {
		const { bytesRead } = await readFile(fd, into, done, into.length - done, at + done);
		if (bytesRead === 0)
			throw new VmsweepError("IO", "the first image ends inside a segment. Check the host's storage.");
		done += bytesRead;
	}
}
