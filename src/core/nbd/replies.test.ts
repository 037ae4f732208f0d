import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { viewOf } from "../../foundations/struct.ts";
import {
	chunk,
	ErrorChunk,
	errno,
	OffsetData,
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";
import { BARE_REPLY_BYTES, READ_HEADER_BYTES, ReplyWriter } from "./replies.ts";

const u32 = fc.nat(0xffff_ffff);
const error = fc.constantFrom(...Object.values(errno));
const FILL = 0xee;

/** A buffer that is full of a mark, so that bytes written beside a reply are seen. */
const marked = (): Uint8Array => new Uint8Array(80).fill(FILL);

function assertOnlyWritten(bytes: Uint8Array, at: number, length: number): void {
	for (let i = 0; i < bytes.length; i++) if (i < at || i >= at + length) assert.equal(bytes[i], FILL, `byte ${i}`);
}

test("simple replies carry the cookie and the error, and nothing else", () => {
	fc.assert(
		fc.property(u32, u32, fc.nat(20), error, (high, low, at, code) => {
			const replies = new ReplyWriter(false);
			const cookie = (BigInt(high) << 32n) | BigInt(low);
			assert.equal(replies.readHeaderBytes, SimpleReply.size);
			for (const put of ["done", "error", "read"] as const) {
				const bytes = marked();
				const view = viewOf(bytes);
				const length =
					put === "done"
						? replies.putDone(view, at, high, low)
						: put === "error"
							? replies.putError(view, at, high, low, code)
							: replies.putReadHeader(view, at, high, low, 12345, 678);
				assert.equal(length, SimpleReply.size);
				assert.deepEqual(
					{ ...SimpleReply.at(view, at) },
					{
						magic: SIMPLE_REPLY_MAGIC,
						error: put === "error" ? code : 0,
						cookie,
					},
				);
				assertOnlyWritten(bytes, at, length);
			}
		}),
	);
});

test("structured replies are one final chunk of the right type and length", () => {
	fc.assert(
		fc.property(
			u32,
			u32,
			fc.nat(20),
			error,
			fc.nat(2 ** 53 - 1),
			fc.nat(2 ** 25),
			(high, low, at, code, offset, size) => {
				const replies = new ReplyWriter(true);
				const common = {
					magic: STRUCTURED_REPLY_MAGIC,
					flags: replyFlag.DONE,
					cookie: (BigInt(high) << 32n) | BigInt(low),
				};
				const done = marked();
				assert.equal(replies.putDone(viewOf(done), at, high, low), StructuredReply.size);
				assert.deepEqual({ ...StructuredReply.at(viewOf(done), at) }, { ...common, type: chunk.NONE, length: 0 });
				assertOnlyWritten(done, at, StructuredReply.size);

				const failed = marked();
				assert.equal(replies.putError(viewOf(failed), at, high, low, code), BARE_REPLY_BYTES);
				const { size: errorBytes } = ErrorChunk;
				assert.deepEqual(
					{ ...StructuredReply.at(viewOf(failed), at) },
					{ ...common, type: chunk.ERROR, length: errorBytes },
				);
				assert.deepEqual(
					{ ...ErrorChunk.at(viewOf(failed), at + StructuredReply.size) },
					{ error: code, messageLength: 0 },
				);
				assertOnlyWritten(failed, at, BARE_REPLY_BYTES);

				const read = marked();
				assert.equal(replies.putReadHeader(viewOf(read), at, high, low, offset, size), READ_HEADER_BYTES);
				assert.equal(replies.readHeaderBytes, READ_HEADER_BYTES);
				const header = { ...common, type: chunk.OFFSET_DATA, length: OffsetData.size + size };
				assert.deepEqual({ ...StructuredReply.at(viewOf(read), at) }, header);
				assert.equal(OffsetData.read.offset(viewOf(read), at + StructuredReply.size), offset);
				assertOnlyWritten(read, at, READ_HEADER_BYTES);
			},
		),
	);
});
