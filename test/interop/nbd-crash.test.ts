// SIGKILL under load, again and again on the same disk: what was acknowledged is there when the disk is opened
// again (the page cache outlives a process; power cuts are the simulation's business), and nothing is invented.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import { commandFlag } from "../../src/core/nbd/protocol.ts";
import { temporaryFolder } from "../support/folders.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { spawnPlane, startPlane } from "../support/plane-server.ts";
import { run, runOk } from "../support/processes.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const MiB = 2 ** 20;
const K = 4096;
/** Stamps are this long, so that blocks hold several, most writes change parts of blocks, and some parts of two. */
const UNIT = 1536;

/** Every four bytes tell the unit and its version; version 0 is what was never written. */
const stamped = (unit: number, version: number): Buffer => {
	if (version === 0) return Buffer.alloc(UNIT);
	const word = Buffer.alloc(4);
	word.writeUInt32LE((unit << 20) | version);
	return Buffer.alloc(UNIT, word);
};

/** What may be in each unit: between what was acknowledged and what was sent. */
class Ledger {
	readonly sent: Uint32Array;
	readonly acknowledged: Uint32Array;
	constructor(units: number) {
		this.sent = new Uint32Array(units);
		this.acknowledged = new Uint32Array(units);
	}

	/** Writes units of one client's share until the connection ends. */
	async writeUntilTheEnd(client: NbdClient, random: Random, first: number, count: number): Promise<void> {
		const one = async (): Promise<void> => {
			for (;;) {
				const unit = first + random.below(count);
				const version = ++this.sent[unit]!;
				const flags = random.chance(0.02) ? commandFlag.FUA : 0;
				await client.write(unit * UNIT, stamped(unit, version), flags);
				this.acknowledged[unit] = Math.max(this.acknowledged[unit]!, version);
				if (random.chance(0.01)) await client.flush();
			}
		};
		await Promise.allSettled(Array.from({ length: 16 }, one));
	}

	async check(client: NbdClient): Promise<void> {
		const bytes = await client.read(0, this.sent.length * UNIT);
		for (let unit = 0; unit < this.sent.length; unit++) {
			const at = unit * UNIT;
			// A write that was not answered may be there in part: in one of two blocks, but never in a part of a block.
			const cut = Math.min(Math.ceil((at + 1) / K) * K, at + UNIT) - at;
			const found = bytes.subarray(at, at + UNIT);
			const parts = [this.#versionOf(unit, found, 0, cut)];
			if (cut < UNIT) parts.push(this.#versionOf(unit, found, cut, UNIT));
			this.acknowledged[unit] = Math.min(...parts);
		}
	}

	#versionOf(unit: number, found: Buffer, from: number, to: number): number {
		const version = found.readUInt32LE(from) & 0xf_ffff;
		const where = `unit ${unit}, ${from} to ${to}`;
		assert(found.subarray(from, to).equals(stamped(unit, version).subarray(from, to)), `${where}: damaged`);
		const acknowledged = this.acknowledged[unit]!;
		assert(version >= acknowledged, `${where}: version ${version}, acknowledged ${acknowledged}`);
		assert(version <= this.sent[unit]!, `${where}: version ${version} is invented`);
		return version;
	}
}

describe("SIGKILL", () => {
	test("under load from several clients, six times on the same disk", async (t: TestContext) => {
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed}`);
		const random = seededRandom(seed);
		await using folder = await temporaryFolder();
		// A small log, so that segments are recycled between and during the kills.
		const options = { directory: folder.file("d"), size: 8 * MiB, limitBytes: 80 * MiB };
		// Few blocks: all are written again and again, so that the oldest segments need no cleaner to become free.
		const share = 250;
		const ledger = new Ledger(3 * share);
		for (let round = 0; round < 6; round++) {
			const { process, socketPath: path } = await spawnPlane(options);
			await using _ = process;
			const clients = await Promise.all([0, 1, 2].map((i) => NbdClient.connect({ path }, { structured: i > 0 })));
			await ledger.check(clients[0]!);
			const before = ledger.acknowledged.reduce((sum, version) => sum + version, 0);
			const work = clients.map((client, i) => ledger.writeUntilTheEnd(client, random, i * share, share));
			const goal = before + random.between(200, 5000);
			await process.until(
				() => ledger.acknowledged.reduce((sum, version) => sum + version, 0) >= goal,
				"enough writes",
			);
			await process.kill();
			await Promise.all(work);
			await Promise.all(clients.map((client) => client.closed));
		}
		await using server = await startPlane(options);
		await using client = await NbdClient.connect({ path: server.socketPath });
		await ledger.check(client);
	});

	test("under fio; what fio wrote and flushed verifies afterwards", async (t: TestContext) => {
		if (!requireTool(t, "fio")) return;
		await using folder = await temporaryFolder();
		const options = { directory: folder.file("d"), size: 32 * MiB };
		const job = [
			"--name=v",
			"--ioengine=nbd",
			"--rw=randwrite",
			"--bs=4k",
			"--iodepth=32",
			"--size=16m",
			"--verify=crc32c",
		];
		{
			const { process, uri, socketPath } = await spawnPlane(options);
			await using _ = process;
			await runOk("fio", [...job, `--uri=${uri}`, "--do_verify=0", "--end_fsync=1"], { folder: folder.path });
			await using client = await NbdClient.connect({ path: socketPath });
			const noise = Array.from({ length: 200 }, (_, i) =>
				client.write(16 * MiB + i * K, Buffer.alloc(K, 1)).catch(() => {}),
			);
			await process.kill();
			await Promise.all(noise);
		}
		await using server = await startPlane(options);
		await runOk("fio", [...job, `--uri=${server.uri}`, "--verify_only=1", "--verify_fatal=1"], { folder: folder.path });
	});

	test("of a server leaves its disk to the next one; a living one keeps it", async () => {
		await using folder = await temporaryFolder();
		const options = { directory: folder.file("d"), size: MiB };
		const first = await spawnPlane(options);
		await using process = first.process;
		await assert.rejects(startPlane(options), { code: "DISK_LOCKED" });
		await assert.rejects(spawnPlane(options), /DISK_LOCKED|another/);
		await using client = await NbdClient.connect({ path: first.socketPath });
		await client.write(0, Buffer.from("here"));
		await process.kill();
		await using second = await startPlane(options);
		await using again = await NbdClient.connect({ path: second.socketPath });
		assert.equal((await again.read(0, 4)).toString(), "here");
	});
});

test("SIGTERM ends a server cleanly while clients write", async () => {
	await using folder = await temporaryFolder();
	const options = { directory: folder.file("d"), size: 8 * MiB };
	const ledger = new Ledger(1000);
	{
		const { process, socketPath: path } = await spawnPlane(options);
		await using _ = process;
		const client = await NbdClient.connect({ path });
		const work = ledger.writeUntilTheEnd(client, seededRandom(1), 0, 1000);
		await process.until(() => ledger.acknowledged.some((version) => version > 2), "some writes");
		assert.deepEqual(await process.end().then(({ exitCode, stderr }) => ({ exitCode, stderr })), {
			exitCode: 0,
			stderr: "",
		});
		await work;
	}
	await using server = await startPlane(options);
	await using client = await NbdClient.connect({ path: server.socketPath });
	await ledger.check(client);
});

test("a process that exits does not wait for its data plane", async () => {
	await using folder = await temporaryFolder();
	const support = join(import.meta.dirname, "../support/plane-server.ts");
	const script = `
		import { startPlane } from ${JSON.stringify(support)};
		await startPlane({ directory: ${JSON.stringify(folder.file("d"))}, size: ${MiB} });
		process.exit(7);`;
	await writeFile(folder.file("exit.mts"), script);
	const { exitCode } = await run(process.execPath, [folder.file("exit.mts")], { timeoutSeconds: 30 });
	assert.equal(exitCode, 7);
});
