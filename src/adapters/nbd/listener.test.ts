import assert from "node:assert/strict";
import { once } from "node:events";
import { rename, stat, writeFile } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { test } from "node:test";
import { temporaryFolder } from "../../../test/support/folders.ts";
import { waitUntil } from "../../../test/support/waiting.ts";
import { diskTransmissionFlags, type ExportDescription } from "../../core/nbd/handshake.ts";
import { Greeting, OPTION_MAGIC, OptionHeader, option } from "../../core/nbd/protocol.ts";
import { isVmsweepError } from "../../foundations/errors.ts";
import { viewOf } from "../../foundations/struct.ts";
import { byteCount } from "../../foundations/units.ts";
import { close, EAGAIN, pin, recv, send } from "../os/syscalls.ts";
import { exportUri, formatAddress, type ListenerOptions, listenNbd, type NbdClient } from "./listener.ts";

const disk: ExportDescription = {
	name: "web01",
	description: "",
	size: byteCount(2 ** 30),
	readOnly: false,
	transmissionFlags: diskTransmissionFlags,
	blockSize: { minimum: 1, preferred: 4096, maximumPayload: 32 * 2 ** 20 },
};

/** Client flags and GO for the default export: a whole handshake in one piece. */
function handshakeBytes(): Buffer {
	const header = new Uint8Array(OptionHeader.size);
	OptionHeader.put(viewOf(header), 0, { magic: OPTION_MAGIC, option: option.GO, length: 6 });
	return Buffer.concat([Buffer.from([0, 0, 0, 3]), header, new Uint8Array(6)]);
}

interface Collected {
	readonly options: Pick<ListenerOptions, "exports" | "onClient" | "onNotice">;
	readonly clients: NbdClient[];
	readonly notices: string[];
}

function collect(): Collected {
	const clients: NbdClient[] = [];
	const notices: string[] = [];
	const options = {
		exports: () => [disk],
		onClient: (client: NbdClient) => void clients.push(client),
		onNotice: (line: string) => void notices.push(line),
	};
	return { options, clients, notices };
}

/** What has arrived on a descriptor, waiting until it is `length` bytes. */
async function receive(fd: number, length: number): Promise<string> {
	const into = pin(length);
	let have = 0;
	await waitUntil(() => {
		const count = recv(fd, into.address + have, length - have);
		assert.ok(count > 0 || count === -EAGAIN, `recv returned ${count}`);
		if (count > 0) have += count;
		return have === length;
	}, `${length} bytes`);
	return Buffer.from(into.bytes).toString("latin1");
}

async function connected(path: string): Promise<Socket> {
	const socket = connect({ path });
	await once(socket, "connect");
	return socket;
}

test("hands over the connection with every byte in order, whatever the packets", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	const { options, clients } = collect();
	await using _listener = await listenNbd({ ...options, address: { kind: "unix", path } });
	for (const cuts of [[], [1], [3, 5, 19], [26], [27], [30]]) {
		const socket = await connected(path);
		const answers: Buffer[] = [];
		socket.on("data", (bytes: Buffer) => answers.push(bytes));
		const sent = Buffer.concat([handshakeBytes(), Buffer.from("first requests, ")]);
		let from = 0;
		for (const to of [...cuts, sent.length]) {
			await new Promise((resolve) => socket.write(sent.subarray(from, to), resolve));
			from = to;
		}
		const client = await waitUntil(() => clients.shift(), "a client");
		socket.write("and later ones");
		const rest = 30 - client.leftover.length;
		const received = Buffer.from(client.leftover).toString("latin1") + (await receive(client.fd, rest));
		assert.equal(received, "first requests, and later ones");
		// Answers go the other way, and ours reach the client after all of the handshake's.
		const answer = pin(2);
		answer.bytes.set(Buffer.from("ok"));
		assert.equal(send(client.fd, answer.address, 2), 2);
		await waitUntil(() => Buffer.concat(answers).subarray(-2).toString() === "ok", "the answer");
		close(client.fd);
		socket.destroy();
	}
});

test("large first requests arrive complete", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	const { options, clients } = collect();
	await using _listener = await listenNbd({ ...options, address: { kind: "unix", path } });
	const payload = Buffer.alloc(1_000_000, "0123456789");
	const socket = await connected(path);
	socket.write(Buffer.concat([handshakeBytes(), payload]));
	const client = await waitUntil(() => clients.shift(), "a client");
	const rest = await receive(client.fd, payload.length - client.leftover.length);
	assert.ok(Buffer.concat([client.leftover, Buffer.from(rest, "latin1")]).equals(payload));
	close(client.fd);
	socket.destroy();
});

test("the socket file belongs to its user alone, and goes with the listener", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	const { options } = collect();
	const listener = await listenNbd({ ...options, address: { kind: "unix", path } });
	assert.equal((await stat(path)).mode & 0o777, 0o600);
	await listener.close();
	await assert.rejects(stat(path), { code: "ENOENT" });
	await using open = await listenNbd({ ...options, address: { kind: "unix", path, mode: 0o666 } });
	assert.equal((await stat(path)).mode & 0o777, 0o666);
	assert.equal(formatAddress(open.address), `unix:${path}`);
});

test("a live server's socket is refused, a dead one's replaced, other files are left alone", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	const { options } = collect();
	const address = { kind: "unix", path } as const;
	{
		await using _listener = await listenNbd({ ...options, address });
		await assert.rejects(listenNbd({ ...options, address }), (error) => isVmsweepError(error, "ADDRESS_IN_USE"));
	}
	// A file whose server died: bind leaves it, and closing through another name doesn't remove it.
	const dead = createServer().listen({ path: folder.file("other") });
	await once(dead, "listening");
	await rename(folder.file("other"), path);
	dead.close();
	await once(dead, "close");
	assert.ok((await stat(path)).isSocket());
	await (await listenNbd({ ...options, address })).close();

	await writeFile(path, "precious");
	await assert.rejects(listenNbd({ ...options, address }), (error) => isVmsweepError(error, "FILE_EXISTS"));
	const missing = { kind: "unix", path: folder.file("no/such/s") } as const;
	await assert.rejects(
		listenNbd({ ...options, address: missing }),
		/no\/such\/s: the socket's directory doesn't exist/,
	);
	const long = { kind: "unix", path: folder.file("x".repeat(120)) } as const;
	await assert.rejects(listenNbd({ ...options, address: long }), (error) => isVmsweepError(error, "USAGE"));
});

test("TCP: a chosen port is told, a taken one refused", async () => {
	const { options, clients } = collect();
	const listener = await listenNbd({ ...options, address: { kind: "tcp", host: "127.0.0.1", port: 0 } });
	await using _listener = listener;
	assert.ok(listener.address.kind === "tcp" && listener.address.port > 0);
	const taken = { ...options, address: listener.address };
	await assert.rejects(listenNbd(taken), (error) => isVmsweepError(error, "ADDRESS_IN_USE"));
	const socket = connect({ host: "127.0.0.1", port: listener.address.port });
	socket.write(handshakeBytes());
	const client = await waitUntil(() => clients.shift(), "a client");
	assert.match(client.peer, /^127\.0\.0\.1:\d+$/);
	close(client.fd);
	socket.destroy();
	assert.equal(exportUri({ kind: "tcp", host: "::1", port: 10809 }, "a b"), "nbd://[::1]:10809/a%20b");
	assert.equal(exportUri({ kind: "unix", path: "/run/v.sock" }, "web01"), "nbd+unix:///web01?socket=/run/v.sock");
});

test("silent, vanishing and babbling clients cost nothing that stays", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	const { options, notices } = collect();
	const listener = await listenNbd({ ...options, address: { kind: "unix", path }, handshakeTimeoutMs: 50 });
	await using _listener = listener;
	const silent = await connected(path);
	silent.resume();
	await once(silent, "close");
	const vanishing = await connected(path);
	vanishing.destroy();
	const babbling = await connected(path);
	babbling.end("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
	await waitUntil(
		() => notices.length === 3 && listener.connectionCount === 0,
		() => `three notices, not ${notices.join("; ")}`,
	);
	assert.ok(notices.some((line) => line.includes("longer than")));
	assert.ok(notices.some((line) => line.includes("unknown flags")));
});

test("connections are limited, and closing ends handshakes but no transmission", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	const { options, clients, notices } = collect();
	const transmissions = Promise.withResolvers<void>();
	const onClient = (client: NbdClient): Promise<void> => {
		clients.push(client);
		return transmissions.promise;
	};
	const listener = await listenNbd({ ...options, onClient, address: { kind: "unix", path }, connectionsMax: 2 });
	const one = await connected(path);
	one.write(handshakeBytes());
	const client = await waitUntil(() => clients.shift(), "a client");
	const two = await connected(path);
	const [greeting] = (await once(two, "data")) as [Buffer];
	assert.equal(greeting.length, Greeting.size);
	const three = await connected(path);
	three.resume();
	await once(three, "close");
	assert.match(notices.join(), /2 connections are open already/);
	assert.equal(listener.connectionCount, 2);

	await listener.close();
	two.resume();
	await once(two, "close");
	one.write("still here");
	assert.equal(await receive(client.fd, 10), "still here");
	transmissions.resolve();
	await waitUntil(() => listener.connectionCount === 0, "no connections");
	close(client.fd);
	one.destroy();
});
