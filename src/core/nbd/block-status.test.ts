import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { viewOf } from "../../foundations/struct.ts";
import { type BlockStatusRequest, blockStatusBytesMax, encodeBlockStatus, type StatusRun } from "./block-status.ts";
import {
	BlockStatusDescriptor,
	BlockStatusDescriptorExt,
	BlockStatusHeader,
	BlockStatusHeaderExt,
	chunk,
	ExtendedReply,
	replyFlag,
	StructuredReply,
} from "./protocol.ts";
import { ReplyWriter } from "./replies.ts";

type Form = "structured" | "extended";
const to = { cookieHigh: 1, cookieLow: 2, offsetHigh: 3, offsetLow: 4 };

/** Encodes and takes apart again; checks the headers on the way. */
function ask(
	form: Form,
	part: Partial<BlockStatusRequest>,
	runs: readonly StatusRun[],
	descriptorsMax = 100,
): [length: number, status: number][] {
	const into = new Uint8Array(3 + blockStatusBytesMax(100));
	const view = viewOf(into);
	const request = { offset: 0, length: 1, onlyOne: false, ...part };
	const context = { id: 7, last: false };
	const written = encodeBlockStatus(new ReplyWriter(form), to, request, context, runs, view, 3, descriptorsMax);
	const isExtended = form === "extended";
	const reply = isExtended ? ExtendedReply.at(view, 3) : StructuredReply.at(view, 3);
	assert.equal(reply.type, isExtended ? chunk.BLOCK_STATUS_EXT : chunk.BLOCK_STATUS);
	assert.equal(reply.flags & replyFlag.DONE, 0);
	const headerBytes = isExtended ? ExtendedReply.size : StructuredReply.size;
	assert.equal(written, headerBytes + reply.length);
	const header = isExtended ? BlockStatusHeaderExt : BlockStatusHeader;
	const descriptor = isExtended ? BlockStatusDescriptorExt : BlockStatusDescriptor;
	assert.equal(header.read.contextId(view, 3 + headerBytes), 7);
	const found: [number, number][] = [];
	for (let at = 3 + headerBytes + header.size; at < 3 + written; at += descriptor.size) {
		const { length, status } = descriptor.at(view, at);
		found.push([length, status]);
	}
	if (isExtended) assert.equal(BlockStatusHeaderExt.read.count(view, 3 + headerBytes), found.length);
	return found;
}

const run = (start: number, end: number, status: number): StatusRun => ({ start, end, status });
const disk = [run(0, 4096, 0), run(4096, 8192, 3), run(8192, 12288, 3), run(12288, 20480, 0)];

for (const form of ["structured", "extended"] as const)
	describe(form, () => {
		test("runs are cut to the request and equal neighbours merged", () => {
			assert.deepEqual(ask(form, { offset: 0, length: 20480 }, disk), [
				[4096, 0],
				[8192, 3],
				[8192, 0],
			]);
			assert.deepEqual(ask(form, { offset: 100, length: 5000 }, disk), [
				[3996, 0],
				[1004, 3],
			]);
			assert.deepEqual(ask(form, { offset: 5000, length: 1 }, disk), [[1, 3]]);
		});

		test("REQ_ONE gives one merged descriptor within the request", () => {
			assert.deepEqual(ask(form, { offset: 4096, length: 16384, onlyOne: true }, disk), [[8192, 3]]);
			assert.deepEqual(ask(form, { offset: 4096, length: 5000, onlyOne: true }, disk), [[5000, 3]]);
		});

		test("an answer may stop early, at a descriptor's end or the runs' end", () => {
			assert.deepEqual(ask(form, { offset: 0, length: 20480 }, disk, 2), [
				[4096, 0],
				[8192, 3],
			]);
			assert.deepEqual(ask(form, { offset: 0, length: 1 << 20 }, disk), [
				[4096, 0],
				[8192, 3],
				[8192, 0],
			]);
		});

		test("descriptors agree with the disk byte by byte", () => {
			const anyDisk = fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.nat(2)), { minLength: 1, maxLength: 20 });
			fc.assert(
				fc.property(
					anyDisk,
					fc.nat(200),
					fc.integer({ min: 1, max: 200 }),
					fc.boolean(),
					(pieces, from, length, onlyOne) => {
						let end = 0;
						const runs = pieces.map(([size, status]) => {
							end += size;
							return run(end - size, end, status);
						});
						const model = runs.flatMap((one) => Array<number>(one.end - one.start).fill(one.status));
						const offset = from % end;
						const found = ask(form, { offset, length, onlyOne }, runs);
						const bytes = found.flatMap(([size, status]) => Array<number>(size).fill(status));
						assert.deepEqual(bytes, model.slice(offset, offset + bytes.length));
						assert.ok(found.every(([size], index) => size > 0 && found[index + 1]?.[1] !== found[index]?.[1]));
						assert.equal(onlyOne ? found.length : bytes.length, onlyOne ? 1 : Math.min(length, end - offset));
					},
				),
			);
		});
	});

test("extended lengths have 64 bits", () => {
	const TiB = 2 ** 40;
	assert.deepEqual(ask("extended", { offset: 5, length: 3 * TiB }, [run(0, 2 * TiB, 0), run(2 * TiB, 9 * TiB, 3)]), [
		[2 * TiB - 5, 0],
		[TiB + 5, 3],
	]);
});
