// Disks that a command offers for a while (adapters/nbd/disk-server.ts), asked in every form of the protocol.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { type OfferedDisk, offerDisks } from "../../src/adapters/nbd/disk-server.ts";
import { command, errno } from "../../src/core/nbd/protocol.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";
import { byteCount } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { type ClientOptions, NbdClient } from "../support/nbd-client.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const SIZE = 3 * 2 ** 20 + 512;

/** A disk in memory, whose last 512 bytes can't be read and have no room. */
function memoryDisk(): OfferedDisk & { readonly bytes: Buffer } {
	const bytes = Buffer.alloc(SIZE);
	return {
		bytes,
		size: byteCount(SIZE),
		async read(at, into) {
			if (at + into.length > SIZE - 512) throw new VmsweepError("IO", "rotten");
			into.set(bytes.subarray(at, at + into.length));
		},
		async write(at, from) {
			if (at + from.length > SIZE - 512) throw new VmsweepError("NO_SPACE", "full");
			bytes.set(from, at);
		},
	};
}

const forms: Readonly<Record<string, ClientOptions>> = {
	simple: { structured: false },
	structured: { structured: true },
	extended: { extended: true },
};

for (const [name, form] of Object.entries(forms))
	test(`reads, writes and errors with ${name} replies`, async () => {
		await using folder = await temporaryFolder();
		const [a, b] = [memoryDisk(), memoryDisk()];
		const path = folder.file("s");
		await using _ = await offerDisks(
			path,
			new Map([
				["a", a],
				["b", b],
			]),
		);
		await using client = await NbdClient.connect({ path }, { exportName: "a", contexts: [], ...form });
		assert.equal(client.size, SIZE);
		const bytes = seededRandom(1).bytes(2 * 2 ** 20);
		await client.write(4097, bytes);
		await client.flush();
		assert.ok((await client.read(4097, bytes.length)).equals(bytes));
		assert.ok(a.bytes.subarray(4097, 4097 + bytes.length).equals(bytes));
		assert.ok(
			b.bytes.every((byte) => byte === 0),
			"the other disk is another one",
		);
		const { READ, WRITE, TRIM, BLOCK_STATUS } = command;
		for (const [request, error] of [
			[{ type: READ, offset: SIZE - 512, length: 512 }, errno.EIO],
			[{ type: WRITE, offset: SIZE - 512, payload: Buffer.alloc(512) }, errno.ENOSPC],
			[{ type: READ, offset: SIZE, length: 1 }, errno.EINVAL],
			[{ type: WRITE, offset: SIZE - 1, payload: Buffer.alloc(2) }, errno.EINVAL],
			[{ type: READ, offset: 2n ** 64n - 1n, length: 4096 }, errno.EINVAL],
			[{ type: TRIM, offset: 0, length: 4096 }, errno.EINVAL],
			[{ type: BLOCK_STATUS, offset: 0, length: 4096 }, errno.EINVAL],
		] as const)
			assert.equal((await client.request(request)).error, error, `${request.type} at ${request.offset}`);
		assert.ok((await client.read(4097, 10)).equals(bytes.subarray(0, 10)), "the connection goes on");
	});

test("libnbd's tools take it", async (t) => {
	if (!requireTool(t, "nbdcopy", "nbdinfo")) return;
	await using folder = await temporaryFolder();
	const disk = memoryDisk();
	disk.bytes.set(seededRandom(2).bytes(SIZE));
	const whole: OfferedDisk = { ...disk, read: async (at, into) => into.set(disk.bytes.subarray(at, at + into.length)) };
	await using _ = await offerDisks(folder.file("s"), new Map([["a", whole]]));
	const uri = `nbd+unix:///a?socket=${folder.file("s")}`;
	assert.equal(JSON.parse(await runOk("nbdinfo", ["--json", uri])).exports[0]["export-size"], SIZE);
	await runOk("nbdcopy", [uri, folder.file("copy")]);
	assert.ok((await readFile(folder.file("copy"))).equals(disk.bytes));
});
