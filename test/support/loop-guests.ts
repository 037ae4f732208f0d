// Guests that work on a disk while it is cleaned: shared by the short tests and the soaks.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { TestContext } from "node:test";
import { temporaryFolder } from "./folders.ts";
import { Guest } from "./guest.ts";
import { checkCommitted, verifyCrashed, wholeLines } from "./loop-cleaning.ts";
import { createDisk, SweepServer } from "./loop-server.ts";
import { loadProgram } from "./oracle-run.ts";
import { seededRandom, testSeed } from "./randomness.ts";

export const GUEST_TOOLS = ["guest image", "root", "loop devices", "e2fsck", "dumpe2fs", "nbdcopy", "python3"] as const;

/** Puts load.py into a guest. */
const sendLoad = (guest: Guest): Promise<string> =>
	guest.run("cat > load.py && chmod +x load.py", { input: readFileSync(loadProgram) });

/** A guest works for a while; its files are right in the guest, and in the committed image. */
export async function guestWorks(t: TestContext, rounds: number, secondsPerRound: number): Promise<void> {
	const seed = testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "1G" });
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk);
		await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
		await sendLoad(guest);
		await guest.run("mkfs.ext4 -q $DISK0 && mount -o commit=1 $DISK0 /mnt");
		const said = await guest.run(`fsops /mnt --seed ${seed} --ops ${rounds * 150} --max-kb 256 --verify; umount /mnt`);
		t.diagnostic(said.trim());
		assert.match(said, /all verified/);
		const load = `./load.py work $DISK0 /mnt --seed ${seed} --rounds ${rounds} --seconds ${secondsPerRound} --workers 2 --files 50 --skip`;
		const { exitCode, stdout, stderr } = await guest.exec(load, { timeoutSeconds: rounds * (secondsPerRound + 120) });
		t.diagnostic(stderr.trim());
		assert.equal(exitCode, 0, stderr);
		expected = stdout.split("\n").filter((line) => line !== "");
		const { cleaner, guest: counted } = await server.status();
		const mib = (bytes: number): string => `${Math.round(bytes / 1024 / 1024)} MiB`;
		t.diagnostic(
			`written ${mib(counted.writtenBytes)}, dropped ${mib(cleaner.droppedBytes)}, moved ${mib(cleaner.movedBytes)}`,
		);
		assert.ok(cleaner.droppedBytes > 0, "nothing was dropped: the test is blind");
		await guest.stop();
		assert.equal((await server.stop()).exitCode, 0);
	}
	await checkCommitted(t, disk, expected);
}

/** Power cuts of the guest, every other time together with a crash of the server. */
export async function guestCrashes(t: TestContext, cycles: number): Promise<void> {
	const random = seededRandom(testSeed());
	t.diagnostic(`VMSWEEP_SEED=${random.seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "768M" });
	let synced = "";
	for (let cycle = 0; cycle < cycles; cycle++) {
		await using server = await SweepServer.serve(disk, "--log-limit", "128M");
		await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
		await sendLoad(guest);
		if (cycle === 0) await guest.run("mkfs.ext4 -q $DISK0");
		await guest.run("mount -o commit=1 $DISK0 /mnt");
		await using load = guest.start(`./load.py crash /mnt --seed ${random.below(1e6)}`);
		const lines = random.between(20, 80);
		await load.until(() => load.stdout.split("\n").length > lines, `${lines} synced files`, 240);
		const { cleaner } = await server.status();
		assert.ok(cleaner.droppedBytes + cleaner.movedBytes > 0, "nothing was cleaned: the test is blind");
		const both = cycle % 2 === 1;
		if (both) await server.kill();
		await guest.kill();
		await load.finished;
		synced += wholeLines(load);
		if (!both) assert.equal((await server.stop()).exitCode, 0);
		const said = await verifyCrashed(folder.path, disk, synced);
		t.diagnostic(`power cut${both ? " and kill -9 of the server" : ""} after ${lines} synced files; ${said}`);
	}
}
