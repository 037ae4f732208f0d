// The host gets back what the guest deletes, while the guest runs, without trim; qemu-img commit does not.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Guest, nbdUri } from "../support/guest.ts";
import { allocatedBytes } from "../support/hashes.ts";
import { LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { runOk, start } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1024 * 1024;
const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;

const MOUNT = "mount $DISK0 /mnt && echo kept > /mnt/kept && sync -f /mnt";
const WRITE =
	"head -c 1M /dev/urandom > part && for i in $(seq 600); do cat part; done > /mnt/big && sync -f /mnt && du -m /mnt/big";
const DELETE = "rm /mnt/big && sync -f /mnt && cat /sys/block/$(basename $(realpath $DISK0))/queue/discard_max_bytes";

test("600 MiB written and deleted: B grows by at most 8 MiB, the first image holds at most 64 MiB", async (t) => {
	if (!requireTool(t, "guest image", "root")) return;
	await using folder = await temporaryFolder();
	const [disk, second] = [folder.file("web"), folder.file("b.raw")];
	await makeImage(second);
	await createDisk(disk, { second });
	await using server = await SweepServer.serve(disk);
	await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
	await guest.run(MOUNT);
	const before = await allocatedBytes(second);
	assert.match(await guest.run(WRITE), /^60\d\s/);
	assert.equal((await guest.run(DELETE)).trim(), "0", "the guest must not be able to trim");
	const deleted = performance.now();
	let [first, b] = [0, 0];
	const isSmall = async (): Promise<boolean> => {
		[first, b] = [await allocatedBytes(join(disk, "first.log")), await allocatedBytes(second)];
		return b - before <= 8 * MIB && first <= 64 * MIB;
	};
	const shown = (): string => `B ${mib(before)} → ${mib(b)}, first image ${mib(first)}`;
	await waitUntil(isSmall, () => `space to come back: ${shown()}`, { timeoutSeconds: 60, everyMs: 200 });
	t.diagnostic(`${shown()}, ${((performance.now() - deleted) / 1000).toFixed(1)} s after the deletion`);
	const status = await server.status();
	t.diagnostic(
		`dropped ${mib(status.cleaner.droppedBytes)}, moved ${mib(status.cleaner.movedBytes)}, wrote ${mib(status.guest.writtenBytes)}`,
	);
	assert.equal(await guest.run("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/kept"), "kept\n", "the guest goes on");
});

test("the same writes into an overlay: qemu-img commit leaves B 600 MiB larger", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "qemu-img", "qemu-nbd")) return;
	await using folder = await temporaryFolder();
	const [base, overlay, socket] = [folder.file("b.raw"), folder.file("overlay.qcow2"), folder.file("s")];
	await makeImage(base);
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay]);
	const before = await allocatedBytes(base);
	{
		await using server = start("qemu-nbd", ["--format=qcow2", "--persistent", "-k", socket, overlay]);
		await server.until(() => existsSync(socket), "its socket");
		await using device = await LoopDevice.attach(nbdUri(socket), folder.file("fuse"));
		await using mounted = await Mounted.mount(device.path, folder.file("mnt"));
		await runOk("dd", ["if=/dev/urandom", `of=${mounted.path}/big`, "bs=1M", "count=600", "status=none", "conv=fsync"]);
		await runOk("rm", [`${mounted.path}/big`]);
		await mounted.unmount();
	}
	await runOk("qemu-img", ["commit", "-q", overlay], { timeoutSeconds: 300 });
	const grown = (await allocatedBytes(base)) - before;
	t.diagnostic(`B ${mib(before)} → ${mib(before + grown)} by qemu-img commit: it grew by ${mib(grown)}`);
	assert.ok(grown >= 600 * MIB);
});

/** A raw image with an empty file system, none of which is left to be set up later. */
async function makeImage(path: string): Promise<void> {
	await runOk("truncate", ["-s", "4G", path]);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", path]);
}
