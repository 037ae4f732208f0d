// Extended headers, structured replies in all their kinds, and metadata contexts, over a real socket, by a client that
// speaks them byte by byte. (Debian 12's libnbd 1.14 and QEMU 7.2 know no extended headers yet; libnbd 1.22 and QEMU 10.0
// have been tried by hand.)

import assert from "node:assert/strict";
import { writeSync } from "node:fs";
import { describe, test } from "node:test";
import fc from "fast-check";
import { liveness } from "../../src/core/nbd/meta-contexts.ts";
import { allocation, chunk, command, commandFlag, errno, transmissionFlag } from "../../src/core/nbd/protocol.ts";
import { temporaryFolder } from "../support/folders.ts";
import { type ClientOptions, extendedHeader, NbdClient, type NbdRequest } from "../support/nbd-client.ts";
import { moveEverything, type PlaneOptions, type PlaneServer, startPlane } from "../support/plane-server.ts";
import { seededRandom } from "../support/randomness.ts";

const KiB = 1024;
const MiB = 2 ** 20;
const GiB = 2 ** 30;
const TiB = 2 ** 40;
const HOLE = allocation.HOLE | allocation.ZERO;

interface Fixture extends AsyncDisposable {
	readonly server: PlaneServer;
	connect(options?: ClientOptions): Promise<NbdClient>;
}

async function fixture(options: Omit<PlaneOptions, "directory"> = {}): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const server = stack.use(await startPlane({ directory: folder.file("d"), size: 16 * MiB, ...options }));
	return {
		server,
		connect: async (options = { extended: true }) =>
			stack.use(await NbdClient.connect({ path: server.socketPath }, options)),
		[Symbol.asyncDispose]: () => stack.disposeAsync(),
	};
}

const pattern = (length: number, seed = 1): Uint8Array => seededRandom(seed).bytes(length);
const errorOf = async (client: NbdClient, request: NbdRequest): Promise<number> =>
	(await client.request(request)).error;

/** Payload of a block status request with a filter. */
function filter(length: number | bigint, ...ids: readonly number[]): Buffer {
	const payload = Buffer.alloc(8 + 4 * ids.length);
	payload.writeBigUInt64BE(BigInt(length));
	for (const [i, id] of ids.entries()) payload.writeUInt32BE(id, 8 + 4 * i);
	return payload;
}

describe("extended headers", () => {
	test("all commands work, and every reply repeats the request's offset", async () => {
		await using f = await fixture();
		const client = await f.connect();
		assert(client.transmissionFlags & transmissionFlag.BLOCK_STATUS_PAYLOAD);
		await client.write(4097, pattern(100_000));
		await client.write(1, pattern(17), commandFlag.FUA);
		await client.flush();
		assert(Buffer.from(pattern(100_000)).equals(await client.read(4097, 100_000)));
		await client.zero(8192, 4096);
		await client.zero(16384, 4096, commandFlag.NO_HOLE);
		await client.trim(12288, 4096);
		assert.equal(await errorOf(client, { type: command.CACHE, length: client.size }), 0);
		assert.deepEqual(await client.status(8192, 16384), [
			[8192, HOLE],
			[8192, 0],
		]);
		assert((await client.read(8192, 8192)).every((byte) => byte === 0));
		await client.disconnect();
	});

	test("lengths beyond 4 GiB, of a disk of 8 TiB, in one request each", async () => {
		await using f = await fixture({ size: 8 * TiB });
		const [client, neighbour] = [await f.connect(), await f.connect()];
		for (const at of [0, 5 * GiB, 4 * TiB, 8 * TiB - 4096]) await client.write(at, pattern(4096));
		for (const type of [command.CACHE, command.BLOCK_STATUS])
			assert.equal(await errorOf(client, { type, length: 8 * TiB }), 0);
		const whole: (readonly [number, number])[] = [];
		for (let at = 0; at < client.size; ) {
			for (const [length, flags] of await client.status(at, client.size - at)) {
				at += length;
				if (whole.at(-1)?.[1] === flags) whole[whole.length - 1] = [whole.at(-1)![0] + length, flags];
				else whole.push([length, flags]);
			}
			// Whoever asks for much in pieces doesn't keep others waiting.
			await neighbour.read(5 * GiB, 4096);
		}
		assert.deepEqual(whole, [
			[4096, 0],
			[5 * GiB - 4096, HOLE],
			[4096, 0],
			[4 * TiB - 5 * GiB - 4096, HOLE],
			[4096, 0],
			[4 * TiB - 8192, HOLE],
			[4096, 0],
		]);
		await client.trim(1, 6 * GiB);
		assert.deepEqual((await client.read(5 * GiB, 4096)).equals(Buffer.alloc(4096)), true);
		assert(Buffer.from(pattern(4096).subarray(0, 1)).equals(await client.read(0, 1)), "a partial block stays");
		await client.zero(0, 8 * TiB, commandFlag.FUA);
		for (const at of [0, 4 * TiB, 8 * TiB - 4096])
			assert(
				(await client.read(at, 4096)).every((byte) => byte === 0),
				`${at}`,
			);
		await f.server.plane.ask("flush");
	});

	test("wrong requests: an error each, with the offset as it came, and the connection goes on", async () => {
		await using f = await fixture();
		const client = await f.connect();
		for (const offset of [client.size, 2n ** 53n + 1n, 2n ** 63n + 5n, 2n ** 64n - 1n]) {
			assert.equal(await errorOf(client, { type: command.READ, offset, length: 1 }), errno.EINVAL);
			assert.equal(await errorOf(client, { type: command.WRITE, offset, payload: pattern(9) }), errno.ENOSPC);
			assert.equal(await errorOf(client, { type: command.TRIM, offset, length: 4096 }), errno.EINVAL);
		}
		for (const type of [command.READ, command.TRIM, command.FLUSH, command.WRITE_ZEROES, command.CACHE, 99])
			assert.equal(await errorOf(client, { type, payload: pattern(5000) }), errno.EINVAL, `${type} with a payload`);
		const { error, message } = await client.request({ type: command.READ, offset: client.size, length: 5 });
		assert.deepEqual([error, message], [errno.EINVAL, "wrong flags, an unknown command, or a range outside the disk"]);
		await client.write(0, pattern(100));
		assert(Buffer.from(pattern(100)).equals(await client.read(0, 100)));
	});

	test("a write without the flag has its payload all the same, as QEMU's client sends them", async () => {
		await using f = await fixture();
		const client = await f.connect();
		const written = client.request({ type: command.WRITE, offset: 4096, length: 8192 });
		client.socket.write(pattern(8192));
		assert.equal((await written).error, 0);
		assert(Buffer.from(pattern(8192)).equals(await client.read(4096, 8192)));
	});

	test("what can't be told apart any more ends the connection, and no other", async () => {
		await using f = await fixture();
		const neighbour = await f.connect();
		const header = extendedHeader({ type: command.READ, length: 4096 }, 1n);
		const compact = Buffer.concat([Buffer.from("25609513", "hex"), Buffer.alloc(28)]);
		const tooLong = extendedHeader({ type: command.TRIM, length: 32 * MiB + 1, flags: commandFlag.PAYLOAD_LEN }, 2n);
		const endless = extendedHeader({ type: command.WRITE, length: 2n ** 63n, flags: commandFlag.PAYLOAD_LEN }, 3n);
		for (const bytes of [compact, tooLong, endless, Buffer.concat([header, Buffer.alloc(32)])]) {
			const client = await f.connect();
			client.sendsByHand = true;
			client.socket.write(bytes);
			await client.closed;
		}
		await neighbour.write(0, pattern(4096));
	});

	test("requests in any pieces, with lengths, flags and payloads that lie: answers stay well formed", async () => {
		await using f = await fixture();
		const neighbour = await f.connect();
		const contexts = ["base:allocation", "vmsweep:liveness", "vmsweep:since:0"];
		const anyRequest = fc.record({
			type: fc.nat(9),
			flags: fc.nat(0x1f),
			offset: fc.oneof(fc.nat(2 * MiB), fc.bigInt(0n, 2n ** 64n - 1n)),
			length: fc.oneof(fc.nat(100_000), fc.nat(2 ** 40)),
			payload: fc.option(
				fc.oneof(
					fc.uint8Array({ maxLength: 60 }),
					fc.tuple(fc.nat(MiB), fc.array(fc.nat(4), { maxLength: 4 })).map(([n, ids]) => filter(n, ...ids)),
				),
				{ nil: undefined },
			),
		});
		await fc.assert(
			fc.asyncProperty(fc.array(anyRequest, { minLength: 1, maxLength: 20 }), async (requests) => {
				await using client = await NbdClient.connect({ path: f.server.socketPath }, { extended: true, contexts });
				// DISC ends it; an empty payload has no flag on the wire, and then it is none.
				const sent = requests.filter(
					({ type, payload }) => type !== command.DISC && (type !== command.WRITE || payload !== undefined),
				);
				const asked = sent.map(({ payload, ...rest }) =>
					client.request(payload === undefined ? rest : { ...rest, length: payload.length, payload }),
				);
				for (const reply of await Promise.all(asked)) assert(reply.error >= 0);
				await client.disconnect();
			}),
			{ numRuns: 150 },
		);
		await neighbour.write(0, pattern(4096));
		assert.equal((await f.server.plane.ask("status")).clients, 1);
	});
});

describe("reads in parts", () => {
	for (const extended of [false, true])
		test(`holes are named, not sent, unless the client forbids it; extended ${extended}`, async () => {
			await using f = await fixture();
			const client = await f.connect({ extended });
			await client.write(0, pattern(16 * MiB));
			await client.zero(64 * KiB, 64 * KiB);
			await client.zero(132 * KiB, 4096);
			const { OFFSET_DATA, OFFSET_HOLE } = chunk;
			const read = { type: command.READ, length: 256 * KiB };
			const expected = Buffer.from(pattern(16 * MiB))
				.subarray(0, 256 * KiB)
				.fill(0, 64 * KiB, 128 * KiB);
			expected.fill(0, 132 * KiB, 136 * KiB);
			const parts = await client.request(read);
			assert.deepEqual(parts.chunks, [OFFSET_DATA, OFFSET_HOLE, OFFSET_DATA], "small holes are sent");
			assert(parts.data.equals(expected));
			const whole = await client.request({ ...read, flags: commandFlag.DF });
			assert.deepEqual(whole.chunks, [OFFSET_DATA]);
			assert(whole.data.equals(expected));
			for (const [offset, length] of [
				[64 * KiB, 64 * KiB],
				[68 * KiB, 4096],
			] as const)
				assert.deepEqual((await client.request({ ...read, offset, length })).chunks, [OFFSET_HOLE]);
			assert.deepEqual((await client.request({ ...read, offset: 64 * KiB + 1, length: 4095 })).chunks, [OFFSET_DATA]);
		});

	test("a client with simple replies gets all bytes", async () => {
		await using f = await fixture();
		const client = await f.connect({ structured: false });
		await client.write(0, pattern(256 * KiB));
		await client.zero(64 * KiB, 64 * KiB);
		const expected = Buffer.from(pattern(256 * KiB)).fill(0, 64 * KiB, 128 * KiB);
		assert(expected.equals(await client.read(0, 256 * KiB)));
	});
});

describe("reads that fail", () => {
	for (const form of ["simple", "structured", "extended"] as const)
		test(`the byte that failed is named where the headers can; ${form}`, async () => {
			await using f = await fixture();
			const client = await f.connect({ structured: form === "structured", extended: form === "extended" });
			const k = 4096;
			await client.write(0, pattern(64 * k));
			await client.zero(8 * k, 16 * k);
			await client.flush();
			// Rot: a bit of one block in the first image.
			const { plane, directory } = f.server;
			const view = await plane.ask("takeView");
			const [, , , at] = await plane.ask("locate", { view: view.id, block: 40, count: 1 });
			await plane.ask("releaseView", view.id);
			const bytes = Buffer.from(pattern(64 * k).subarray(40 * k, 41 * k));
			bytes[77]! ^= 1;
			writeSync(directory.firstFd, bytes, 0, k, at!);
			for (const [offset, length, failedAt] of [
				[0, 64 * k, 40 * k],
				[40 * k + 99, 10, 40 * k + 99],
				[30 * k, 11 * k, 40 * k],
				[5, 63 * k, 40 * k],
			] as const) {
				const reply = await client.request({ type: command.READ, offset, length });
				assert.equal(reply.error, errno.EIO);
				if (form === "simple") continue;
				assert.deepEqual(reply.chunks, [chunk.ERROR_OFFSET]);
				assert.equal(reply.failedAt, failedAt);
				assert.match(reply.message, /storage failed/);
			}
			assert(Buffer.from(pattern(64 * k).subarray(0, 8 * k)).equals(await client.read(0, 8 * k)), "all else is read");
		});
});

describe("contexts", () => {
	const names = ["vmsweep:since:0", "base:allocation", "vmsweep:liveness"];

	for (const extended of [false, true])
		test(`one chunk each; a filter chooses; extended ${extended}`, async () => {
			await using f = await fixture();
			const client = await f.connect({ extended, contexts: names });
			assert.deepEqual([...client.contextIds.keys()], names);
			await client.write(4096, pattern(8192));
			const range = { type: command.BLOCK_STATUS, length: 16384 };
			const { statuses } = await client.request(range);
			assert.deepEqual(
				statuses.map(({ id }) => id),
				[...client.contextIds.values()],
			);
			assert.deepEqual(statuses[1]!.extents, [
				[4096, HOLE],
				[8192, 0],
				[4096, HOLE],
			]);
			assert.deepEqual(statuses[2]!.extents, [[16384, liveness.UNKNOWN]]);
			const one = await client.request({ ...range, flags: commandFlag.REQ_ONE });
			assert.deepEqual(
				one.statuses.map(({ extents }) => extents.length),
				[1, 1, 1],
			);
			if (!extended) return;
			const [since, allocated] = [client.contextIds.get(names[0]!)!, client.contextIds.get(names[1]!)!];
			const filtered = async (payload: Buffer): Promise<{ error: number; ids: number[] }> => {
				const reply = await client.request({ type: command.BLOCK_STATUS, payload });
				return { error: reply.error, ids: reply.statuses.map(({ id }) => id) };
			};
			assert.deepEqual(await filtered(filter(16384, allocated)), { error: 0, ids: [allocated] });
			assert.deepEqual(await filtered(filter(16384, allocated, since)), { error: 0, ids: [since, allocated] });
			for (const wrong of [
				filter(16384),
				filter(16384, 77),
				filter(16384, allocated, 0),
				filter(16384, allocated, allocated),
				filter(16384, 1, 2, 3, 1),
				filter(16384, 1).subarray(0, 11),
				filter(0, 1),
				filter(2n ** 63n, 1),
				Buffer.alloc(4),
				Buffer.alloc(100_000),
			])
				assert.deepEqual(await filtered(wrong), { error: errno.EINVAL, ids: [] });
			await client.flush();
		});

	test("contexts chosen for another export, or none, answer no status", async () => {
		await using f = await fixture();
		const client = await f.connect({ extended: true, contexts: ["qemu:dirty-bitmap:x"] });
		assert.equal(client.transmissionFlags & transmissionFlag.BLOCK_STATUS_PAYLOAD, 0);
		assert.equal(await errorOf(client, { type: command.BLOCK_STATUS, length: 4096 }), errno.EINVAL);
		assert.equal(await errorOf(client, { type: command.BLOCK_STATUS, payload: filter(4096, 1) }), errno.EINVAL);
	});

	test("since: what was written after a position, also after it was moved to the second image", async () => {
		await using f = await fixture();
		const writer = await f.connect();
		const k = 4096;
		await writer.write(0, pattern(16 * k));
		const { position } = await f.server.plane.ask("status");
		await writer.write(2 * k, pattern(3 * k, 2));
		await writer.zero(8 * k, k);
		const changed = async (from: number): Promise<(readonly [number, number])[]> => {
			await using client = await NbdClient.connect(
				{ path: f.server.socketPath },
				{ extended: true, contexts: [`vmsweep:since:${from}`] },
			);
			return [...(await client.status(0, 16 * k))];
		};
		const expected = [
			[2 * k, 0],
			[3 * k, 1],
			[3 * k, 0],
			[k, 1],
			[7 * k, 0],
		];
		assert.deepEqual(await changed(position), expected);
		assert.deepEqual(await changed(0), [[16 * k, 1]]);
		const now = (await f.server.plane.ask("status")).position;
		assert.deepEqual(
			await changed(now),
			[
				[8 * k, 0],
				[k, 1],
				[7 * k, 0],
			],
			"when zeros were made isn't known",
		);
		assert.deepEqual(await changed(now + 1), [[16 * k, 1]], "a position of another disk, or of a lost future");

		// Move as the cleaner does: the newest of a MiB counts for all of it.
		assert((await moveEverything(f.server)) > 0);
		assert.deepEqual(await changed(now), [
			[8 * k, 0],
			[k, 1],
			[7 * k, 0],
		]);
		assert.deepEqual(await changed(position), [[16 * k, 1]]);
		await f.server.plane.ask("punched", Float64Array.from([8, 1]));
		assert.deepEqual(await changed(now), [[16 * k, 1]], "its age is that of the region's newest change");
		assert.deepEqual((await writer.read(2 * k, 3 * k)).equals(Buffer.from(pattern(3 * k, 2))), true);
	});
});
