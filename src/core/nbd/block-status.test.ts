import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { viewOf } from "../../foundations/struct.ts";
import { type AllocationRun, type BlockStatusRequest, blockStatusBytesMax, encodeBlockStatus } from "./block-status.ts";
import {
	BlockStatusDescriptor,
	BlockStatusHeader,
	chunk,
	replyFlag,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";

const request: BlockStatusRequest = {
	cookie: 0x1234_5678_9abc_def0n,
	offset: 0,
	length: 1,
	onlyOne: false,
	contextId: 7,
};

/** Encodes and takes apart again; checks the headers on the way. */
function ask(
	part: Partial<BlockStatusRequest>,
	runs: readonly AllocationRun[],
	descriptorsMax = 100,
): [length: number, status: number][] {
	const into = new Uint8Array(3 + blockStatusBytesMax(100));
	const view = viewOf(into);
	const written = encodeBlockStatus({ ...request, ...part }, runs, view, 3, descriptorsMax);
	const { length, ...header } = StructuredReply.at(view, 3);
	assert.deepEqual(header, {
		magic: STRUCTURED_REPLY_MAGIC,
		flags: replyFlag.DONE,
		type: chunk.BLOCK_STATUS,
		cookie: request.cookie,
	});
	assert.equal(written, StructuredReply.size + length);
	assert.equal(BlockStatusHeader.read.contextId(view, 3 + StructuredReply.size), 7);
	const found: [number, number][] = [];
	for (let at = 3 + blockStatusBytesMax(0); at < 3 + written; at += BlockStatusDescriptor.size) {
		const descriptor = BlockStatusDescriptor.at(view, at);
		found.push([descriptor.length, descriptor.status]);
	}
	return found;
}

const run = (start: number, end: number, kind: AllocationRun["kind"]): AllocationRun => ({ start, end, kind });
const disk = [run(0, 4096, "data"), run(4096, 8192, "hole"), run(8192, 12288, "hole"), run(12288, 20480, "data")];

test("runs are cut to the request and equal neighbours merged", () => {
	assert.deepEqual(ask({ offset: 0, length: 20480 }, disk), [
		[4096, 0],
		[8192, 3],
		[8192, 0],
	]);
	assert.deepEqual(ask({ offset: 100, length: 5000 }, disk), [
		[3996, 0],
		[1004, 3],
	]);
	assert.deepEqual(ask({ offset: 5000, length: 1 }, disk), [[1, 3]]);
});

test("REQ_ONE gives one merged descriptor within the request", () => {
	assert.deepEqual(ask({ offset: 4096, length: 16384, onlyOne: true }, disk), [[8192, 3]]);
	assert.deepEqual(ask({ offset: 4096, length: 5000, onlyOne: true }, disk), [[5000, 3]]);
});

test("an answer may stop early, at a descriptor's end or the runs' end", () => {
	assert.deepEqual(ask({ offset: 0, length: 20480 }, disk, 2), [
		[4096, 0],
		[8192, 3],
	]);
	assert.deepEqual(ask({ offset: 0, length: 1 << 20 }, disk), [
		[4096, 0],
		[8192, 3],
		[8192, 0],
	]);
});

test("descriptors agree with the disk byte by byte", () => {
	const anyDisk = fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.boolean()), { minLength: 1, maxLength: 20 });
	fc.assert(
		fc.property(
			anyDisk,
			fc.nat(200),
			fc.integer({ min: 1, max: 200 }),
			fc.boolean(),
			(pieces, from, length, onlyOne) => {
				let end = 0;
				const runs = pieces.map(([size, hole]) => {
					end += size;
					return run(end - size, end, hole ? "hole" : "data");
				});
				const model = runs.flatMap((one) => Array<number>(one.end - one.start).fill(one.kind === "hole" ? 3 : 0));
				const offset = from % end;
				const found = ask({ offset, length, onlyOne }, runs);
				const bytes = found.flatMap(([size, status]) => Array<number>(size).fill(status));
				assert.deepEqual(bytes, model.slice(offset, offset + bytes.length));
				assert.ok(found.every(([size], index) => size > 0 && found[index + 1]?.[1] !== found[index]?.[1]));
				assert.equal(onlyOne ? found.length : bytes.length, onlyOne ? 1 : Math.min(length, end - offset));
			},
		),
	);
});
