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
	await guestWorks(t, { rounds: 2, secondsPerRound: 12, load: ["--skip", "--fill"] });
});

test("power cuts of a guest, with and without a crash of the server: what was synced is there", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS)) return;
	await guestCrashes(t, 2);
});

test("XFS: a guest works under cleaning with a small first image", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS, ...xfs.tools)) return;
	await guestWorks(t, { kind: xfs, rounds: 2, secondsPerRound: 10, load: ["--fill"], serve: ["--log-limit", "128M"] });
});

test("XFS: power cuts of a guest, with and without a crash of the server", async (t) => {
	if (!requireTool(t, ...GUEST_TOOLS, ...xfs.tools)) return;
	await guestCrashes(t, 2, xfs);
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
