// Freeze points of a real guest through its agent: a mounted, busy btrfs gives deleted files' space back, at points that
// last a moment, and its files stay as they are.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { askStatus } from "../../src/services/control.ts";
import type { DiskStatus } from "../../src/services/disk-status.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Guest, nbdUri } from "../support/guest.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1024 * 1024;

test("a busy btrfs and F2FS are cleaned at freeze points, both disks of the VM at one", async (t) => {
	if (!requireTool(t, "guest image")) return;
	await using folder = await temporaryFolder();
	const agent = folder.file("qga");
	for (const name of ["a", "b"]) await createDisk(folder.file(name), { size: "512M" });
	const options = ["--qga", `a=${agent}`, "--qga", `b=${agent}`, "--freeze-every", "2"];
	await using server = await SweepServer.serve(folder.file("a"), folder.file("b"), ...options);
	const disks = ["a", "b"].map((name) => ({ uri: nbdUri(join(folder.file(name), "nbd.sock"), name) }));
	await using guest = await Guest.boot({ disks, discard: "off", more: ["--qga", agent] });
	await guest.run(`
		set -e
		mkdir /mnt/a /mnt/b 2> /dev/null || { mount -t tmpfs none /mnt; mkdir /mnt/a /mnt/b; }
		mkfs.btrfs -q $DISK0; mount $DISK0 /mnt/a
		mkfs.f2fs -q $DISK1; mount $DISK1 /mnt/b`);
	// Writes, overwrites and deletes all the time, and never rests for as long as a round.
	await using busy = guest.start(`
		for i in $(seq 100000); do
			for m in /mnt/a /mnt/b; do
				head -c $((RANDOM * 8)) /dev/urandom > $m/churn$((RANDOM % 20))
				[ $((i % 10)) != 0 ] || rm -f $m/churn$((RANDOM % 20))
			done
			[ $((i % 7)) != 0 ] || sync -f /mnt/a
			echo $i
			sleep 0.1
		done`);
	const expected = await guest.run(`
		set -e
		for m in /mnt/a /mnt/b; do
			mkdir $m/keep $m/junk
			for i in $(seq 6); do
				head -c 400000 /dev/urandom > $m/keep/$i
				head -c ${4 * MIB} /dev/urandom > $m/junk/$i
			done
		done
		sync; rm -r /mnt/a/junk /mnt/b/junk; sync
		sha256sum /mnt/*/keep/*`);
	for (const name of ["a", "b"]) {
		let last: DiskStatus | undefined;
		const { cleaner, volumes, freezes } = await waitUntil(
			async () => {
				last = await askStatus(folder.file(name));
				return last.cleaner.droppedBytes >= 20 * MIB && last.volumes[0]?.frozenAt !== null && last;
			},
			() => `the deleted files' space on ${name}: ${JSON.stringify(last)}`,
			{ timeoutSeconds: 120, everyMs: 500 },
		);
		t.diagnostic(
			`${name}: ${cleaner.droppedBytes} bytes dropped; ${JSON.stringify(volumes)} ${JSON.stringify(freezes)}`,
		);
		assert.notEqual(volumes[0]?.frozenAt, null);
		assert.ok(freezes!.frozenMs! < 2_000, `frozen for ${freezes!.frozenMs} ms`);
	}
	const lines = busy.stdout.split("\n").length;
	await busy.until(() => busy.stdout.split("\n").length > lines + 20, "the load to go on", 60);
	await busy.kill();
	assert.equal(await guest.agent("guest-fsfreeze-status"), "thawed");
	assert.equal(await guest.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/*/keep/*"), expected);
	await guest.run(
		"umount /mnt/a /mnt/b && btrfs check $DISK0 && fsck.f2fs $DISK1 && mount $DISK0 /mnt/a && mount $DISK1 /mnt/b",
	);
	assert.equal(await guest.run("sha256sum /mnt/*/keep/*"), expected);
	await guest.stop();
	assert.equal((await server.stop()).exitCode, 0);
});
