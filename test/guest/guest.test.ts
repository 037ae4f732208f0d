// The guest rig against qemu-nbd, the reference server: a failure here is the rig's, not vmsweep's.

import assert from "node:assert/strict";
import { access } from "node:fs/promises";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Guest, nbdUri } from "../support/guest.ts";
import { runOk, start } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

test("a guest runs scripts, loses power, and finds its files again", async (t) => {
	if (!requireTool(t, "guest image", "qemu-nbd", "e2fsck")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("disk.raw");
	const socket = folder.file("nbd.sock");
	await runOk("truncate", ["-s", "256M", image]);
	await using server = start("qemu-nbd", ["--format=raw", "--persistent", "-x", "web 01", "-k", socket, image]);
	await server.until(() => canAccess(socket), "its socket");

	const options = { disks: [{ uri: nbdUri(socket, "web 01") }], discard: "off" } as const;
	{
		await using guest = await Guest.boot(options);
		await guest.run("mkfs.ext4 -q $DISK0 && mount $DISK0 /mnt && echo kept > /mnt/a && sync -f /mnt");
		assert.equal((await guest.exec("exit 7")).exitCode, 7);
		assert.equal(
			await guest.run('cat; echo "$NAME"', { input: "from here\n", variables: { NAME: "a b" } }),
			"from here\na b\n",
		);
		assert.equal(await guest.run("cat /sys/block/vda/queue/discard_max_bytes"), "0\n", "trim is off");
		assert.deepEqual(
			await guest.qmp("query-status").then((status) => (status as { status: string }).status),
			"running",
		);
		assert.equal(await guest.agent("guest-fsfreeze-status"), "thawed");
		await assert.rejects(guest.exec("sleep 1000", { timeoutSeconds: 1 }), /timed out/);
		await using load = guest.start("echo started; while :; do date > /mnt/noise; done");
		await load.line(/started/);
		await guest.kill();
		await load.finished;
		assert.equal(typeof (await guest.console()), "string");
	}
	await using guest = await Guest.boot(options);
	assert.equal(await guest.run("mount $DISK0 /mnt && cat /mnt/a"), "kept\n");
	await guest.stop();
	await server.end();
	await runOk("e2fsck", ["-fn", image]);
});

const canAccess = (path: string): Promise<boolean> =>
	access(path).then(
		() => true,
		() => false,
	);
