// Clients that are broken, slow, rude or gone: none of them may hurt the server or the others.

import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { connect } from "node:net";
import { describe, type TestContext, test } from "node:test";
import { command, errno } from "../../src/core/nbd/protocol.ts";
import { temporaryFolder } from "../support/folders.ts";
import { NbdClient, requestHeader } from "../support/nbd-client.ts";
import { type PlaneServer, startPlane } from "../support/plane-server.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { waitUntil } from "../support/waiting.ts";

const MiB = 2 ** 20;

interface Fixture extends AsyncDisposable {
	readonly server: PlaneServer;
	/** Well-behaved, and served throughout. */
	readonly neighbour: NbdClient;
	connect(structured?: boolean): Promise<NbdClient>;
}

async function fixture(): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const server = stack.use(await startPlane({ directory: folder.file("d"), size: 64 * MiB }));
	const open = async (structured = true): Promise<NbdClient> =>
		stack.use(await NbdClient.connect({ path: server.socketPath }, { structured }));
	return { server, neighbour: await open(), connect: open, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

/** Writes, flushes and reads back at the end of the disk, where no other client writes. */
async function useDisk(client: NbdClient, seed: number): Promise<void> {
	const bytes = seededRandom(seed).bytes(50_000);
	const at = client.size - 60_001;
	await client.write(at, bytes);
	await client.flush();
	assert(Buffer.from(bytes).equals(await client.read(at, bytes.length)));
}

const clientCount = async (server: PlaneServer): Promise<number> => (await server.plane.ask("status")).clients;
const untilAlone = (server: PlaneServer): Promise<true> =>
	waitUntil(async () => (await clientCount(server)) === 1, "the end of all other clients");

describe("clients that vanish", () => {
	test("in the middle of reads, writes, flushes and zeroing", async () => {
		await using f = await fixture();
		const random = seededRandom(3);
		for (let round = 0; round < 12; round++) {
			const client = await f.connect(round % 2 === 0);
			const requests = Array.from({ length: 60 }, (_, i) => {
				const offset = random.below(32 * MiB);
				const type = random.pick([command.READ, command.WRITE, command.FLUSH, command.WRITE_ZEROES]);
				const length = random.between(1, 300_000);
				const flags = type === command.WRITE_ZEROES && i % 4 === 0 ? 2 : 0;
				if (type === command.FLUSH) return client.request({ type });
				return client.request(
					type === command.WRITE ? { type, offset, payload: new Uint8Array(length) } : { type, offset, length, flags },
				);
			});
			const settled = Promise.allSettled(requests);
			if (round % 3 > 0) await Promise.race(requests);
			await client.vanish();
			await settled;
			await useDisk(f.neighbour, round);
		}
		await untilAlone(f.server);
	});

	test("in the middle of a request's header or payload; a whole request before it counts", async () => {
		await using f = await fixture();
		for (const cut of [1, 27, 28, 29, 4000, 300_000]) {
			const client = await f.connect();
			const whole = client.write(0, Buffer.alloc(4096, cut % 251));
			await whole;
			const request = { type: command.WRITE, offset: 0, payload: Buffer.alloc(MiB, 255) };
			const bytes = Buffer.concat([requestHeader(request, 5n), request.payload]);
			await new Promise((resolve) => client.socket.write(bytes.subarray(0, cut), resolve));
			client.socket.end();
			await client.closed;
			const found = await f.neighbour.read(0, 4096);
			if (cut < 256 * 1024) assert(found.equals(Buffer.alloc(4096, cut % 251)), `cut at ${cut}`);
		}
		await untilAlone(f.server);
	});
});

describe("slow clients", () => {
	test("one that reads no replies waits by itself, and gets them all later", async () => {
		await using f = await fixture();
		const bytes = seededRandom(1).bytes(8 * MiB);
		await f.neighbour.write(0, bytes);
		const slow = await f.connect();
		const thaw = slow.freeze();
		const random = seededRandom(2);
		const wanted = Array.from({ length: 300 }, () => {
			const length = random.between(1, MiB);
			const offset = random.below(bytes.length - length);
			return { offset, length, reply: slow.read(offset, length) };
		});
		for (let round = 0; round < 20; round++) await useDisk(f.neighbour, round);
		thaw();
		for (const { offset, length, reply } of wanted)
			assert(Buffer.from(bytes.buffer, offset, length).equals(await reply));
	});

	test("one that floods flushes and reads no replies", async () => {
		await using f = await fixture();
		const slow = await f.connect();
		const thaw = slow.freeze();
		const flushes = Array.from({ length: 10_000 }, () => slow.flush());
		for (let round = 0; round < 20; round++) await useDisk(f.neighbour, round);
		thaw();
		await Promise.all(flushes);
	});

	test("one that sends a byte now and then", async () => {
		await using f = await fixture();
		const slow = await f.connect();
		slow.sendsByHand = true;
		const request = { type: command.WRITE, offset: 4000, payload: seededRandom(8).bytes(200) };
		const answered = slow.request({ type: command.WRITE, offset: 0, payload: Buffer.alloc(0) });
		await answered;
		const bytes = Buffer.concat([requestHeader(request, 77n), request.payload]);
		for (const byte of bytes) {
			slow.socket.write(Buffer.of(byte));
			if (byte % 16 === 0) await useDisk(f.neighbour, byte);
		}
		await waitUntil(
			async () => Buffer.from(request.payload).equals(await f.neighbour.read(4000, 200)),
			"the write that came in slowly",
		);
	});
});

describe("nonsense", () => {
	test("a wrong magic ends that connection only", async () => {
		await using f = await fixture();
		const rude = await f.connect();
		await rude.write(0, Buffer.from("kept"));
		const bytes = requestHeader({ type: command.READ, length: 4096 }, 1n);
		bytes[0]! ^= 1;
		rude.socket.write(bytes);
		await rude.closed;
		assert.equal((await f.neighbour.read(0, 4)).toString(), "kept");
		await untilAlone(f.server);
	});

	test("random requests are all answered", async (t: TestContext) => {
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		await using f = await fixture();
		const random = seededRandom(seed);
		const client = await f.connect();
		const asked = Array.from({ length: 3000 }, () => {
			const type = random.chance(0.9) ? random.below(9) : random.below(65536);
			if (type === command.DISC) return client.flush().then(() => ({ error: 0 }));
			const flags = random.chance(0.7) ? 0 : random.below(random.chance(0.5) ? 32 : 65536);
			const offset = random.pick([
				random.below(32 * MiB),
				random.below(2 ** 31),
				2n ** 64n - BigInt(random.between(1, 9000)),
			]);
			const length = random.pick([0, random.below(9000), random.below(2 * MiB), 2 ** 32 - 1]);
			if (type === command.WRITE)
				return client.request({ type, flags, offset, payload: random.bytes(random.below(9000)) });
			return client.request({ type, flags, offset, length });
		});
		const known: readonly number[] = [0, ...Object.values(errno)];
		for (const { error } of await Promise.all(asked)) assert(known.includes(error), `${error}`);
		await useDisk(f.neighbour, 1);
	});

	test("random bytes, at once and after good requests", async (t: TestContext) => {
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		await using f = await fixture();
		const random = seededRandom(seed);
		for (let round = 0; round < 40; round++) {
			const client = await f.connect(random.chance(0.5));
			client.sendsByHand = true;
			const parts: Uint8Array[] = [];
			for (let i = random.below(6); i > 0; i--) {
				const header = requestHeader(
					{ type: random.below(9), offset: random.below(MiB), length: random.below(70_000) },
					9n,
				);
				if (random.chance(0.5)) header[random.below(28)] = random.below(256);
				parts.push(header, random.bytes(random.below(70_000)));
			}
			parts.push(random.bytes(random.between(1, 5000)));
			client.socket.write(Buffer.concat(parts));
			client.socket.end();
			await client.closed;
			await useDisk(f.neighbour, round);
		}
		await untilAlone(f.server);
	});

	test("clients that leave in the middle of the handshake", async () => {
		await using f = await fixture();
		const random = seededRandom(6);
		await Promise.all(
			Array.from({ length: 50 }, async () => {
				const socket = connect({ path: f.server.socketPath });
				socket.on("error", () => {});
				const bytes = random.chance(0.5) ? random.bytes(random.below(3000)) : Buffer.from([0, 0, 0, 3]);
				await new Promise((resolve) => socket.end(bytes, () => resolve(0)));
				socket.destroy();
			}),
		);
		await useDisk(f.neighbour, 1);
		assert.equal(await clientCount(f.server), 1);
	});
});

describe("many clients", () => {
	test("two hundred come and go, and leave no descriptor behind", async () => {
		await using f = await fixture();
		const descriptors = async (): Promise<number> => (await readdir("/proc/self/fd")).length;
		await (await f.connect()).disconnect();
		await untilAlone(f.server);
		const before = await descriptors();
		for (let round = 0; round < 2; round++) {
			const clients = await Promise.all(Array.from({ length: 100 }, (_, i) => f.connect(i % 2 === 0)));
			await Promise.all(clients.map((client, i) => client.write(i * 5000, Buffer.alloc(5000, i + 1))));
			const flushes = clients.map((client) => client.flush());
			await Promise.all(flushes);
			for (const [i, client] of clients.entries())
				assert((await client.read(i * 5000, 5000)).every((byte) => byte === i + 1));
			await Promise.all(clients.map((client, i) => (i % 2 === 0 ? client.disconnect() : client.vanish())));
			await untilAlone(f.server);
		}
		await waitUntil(async () => (await descriptors()) <= before, "the closing of all descriptors");
	});
});
