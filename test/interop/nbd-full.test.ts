// When space runs out: the log is recycled under its limit, clients wait or are refused, a full host refuses and
// recovers, and reads that miss the page cache come back right while all of this goes on. Never is anything lost
// that was acknowledged.

import assert from "node:assert/strict";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import * as sys from "../../src/adapters/os/syscalls.ts";
import { command, errno } from "../../src/core/nbd/protocol.ts";
import { punchSomeFree } from "../../src/services/clean/punch-free.ts";
import { temporaryFolder } from "../support/folders.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { moveEverything, type PlaneServer, startPlane } from "../support/plane-server.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MiB = 2 ** 20;
const K = 4096;

/** A block that says which it is, and how often it was written. */
function stampedBlock(block: number, version: number): Buffer {
	const bytes = Buffer.alloc(K, (block * 31 + version * 7) & 255);
	bytes.writeUInt32LE(block, 0);
	bytes.writeUInt32LE(version, 4);
	bytes.writeUInt32LE(version, K - 4);
	return bytes;
}

/** The version of a stamped block, 0 for one that was never written. Fails on anything else. */
function versionIn(bytes: Buffer, block: number): number {
	const version = bytes.readUInt32LE(4);
	if (version === 0) assert(bytes.equals(Buffer.alloc(K)), `block ${block} is neither empty nor stamped`);
	else assert(bytes.equals(stampedBlock(block, version)), `block ${block} is damaged`);
	return version;
}

function forgetPageCache({ directory }: PlaneServer): void {
	for (const fd of [directory.firstFd, directory.second.layout.fd]) {
		sys.fdatasync(fd);
		sys.fadvise(fd, 0, 0, sys.POSIX_FADV_DONTNEED);
	}
}

describe("a small first image", () => {
	test("is recycled by overwriting alone, without a flush from anybody", async () => {
		await using folder = await temporaryFolder();
		const limitBytes = 80 * MiB;
		await using server = await startPlane({ directory: folder.file("d"), size: 4 * MiB, limitBytes });
		await using client = await NbdClient.connect({ path: server.socketPath });
		const bytes = seededRandom(1).bytes(4 * MiB + 120);
		for (let round = 0; round < 120; round++) {
			const writes = [0, 1, 2, 3].map((i) =>
				client.write(i * MiB, bytes.subarray(round + i * MiB, round + (i + 1) * MiB)),
			);
			await Promise.all(writes);
			const { usedBytes } = await server.plane.ask("status");
			assert(usedBytes <= limitBytes);
		}
		assert(Buffer.from(bytes.buffer, 119, 4 * MiB).equals(await client.read(0, 4 * MiB)));
		const { counters } = await server.plane.ask("status");
		assert.equal(counters.errors, 0);
		assert.equal(counters.flushes, 0, "no client flushed");
	});

	test("makes writers wait, not readers; refuses when told; loses nothing; goes on when there is room", async () => {
		await using folder = await temporaryFolder();
		const limitBytes = 80 * MiB;
		await using server = await startPlane({ directory: folder.file("d"), size: 256 * MiB, limitBytes });
		const { plane } = server;
		await using client = await NbdClient.connect({ path: server.socketPath });
		await using other = await NbdClient.connect({ path: server.socketPath });
		const bytes = seededRandom(2).bytes(256 * K + 256);
		const piece = (i: number): Buffer => Buffer.from(bytes.buffer, i, MiB);
		const results: (number | undefined)[] = Array(100).fill(undefined);
		const writes = results.map(async (_, i) => {
			results[i] = (await client.request({ type: command.WRITE, offset: i * MiB, payload: piece(i) })).error;
		});
		await waitUntil(() => server.events.some(({ kind }) => kind === "stalled"), "a stall");
		await waitUntil(async () => (await plane.ask("status")).stalled === 1, "a stalled client");
		const done = results.filter((error) => error === 0).length;
		assert(done > 40 && done < 80, `${done} of 100 writes done`);
		assert(piece(3).equals(await other.read(3 * MiB, MiB)), "reads go on");
		await other.flush();

		await plane.ask("refuseWhenFull", true);
		await Promise.all(writes);
		assert(results.every((error) => error === 0 || error === errno.ENOSPC));
		assert(results.includes(errno.ENOSPC));
		const refused = await other.request({ type: command.WRITE_ZEROES, flags: 2, offset: 0, length: 40 * MiB });
		assert.equal(refused.error, errno.ENOSPC);
		for (const [i, error] of results.entries())
			if (error === 0 && i * MiB >= 40 * MiB) assert(piece(i).equals(await other.read(i * MiB, MiB)), `piece ${i}`);

		await plane.ask("refuseWhenFull", false);
		const last = Promise.all([200, 201, 202].map((i) => client.write(i * MiB, piece(i))));
		assert((await moveEverything(server)) > 0);
		await last;
		for (const i of [200, 201, 202]) assert(piece(i).equals(await other.read(i * MiB, MiB)));
		for (const [i, error] of results.entries())
			if (error === 0 && i * MiB >= 40 * MiB) assert(piece(i).equals(await other.read(i * MiB, MiB)), `piece ${i}`);
	});

	test("a request for more allocated zeros than the log can hold ends, and others are served meanwhile", async () => {
		await using folder = await temporaryFolder();
		await using server = await startPlane({ directory: folder.file("d"), size: 512 * MiB, limitBytes: 80 * MiB });
		await using client = await NbdClient.connect({ path: server.socketPath });
		await using other = await NbdClient.connect({ path: server.socketPath });
		let ended = false;
		const zeroing = client.zero(0, 512 * MiB, 2).then(() => {
			ended = true;
		});
		let reads = 0;
		for (; !ended; reads++) {
			assert((await other.read(reads * K, K)).every((byte) => byte === 0));
			if ((await server.plane.ask("status")).stalled > 0) await moveEverything(server);
		}
		await zeroing;
		assert(reads > 5, `${reads} reads`);
		assert(
			(await other.status(0, 512 * MiB)).every(([, flags]) => flags === 0),
			"all allocated",
		);
	});
});

describe("reads that miss the page cache", () => {
	test("are right while writes, moves and recycling go on", async (t: TestContext) => {
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		const random = seededRandom(seed);
		await using folder = await temporaryFolder();
		await using server = await startPlane({ directory: folder.file("d"), size: 16 * MiB, limitBytes: 96 * MiB });
		const path = server.socketPath;
		await using writer = await NbdClient.connect({ path });
		await using reader = await NbdClient.connect({ path });
		const blocks = writer.size / K;
		const sent = new Uint32Array(blocks);
		const acknowledged = new Uint32Array(blocks);
		let busy = true;

		async function write(): Promise<void> {
			for (let round = 0; round < 250; round++) {
				const batch = Array.from({ length: 64 }, async () => {
					const block = random.below(blocks);
					const version = ++sent[block]!;
					await writer.write(block * K, stampedBlock(block, version));
					acknowledged[block] = Math.max(acknowledged[block]!, version);
				});
				await Promise.all(batch);
			}
			busy = false;
		}
		async function read(): Promise<void> {
			while (busy) {
				const batch = Array.from({ length: 16 }, async () => {
					const count = random.between(1, 48);
					const first = random.below(blocks - count);
					const before = acknowledged.slice(first, first + count);
					const bytes = await reader.read(first * K, count * K);
					for (let i = 0; i < count; i++) {
						const version = versionIn(bytes.subarray(i * K, (i + 1) * K), first + i);
						assert(version >= before[i]! && version <= sent[first + i]!, `block ${first + i}: ${version}`);
					}
				});
				await Promise.all(batch);
			}
		}
		async function disturb(): Promise<void> {
			while (busy) {
				forgetPageCache(server);
				await moveEverything(server);
				forgetPageCache(server);
				while ((await punchSomeFree(server.plane, server.directory.firstSpace, 0)) > 0);
			}
		}
		await Promise.all([write(), read(), disturb()]);
		const { counters, tailPosition } = await server.plane.ask("status");
		assert.equal(counters.errors, 0);
		assert(counters.slowReads > 0, "no read missed the page cache");
		assert(tailPosition > 0);
		t.diagnostic(`${counters.slowReads} of ${counters.reads} reads missed the page cache`);
	});
});

describe("a full host", () => {
	for (const kind of ["tmpfs", "ext4"] as const)
		test(`refuses writes, keeps what it has, and goes on once there is space (${kind})`, async (t: TestContext) => {
			if (!requireTool(t, "root", ...(kind === "ext4" ? ["mkfs.ext4", "loop devices"] : []))) return;
			await using stack = new AsyncDisposableStack();
			const folder = stack.use(await temporaryFolder());
			const host = folder.file("host");
			await mkdir(host);
			if (kind === "tmpfs") await runOk("mount", ["-t", "tmpfs", "-o", "size=64m", "tmpfs", host]);
			else {
				await runOk("truncate", ["-s", "96M", folder.file("loop")]);
				await runOk("mkfs.ext4", ["-q", folder.file("loop")]);
				await runOk("mount", ["-o", "loop", folder.file("loop"), host]);
			}
			stack.defer(() => runOk("umount", [host]).then(() => {}));
			await writeFile(`${host}/filler`, new Uint8Array(16 * MiB));
			const server = stack.use(await startPlane({ directory: `${host}/d`, size: 256 * MiB }));
			const client = stack.use(await NbdClient.connect({ path: server.socketPath }));
			const blocks = client.size / K;
			const written = new Uint32Array(blocks);
			const writeSome = async (count: number, version: number): Promise<number> => {
				const errors = Array.from({ length: count }, async (_, i) => {
					const block = (i * 37) % blocks;
					const payload = stampedBlock(block, version);
					const { error } = await client.request({ type: command.WRITE, offset: block * K, payload });
					if (error === 0) written[block] = version;
					return error;
				});
				const failed = (await Promise.all(errors)).filter((error) => error !== 0);
				assert(
					failed.every((error) => error === errno.ENOSPC),
					failed.join(" "),
				);
				return failed.length;
			};
			const checkAll = async (): Promise<void> => {
				for (let block = 0; block < blocks; block += 256) {
					const bytes = await client.read(block * K, 256 * K);
					for (let i = 0; i < 256; i++) {
						const version = versionIn(bytes.subarray(i * K, (i + 1) * K), block + i);
						// A write that failed may be there all the same.
						assert(version >= written[block + i]!, `block ${block + i} is ${version}, not ${written[block + i]}`);
					}
				}
			};
			assert((await writeSome(20_000, 1)) > 0, "the host never became full");
			assert((await writeSome(100, 2)) > 0);
			await checkAll();
			const { poisoned } = await server.plane.ask("status");
			assert(!poisoned);
			await client.request({ type: command.FLUSH });
			await rm(`${host}/filler`);
			assert.equal(await writeSome(1000, 3), 0, "there is space again");
			await client.flush();
			await checkAll();
		});
});
