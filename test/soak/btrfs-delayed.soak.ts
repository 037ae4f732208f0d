// A btrfs of which a part of a file is written at once and the rest late, over several commits (live-safety 9.4): the blocks
// that are there look free in every superblock until all have arrived. Nothing of them may be dropped.
//
//   guest: btrfs ── dm-delay: every other MiB is written seconds later ── disk ── first.log ─► both rules at each superblock

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { judgeBtrfs } from "../support/btrfs-oracle.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { readRecording } from "../support/oracle-recording.ts";
import { requireTool } from "../support/requirements.ts";

/** mkfs.btrfs puts its metadata in front of this; what is behind is data. */
const DELAYED_FROM_MIB = 160;
const SIZE_MIB = 768;
const DELAY_MS = 8_000;

test("btrfs: what was written of an extent that is still under way is not dropped", async (t) => {
	if (!requireTool(t, "guest image", "root", "loop devices", "btrfs")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: `${SIZE_MIB}M` });
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk, "--clean", "off", "--log-limit", "64G");
		await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
		const said = await guest.run(`
			set -e
			modprobe dm-delay
			mkfs.btrfs -q $DISK0 > /dev/null
			{
				echo "0 ${DELAYED_FROM_MIB * 2048} linear $DISK0 0"
				for mib in $(seq ${DELAYED_FROM_MIB} ${SIZE_MIB - 1}); do
					delay=0; [ $((mib % 2)) = 0 ] || delay=${DELAY_MS}
					at=$((mib * 2048))
					echo "$at 2048 delay $DISK0 $at 0 $DISK0 $at $delay"
				done
			} | dmsetup create slow
			mount -o commit=1 /dev/mapper/slow /mnt
			# The small first data chunk is used up, so that the next one lies where writes are late.
			head -c 20000000 /dev/urandom > /mnt/first; sync
			for file in 1; do
				head -c 24000000 /dev/urandom > /mnt/file$file
				sync /mnt/file$file & synced=$!
				for i in $(seq 40); do
					date > /mnt/tick$i; sleep 0.3
				done
				wait $synced
			done
			sync
			cd /mnt; sha256sum first file*; cd /
			umount /mnt; dmsetup remove slow`);
		expected = said.split("\n").filter((line) => line !== "");
		await guest.stop();
		assert.equal((await server.stop()).exitCode, 0);
	}
	const { rule, naive, superblocks } = await judgeBtrfs(t, readRecording(join(disk, "first.log")), 0, expected);
	assert.ok(superblocks > 5, "too few commits while writes were late");
	assert.equal(rule.damaged, 0);
	assert.ok(naive.damaged > 0, "the naive rule lost nothing: no write was late, and the test is blind");
});
