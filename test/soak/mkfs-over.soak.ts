// File systems of every kind made one over the other on a live disk (live-safety 9.9): what each of them holds stays right,
// while mounted, and when it is mounted again.

import assert from "node:assert/strict";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

/** How each kind is made on $DISK0, and mounted at /mnt. */
const kinds: Readonly<Record<string, readonly [mkfs: string, mount: string]>> = {
	ext4: ["mkfs.ext4 -q -F $DISK0", "mount -o commit=1 $DISK0 /mnt"],
	ext2: ["mkfs.ext2 -q -F $DISK0", "mount $DISK0 /mnt"],
	xfs: ["mkfs.xfs -q -f $DISK0", "mount $DISK0 /mnt"],
	btrfs: ["mkfs.btrfs -q -f $DISK0", "mount -o commit=1 $DISK0 /mnt"],
	f2fs: ["mkfs.f2fs -q -f $DISK0", "mount $DISK0 /mnt"],
	vfat: ["mkfs.vfat -F 32 $DISK0", "mount $DISK0 /mnt"],
	exfat: ["mkfs.exfat $DISK0", "mount $DISK0 /mnt"],
	ntfs: ["mkfs.ntfs -q -Q -F $DISK0", "mount -t ntfs-3g $DISK0 /mnt"],
};

/** A walk over the kinds, from each to each other once. */
function walk(random: ReturnType<typeof seededRandom>): string[] {
	const names = Object.keys(kinds);
	const shuffled = names
		.map((name) => ({ name, order: random.below(1e9) }))
		.sort((a, b) => a.order - b.order)
		.map(({ name }) => name);
	// For each distance round the circle of kinds one tour, or several where it closes early: every pair comes once.
	const order: string[] = [];
	for (let distance = 1; distance < shuffled.length; distance++)
		for (let start = 0, seen = 0; seen < shuffled.length; start++)
			for (let at = start, first = true; first || at !== start; first = false) {
				if (first) order.push(shuffled[at]!);
				at = (at + distance) % shuffled.length;
				order.push(shuffled[at]!);
				seen++;
			}
	return order;
}

test("file systems of every kind made over each other in a guest", async (t) => {
	if (!requireTool(t, "guest image")) return;
	const random = seededRandom(testSeed());
	t.diagnostic(`VMSWEEP_SEED=${random.seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "512M" });
	await using server = await SweepServer.serve(disk, "--btrfs-mounted", "drop");
	await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
	const order = walk(random);
	t.diagnostic(order.join(" "));
	for (const [step, name] of order.entries()) {
		const [mkfs, mount] = kinds[name]!;
		const before = await guest.run(`
			set -e
			${mkfs} > /dev/null
			${mount}
			for i in $(seq 20); do head -c $((RANDOM * 60)) /dev/urandom > /mnt/f$i; [ $((i % 3)) != 0 ] || sync /mnt/f$i; done
			for i in 2 4 6 8 10 12 14 16 18 20; do rm /mnt/f$i; done
			sync
			cd /mnt && sha256sum f*`);
		await server.rounds(2);
		await guest.run("umount /mnt");
		await server.rounds(2);
		const after = await guest.run(`
			set -e
			echo 3 > /proc/sys/vm/drop_caches
			${mount}
			cd /mnt && sha256sum f*
			cd / && umount /mnt`);
		assert.equal(after, before, `step ${step}: ${name} over ${order[step - 1] ?? "nothing"}`);
	}
	assert.ok((await server.status()).cleaner.droppedBytes > 0, "nothing was dropped: the test is blind");
	await guest.stop();
	assert.equal((await server.stop()).exitCode, 0);
});
