// Block status: the answer to "what is this range?" for one metadata context.
//
//   structured:  | chunk header 20 bytes | context id        | length, status | length, status | … |   32 bits each
//   extended:    | chunk header 32 bytes | context id, count | length, status | length, status | … |   64 bits each
//
// The disk is described as runs; a client asks for any bytes. So runs are cut to the request, equal neighbours are
// merged, and the answer may stop early: a client asks again where it stops (NBD_REPLY_TYPE_BLOCK_STATUS).
//
// Invariants
//  - descriptors are consecutive from the request's offset, none is empty, and there is at least one
//  - nothing beyond the request's end is reported, which satisfies REQ_ONE and the plain form alike

import { assert } from "../../foundations/errors.ts";
import {
	BLOCK_DESCRIPTORS_MAX,
	BlockStatusDescriptor,
	BlockStatusDescriptorExt,
	BlockStatusHeader,
	BlockStatusHeaderExt,
	chunk,
	ExtendedReply,
} from "./protocol.ts";
import type { ReplyTo, ReplyWriter } from "./replies.ts";

/** A run of the disk with one status. `end` is exclusive; both in bytes. */
export interface StatusRun {
	readonly start: number;
	readonly end: number;
	/** The context's own flags. */
	readonly status: number;
}

/** What is asked. */
export interface BlockStatusRequest {
	/** First byte asked about. */
	readonly offset: number;
	/** Bytes asked about, at least 1; with structured headers less than 4 GiB. */
	readonly length: number;
	/** NBD_CMD_FLAG_REQ_ONE: exactly one descriptor. */
	readonly onlyOne: boolean;
}

/** Bytes that {@link encodeBlockStatus} may need for `descriptorsMax` descriptors, in either form. */
export const blockStatusBytesMax = (descriptorsMax: number): number =>
	ExtendedReply.size + BlockStatusHeaderExt.size + descriptorsMax * BlockStatusDescriptorExt.size;

/**
 * Writes one context's chunk into `into` at `at` and returns the bytes written; `last` ends the reply.
 *
 * `runs` are consecutive and the first one holds the request's offset; they are pulled only as far as needed, and
 * may end before the request does (at least one byte must be covered). At most `descriptorsMax` descriptors are
 * written; there is room for them.
 */
export function encodeBlockStatus(
	replies: ReplyWriter,
	to: ReplyTo,
	request: BlockStatusRequest,
	context: { readonly id: number; readonly last: boolean },
	runs: Iterable<StatusRun>,
	into: DataView,
	at: number,
	descriptorsMax: number = BLOCK_DESCRIPTORS_MAX,
): number {
	const isExtended = replies.form === "extended";
	const header = isExtended ? BlockStatusHeaderExt : BlockStatusHeader;
	const descriptor = isExtended ? BlockStatusDescriptorExt : BlockStatusDescriptor;
	const countMax = request.onlyOne ? 1 : Math.min(descriptorsMax, BLOCK_DESCRIPTORS_MAX);
	assert(countMax >= 1, "block status: no room for a descriptor");
	assert(request.length >= 1 && (isExtended || request.length <= 0xffff_ffff), "block status: length out of range");

	const payload = at + replies.headerBytes;
	let count = 0;
	for (const { length, status } of descriptors(request, runs)) {
		const place = payload + header.size + count * descriptor.size;
		descriptor.write.length(into, place, length);
		descriptor.write.status(into, place, status);
		if (++count === countMax) break;
	}
	assert(count > 0, "block status: the runs do not reach the request");

	const length = header.size + count * descriptor.size;
	const type = isExtended ? chunk.BLOCK_STATUS_EXT : chunk.BLOCK_STATUS;
	replies.putChunk(into, at, to, type, length, context.last);
	header.write.contextId(into, payload, context.id);
	if (isExtended) BlockStatusHeaderExt.write.count(into, payload, count);
	return replies.headerBytes + length;
}

/** Cuts the runs to the request and merges equal neighbours. */
function* descriptors(
	{ offset, length }: BlockStatusRequest,
	runs: Iterable<StatusRun>,
): Generator<{ length: number; status: number }> {
	const end = offset + length;
	let at = offset;
	let pendingLength = 0;
	let pendingStatus = 0;
	for (const run of runs) {
		if (run.end <= at) continue;
		assert(run.start <= at, "block status: a gap between runs");
		const runLength = Math.min(run.end, end) - at;
		if (pendingLength > 0 && run.status !== pendingStatus) {
			yield { length: pendingLength, status: pendingStatus };
			pendingLength = 0;
		}
		pendingStatus = run.status;
		pendingLength += runLength;
		at += runLength;
		if (at === end) break;
	}
	if (pendingLength > 0) yield { length: pendingLength, status: pendingStatus };
}
