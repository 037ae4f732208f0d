// The programs in libnbd's folder `interop`, with which it tests itself against qemu-nbd, nbdkit and nbd-server: here with
// vmsweep in their place, started by socket activation.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { makeCertificates } from "../support/certificates.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk, vmsweep } from "../support/processes.ts";
import { compile, type PeerProgram, peerSources } from "./peer-sources.ts";

const quoted = (words: readonly string[]): string => words.map((word) => JSON.stringify(word)).join(", ");

const program = (
	sources: string,
	name: string,
	more: Partial<Pick<PeerProgram, "defines" | "reworded">> = {},
): PeerProgram => ({
	sources,
	files: [`interop/${name}.c`, "interop/requires.c"],
	headers: ["include", "common/include", "tests"],
	libraries: ["libnbd"],
	defines: {},
	...more,
});

/** Runs it to its end, which also is that of all servers that it started. */
async function passes(path: string, ...programArguments: readonly string[]): Promise<void> {
	const alone = ["--pid", "--fork", "--kill-child", path, ...programArguments];
	const { exitCode, stdout, stderr } = await run("unshare", alone, { timeoutSeconds: 60 });
	assert.equal(exitCode, 0, stdout + stderr);
}

async function newDisk(folder: TemporaryFolder, size: string): Promise<string> {
	const disk = folder.file("web01");
	await createDisk(disk, { size });
	return disk;
}

describe("libnbd's interop programs", () => {
	test("connect: in the clear, with certificates, with shared keys, and where TLS is a choice", async (t) => {
		const sources = peerSources(t, "libnbd");
		if (sources === undefined) return;
		await using folder = await temporaryFolder();
		const disk = await newDisk(folder, "1M");
		const { server, client } = await makeCertificates(folder.file("pki"));
		const keys = folder.file("keys.psk");
		await writeFile(keys, `alice:${"0123456789abcdef".repeat(2)}\n`);
		const connects = async (name: string, defines: Record<string, string | number>, ...serve: string[]) => {
			const words = { SERVER: JSON.stringify(vmsweep), SERVER_PARAMS: quoted(["serve", disk, ...serve]) };
			const built = { SOCKET_ACTIVATION: 1, ...words, ...defines };
			const connecting = program(sources, "interop", { defines: built, reworded });
			await passes(await compile(folder, `${name}.test`, connecting));
		};
		// It looks for what it wrote in the served file, where other servers have it at once: asked over NBD instead.
		const reworded = { "read (fd, buf2, sizeof buf2)": "nbd_pread (nbd, buf2, sizeof buf2, 0, 0)" };
		const PSK = JSON.stringify(keys);
		const [must, may] = [{ TLS_MODE: "LIBNBD_TLS_REQUIRE" }, { TLS_MODE: "LIBNBD_TLS_ALLOW" }];
		await connects("plain", {});
		await connects("certificates", { CERTS: JSON.stringify(client), ...must }, "--tls-creds", server);
		await connects("keys", { PSK, ...must }, "--tls-psk", keys);
		await connects("optional", { PSK, ...may }, "--tls-psk", keys, "--tls-optional");
		await connects("fallback", { PSK, TLS_FALLBACK: 1, ...may });
	});

	test("list exports; sockets passed by a parent; extended headers in any order of options", async (t) => {
		const sources = peerSources(t, "libnbd");
		if (sources === undefined) return;
		await using folder = await temporaryFolder();
		const disk = await newDisk(folder, "1M");
		const server = { SERVER: JSON.stringify(vmsweep), SERVER_PARAMS: quoted(["serve", disk]) };
		const exports = { SOCKET_ACTIVATION: 1, EXPORTS: '"web01"', DESCRIPTIONS: JSON.stringify(disk) };
		const listed = program(sources, "list-exports", { defines: { ...server, ...exports } });
		await passes(await compile(folder, "list-exports", listed));
		const activated = program(sources, "socket-activation", { defines: server });
		await passes(await compile(folder, "socket-activation", activated));
		const options = await compile(folder, "opt-extended-headers", program(sources, "opt-extended-headers"));
		await passes(options, vmsweep, "serve", disk);
	});

	test("block status in 64 bits, and of some contexts only", async (t) => {
		const sources = peerSources(t, "libnbd");
		if (sources === undefined) return;
		await using folder = await temporaryFolder();
		const disk = await newDisk(folder, "5G");
		{
			await using served = await SweepServer.serve(disk, "--clean", "off");
			await runOk("qemu-io", ["-f", "raw", "-c", "write -q -P 1 0 64k", served.uri]);
			assert.equal((await served.stop()).exitCode, 0);
		}
		// In the place of QEMU's dirty bitmaps, which have other extents than this.
		const since = "vmsweep:since:0";
		const isBitmap = "else if (strcmp (metacontext, bitmap) == 0) {";
		const anyExtents = { [isBitmap]: `${isBitmap} data->seen_dirty = true; return 0;` };
		const large = program(sources, "block-status-64", { reworded: anyExtents });
		await passes(await compile(folder, "block-status-64", large), since, vmsweep, "serve", disk, "--clean", "off");
		const reworded = {
			"qemu:allocation-depth": "vmsweep:liveness",
			"qemu:dirty-bitmap:bitmap0": since,
			"qemu:dirty-bitmap:bitmap1": "vmsweep:since:1",
		};
		const some = program(sources, "block-status-payload", { reworded });
		await passes(await compile(folder, "block-status-payload", some), vmsweep, "serve", disk, "--clean", "off");
	});
});
