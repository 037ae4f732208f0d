// What an NBD client may rely on, asked of a real server over a real socket by a client that says what it likes:
// contents to the byte, errors, durability, allocation. Source: the NBD protocol document.

import assert from "node:assert/strict";
import { describe, type TestContext, test } from "node:test";
import fc from "fast-check";
import { allocation, command, commandFlag, errno, transmissionFlag } from "../../src/core/nbd/protocol.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { NbdClient, type NbdRequest } from "../support/nbd-client.ts";
import { type PlaneOptions, type PlaneServer, startPlane } from "../support/plane-server.ts";
import { seededRandom } from "../support/randomness.ts";

const MiB = 2 ** 20;
const HOLE = allocation.HOLE | allocation.ZERO;

interface Fixture extends AsyncDisposable {
	readonly folder: TemporaryFolder;
	readonly server: PlaneServer;
	/** One more client, structured unless said otherwise. */
	connect(structured?: boolean): Promise<NbdClient>;
}

async function fixture(options: Omit<PlaneOptions, "directory"> = {}): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const server = stack.use(await startPlane({ directory: folder.file("d"), size: 16 * MiB, ...options }));
	return {
		folder,
		server,
		connect: async (structured = true) =>
			stack.use(await NbdClient.connect({ path: server.socketPath }, { structured })),
		[Symbol.asyncDispose]: () => stack.disposeAsync(),
	};
}

const pattern = (length: number, seed = 1): Uint8Array => seededRandom(seed).bytes(length);
const errorOf = async (client: NbdClient, request: NbdRequest): Promise<number> =>
	(await client.request(request)).error;

describe("contents", () => {
	type Step =
		| {
				readonly kind: "write";
				readonly at: number;
				readonly length: number;
				readonly seed: number;
				readonly fua: boolean;
		  }
		| { readonly kind: "zero" | "allocate" | "trim"; readonly at: number; readonly length: number }
		| { readonly kind: "read" | "status"; readonly at: number; readonly length: number }
		| { readonly kind: "flush" };
	const SIZE = MiB + 4096;
	const range = fc
		.tuple(
			fc.oneof(
				fc.nat(SIZE),
				fc.nat(Math.floor(SIZE / 4096)).map((block) => block * 4096),
			),
			fc.oneof(
				fc.nat(9000),
				fc.nat(200_000),
				fc.nat(20).map((blocks) => blocks * 4096),
			),
		)
		.map(([at, length]) => ({ at, length: Math.min(length, SIZE - at) }));
	const step: fc.Arbitrary<Step> = fc.oneof(
		fc.record({ range, seed: fc.nat(1000), fua: fc.boolean() }).map(({ range, seed, fua }) => ({
			kind: "write" as const,
			...range,
			seed,
			fua,
		})),
		fc
			.record({ range, kind: fc.constantFrom("zero", "allocate", "trim", "read", "read", "status") })
			.map(({ range, kind }) => ({ kind, ...range }) as Step),
		fc.constant({ kind: "flush" as const }),
	);

	async function apply(client: NbdClient, model: Buffer, step: Step): Promise<void> {
		switch (step.kind) {
			case "write": {
				const bytes = pattern(step.length, step.seed);
				await client.write(step.at, bytes, step.fua ? commandFlag.FUA : 0);
				model.set(bytes, step.at);
				return;
			}
			case "zero":
			case "allocate":
				await client.zero(step.at, step.length, step.kind === "allocate" ? commandFlag.NO_HOLE : 0);
				model.fill(0, step.at, step.at + step.length);
				return;
			case "trim": {
				await client.trim(step.at, step.length);
				const from = Math.ceil(step.at / 4096) * 4096;
				const to = Math.floor((step.at + step.length) / 4096) * 4096;
				// Whole blocks read as zeros then; parts of blocks stay.
				if (to > from) model.fill(0, from, to);
				assert(model.subarray(step.at, step.at + step.length).equals(await client.read(step.at, step.length)));
				return;
			}
			case "read":
				assert(model.subarray(step.at, step.at + step.length).equals(await client.read(step.at, step.length)));
				return;
			case "status": {
				if (step.length === 0) return;
				const extents = await client.status(step.at, step.length);
				let at: number = step.at;
				for (const [length, flags] of extents) {
					assert(length > 0);
					const isZero = model.subarray(at, at + length).every((byte) => byte === 0);
					if (flags & allocation.ZERO) assert(isZero, `${at} to ${at + length} is said to be zero`);
					at += length;
				}
				assert(at > step.at && at <= step.at + step.length);
				return;
			}
			case "flush":
				await client.flush();
		}
	}

	test("any mix of byte-granular requests over several connections equals an array, also after a restart", async () => {
		await using folder = await temporaryFolder();
		const options = { directory: folder.file("d"), size: SIZE };
		const model = Buffer.alloc(SIZE);
		{
			await using server = await startPlane(options);
			const path = server.socketPath;
			await using one = await NbdClient.connect({ path });
			await using two = await NbdClient.connect({ path });
			await using simple = await NbdClient.connect({ path }, { structured: false });
			await fc.assert(
				fc.asyncProperty(fc.array(fc.tuple(fc.nat(2), step), { minLength: 1, maxLength: 60 }), async (steps) => {
					model.fill(0);
					await one.zero(0, SIZE);
					for (const [who, step] of steps)
						await apply(step.kind === "status" ? one : [one, two, simple][who]!, model, step);
					assert(model.equals(await two.read(0, SIZE)));
				}),
				{ numRuns: 40 },
			);
		}
		await using server = await startPlane(options);
		await using again = await NbdClient.connect({ path: server.socketPath });
		assert(model.equals(await again.read(0, SIZE)), "after a restart");
	});

	test("many requests under way at once, on disjoint ranges of several connections", async () => {
		await using f = await fixture();
		const clients = await Promise.all([f.connect(), f.connect(), f.connect(false)]);
		const share = Math.floor((4 * MiB) / clients.length);
		const model = Buffer.alloc(share * clients.length);
		const random = seededRandom(5);
		const work: Promise<void>[] = [];
		for (let i = 0; i < 600; i++) {
			const who = random.below(clients.length);
			const length = random.between(1, 20_000);
			const at = who * share + random.below(share - length);
			const bytes = random.bytes(length);
			// Requests of one connection that overlap are answered as if done in the order sent, as every disk here does.
			model.set(bytes, at);
			work.push(clients[who]!.write(at, bytes, random.chance(0.02) ? commandFlag.FUA : 0));
			if (random.chance(0.05)) work.push(clients[who]!.flush());
		}
		await Promise.all(work);
		assert(model.equals(await clients[0]!.read(0, model.length)));
	});

	test("the largest requests, and pieces of them that arrive slowly", async () => {
		await using f = await fixture({ size: 64 * MiB });
		const client = await f.connect();
		const bytes = pattern(32 * MiB - 3, 9);
		await client.write(4097, bytes);
		assert(Buffer.from(bytes).equals(await client.read(4097, bytes.length)));
		assert.equal(await errorOf(client, { type: command.WRITE, payload: new Uint8Array(32 * MiB + 1) }), errno.EINVAL);
		assert.equal(await errorOf(client, { type: command.READ, length: 32 * MiB + 1 }), errno.EINVAL);
		await client.zero(0, 64 * MiB, commandFlag.NO_HOLE);
		assert.deepEqual(await client.status(0, 64 * MiB), [[64 * MiB, 0]], "all allocated");
		assert((await client.read(4097, 32 * MiB)).every((byte) => byte === 0));
	});
});

describe("errors", () => {
	test("ranges past the end, unknown commands and flags, a client that asks for too much; it stays connected", async () => {
		await using f = await fixture();
		const client = await f.connect();
		const size = client.size;
		const past: [type: number, error: number][] = [
			[command.READ, errno.EINVAL],
			[command.TRIM, errno.EINVAL],
			[command.CACHE, errno.EINVAL],
			[command.BLOCK_STATUS, errno.EINVAL],
			[command.WRITE_ZEROES, errno.ENOSPC],
		];
		for (const [type, error] of past)
			for (const offset of [size - 4095, size, size + 1, 2 ** 40, 2n ** 63n - 4096n, 2n ** 64n - 1n])
				assert.equal(await errorOf(client, { type, offset, length: 4096 }), error, `${type} at ${offset}`);
		for (const offset of [size - 4095, size, 2n ** 64n - 4096n])
			assert.equal(await errorOf(client, { type: command.WRITE, offset, payload: pattern(4096) }), errno.ENOSPC);
		assert.equal(await errorOf(client, { type: command.BLOCK_STATUS, offset: 0, length: 0 }), errno.EINVAL);
		for (const type of [8, 9, 100, 65535]) assert.equal(await errorOf(client, { type }), errno.EINVAL);
		for (const type of [command.READ, command.TRIM, command.FLUSH, command.WRITE_ZEROES, command.BLOCK_STATUS])
			for (const flags of [1 << 5, 1 << 15])
				assert.equal(await errorOf(client, { type, flags, length: 512 }), errno.EINVAL, `${type} ${flags}`);
		const flags = commandFlag.NO_HOLE;
		assert.equal(await errorOf(client, { type: command.WRITE, flags, payload: pattern(512) }), errno.EINVAL);
		assert.deepEqual([...(await client.read(0, 512))], Array(512).fill(0), "nothing refused was written");
	});

	test("FUA is accepted with every command", async () => {
		await using f = await fixture();
		const client = await f.connect();
		for (const type of [command.READ, command.FLUSH, command.TRIM, command.CACHE, command.BLOCK_STATUS])
			assert.equal(await errorOf(client, { type, flags: commandFlag.FUA, length: 4096 }), 0, `${type}`);
	});

	test("requests of no length succeed and do nothing", async () => {
		await using f = await fixture();
		for (const client of [await f.connect(), await f.connect(false)]) {
			await client.write(100, pattern(4096));
			for (const type of [command.READ, command.TRIM, command.WRITE_ZEROES, command.CACHE])
				for (const offset of [0, 100, client.size]) assert.equal(await errorOf(client, { type, offset }), 0);
			const flags = commandFlag.NO_HOLE;
			assert.equal(await errorOf(client, { type: command.WRITE_ZEROES, offset: 5, flags }), 0);
			assert.equal(await errorOf(client, { type: command.WRITE, offset: 7, payload: new Uint8Array() }), 0);
			assert(Buffer.from(pattern(4096)).equals(await client.read(100, 4096)));
		}
	});

	test("a read-only export refuses every change", async () => {
		await using f = await fixture({ readOnly: true });
		const client = await f.connect();
		assert(client.transmissionFlags & transmissionFlag.READ_ONLY);
		assert.equal(await errorOf(client, { type: command.WRITE, payload: pattern(4096) }), errno.EPERM);
		assert.equal(await errorOf(client, { type: command.WRITE_ZEROES, length: 4096 }), errno.EPERM);
		assert.equal(await errorOf(client, { type: command.TRIM, length: 4096 }), errno.EPERM);
		assert((await client.read(0, 4096)).every((byte) => byte === 0));
		await client.flush();
	});

	test("without structured replies there is no block status, and all else works", async () => {
		await using f = await fixture();
		const client = await f.connect(false);
		assert.equal(await errorOf(client, { type: command.BLOCK_STATUS, length: 4096 }), errno.EINVAL);
		await client.write(3, Buffer.from("simple"));
		assert.equal((await client.read(3, 6)).toString(), "simple");
		assert.equal(await errorOf(client, { type: command.READ, offset: client.size, length: 1 }), errno.EINVAL);
	});
});

describe("allocation", () => {
	test("writes are data, zeroes and trims are holes, zeroes that must stay allocated are data", async () => {
		await using f = await fixture();
		const client = await f.connect();
		const k = 4096;
		assert.deepEqual(await client.status(0, MiB), [[MiB, HOLE]]);
		await client.write(k, pattern(2 * k));
		await client.write(10 * k + 5, pattern(1));
		assert.deepEqual(await client.status(0, 12 * k), [
			[k, HOLE],
			[2 * k, 0],
			[7 * k, HOLE],
			[k, 0],
			[k, HOLE],
		]);
		assert.deepEqual(await client.status(k + 1, 3 * k, commandFlag.REQ_ONE), [[2 * k - 1, 0]]);
		await client.trim(k, k);
		await client.zero(10 * k, k);
		await client.zero(20 * k, 2 * k, commandFlag.NO_HOLE);
		assert.deepEqual(await client.status(0, 23 * k), [
			[2 * k, HOLE],
			[k, 0],
			[17 * k, HOLE],
			[2 * k, 0],
			[k, HOLE],
		]);
		assert((await client.read(20 * k, 2 * k)).every((byte) => byte === 0));
	});

	test("zeroes that shall be fast are, and refused where they can't be", async () => {
		await using f = await fixture();
		const client = await f.connect();
		const type = command.WRITE_ZEROES;
		const slow = commandFlag.FAST_ZERO | commandFlag.NO_HOLE;
		await client.write(0, pattern(8192));
		assert.equal(await errorOf(client, { type, length: 4096, flags: slow }), errno.ENOTSUP);
		assert(Buffer.from(pattern(8192)).equals(await client.read(0, 8192)), "a refused request changed nothing");
		assert.equal(await errorOf(client, { type, length: 4096, flags: commandFlag.FAST_ZERO }), 0);
		assert.deepEqual(await client.status(0, 8192), [
			[4096, HOLE],
			[4096, 0],
		]);
	});

	test("a disk in very many pieces is described in answers of bounded length", async () => {
		await using f = await fixture({ size: 64 * MiB });
		const client = await f.connect();
		const one = pattern(4096);
		for (let at = 0; at < 24 * MiB; at += 8 * MiB) {
			const writes = Array.from({ length: 1024 }, (_, i) => client.write(at + i * 8192, one));
			await Promise.all(writes);
		}
		const seen: (readonly [number, number])[] = [];
		let answers = 0;
		for (let at = 0; at < client.size; answers++) {
			const extents = await client.status(at, client.size - at);
			assert(extents.length <= 1024);
			for (const [length, flags] of extents) {
				at += length;
				if (seen.at(-1)?.[1] === flags) seen[seen.length - 1] = [seen.at(-1)![0] + length, flags];
				else seen.push([length, flags]);
			}
		}
		assert(answers >= 6);
		assert.equal(seen.length, 2 * 3 * 1024);
		assert(seen.slice(0, -1).every(([length, flags], i) => length === 4096 && flags === (i % 2 === 0 ? 0 : HOLE)));
	});
});

describe("durability", () => {
	const datasyncs = async (server: PlaneServer): Promise<number> =>
		(await server.plane.ask("status")).counters.datasyncs;

	test("a flush covers completed writes of all connections, and so does FUA for its own", async () => {
		await using f = await fixture();
		const [one, two] = [await f.connect(), await f.connect()];
		assert(one.transmissionFlags & transmissionFlag.CAN_MULTI_CONN);
		await one.write(0, pattern(8192));
		const before = await f.server.plane.ask("status");
		assert(before.durablePosition < before.position);
		await two.flush();
		const after = await f.server.plane.ask("status");
		assert.equal(after.durablePosition, after.position);
		for (const type of [command.WRITE_ZEROES, command.TRIM]) {
			const count = await datasyncs(f.server);
			assert.equal(await errorOf(one, { type, length: 4096, flags: commandFlag.FUA }), 0);
			assert((await datasyncs(f.server)) > count, `${type} with FUA is synced`);
		}
		await one.write(4096, pattern(100), commandFlag.FUA);
		const { position, durablePosition } = await f.server.plane.ask("status");
		assert.equal(durablePosition, position);
	});

	test("every flush is served by a sync that began after it, also where zeroing moved no position", async () => {
		await using f = await fixture();
		const [one, two] = [await f.connect(), await f.connect()];
		await one.write(0, pattern(MiB));
		// Flushes that overlap: each zeroing is complete before its own flush is sent, while the others' flushes run.
		for (let round = 0; round < 50; round++) {
			const early = two.flush();
			await one.zero(0, 4096);
			const view = await f.server.plane.ask("takeView");
			await one.flush();
			assert(await f.server.plane.ask("isDurable", view.id), "the zeroing before the flush is durable");
			await f.server.plane.ask("releaseView", view.id);
			await early;
		}
	});

	test("one sync serves many flushes", async () => {
		await using f = await fixture();
		const client = await f.connect();
		await client.write(0, pattern(4096));
		await Promise.all(Array.from({ length: 500 }, () => client.flush()));
		const { counters } = await f.server.plane.ask("status");
		assert.equal(counters.flushes, 500);
		assert(counters.datasyncs < 100, `${counters.datasyncs} syncs`);
	});
});

describe("ends", () => {
	const attached = async (server: PlaneServer): Promise<number> => (await server.plane.ask("status")).clients;

	test("goodbye answers what was asked before, then closes", async (t: TestContext) => {
		await using f = await fixture();
		const client = await f.connect();
		const asked = [client.write(0, pattern(100_000)), client.flush(), client.read(0, 1000)];
		await client.disconnect();
		await Promise.all(asked);
		t.assert.equal(await attached(f.server), 0);
	});

	test("a stopped disk is opened again, with all that was written", async () => {
		await using folder = await temporaryFolder();
		const options = { directory: folder.file("d"), size: MiB };
		for (let round = 0; round < 3; round++) {
			await using server = await startPlane(options);
			await using client = await NbdClient.connect({ path: server.socketPath });
			if (round > 0) assert.deepEqual(await client.read(0, 5000), Buffer.from(pattern(5000, round - 1)));
			await client.write(0, pattern(5000, round));
			await Promise.all([server.stop(), server.stop()]);
			await client.closed;
		}
	});

	test("a second server on the same disk is refused", async () => {
		await using f = await fixture();
		await assert.rejects(startPlane({ directory: f.folder.file("d") }), { code: "DISK_LOCKED" });
		await (await f.connect()).flush();
	});
});
