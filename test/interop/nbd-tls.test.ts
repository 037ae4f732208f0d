// TLS as people use it: libnbd's and QEMU's clients with their own credentials, and clients that try to get around it.

import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { connect as tlsConnect } from "node:tls";
import { loadTls, type TlsFiles } from "../../src/adapters/nbd/tls.ts";
import { NBD_MAGIC, option, optionReply } from "../../src/core/nbd/protocol.ts";
import { type Certificates, makeCertificates } from "../support/certificates.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashFile } from "../support/hashes.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type PlaneServer, startPlane } from "../support/plane-server.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MiB = 2 ** 20;
const ALICE = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

interface Fixture extends AsyncDisposable {
	readonly folder: TemporaryFolder;
	readonly certificates: Certificates;
	/** A folder with keys.psk, as QEMU wants it. */
	readonly keys: string;
	readonly server: PlaneServer;
	/** An NBD URI for libnbd: as whom, with what. */
	uri(how: {
		readonly certificates?: string;
		readonly user?: string;
		readonly keys?: string;
		readonly unix?: boolean;
	}): string;
}

async function fixture(files: (certificates: Certificates, keys: string) => TlsFiles): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const certificates = await makeCertificates(folder.path);
	const keys = folder.file("psk");
	await runOk("mkdir", [keys]);
	await writeFile(join(keys, "keys.psk"), `alice:${ALICE}\n`);
	await writeFile(join(keys, "wrong.psk"), `alice:${ALICE.replaceAll("0", "1")}\nmallory:${ALICE}\n`);
	const tls = await loadTls(files(certificates, keys));
	const server = stack.use(await startPlane({ directory: folder.file("d"), size: 64 * MiB, tcp: true, tls }));
	return {
		folder,
		certificates,
		keys,
		server,
		uri({ certificates: from, user, keys: file, unix = false }) {
			const query = new URLSearchParams();
			if (unix) query.set("socket", server.socketPath);
			if (from !== undefined) query.set("tls-certificates", from);
			if (file !== undefined) query.set("tls-psk-file", file);
			const who = user === undefined ? "" : `${user}@`;
			const [scheme, where] = unix ? ["nbds+unix", who] : ["nbds", `${who}localhost:${server.tcpPort}`];
			return `${scheme}://${where}/disk?${decodeURIComponent(query.toString())}`;
		},
		[Symbol.asyncDispose]: () => stack.disposeAsync(),
	};
}

const succeeds = async (uri: string): Promise<boolean> => (await run("nbdinfo", ["--size", uri])).exitCode === 0;

/** Reads and writes a lot, over several connections, and compares. */
async function exchange({ folder, server }: Fixture, uri: string): Promise<void> {
	const bytes = seededRandom(3).bytes(20 * MiB);
	await writeFile(folder.file("image"), Buffer.concat([bytes, new Uint8Array(server.size - bytes.length)]));
	await runOk("nbdcopy", ["--flush", "--connections=3", "--requests=32", folder.file("image"), uri]);
	await runOk("nbdcopy", ["--connections=3", "--requests=32", uri, folder.file("back")]);
	assert.equal(await hashFile(folder.file("back")), await hashFile(folder.file("image")));
}

describe("certificates", () => {
	test("libnbd: encrypted, and everything goes through", async (t: TestContext) => {
		if (!requireTool(t, "nbdinfo", "nbdcopy", "openssl")) return;
		await using f = await fixture(({ server }) => ({ folder: server }));
		const uri = f.uri({ certificates: f.certificates.nobody });
		const { exports, TLS } = JSON.parse(await runOk("nbdinfo", ["--json", uri])) as Record<string, unknown>;
		assert.equal(TLS, true);
		assert.equal((exports as unknown[]).length, 1);
		await exchange(f, uri);
		assert(await succeeds(f.uri({ certificates: f.certificates.nobody, unix: true })));
		assert(!(await succeeds(`nbd://localhost:${f.server.tcpPort}/disk`)), "not without TLS");
		await waitUntil(async () => (await f.server.plane.ask("status")).clients === 0, "the end of all clients");
	});

	test("clients that must show one: with it, without it, with a stranger's", async (t) => {
		if (!requireTool(t, "nbdinfo", "openssl")) return;
		await using f = await fixture(({ server }) => ({ folder: server, verifyPeer: true }));
		const { client, nobody, stranger } = f.certificates;
		assert(await succeeds(f.uri({ certificates: client })));
		assert(!(await succeeds(f.uri({ certificates: nobody }))));
		assert(!(await succeeds(f.uri({ certificates: stranger }))));
		assert(await succeeds(f.uri({ certificates: client })), "as before");
	});

	test("QEMU's tools", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io", "openssl")) return;
		await using f = await fixture(({ server }) => ({ folder: server, verifyPeer: true }));
		const object = `tls-creds-x509,id=tls0,dir=${f.certificates.client},endpoint=client`;
		const image = `driver=nbd,host=localhost,port=${f.server.tcpPort},export=disk,tls-creds=tls0`;
		const io = await run("qemu-io", [
			"--object",
			object,
			"--image-opts",
			image,
			"-c",
			"write -P 7 1M 3M",
			"-c",
			"flush",
			"-c",
			"read -P 7 1M 3M",
			"-c",
			"read -P 0 0 1M",
		]);
		assert.equal(io.exitCode, 0, io.stdout + io.stderr);
		assert.doesNotMatch(io.stdout + io.stderr, /verification failed/i);
		const info = await runOk("qemu-img", ["info", "--object", object, "--image-opts", image]);
		assert.match(info, /virtual size: 64 MiB/);
		assert.notEqual((await run("qemu-img", ["info", `nbd://localhost:${f.server.tcpPort}/disk`])).exitCode, 0);
	});
});

describe("shared keys", () => {
	test("libnbd: the right key, a wrong one, a stranger", async (t) => {
		if (!requireTool(t, "nbdinfo", "nbdcopy", "openssl")) return;
		await using f = await fixture((_, keys) => ({ sharedKeys: join(keys, "keys.psk") }));
		const right = join(f.keys, "keys.psk");
		const wrong = join(f.keys, "wrong.psk");
		assert(await succeeds(f.uri({ user: "alice", keys: right, unix: true })));
		assert(!(await succeeds(f.uri({ user: "alice", keys: wrong, unix: true }))));
		assert(!(await succeeds(f.uri({ user: "mallory", keys: wrong }))));
		await exchange(f, f.uri({ user: "alice", keys: right }));
	});

	test("QEMU's tools", async (t) => {
		if (!requireTool(t, "qemu-img", "openssl")) return;
		await using f = await fixture((_, keys) => ({ folder: keys }));
		const object = `tls-creds-psk,id=tls0,dir=${f.keys},username=alice,endpoint=client`;
		const image = `driver=nbd,path=${f.server.socketPath},export=disk,tls-creds=tls0`;
		assert.match(await runOk("qemu-img", ["info", "--object", object, "--image-opts", image]), /64 MiB/);
	});

	test("beside certificates, on one server", async (t) => {
		if (!requireTool(t, "nbdinfo", "openssl")) return;
		await using f = await fixture(({ server }, keys) => ({ folder: server, sharedKeys: join(keys, "keys.psk") }));
		assert(await succeeds(f.uri({ certificates: f.certificates.client })));
		assert(await succeeds(f.uri({ user: "alice", keys: join(f.keys, "keys.psk") })));
	});

	test("beside certificates that clients must show: either will do, nothing else", async (t) => {
		if (!requireTool(t, "nbdinfo", "openssl")) return;
		await using f = await fixture(({ server }, keys) => ({
			folder: server,
			sharedKeys: join(keys, "keys.psk"),
			verifyPeer: true,
		}));
		const { client, nobody, stranger } = f.certificates;
		assert(await succeeds(f.uri({ certificates: client })));
		assert(await succeeds(f.uri({ user: "alice", keys: join(f.keys, "keys.psk") })));
		assert(!(await succeeds(f.uri({ user: "alice", keys: join(f.keys, "wrong.psk") }))));
		for (const certificates of [nobody, stranger]) assert(!(await succeeds(f.uri({ certificates }))));
	});

	test("knowing only a key's name gains nothing, whatever ciphers a client insists on", async (t) => {
		if (!requireTool(t, "openssl")) return;
		await using f = await fixture(({ server }, keys) => ({
			folder: server,
			sharedKeys: join(keys, "keys.psk"),
			verifyPeer: true,
		}));
		for (const [maxVersion, ciphers] of [
			["TLSv1.3", "TLS_AES_256_GCM_SHA384"],
			["TLSv1.3", "TLS_AES_128_GCM_SHA256"],
			["TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"],
			["TLSv1.2", "kECDHEPSK:kPSK"],
		] as const) {
			const socket = connect({ path: f.server.socketPath });
			const started = startTls(socket);
			await started;
			const secure = tlsConnect({
				socket,
				maxVersion,
				ciphers,
				rejectUnauthorized: false,
				checkServerIdentity: () => undefined,
				pskCallback: () => ({ identity: "alice", psk: Buffer.alloc(32) }),
			});
			const received: Buffer[] = [];
			secure.on("data", (bytes: Buffer) => received.push(bytes));
			secure.on("error", () => {});
			secure.write(optionBytes(option.LIST));
			// An error, which is welcome here, would end `once`.
			await new Promise((resolve) => secure.once("close", resolve));
			assert.equal(Buffer.concat(received).length, 0, `${maxVersion} ${ciphers}`);
		}
	});
});

test("optional: both kinds of clients at once", async (t) => {
	if (!requireTool(t, "nbdinfo", "openssl")) return;
	await using f = await fixture(({ server }) => ({ folder: server, optional: true }));
	await using plain = await NbdClient.connect({ path: f.server.socketPath });
	await plain.write(0, Buffer.from("plain"));
	assert(await succeeds(f.uri({ certificates: f.certificates.nobody })));
	assert.equal((await plain.read(0, 5)).toString(), "plain");
});

/** An option without data. */
function optionBytes(type: number): Buffer {
	const bytes = Buffer.from(`IHAVEOPT${"\0".repeat(8)}`);
	bytes.writeUInt32BE(type, 8);
	return bytes;
}

/** Goes as far as the server's agreement to TLS. */
async function startTls(socket: Socket): Promise<void> {
	socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), optionBytes(option.STARTTLS)]));
	let length = 0;
	while (length < 18 + 20) length += ((await once(socket, "data")) as [Buffer])[0].length;
	socket.removeAllListeners("data");
}

test("bytes sent along with STARTTLS are never taken for encrypted ones", async (t) => {
	if (!requireTool(t, "openssl")) return;
	await using f = await fixture(({ server }) => ({ folder: server }));
	const socket = connect({ path: f.server.socketPath });
	const received: Buffer[] = [];
	socket.on("data", (bytes: Buffer) => received.push(bytes));
	socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), optionBytes(option.LIST)]));
	const replyType = (): number => Buffer.concat(received).readUInt32BE(18 + 12);
	await waitUntil(() => Promise.resolve(Buffer.concat(received).length > 18 + 20), "a reply");
	assert.equal(Buffer.concat(received).readBigUInt64BE(0), NBD_MAGIC);
	assert.equal(replyType(), optionReply.ERR_TLS_REQD);
	const before = Buffer.concat(received).length;
	socket.write(Buffer.concat([optionBytes(option.STARTTLS), optionBytes(option.LIST)]));
	await once(socket, "close");
	assert.equal(Buffer.concat(received).length, before, "no answer at all");
});

test("the server's end reaches encrypted clients", async (t) => {
	if (!requireTool(t, "openssl", "qemu-io")) return;
	await using f = await fixture(({ server }) => ({ folder: server }));
	const object = `tls-creds-x509,id=tls0,dir=${f.certificates.nobody},endpoint=client,verify-peer=on`;
	const image = `driver=nbd,host=localhost,port=${f.server.tcpPort},export=disk,tls-creds=tls0`;
	const asking = run("qemu-io", [
		"--object",
		object,
		"--image-opts",
		image,
		"-c",
		"write -P 9 0 4M",
		"-c",
		"flush",
		"-c",
		"sleep 3000",
		"-c",
		"read 0 4k",
	]);
	await waitUntil(async () => (await f.server.plane.ask("status")).counters.flushes > 0, "its flush");
	await f.server.stop();
	assert.notEqual((await asking).exitCode, 0, "it learns that nobody is there any more");
});

test("files that can't be used are refused with what is wrong", async () => {
	await using folder = await temporaryFolder();
	const file = async (name: string, text: string): Promise<string> => {
		await writeFile(folder.file(name), text);
		return folder.file(name);
	};
	const bad = await file("bad.pem", "nonsense");
	const refused: [files: TlsFiles, code: string, message: RegExp][] = [
		[{ certificate: folder.file("none"), key: bad }, "FILE_NOT_FOUND", /none doesn't exist/],
		[{ certificate: bad }, "USAGE", /belong together/],
		[{ certificate: bad, key: bad }, "USAGE", /bad\.pem doesn't work/],
		[{ folder: folder.path }, "USAGE", /neither certificate nor shared keys in/],
		[{ optional: true }, "USAGE", /neither certificate nor shared keys/],
		[{ sharedKeys: await file("a", "alice\n") }, "USAGE", /line 1/],
		[{ sharedKeys: await file("b", `\nalice:${ALICE}\nbob:xyz`) }, "USAGE", /line 3/],
		[{ sharedKeys: await file("c", "\n") }, "USAGE", /no key/],
		[{ sharedKeys: await file("e", `alice:${ALICE}`), verifyPeer: true }, "USAGE", /without an authority/],
	];
	for (const [files, code, message] of refused) await assert.rejects(loadTls(files), { code, message });
	await loadTls({ sharedKeys: await file("good", `alice:${ALICE}\r\n\nbob:00ff\n`) });
});
