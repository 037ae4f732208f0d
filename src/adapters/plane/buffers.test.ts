import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { InputBuffer, OutputBuffer } from "./buffers.ts";

/** A connected pair: a descriptor for the buffers, and the far end as a stream. */
interface Pair extends Disposable {
	readonly fd: number;
	readonly near: Socket;
	readonly far: Socket;
}

async function socketPair(): Promise<Pair> {
	const folder = mkdtempSync(join(tmpdir(), "vms-"));
	const server = createServer({ pauseOnConnect: true }).listen(join(folder, "s"));
	await once(server, "listening");
	const far = connect(join(folder, "s"));
	const [near] = (await once(server, "connection")) as [Socket];
	server.close();
	far.on("error", () => {});
	return {
		fd: (near as unknown as { _handle: { fd: number } })._handle.fd,
		near,
		far,
		[Symbol.dispose]() {
			far.destroy();
			near.destroy();
			rmSync(folder, { recursive: true });
		},
	};
}

const numbered = (length: number): Buffer => Buffer.from(Uint8Array.from({ length }, (_, i) => (i * 11) & 255));
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("input", () => {
	test("bytes pass in order, whatever the portions in which they come and are taken", async () => {
		using pair = await socketPair();
		const input = new InputBuffer();
		const sent = numbered(5_000_000);
		input.preload(sent.subarray(0, 10));
		pair.far.write(sent.subarray(10));
		const taken: Buffer[] = [];
		let count = 0;
		for (let i = 0; count < sent.length; i++) {
			if (input.receive(pair.fd) === "wait") await turn();
			const take = Math.min(input.length, i % 7 === 0 ? input.length : (i * 7919) % 50_000);
			taken.push(Buffer.from(input.memory.bytes.subarray(input.start, input.start + take)));
			input.consume(take);
			count += take;
		}
		assert(sent.equals(Buffer.concat(taken)));
		assert.deepEqual([input.start, input.end], [0, 0]);
	});

	test("says full, and the end", async () => {
		using pair = await socketPair();
		const input = new InputBuffer();
		assert.equal(input.receive(pair.fd), "wait");
		pair.far.end(numbered(input.memory.bytes.length + 5));
		while (!input.isFull) if (input.receive(pair.fd) === "wait") await turn();
		assert.equal(input.receive(pair.fd), "progress", "full is no end");
		input.consume(input.length);
		let state = input.receive(pair.fd);
		while (state !== "closed") {
			await turn();
			state = input.receive(pair.fd);
		}
		assert.equal(input.length, 5);
	});
});

describe("output", () => {
	const put = (output: OutputBuffer, bytes: Uint8Array): void => {
		output.memory.bytes.set(bytes, output.end);
		output.end += bytes.length;
	};

	test("what is reserved, grown and sent arrives in order", async () => {
		using pair = await socketPair();
		const output = new OutputBuffer();
		const received: Buffer[] = [];
		pair.far.on("data", (part: Buffer) => received.push(part));
		const replies = [16, 3_000_000, 28, 1_500_000, 700_000, 40, 2_000_000, 9_000_000, 16].map(numbered);
		for (const reply of replies) {
			if (!output.reserve(reply.length)) output.grow(reply.length);
			assert(output.free >= reply.length);
			put(output, reply);
			assert.notEqual(output.send(pair.fd), "closed");
			await turn();
		}
		while (output.send(pair.fd) === "wait") await turn();
		assert(output.isEmpty);
		const total = Buffer.concat(replies);
		while (received.reduce((sum, part) => sum + part.length, 0) < total.length) await turn();
		assert(total.equals(Buffer.concat(received)));
		const usual = new OutputBuffer().memory.bytes.length;
		assert.equal(output.memory.bytes.length, usual, "a large reply's memory is given back");
	});

	test("says when the other end is gone", async () => {
		using pair = await socketPair();
		const output = new OutputBuffer();
		pair.far.destroy();
		await once(pair.far, "close");
		put(output, numbered(100));
		assert.equal(output.send(pair.fd), "closed");
	});
});
