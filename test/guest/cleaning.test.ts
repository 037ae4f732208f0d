// Guests on a disk that is cleaned while they run, and QEMU's front ends.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { xfs } from "../support/file-system-kinds.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { GUEST_TOOLS, guestCrashes, guestWorks } from "../support/loop-guests.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { requireTool } from "../support/requirements.ts";

test("a guest works under cleaning: its files are right in it and in the committed image", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS)) return;
	await guestWorks(t, { rounds: 2, secondsPerRound: 8, load: ["--skip", "--fill"] });
});

test("power cuts of a guest, with and without a crash of the server: what was synced is there", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS)) return;
	await guestCrashes(t, 2);
});

test("XFS: a guest works under cleaning with a small first image", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS, ...xfs.tools)) return;
	await guestWorks(t, { kind: xfs, rounds: 1, secondsPerRound: 8, load: ["--fill"], serve: ["--log-limit", "128M"] });
});

test("XFS: power cuts of a guest, with and without a crash of the server", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS, ...xfs.tools)) return;
	await guestCrashes(t, 2, xfs);
});

test("a file system that grows while a guest uses it, and a guest that is paused for a while", async (t) => {
	if (!requireTool(t, "guest image")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "1G" });
	await using server = await SweepServer.serve(disk);
	await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
	const work = (seed: number): Promise<string> =>
		guest.run(`fsops /mnt/w${seed} --seed ${seed} --ops 200 --max-kb 512 --verify; sync`);
	await guest.run("mkfs.ext4 -q $DISK0 300M && mount -o commit=1 $DISK0 /mnt && mkdir /mnt/w1 /mnt/w2 /mnt/w3");
	assert.match(await work(1), /all verified/);
	await guest.run("resize2fs $DISK0");
	assert.match(await work(2), /all verified/);
	const before = (await server.status()).cleaner.droppedBytes;
	// Written, deleted, and paused before its next commits: time alone is no proof.
	await guest.run("head -c 300M /dev/urandom > /mnt/big && sync && rm /mnt/big && sync");
	await guest.qmp("stop");
	await server.rounds(5);
	await guest.qmp("cont");
	assert.match(await work(3), /all verified/);
	await server.reaches((now) => now.cleaner.droppedBytes >= before + 300 * 2 ** 20, "the deleted file to be dropped");
	const said = await guest.run(
		"for w in 1 2 3; do find /mnt/w$w -type f | xargs -r sha256sum; done > before; umount /mnt; e2fsck -fn $DISK0; " +
			"echo 3 > /proc/sys/vm/drop_caches; mount $DISK0 /mnt; sha256sum --quiet -c before && echo all right",
	);
	assert.match(said, /all right/);
	await guest.stop();
	assert.equal((await server.stop()).exitCode, 0);
});

describe("front ends", () => {
	for (const bus of ["virtio-blk", "virtio-scsi", "nvme"] as const)
		test(bus, async (t) => {
			if (!requireTool(t, "guest image")) return;
			await using folder = await temporaryFolder();
			const disk = folder.file("web");
			await createDisk(disk, { size: "512M" });
			await using server = await SweepServer.serve(disk);
			await using guest = await Guest.boot({ disks: [{ uri: server.uri }], bus, discard: "off" });
			const said = await guest.run(
				"mkfs.ext4 -q $DISK0 && mount $DISK0 /mnt && fsops /mnt --seed 3 --ops 300 --max-kb 256 --verify && umount /mnt && e2fsck -fn $DISK0",
			);
			assert.match(said, /all verified/);
			await guest.stop();
			assert.equal((await server.stop()).exitCode, 0);
		});
});
