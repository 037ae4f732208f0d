import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
	chunk,
	command,
	replyFlag,
	SIMPLE_REPLY_MAGIC,
	SimpleReply,
	STRUCTURED_REPLY_MAGIC,
	StructuredReply,
} from "../../src/core/nbd/protocol.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { LatencyHistogram } from "./histogram.ts";
import { Load, type LoadPlan } from "./load.ts";
import { ReplyScanner } from "./replies.ts";

test("percentiles are those of the sorted values, at most a 64th too high", () => {
	const values = fc.array(fc.double({ min: 0.001, max: 10_000, noNaN: true }), { minLength: 1, maxLength: 300 });
	fc.assert(
		fc.property(values, fc.constantFrom(0.5, 0.99, 0.999, 1), (latencies, share) => {
			const histogram = new LatencyHistogram();
			for (const ms of latencies) histogram.add(ms);
			const sorted = latencies.toSorted((a, b) => a - b);
			const exact = sorted[Math.ceil(share * sorted.length) - 1]!;
			const found = histogram.percentile(share);
			// A 16th of a microsecond is the histogram's unit.
			return found >= exact - 1 / 16_000 && found <= exact * (1 + 1 / 64) + 1 / 16_000;
		}),
	);
	assert.equal(new LatencyHistogram().percentile(0.5), 0);
});

/** A reply as a server sends it: simple, or in structured chunks with as many payload bytes each. */
interface Reply {
	readonly slot: number;
	readonly chunks: readonly number[] | "simple";
}

const READ_BYTES = 50;
/** Even slots are reads. */
const simpleDataBytes = (slot: number): number => (slot % 2 === 0 ? READ_BYTES : 0);

function bytesOf({ slot, chunks }: Reply): Uint8Array {
	if (chunks === "simple") {
		const bytes = new Uint8Array(SimpleReply.size + simpleDataBytes(slot)).fill(0xaa);
		SimpleReply.put(viewOf(bytes), 0, { magic: SIMPLE_REPLY_MAGIC, error: 0, cookie: BigInt(slot) });
		return bytes;
	}
	return Buffer.concat(
		chunks.map((length, index) => {
			const bytes = new Uint8Array(StructuredReply.size + length).fill(0xaa);
			const flags = index === chunks.length - 1 ? replyFlag.DONE : 0;
			const header = { magic: STRUCTURED_REPLY_MAGIC, flags, type: chunk.OFFSET_DATA, cookie: BigInt(slot), length };
			StructuredReply.put(viewOf(bytes), 0, header);
			return bytes;
		}),
	);
}

test("the scanner finds every answer once, in order, however the bytes arrive", () => {
	const chunks = fc.array(fc.nat(60), { minLength: 1, maxLength: 3 });
	const reply = fc.record({ slot: fc.nat(1000), chunks: fc.oneof(chunks, fc.constant("simple" as const)) });
	const portions = fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1 });
	fc.assert(
		fc.property(fc.array(reply, { maxLength: 20 }), portions, (replies, sizes) => {
			const stream = Buffer.concat(replies.map(bytesOf));
			const scanner = new ReplyScanner(simpleDataBytes);
			const found: number[] = [];
			let rest: Uint8Array = new Uint8Array(0);
			for (let at = 0, turn = 0; at < stream.length; turn++) {
				const size = sizes[turn % sizes.length]!;
				const input = new Uint8Array(Buffer.concat([rest, stream.subarray(at, at + size)]));
				at += size;
				const end = scanner.scan(viewOf(input), input.length);
				found.push(...scanner.finished.slice(0, scanner.finishedCount));
				rest = input.subarray(end);
				assert.ok(rest.length < StructuredReply.size);
			}
			assert.deepEqual(
				found,
				replies.map(({ slot }) => slot),
			);
		}),
	);
});

test("a failed request ends the run, and so does what is no reply", () => {
	const scan = (bytes: Uint8Array) => new ReplyScanner(simpleDataBytes).scan(viewOf(bytes), bytes.length);
	const simple = new Uint8Array(SimpleReply.size);
	SimpleReply.put(viewOf(simple), 0, { magic: SIMPLE_REPLY_MAGIC, error: 5, cookie: 1n });
	assert.throws(() => scan(simple), /answered a request with error 5/);
	const structured = new Uint8Array(StructuredReply.size);
	const header = { magic: STRUCTURED_REPLY_MAGIC, flags: 1, type: chunk.ERROR, cookie: 1n, length: 6 };
	StructuredReply.put(viewOf(structured), 0, header);
	assert.throws(() => scan(structured), /chunk type 0x8001/);
	assert.throws(() => scan(new Uint8Array(100)), /sent 0x0 where a reply begins/);
});

const plan: LoadPlan = {
	order: "random",
	readPercent: 0,
	blockBytes: 4096,
	rangeBytes: 4096 * 16,
	flushEvery: 0,
	seed: 7,
};

function requests(part: Partial<LoadPlan>, count: number): { readonly type: number; readonly offset: number }[] {
	const load = new Load({ ...plan, ...part });
	return Array.from({ length: count }, () => {
		load.next();
		return { type: load.type, offset: load.offset };
	});
}

test("a load stays in its range, reaches all of it, and mixes as told", () => {
	const random = requests({ readPercent: 70 }, 10_000);
	const offsets = [...new Set(random.map(({ offset }) => offset))].toSorted((a, b) => a - b);
	assert.deepEqual(
		offsets,
		Array.from({ length: 16 }, (_, block) => block * 4096),
	);
	const reads = random.filter(({ type }) => type === command.READ).length;
	assert.ok(reads > 6500 && reads < 7500, `${reads} of 10,000 are reads`);
	assert.deepEqual(
		requests({ order: "sequential", readPercent: 100, rangeBytes: 3 * 4096 }, 4).map(({ offset }) => offset),
		[0, 4096, 8192, 0],
	);
});

test("a flush follows each so many writes", () => {
	const types = requests({ flushEvery: 2 }, 6).map(({ type }) => type);
	const { WRITE, FLUSH } = command;
	assert.deepEqual(types, [WRITE, WRITE, FLUSH, WRITE, WRITE, FLUSH]);
});
