// The support for tests is tested itself: a helper that hides a failure would hide a lost block.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdir, stat, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, test } from "node:test";
import { temporaryFolder } from "./folders.ts";
import { allocatedBytes, hashBytes, hashFile, hashTree } from "./hashes.ts";
import { checkout, run, runOk, start, vmsweep } from "./processes.ts";
import { seededRandom, testSeed } from "./randomness.ts";
import { requireTool } from "./requirements.ts";
import { freePort, waitUntil } from "./waiting.ts";

describe("run", () => {
	test("gives output, exit code and signal", async () => {
		const { exitCode, stdout, stderr } = await run("sh", ["-c", "cat; echo oops >&2; exit 3"], { input: "in" });
		assert.deepEqual({ exitCode, stdout, stderr }, { exitCode: 3, stdout: "in", stderr: "oops\n" });
		const killed = await run("sh", ["-c", "kill -9 $$"]);
		assert.deepEqual([killed.exitCode, killed.signal], [undefined, "SIGKILL"]);
	});

	test("keeps binary output as it is", async () => {
		const input = seededRandom(1).bytes(100_000);
		assert.equal(hashBytes((await run("cat", [], { input })).stdoutBytes), hashBytes(input));
	});

	test("does not mind a program that leaves its input unread", async () => {
		assert.equal((await run("true", [], { input: new Uint8Array(1 << 20) })).exitCode, 0);
	});

	test("throws where a program is missing or hangs, and leaves none behind", async () => {
		await assert.rejects(run("no-such-program-anywhere"), /ENOENT/);
		await assert.rejects(run("sleep", ["1000"], { timeoutSeconds: 0.2 }), /sleep 1000 did not end within 0.2 s/);
	});

	test("runOk fails with the program's own words", async () => {
		assert.equal(await runOk("echo", ["fine"]), "fine\n");
		await assert.rejects(runOk("sh", ["-c", "echo bad luck >&2; exit 1"]), /bad luck/);
	});
});

describe("start", () => {
	test("waits for lines, and ends the program with its children", async () => {
		let child: number;
		{
			await using running = start("sh", ["-c", "sleep 1000 & echo child $!; wait"]);
			child = Number((await running.line(/^child (\d+)$/))[1]);
			assert(running.alive);
		}
		await waitUntil(() => !isRunning(child), "the end of the child");
	});

	test("fails at once when the program ends before the line", async () => {
		await using running = start("sh", ["-c", "echo something else; exit 1"]);
		await assert.rejects(running.line(/never/), /ended before a line like \/never\/.*something else/s);
	});

	test("kill is SIGKILL", async () => {
		await using running = start("sleep", ["1000"]);
		assert.equal((await running.kill()).signal, "SIGKILL");
		assert(!running.alive);
	});
});

/** True while the process is there and not a zombie whose parent is still to notice. */
function isRunning(pid: number): boolean {
	try {
		process.kill(pid, 0);
		return true;
	} catch {
		return false;
	}
}

test("waitUntil returns what it found, or says what was missing", async () => {
	let calls = 0;
	assert.equal(await waitUntil(() => (++calls === 3 ? "found" : undefined), "three calls"), "found");
	await assert.rejects(
		waitUntil(() => false, "a miracle", { timeoutSeconds: 0.05 }),
		/in vain for a miracle/,
	);
});

test("a free port can be listened on", async () => {
	const server = createServer().listen(await freePort(), "127.0.0.1");
	await once(server, "listening");
	server.close();
});

test("a temporary folder is gone after its scope", async () => {
	let path: string;
	{
		await using folder = await temporaryFolder();
		path = folder.path;
		await writeFile(folder.file("a"), "a");
	}
	await assert.rejects(stat(path), { code: "ENOENT" });
});

test("seeded randomness repeats, spreads, and keeps its bounds", () => {
	const seed = testSeed();
	const [one, two] = [seededRandom(seed), seededRandom(seed)];
	assert.deepEqual(one.bytes(1001), two.bytes(1001));
	assert.notDeepEqual(seededRandom(1).bytes(16), seededRandom(2).bytes(16));
	const counts = [0, 0, 0, 0, 0];
	const random = seededRandom(7);
	for (let i = 0; i < 10_000; i++) counts[random.between(0, 4)]!++;
	assert(
		counts.every((count) => count > 1800 && count < 2200),
		counts.join(" "),
	);
	assert(["a", "b"].includes(random.pick(["a", "b"])));
	assert(random.chance(1) && !random.chance(0) && random.below(1) === 0);
});

test("hashes of files, parts of files and folders", async () => {
	await using folder = await temporaryFolder();
	const bytes = seededRandom(3).bytes(10_000);
	await mkdir(folder.file("sub"));
	await writeFile(folder.file("sub/a"), bytes);
	await writeFile(folder.file("b"), "");
	assert.equal(await hashFile(folder.file("sub/a")), hashBytes(bytes));
	assert.equal(await hashFile(folder.file("sub/a"), { start: 4, end: 5000 }), hashBytes(bytes.subarray(4, 5000)));
	assert.equal(await hashFile(folder.file("sub/a"), { start: 4, end: 4 }), hashBytes(new Uint8Array()));
	assert.deepEqual(await hashTree(folder.path), { b: hashBytes(new Uint8Array()), "sub/a": hashBytes(bytes) });
	await truncate(folder.file("b"), 1 << 30);
	assert((await allocatedBytes(folder.file("b"))) < 1 << 20, "a hole takes no space");
});

describe("requireTool", () => {
	const recorder = () => {
		const reasons: string[] = [];
		return { reasons, t: { skip: (reason: string) => reasons.push(reason) } };
	};

	test("finds programs, also those in sbin", () => {
		const { t, reasons } = recorder();
		assert(requireTool(t, "sh", "node"));
		assert.deepEqual(reasons, []);
	});

	test("skips with a reason for all that is missing, and fails in CI", (test) => {
		const { t, reasons } = recorder();
		const ci = process.env.CI;
		test.after(() => {
			if (ci !== undefined) process.env.CI = ci;
		});
		delete process.env.CI;
		assert(!requireTool(t, "no-such-program", "sh"));
		assert.match(reasons[0]!, /no program no-such-program \(make setup/);
		process.env.CI = "true";
		assert.throws(() => requireTool(t, "no-such-program"), /CI must run this test/);
		delete process.env.CI;
	});
});

test("what a killed test run left mounted is unmounted", async (t) => {
	if (!requireTool(t, "root", "loop devices", "fuse", "unshare", "nbdfuse", "nbdkit", "mke2fs")) return;
	await using folder = await temporaryFolder();
	// In a mount namespace of its own, so that no other test meets what is broken here.
	const script = `set -e
		cd "$1"; mkdir fuse other mnt
		nbdfuse other --command nbdkit -s memory 1M & other=$!
		nbdfuse fuse --command nbdkit -s memory 64M & dead=$!
		while [ ! -e fuse/nbd ] || [ ! -e other/nbd ]; do sleep 0.01; done
		mke2fs -q fuse/nbd; device=$(losetup -f --show fuse/nbd)
		mount "$device" mnt; losetup -d "$device" # goes with its last mount
		kill -9 $dead; wait $dead || true
		"$2" -e 'import(process.argv[1]).then((module) => module.globalSetup())' "$3"
		cut -d " " -f 2 /proc/mounts | grep "$1"; losetup -n -O BACK-FILE -j fuse/nbd
		umount other; wait $other`;
	const setup = join(import.meta.dirname, "clear-leftovers.ts");
	const unshare = ["-m", "--propagation", "private", "bash", "-c", script, "leftovers", folder.path, process.execPath];
	const printed = await runOk("unshare", [...unshare, setup]);
	const [mnt, fuse, other] = ["mnt", "fuse", "other"].map((name) => folder.file(name));
	assert.equal(printed, `A test run was killed: unmounted ${mnt}, ${fuse}\n${other}\n`);
});

test("bin/vmsweep says what to do in a checkout without node_modules, also through a link", async () => {
	await using folder = await temporaryFolder();
	await runOk("sh", ["-c", `mkdir bin; cp ${vmsweep} bin/vmsweep; ln -s bin/vmsweep first; ln -s first second`], {
		folder: folder.path,
	});
	const { exitCode, stderr } = await run(folder.file("second"));
	assert.equal(exitCode, 1);
	assert.equal(stderr, `vmsweep: ${folder.path} has no node_modules yet. Run "make setup" there, then try again.\n`);
	assert.notEqual(folder.path, checkout);
});
