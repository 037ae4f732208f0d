// Block status: the answer to "which parts of this range are holes?" for the metadata context `base:allocation`.
//
//   | chunk header 20 bytes | context id | length, status | length, status | … |
//
// The index describes the disk as runs of blocks; a client asks for any bytes. So runs are cut to the request, equal
// neighbours are merged, and the answer may stop early: a client asks again where it stops (NBD_REPLY_TYPE_BLOCK_STATUS).
//
// Invariants
//  - descriptors are consecutive from the request's offset, none is empty, and there is at least one
//  - nothing beyond the request's end is reported, which satisfies REQ_ONE and the plain form alike
//  - dropped, zeroed and never written blocks all read as zeros and hold no space: HOLE and ZERO together

import { assert } from "../../foundations/errors.ts";
import {
	allocation,
	BLOCK_DESCRIPTORS_MAX,
	BlockStatusDescriptor,
	BlockStatusHeader,
	chunk,
	replyFlag,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";

/** A run of the disk with one allocation. `end` is exclusive; both in bytes. */
export interface AllocationRun {
	readonly start: number;
	readonly end: number;
	readonly kind: "data" | "hole";
}

/** What is asked, and where the answer goes. */
export interface BlockStatusRequest {
	readonly cookie: bigint;
	/** First byte asked about. */
	readonly offset: number;
	/** Bytes asked about, at least 1. */
	readonly length: number;
	/** NBD_CMD_FLAG_REQ_ONE: exactly one descriptor. */
	readonly onlyOne: boolean;
	/** Id of the selected context. */
	readonly contextId: number;
}

/** Bytes that {@link encodeBlockStatus} may need for `descriptorsMax` descriptors. */
export const blockStatusBytesMax = (descriptorsMax: number): number =>
	StructuredReply.size + BlockStatusHeader.size + descriptorsMax * BlockStatusDescriptor.size;

/**
 * Writes one final BLOCK_STATUS chunk into `into` at `at` and returns the bytes written.
 *
 * `runs` are consecutive and the first one holds the request's offset; they are pulled only as far as needed, and
 * may end before the request does (at least one byte must be covered). At most `descriptorsMax` descriptors are
 * written, bounded by the room in `into` as well.
 */
export function encodeBlockStatus(
	request: BlockStatusRequest,
	runs: Iterable<AllocationRun>,
	into: DataView,
	at = 0,
	descriptorsMax: number = BLOCK_DESCRIPTORS_MAX,
): number {
	const room = Math.floor((into.byteLength - at - blockStatusBytesMax(0)) / BlockStatusDescriptor.size);
	const countMax = request.onlyOne ? 1 : Math.min(room, descriptorsMax, BLOCK_DESCRIPTORS_MAX);
	assert(room >= 1 && countMax >= 1, "block status: no room for a descriptor");
	assert(request.length >= 1 && request.length <= 0xffff_ffff, "block status: length out of range");

	const first = at + blockStatusBytesMax(0);
	let count = 0;
	for (const { length, status } of descriptors(request, runs)) {
		BlockStatusDescriptor.write.length(into, first + count * BlockStatusDescriptor.size, length);
		BlockStatusDescriptor.write.status(into, first + count * BlockStatusDescriptor.size, status);
		if (++count === countMax) break;
	}
	assert(count > 0, "block status: the runs do not reach the request");

	const length = BlockStatusHeader.size + count * BlockStatusDescriptor.size;
	const { cookie, contextId } = request;
	StructuredReply.put(into, at, {
		magic: STRUCTURED_REPLY_MAGIC,
		flags: replyFlag.DONE,
		type: chunk.BLOCK_STATUS,
		cookie,
		length,
	});
	BlockStatusHeader.write.contextId(into, at + StructuredReply.size, contextId);
	return StructuredReply.size + length;
}

/** Cuts the runs to the request and merges equal neighbours. */
function* descriptors(
	{ offset, length }: BlockStatusRequest,
	runs: Iterable<AllocationRun>,
): Generator<{ length: number; status: number }> {
	const end = offset + length;
	let at = offset;
	let pendingLength = 0;
	let pendingStatus = 0;
	for (const run of runs) {
		if (run.end <= at) continue;
		assert(run.start <= at, "block status: a gap between runs");
		const status = run.kind === "hole" ? allocation.HOLE | allocation.ZERO : 0;
		const runLength = Math.min(run.end, end) - at;
		if (pendingLength > 0 && status !== pendingStatus) {
			yield { length: pendingLength, status: pendingStatus };
			pendingLength = 0;
		}
		pendingStatus = status;
		pendingLength += runLength;
		at += runLength;
		if (at === end) break;
	}
	if (pendingLength > 0) yield { length: pendingLength, status: pendingStatus };
}
