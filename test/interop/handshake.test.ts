// Do real clients get through the handshake? What answers behind it here only takes the connection.

import assert from "node:assert/strict";
import { test } from "node:test";
import { exportUri, listenNbd, type NbdClient, type NbdListener } from "../../src/adapters/nbd/listener.ts";
import { close } from "../../src/adapters/os/syscalls.ts";
import { diskTransmissionFlags, type ExportDescription } from "../../src/core/nbd/handshake.ts";
import { byteCount } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { nbdsh, nbdshKnowsExtendedHeaders } from "../support/nbd-shell.ts";
import { run, runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

const web: ExportDescription = {
	name: "web01",
	description: "the web server",
	size: byteCount(3 * 2 ** 30),
	readOnly: false,
	transmissionFlags: diskTransmissionFlags,
	blockSize: { minimum: 1, preferred: 4096, maximumPayload: 32 * 2 ** 20 },
};
const exports: readonly ExportDescription[] = [web, { ...web, name: "db 1/ä", description: "", readOnly: true }];

interface Served extends AsyncDisposable {
	readonly listener: NbdListener;
	readonly clients: readonly NbdClient[];
	uri(name: string): string;
}

async function serve(): Promise<Served> {
	const folder = await temporaryFolder();
	const clients: NbdClient[] = [];
	const listener = await listenNbd({
		address: { kind: "unix", path: folder.file("v.sock") },
		exports: () => exports,
		onClient: (client) => {
			clients.push(client);
			close(client.fd);
		},
	});
	return {
		listener,
		clients,
		uri: (name) => exportUri(listener.address, name),
		async [Symbol.asyncDispose]() {
			await listener.close();
			await folder[Symbol.asyncDispose]();
		},
	};
}

test("nbdinfo --list shows every export with all that it can do", async (t) => {
	if (!requireTool(t, "nbdinfo")) return;
	await using served = await serve();
	const listing = await runOk("nbdinfo", ["--list", "--json", "--no-content", served.uri("")]);
	const { protocol, exports: found } = JSON.parse(listing) as {
		protocol: string;
		exports: Record<string, unknown>[];
	};
	assert.equal(protocol, "newstyle-fixed");
	assert.deepEqual(
		found.map((one) => one["export-name"]),
		["web01", "db 1/ä"],
	);
	const [first, second] = found;
	const expected = {
		"export-size": 3 * 2 ** 30,
		description: "the web server",
		contexts: ["base:allocation"],
		is_read_only: false,
		can_multi_conn: true,
		can_flush: true,
		can_fua: true,
		can_trim: true,
		can_zero: true,
		can_fast_zero: true,
		can_cache: true,
		can_df: true,
		block_size_minimum: 1,
		block_size_preferred: 4096,
		block_size_maximum: 32 * 2 ** 20,
	};
	for (const [key, value] of Object.entries(expected)) assert.deepEqual(first?.[key], value, key);
	assert.deepEqual([second?.is_read_only, second?.can_trim, second?.can_zero], [true, false, false]);
});

test("libnbd reaches one export by name with the newest replies it knows, and is refused a wrong name", async (t) => {
	if (!requireTool(t, "nbdinfo", "nbdsh")) return;
	await using served = await serve();
	const names = ["db 1/ä", ""];
	for (const name of names)
		assert.equal((await runOk("nbdinfo", ["--size", served.uri(name)])).trim(), `${3 * 2 ** 30}`);
	// Newer versions of nbdinfo only ask for the size, and never enter.
	for (const name of names)
		assert.equal((await nbdsh("-u", served.uri(name), "-c", "print(h.get_size())")).stdout.trim(), `${3 * 2 ** 30}`);
	assert.deepEqual(
		served.clients.slice(-2).map(({ exportName }) => exportName),
		["db 1/ä", "web01"],
	);
	await run("nbdinfo", ["--map", served.uri("web01")]); // fails: nobody answers it
	const mapping = served.clients.at(-1);
	assert.deepEqual(
		mapping?.metaContexts.map(({ name }) => name),
		["base:allocation"],
	);
	assert.equal(mapping?.headers, (await nbdshKnowsExtendedHeaders()) ? "extended" : "structured");
	const refused = await run("nbdinfo", [served.uri("nope")]);
	assert.notEqual(refused.exitCode, 0);
	assert.match(refused.stderr, /nope/);
});

test("qemu-nbd --list shows every export", async (t) => {
	if (!requireTool(t, "qemu-nbd")) return;
	await using served = await serve();
	assert.ok(served.listener.address.kind === "unix");
	const listing = await runOk("qemu-nbd", ["--list", "--socket", served.listener.address.path]);
	assert.match(listing, /exports available: 2/);
	assert.match(listing, /export: 'web01'\n +description: the web server\n +size: +3221225472/);
	assert.match(listing, /min block: 1\n +opt block: 4096\n +max block: 33554432/);
	assert.match(listing, /available meta contexts: 1\n +base:allocation/);
});

test("a client that wants TLS is told that there is none", async (t) => {
	if (!requireTool(t, "nbdsh")) return;
	await using served = await serve();
	const refused = await nbdsh("-u", served.uri("web01").replace("nbd+unix", "nbds+unix"), "-c", "pass");
	assert.notEqual(refused.exitCode, 0);
	assert.match(refused.stderr, /TLS/i);
});
