// How a server comes and goes: sockets from a service manager, limits on clients, clients that fall silent, and an end
// that finishes what was asked.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { command, errno } from "../../src/core/nbd/protocol.ts";
import { temporaryFolder } from "../support/folders.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { extendedHeader, NbdClient, requestHeader } from "../support/nbd-client.ts";
import { nbdsh } from "../support/nbd-shell.ts";
import { type PlaneOptions, type PlaneServer, startPlane } from "../support/plane-server.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { freePort, waitUntil } from "../support/waiting.ts";

const MiB = 2 ** 20;

interface Fixture extends AsyncDisposable {
	readonly options: PlaneOptions;
	readonly server: PlaneServer;
	connect(extended?: boolean): Promise<NbdClient>;
}

async function fixture(more: Omit<PlaneOptions, "directory"> = {}): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const options = { directory: folder.file("d"), size: 64 * MiB, ...more };
	const server = stack.use(await startPlane(options));
	return {
		options,
		server,
		connect: async (extended = false) => stack.use(await NbdClient.connect({ path: server.socketPath }, { extended })),
		[Symbol.asyncDispose]: () => stack.disposeAsync(),
	};
}

const clientCount = async (server: PlaneServer): Promise<number> => (await server.plane.ask("status")).clients;

describe("sockets that a service manager passes", () => {
	test("systemd's own tool: a Unix socket, then a TCP port; the server starts with the first client", async (t) => {
		if (!requireTool(t, "systemd-socket-activate", "nbdinfo")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("web01");
		await createDisk(disk, { size: "32M" });
		const port = await freePort();
		for (const [where, uri] of [
			[folder.file("s"), `nbd+unix:///web01?socket=${folder.file("s")}`],
			[`127.0.0.1:${port}`, `nbd://127.0.0.1:${port}/web01`],
		] as const) {
			await using server = start("systemd-socket-activate", ["-l", where, vmsweep, "serve", disk]);
			await server.until(() => /Listening on/.test(server.stderr), "its socket");
			assert.equal(Number(await runOk("nbdinfo", ["--size", uri])), 32 * MiB);
			assert.match(server.stdout, new RegExp(`is served at ${uri.replaceAll(/[?+]/g, "[$&]")}`));
			const { exitCode, stderr } = await server.end();
			assert.equal(exitCode, 0, stderr);
		}
	});

	test("libnbd's: a client that starts the server and ends it", async (t) => {
		if (!requireTool(t, "nbdinfo", "nbdcopy")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("web01");
		await createDisk(disk, { size: "32M" });
		const serve = ["--", "[", vmsweep, "serve", disk, "--clean", "off", "]"];
		// The server's own words come out of it, too.
		assert.match(
			await runOk("nbdinfo", ["--size", ...serve]),
			new RegExp(`^web01 .* is served at .*\\n${32 * MiB}\\n$`),
		);
		const bytes = seededRandom(1).bytes(32 * MiB);
		await writeFile(folder.file("image"), bytes);
		await runOk("nbdcopy", ["--flush", "--", folder.file("image"), ...serve.slice(1)]);
		await waitUntil(async () => (await run(vmsweep, ["clean", disk])).exitCode === 0, "the server's end");
		await runOk("nbdcopy", ["--", ...serve.slice(1), folder.file("back")]);
		await runOk("cmp", [folder.file("image"), folder.file("back")]);
	});
});

test("clients beyond the limit are told so; there is room again when one leaves", async (t) => {
	if (!requireTool(t, "nbdsh")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web01");
	await createDisk(disk, { size: "32M" });
	await using server = await SweepServer.serve(disk, "--clean", "off", "--max-clients", "2");
	const connect = (): Promise<NbdClient> => server.connect({ extended: true });
	await using one = await connect();
	await using two = await connect();
	await assert.rejects(connect(), /web01 has 2 clients already/);
	const refused = await nbdsh("-u", server.uri, "-c", "pass");
	assert.match(refused.stderr, /server policy prevents (NBD_OPT_GO|.*web01 has 2 clients already)/);
	await two.flush();
	await one.disconnect();
	await using three = await connect();
	await three.flush();
	assert.equal((await server.stop()).exitCode, 0);
});

describe("silent clients", () => {
	test("in the middle of a request, or that take no replies, are closed; those who rest or wait are not", async () => {
		await using f = await fixture({ limits: { requestTimeoutMs: 400 }, limitBytes: 64 * MiB });
		const resting = await f.connect();
		const waiting = await f.connect(true);
		// Nobody makes room here: these writes wait for ever, and that is not the client's silence.
		const writes = Array.from({ length: 8 }, (_, i) => waiting.write(i * 8 * MiB, new Uint8Array(8 * MiB)));
		for (const write of writes) write.catch(() => {});
		await waitUntil(async () => (await f.server.plane.ask("status")).stalled === 1, "a full log");

		const half = await f.connect();
		half.socket.write(requestHeader({ type: command.READ, length: 4096 }, 1n).subarray(0, 11));
		const halfPayload = await f.connect(true);
		halfPayload.socket.write(extendedHeader({ type: command.BLOCK_STATUS, payload: Buffer.alloc(12) }, 1n));
		const deaf = await f.connect();
		deaf.sendsByHand = true;
		deaf.socket.pause();
		deaf.freeze();
		const read = requestHeader({ type: command.READ, length: 32 * MiB, flags: 4 }, 1n);
		deaf.socket.write(Buffer.concat(Array.from({ length: 8 }, () => read)));
		await waitUntil(async () => (await clientCount(f.server)) === 2, "the end of all three");
		await resting.read(0, 4096);
		assert.equal((await f.server.plane.ask("status")).stalled, 1, "who waits for room still does");
	});

	test("between requests only where that is asked for", async () => {
		await using f = await fixture({ limits: { idleTimeoutMs: 300 } });
		const client = await f.connect();
		await client.write(0, Buffer.alloc(4096, 7));
		await client.closed;
		await using again = await NbdClient.connect({ path: f.server.socketPath });
		assert((await again.read(0, 4096)).every((byte) => byte === 7));
	});
});

describe("the end", () => {
	test("what was begun is finished: a payload that is still coming, flushes, many reads", async () => {
		await using f = await fixture();
		const [half, busy, idle] = [await f.connect(), await f.connect(), await f.connect()];
		const bytes = seededRandom(2).bytes(8 * MiB);
		half.sendsByHand = true;
		half.socket.write(requestHeader({ type: command.WRITE, offset: 4096, length: bytes.length }, 77n));
		half.socket.write(bytes.subarray(0, 3 * MiB));
		const asked = [
			...Array.from({ length: 100 }, (_, i) => busy.write(32 * MiB + i * 4096, bytes.subarray(i, i + 4096))),
			busy.flush(),
			...Array.from({ length: 100 }, (_, i) => busy.read(i * 65536, 65536)),
		];
		// What hasn't been sent when the draining begins is not taken any more.
		await waitUntil(async () => {
			const { writes, reads } = (await f.server.plane.ask("status")).counters;
			return writes > 100 && reads > 0;
		}, "all that was sent");
		const stopped = f.server.stop();
		await idle.closed;
		await Promise.all(asked);
		half.socket.write(bytes.subarray(3 * MiB));
		await half.closed;
		await stopped;
		await using server = await startPlane(f.options);
		await using again = await NbdClient.connect({ path: server.socketPath });
		assert(Buffer.from(bytes).equals(await again.read(4096, bytes.length)), "its last write was done");
		assert(Buffer.from(bytes.subarray(99, 99 + 4096)).equals(await again.read(32 * MiB + 99 * 4096, 4096)));
	});

	test("a client that never finishes doesn't hold it up for ever", async () => {
		await using f = await fixture();
		const client = await f.connect();
		client.sendsByHand = true;
		client.socket.write(requestHeader({ type: command.WRITE, offset: 0, length: MiB }, 1n));
		client.socket.write(Buffer.alloc(MiB / 2));
		await waitUntil(async () => (await f.server.plane.ask("status")).counters.writes > 0, "the begun write");
		await f.server.stop();
		await client.closed;
	});

	test("writes that wait for room end with an error", async () => {
		await using f = await fixture({ limitBytes: 64 * MiB });
		const client = await f.connect();
		const writes = Array.from({ length: 8 }, (_, i) =>
			client.request({ type: command.WRITE, offset: i * 8 * MiB, payload: new Uint8Array(8 * MiB) }),
		);
		await waitUntil(async () => (await f.server.plane.ask("status")).stalled === 1, "a full log");
		await f.server.stop();
		const errors = (await Promise.allSettled(writes)).map((end) =>
			end.status === "fulfilled" ? end.value.error : "closed",
		);
		assert.equal(errors[0], 0);
		assert(errors.includes(errno.ENOSPC), String(errors));
	});

	test("SIGTERM: durable, closed cleanly, exit code 0, with clients connected", async (t) => {
		if (!requireTool(t, "nbdinfo")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("web01");
		await createDisk(disk, { size: "32M" });
		await using server = await SweepServer.serve(disk);
		await using client = await server.connect();
		await client.write(0, Buffer.alloc(4096, 3));
		const { exitCode, stderr } = await server.stop();
		assert.equal(exitCode, 0, stderr);
		await client.closed;
		assert.match(await runOk(vmsweep, ["status", disk]), /closed cleanly|clean/);
	});
});
