// Images by NBD address: other people's servers and our own show the bytes and the allocation of the image behind them.

import assert from "node:assert/strict";
import { once } from "node:events";
import { copyFile, readFile, rm } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { describe, test } from "node:test";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import { connectNbd } from "../../src/adapters/nbd/client.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { startPlane } from "../support/plane-server.ts";
import { type Running, runOk, start } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";
import { checkGuestMap, checkImage, MIB, makeExt4, makeRaw, runsOf } from "./image-formats.ts";

/** Waits until a server's socket answers. */
async function listening(uri: string): Promise<void> {
	await waitUntil(
		async () =>
			await connectNbd(uri).then(
				async (connection) => {
					await connection.close();
					return true;
				},
				(error: unknown) => {
					if (isVmsweepError(error, "IO")) return false;
					throw error;
				},
			),
		() => `a server at ${uri}`,
	);
}

const unixUri = (socket: string, exportName = ""): string => `nbd+unix:///${exportName}?socket=${socket}`;

/** Name: arguments of nbdkit before and after the plugin's own. */
const nbdkits: Readonly<Record<string, { readonly before?: readonly string[]; readonly after?: readonly string[] }>> = {
	"as it comes": {},
	"simple replies": { before: ["--no-sr"] },
	"blocks of 4 KiB, reads of 64 KiB": {
		before: ["--filter=blocksize-policy"],
		after: [
			"blocksize-minimum=4096",
			"blocksize-preferred=4096",
			"blocksize-maximum=65536",
			"blocksize-error-policy=error",
		],
	},
	"no extents": { before: ["--filter=noextents"] },
	"replies out of order": { before: ["--threads=8", "--filter=delay"], after: ["rdelay=1ms"] },
};

describe("NBD addresses", () => {
	for (const [name, { before = [], after = [] }] of Object.entries(nbdkits))
		test(`nbdkit, ${name}`, async (t) => {
			if (!requireTool(t, "nbdkit")) return;
			await using folder = await temporaryFolder();
			const [raw, socket] = [folder.file("raw"), folder.file("s")];
			await makeRaw(raw, 11 * MIB, 3);
			await using _server: Running = start("nbdkit", ["-f", "-U", socket, ...before, "file", raw, ...after]);
			const uri = unixUri(socket);
			await listening(uri);
			await checkImage(uri, raw, "nbd");
			await using image = await openDiskImage(uri);
			await using file = await openDiskImage(raw);
			const all = [{ start: 0, length: image.size as number }];
			const tells = name !== "no extents" && name !== "simple replies";
			assert.deepEqual(await runsOf(image, "data"), tells ? await runsOf(file, "data") : all);
			assert.equal(await image.allocatedBytes(), null);
		});

	test("qemu-nbd, a raw and a qcow2 image, by socket and by port", async (t) => {
		if (!requireTool(t, "qemu-nbd", "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const [raw, qcow2] = [folder.file("raw"), folder.file("image.qcow2")];
		await makeRaw(raw, 11 * MIB, 3);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
		await using _first = start("qemu-nbd", ["-t", "-f", "raw", "-r", "-x", "a disk/ü", "-k", folder.file("s"), raw]);
		const uri = unixUri(folder.file("s"), "a%20disk/%C3%BC");
		await listening(uri);
		await checkImage(uri, raw, "nbd");
		await assert.rejects(openDiskImage(unixUri(folder.file("s"), "other")), {
			code: "FILE_NOT_FOUND",
			message: /other/,
		});

		const port = await freePort();
		await runOk("qemu-io", ["-f", "qcow2", "-c", "write -z 1M 64k", "-c", "write -P 5 2M 64k", qcow2]);
		await runOk("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", qcow2, folder.file("now")]);
		await using _second = start("qemu-nbd", ["-t", "-f", "qcow2", "-r", "-b", "127.0.0.1", "-p", `${port}`, qcow2]);
		await listening(`nbd://127.0.0.1:${port}`);
		await checkImage(`nbd://127.0.0.1:${port}/`, folder.file("now"), "nbd");
		await using image = await openDiskImage(`nbd://localhost:${port}`);
		await using file = await openDiskImage(qcow2);
		assert.deepEqual(await runsOf(image, "data"), await runsOf(file, "data"));
	});

	test("vmsweep's own server", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, second] = [folder.file("raw"), folder.file("second")];
		await makeRaw(raw, 8 * MIB, 3);
		await copyFile(raw, second);
		await using server = await startPlane({ directory: folder.file("d"), second, tcp: true });
		await checkImage(server.uri, raw, "nbd");
		await checkImage(server.tcpUri, raw, "nbd");
	});

	test("the guest map of an ext4 inside", async (t) => {
		if (!requireTool(t, "nbdkit", "mke2fs", "debugfs")) return;
		await using folder = await temporaryFolder();
		const [raw, socket] = [folder.file("raw"), folder.file("s")];
		await makeExt4(raw, 40 * MIB);
		await using _server = start("nbdkit", ["-f", "-U", socket, "file", raw]);
		await listening(unixUri(socket));
		await checkGuestMap(unixUri(socket), raw);
	});

	test("a server that fails, or is stopped, fails the reads that need it, and no others", async (t) => {
		if (!requireTool(t, "nbdkit")) return;
		await using folder = await temporaryFolder();
		const [raw, socket, trigger] = [folder.file("raw"), folder.file("s"), folder.file("trigger")];
		await makeRaw(raw, 4 * MIB, 3);
		const error = ["error-pread=EIO", "error-pread-rate=100%", `error-pread-file=${trigger}`];
		await using server = start("nbdkit", ["-f", "-U", socket, "--filter=error", "file", raw, ...error]);
		await listening(unixUri(socket));
		await using image = await openDiskImage(unixUri(socket));
		const [bytes, expected] = [new Uint8Array(4 * MIB), await readFile(raw)];
		await runOk("touch", [trigger]);
		await assert.rejects(image.read(byteOffset(0), bytes), { code: "IO", message: /error 5/ });
		await rm(trigger);
		await image.read(byteOffset(0), bytes);
		assert.ok(Buffer.compare(bytes, expected) === 0);
		await server.kill();
		await assert.rejects(image.read(byteOffset(0), bytes), { code: "IO" });
		await assert.rejects(openDiskImage(unixUri(socket)), { code: "IO", message: /ECONNREFUSED/ });
	});
});

async function freePort(): Promise<number> {
	const server = createServer().listen(0, "127.0.0.1");
	await once(server, "listening");
	const { port } = server.address() as AddressInfo;
	server.close();
	await once(server, "close");
	return port;
}

describe("servers that are none", () => {
	/** What a server says to each new client, then what it answers, whatever it is asked. */
	const speeches: Readonly<Record<string, readonly [hello: Buffer, code: string, message: RegExp]>> = {
		"one that says nothing": [Buffer.alloc(0), "IO", /didn't answer/],
		"one that stops in the middle": [Buffer.from("NBDMAGICIHAVE"), "IO", /didn't answer/],
		"a web server": [Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n"), "NBD_PROTOCOL", /doesn't speak NBD/],
		"one of the old protocol": [
			Buffer.concat([Buffer.from("NBDMAGIC"), Buffer.from("00420281861253", "hex"), Buffer.alloc(200)]),
			"IMAGE_UNSUPPORTED",
			/old one/,
		],
		"one that answers an option with four gigabytes": [
			Buffer.concat([
				Buffer.from("NBDMAGICIHAVEOPT\0\x03", "latin1"),
				Buffer.from("0003e889045565a9" + "00000008" + "00000001" + "ffffffff", "hex"),
			]),
			"NBD_PROTOCOL",
			/too long/,
		],
	};
	for (const [what, [hello, code, message]] of Object.entries(speeches))
		test(what, async () => {
			await using folder = await temporaryFolder();
			const clients: Socket[] = [];
			const server = createServer((socket) => {
				clients.push(socket);
				socket.on("error", () => {});
				socket.write(hello);
			}).listen(folder.file("s"));
			await once(server, "listening");
			await assert.rejects(connectNbd(unixUri(folder.file("s")), { timeoutMs: 300 }), { code, message });
			for (const client of clients) client.destroy();
			server.close();
		});

	test("nobody, and what is no address", async () => {
		await using folder = await temporaryFolder();
		await assert.rejects(openDiskImage(unixUri(folder.file("s"))), { code: "IO", message: /ENOENT/ });
		await assert.rejects(openDiskImage("nbd://"), { code: "USAGE" });
		await assert.rejects(openDiskImage("nbd:localhost:10809"), { code: "USAGE", message: /nbd:\/\/HOST/ });
		await assert.rejects(openDiskImage("nbds://localhost/"), { code: "IMAGE_UNSUPPORTED", message: /TLS/ });
	});
});
