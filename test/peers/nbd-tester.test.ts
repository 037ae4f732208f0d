// What the NBD project tests its own server with: nbd-tester-client, as its `simple_test` runs it.

import assert from "node:assert/strict";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run } from "../support/processes.ts";
import { freePort } from "../support/waiting.ts";
import { compile, peerSources } from "./peer-sources.ts";

interface Tester extends AsyncDisposable {
	/** Certificates and traces of the NBD project. */
	file(name: string): string;
	/** Serves a new disk, and lets the tester do this to it, over the disk's own socket. */
	passes(serve: readonly string[], tester: readonly string[]): Promise<void>;
	/** The same over TCP. */
	passesOverTcp(serve: readonly string[], tester: readonly string[]): Promise<void>;
}

async function compiled(t: TestContext): Promise<Tester | undefined> {
	const sources = peerSources(t, "nbd");
	if (sources === undefined) return undefined;
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const program = await compile(folder, "nbd-tester-client", {
		sources,
		files: ["tests/run/nbd-tester-client.c", "cliserv.c", "buffer.c", "crypto-gnutls.c"],
		headers: ["."],
		libraries: ["glib-2.0", "gnutls"],
		defines: {
			HAVE_GNUTLS: 1,
			WITH_GNUTLS: 1,
			ISSERVER: 1,
			SIZEOF_UNSIGNED_SHORT_INT: 2,
			SIZEOF_UNSIGNED_INT: 4,
			SIZEOF_UNSIGNED_LONG_INT: 8,
			SIZEOF_UNSIGNED_LONG_LONG_INT: 8,
		},
	});
	let disks = 0;
	const passes = async (serve: readonly string[], address: (disk: string) => string[], tester: readonly string[]) => {
		const disk = folder.file(`export${++disks}`);
		// As large as the trace wants it.
		await createDisk(disk, { size: "50M" });
		await using server = await SweepServer.serve(disk, ...serve);
		const { exitCode, stdout, stderr } = await run(program, ["-N", `export${disks}`, ...tester, ...address(disk)]);
		// It rewrites its line of progress a thousand times.
		const lastLines = (stdout + stderr).split(/[\r\n]+/).slice(-5);
		assert.equal(exitCode, 0, [tester.join(" "), ...lastLines].join("\n"));
		assert.equal((await server.stop()).exitCode, 0);
	};
	return {
		file: (name) => join(sources, "tests/run", name),
		passes: (serve, tester) => passes(serve, (disk) => ["-u", join(disk, "nbd.sock")], tester),
		passesOverTcp: async (serve, tester) => {
			const port = await freePort();
			await passes([...serve, "--listen", `127.0.0.1:${port}`], () => ["127.0.0.1", String(port)], tester);
		},
		[Symbol.asyncDispose]: () => stack.disposeAsync(),
	};
}

describe("nbd-tester-client", () => {
	test("reads, writes, flushes, oversized requests, handshakes, a read-only export", async (t) => {
		await using tester = await compiled(t);
		if (tester === undefined) return;
		const off = ["--clean", "off"];
		await tester.passes(off, []);
		await tester.passes(off, ["-w"]);
		await tester.passes(off, ["-w", "-f"]);
		await tester.passes(off, ["-o"]);
		await tester.passes(off, ["-h"]);
		await tester.passes(["--read-only"], []);
		// -F: it must be refused.
		await tester.passes(["--read-only"], ["-w", "-F"]);
	});

	// Its second trace sends 50 MiB in one request, more than this server takes (docs/nbd.md), or has to.
	test("a trace of 69,000 requests: what is read is what was written, while it is cleaned, and over TLS", async (t) => {
		await using tester = await compiled(t);
		if (tester === undefined) return;
		const trace = ["-i", "-t", tester.file("integrity-test.tr")];
		await tester.passes(["--clean", "off"], trace);
		await tester.passes([], trace);
		await tester.passesOverTcp([], trace);
		const at = (name: string): string => tester.file(`certs/${name}.pem`);
		const tls = ["--tls-cert", at("server-cert"), "--tls-key", at("server-key")];
		const verified = [...tls, "--tls-ca", at("ca-cert"), "--tls-verify-peer"];
		const as = (who: string): string[] => ["-C", at(`${who}-cert`), "-K", at(`${who}-key`)];
		const trusting = ["-A", at("ca-cert"), "-H", "localhost"];
		await tester.passesOverTcp(verified, [...trace, ...as("client"), ...trusting]);
		await tester.passesOverTcp(verified, [...as("client"), ...trusting]);
		await tester.passesOverTcp(verified, [...as("selfsigned"), ...trusting, "-F"]);
	});
});
