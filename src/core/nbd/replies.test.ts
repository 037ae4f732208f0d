import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { viewOf } from "../../foundations/struct.ts";
import {
	chunk,
	ErrorChunk,
	EXTENDED_REPLY_MAGIC,
	ExtendedReply,
	errno,
	OffsetData,
	OffsetHole,
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "./protocol.ts";
import { BARE_REPLY_BYTES, HOLE_BYTES, READ_HEADER_BYTES, type ReplyTo, ReplyWriter } from "./replies.ts";

const u32 = fc.nat(0xffff_ffff);
const error = fc.constantFrom(...Object.values(errno));
const to: fc.Arbitrary<ReplyTo> = fc.record({ cookieHigh: u32, cookieLow: u32, offsetHigh: u32, offsetLow: u32 });
const form = fc.constantFrom("structured" as const, "extended" as const);
const FILL = 0xee;

const cookieOf = ({ cookieHigh, cookieLow }: ReplyTo): bigint => (BigInt(cookieHigh) << 32n) | BigInt(cookieLow);
const offsetOf = ({ offsetHigh, offsetLow }: ReplyTo): bigint => (BigInt(offsetHigh) << 32n) | BigInt(offsetLow);

/** Writes one reply into a buffer that is full of a mark, and sees that nothing beside it was touched. */
function written(at: number, put: (view: DataView) => number): Uint8Array {
	const bytes = new Uint8Array(at + 300).fill(FILL);
	const length = put(viewOf(bytes));
	for (let i = 0; i < bytes.length; i++) if (i < at || i >= at + length) assert.equal(bytes[i], FILL, `byte ${i}`);
	return bytes.subarray(at, at + length);
}

/** Takes a chunk apart; its header is checked against what every header says. */
function chunkOf(
	reply: Uint8Array,
	isExtended: boolean,
	asked: ReplyTo,
): { type: number; last: boolean; payload: DataView } {
	const view = viewOf(reply);
	const header = isExtended ? ExtendedReply.at(view) : StructuredReply.at(view);
	assert.equal(header.magic, isExtended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC);
	assert.equal(header.cookie, cookieOf(asked));
	if ("offset" in header) assert.equal(header.offset, offsetOf(asked));
	const size = isExtended ? ExtendedReply.size : StructuredReply.size;
	return { type: header.type, last: header.flags === replyFlag.DONE, payload: viewOf(reply.subarray(size)) };
}

test("simple replies carry the cookie and the error, and nothing else", () => {
	fc.assert(
		fc.property(to, fc.nat(20), error, (asked, at, code) => {
			const replies = new ReplyWriter("simple");
			const cookie = cookieOf(asked);
			assert.equal(replies.readHeaderBytes, SimpleReply.size);
			const expect = (reply: Uint8Array, error: number): void =>
				assert.deepEqual({ ...SimpleReply.at(viewOf(reply)) }, { magic: SIMPLE_REPLY_MAGIC, error, cookie });
			expect(
				written(at, (view) => replies.putDone(view, at, asked)),
				0,
			);
			expect(
				written(at, (view) => replies.putError(view, at, asked, code, 4096)),
				code,
			);
			expect(
				written(at, (view) => replies.putReadHeader(view, at, asked, 12345, 678)),
				0,
			);
		}),
	);
});

test("chunks say what they are, whom they answer and how long they are", () => {
	const number53 = fc.nat(2 ** 53 - 1);
	fc.assert(
		fc.property(
			form,
			to,
			fc.nat(20),
			number53,
			fc.nat(2 ** 25),
			fc.boolean(),
			(form, asked, at, offset, size, last) => {
				const replies = new ReplyWriter(form);
				const isExtended = form === "extended";
				const headerBytes = isExtended ? 32 : 20;
				assert.deepEqual([replies.headerBytes, replies.readHeaderBytes], [headerBytes, headerBytes + 8]);

				const done = written(at, (view) => replies.putDone(view, at, asked));
				assert.deepEqual([done.length, chunkOf(done, isExtended, asked).type], [headerBytes, chunk.NONE]);
				assert(chunkOf(done, isExtended, asked).last);

				const read = written(at, (view) => replies.putReadHeader(view, at, asked, offset, size, last));
				const data = chunkOf(read, isExtended, asked);
				assert.deepEqual([data.type, data.last], [chunk.OFFSET_DATA, last]);
				assert.equal(OffsetData.read.offset(data.payload, 0), offset);
				assert(read.length <= READ_HEADER_BYTES);
				const lengthAt = isExtended ? 28 : 16;
				assert.equal(viewOf(read).getUint32(lengthAt), OffsetData.size + size);

				const zeros = written(at, (view) => replies.putHole(view, at, asked, offset, size, last));
				const hole = chunkOf(zeros, isExtended, asked);
				assert.deepEqual([hole.type, hole.last], [chunk.OFFSET_HOLE, last]);
				assert.deepEqual({ ...OffsetHole.at(hole.payload) }, { offset, length: size });
				assert(zeros.length <= HOLE_BYTES);
			},
		),
	);
});

test("errors bring a sentence, and where something failed, the place", () => {
	fc.assert(
		fc.property(form, to, fc.nat(20), error, fc.integer({ min: -1, max: 2 ** 40 }), (form, asked, at, code, place) => {
			const isExtended = form === "extended";
			const reply = written(at, (view) => new ReplyWriter(form).putError(view, at, asked, code, place));
			assert(reply.length <= BARE_REPLY_BYTES);
			const { type, last, payload } = chunkOf(reply, isExtended, asked);
			assert.deepEqual([type, last], [place >= 0 ? chunk.ERROR_OFFSET : chunk.ERROR, true]);
			const { error: number, messageLength } = ErrorChunk.at(payload);
			assert.equal(number, code);
			const text = new Uint8Array(payload.buffer, payload.byteOffset + ErrorChunk.size, messageLength);
			assert.match(new TextDecoder().decode(text), /^[a-z][a-z ,;:'-]+$/);
			const end = ErrorChunk.size + messageLength;
			if (place >= 0) assert.equal(OffsetData.read.offset(payload, end), place);
			assert.equal(payload.byteLength, end + (place >= 0 ? 8 : 0));
		}),
	);
});
