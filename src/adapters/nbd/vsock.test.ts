import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { describe, test } from "node:test";
import { temporaryFolder } from "../../../test/support/folders.ts";
import { diskTransmissionFlags } from "../../core/nbd/handshake.ts";
import { byteCount } from "../../foundations/units.ts";
import * as sys from "../os/syscalls.ts";
import { exportUri, VSOCK_ANY } from "./listen-address.ts";
import { listenNbd } from "./listener.ts";
import { listenOnDescriptor, openVsock } from "./vsock.ts";

/** A listening Unix socket, made by hand: to Node it is a number. */
function listeningDescriptor(path: string): number {
	const AF_UNIX = 1;
	const fd = sys.socket(AF_UNIX, sys.SOCK_STREAM | sys.SOCK_NONBLOCK | sys.SOCK_CLOEXEC, 0);
	const address = sys.pin(110);
	address.bytes[0] = AF_UNIX;
	address.bytes.set(new TextEncoder().encode(path), 2);
	assert.equal(sys.bind(fd, address.address, 110), 0);
	assert.equal(sys.listen(fd, 8), 0);
	return fd;
}

test("the event loop accepts, reads and writes on a descriptor of which it doesn't know the kind", async () => {
	await using folder = await temporaryFolder();
	const server = createServer({ allowHalfOpen: true }, (socket) => {
		socket.on("data", (bytes) => socket.write(`got ${bytes.toString()}`));
		socket.on("end", () => socket.end());
	});
	listenOnDescriptor(server, listeningDescriptor(folder.file("s")));
	await once(server, "listening");
	for (const word of ["one", "two"]) {
		const client = connect({ path: folder.file("s") });
		client.write(word);
		assert.equal(String((await once(client, "data"))[0]), `got ${word}`);
		client.end();
		await once(client, "close");
	}
	server.close();
	await once(server, "close");
});

test("a listener takes a passed descriptor and says where it listens", async () => {
	await using folder = await temporaryFolder();
	const path = folder.file("s");
	await using listener = await listenNbd({
		address: { kind: "descriptor", fd: listeningDescriptor(path) },
		exports: () => [],
		onClient: () => {},
	});
	assert.deepEqual(listener.address, { kind: "unix", path });
	const client = connect({ path });
	assert.equal(String((await once(client, "data"))[0]).slice(0, 8), "NBDMAGIC");
	client.destroy();
});

describe("vsock", () => {
	const description = {
		name: "d",
		description: "",
		size: byteCount(4096),
		readOnly: false,
		transmissionFlags: diskTransmissionFlags,
		blockSize: { minimum: 1, preferred: 4096, maximumPayload: 2 ** 25 },
	};
	const listen = (cid: number, port: number): ReturnType<typeof listenNbd> =>
		listenNbd({ address: { kind: "vsock", cid, port }, exports: () => [description], onClient: () => {} });
	const probe = openVsock(VSOCK_ANY, 0);
	if (probe >= 0) sys.close(probe);
	const options = probe >= 0 ? {} : { skip: `this kernel has no vsock: ${sys.errnoName(-probe)}` };

	test("listens on a port that the kernel chose, and only once on the same", options, async () => {
		await using listener = await listen(VSOCK_ANY, 0);
		const { address } = listener;
		assert(address.kind === "vsock" && address.port > 0);
		assert.equal(exportUri(address, "d"), `nbd+vsock://2:${address.port}/d`);
		await assert.rejects(listen(VSOCK_ANY, address.port), { code: "ADDRESS_IN_USE" });
		await listener.close();
		await using again = await listen(VSOCK_ANY, address.port);
		assert.deepEqual(again.address, address);
	});

	test("a context id that isn't this machine's is refused", options, async () => {
		await assert.rejects(listen(0x1234_5678, 0), { code: "USAGE" });
	});
});
