// A guest that is suspended to disk, in the middle of its work, and goes on later with all that it had in memory: nothing of its
// mounted file systems is dropped meanwhile, not even by who says that the VM is off. With swap/index.ts blind to what lies in
// the swap, blocks of the growing files are lost: they look free to whoever replays the journals.

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { Guest, nbdUri } from "../support/guest.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, vmsweep } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1024 * 1024;

/**
 * Has files without a name, and writes past the page cache to two others until it was asleep: between the last sync and the sleep,
 * blocks that only memory knows to be in use.
 */
const WORKER = `
import hashlib, mmap, os, time
BLOCK = 65536
folders = ["/tmp/a/", "/tmp/b/"]
nameless = [os.open(f + "nameless", os.O_RDWR | os.O_CREAT) for f in folders]
growing = [os.open(f + "growing", os.O_RDWR | os.O_CREAT | os.O_DIRECT) for f in folders]
for fd, f in zip(nameless, folders):
    os.write(fd, os.urandom(8 << 20))
    os.unlink(f + "nameless")
os.sync()
sums = lambda: [hashlib.sha256(os.pread(fd, 8 << 20, 0)).hexdigest() for fd in nameless]
content = lambda n: n.to_bytes(8, "little") * (BLOCK // 8)
before = sums()
open("/tmp/holds", "w")
buffer, written = mmap.mmap(-1, BLOCK), 0
while not os.path.exists("/tmp/awake") and written < 4000:
    buffer[:] = content(written)
    for fd in growing: os.pwrite(fd, buffer, written * BLOCK)
    written += 1
    time.sleep(0.002)
with open("/proc/sys/vm/drop_caches", "w") as f: f.write("3")
assert sums() == before, "a file without a name is damaged"
for fd, f in zip(growing, folders):
    for n in range(written):
        os.preadv(fd, [buffer], n * BLOCK)
        assert buffer[:] == content(n), f"block {n} of {written} of {f}growing is damaged"
print("right:", written, "blocks of each file")
`;

test("a hibernated guest finds all that it had in memory, and is cleaned again once it is awake", async (t) => {
	if (!requireTool(t, "guest image")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "1500M" });
	const boot = (more: string): Promise<Guest> =>
		Guest.boot({
			disks: [{ uri: nbdUri(join(disk, "nbd.sock"), "d") }],
			discard: "off",
			more: ["--append", `hibernate=nocompress ${more}`],
		});
	let expected: string;
	{
		await using server = await SweepServer.serve(disk);
		await using guest = await boot("");
		expected = await guest.run(`
			set -e
			printf 'size=500M,type=S\\nsize=480M\\nsize=480M\\n' | sfdisk -q --label gpt $DISK0
			mkswap -q \${DISK0}1; swapon \${DISK0}1
			mkdir -p /tmp/a /tmp/b
			mkfs.ext4 -q \${DISK0}2; mount -o commit=1 \${DISK0}2 /tmp/a
			mkfs.xfs -q \${DISK0}3; mount \${DISK0}3 /tmp/b
			for m in /tmp/a /tmp/b; do
				mkdir $m/keep
				for i in $(seq 8); do head -c 500000 /dev/urandom > $m/keep/$i; done
				head -c ${20 * MIB} /dev/urandom > $m/junk
			done
			sync; rm /tmp/*/junk; sync
			cd /tmp; sha256sum ?/keep/*`);
		await guest.run(`cat > /tmp/worker.py`, { input: WORKER });
		await guest.run(`
			setsid python3 /tmp/worker.py < /dev/null > /tmp/result 2>&1 &
			until [ -e /tmp/holds ]; do sleep 0.1; done
			echo shutdown > /sys/power/disk
			setsid sh -c 'sleep 1; echo disk > /sys/power/state; echo > /tmp/awake' < /dev/null > /dev/null 2>&1 &`);
		const left = async (): Promise<boolean> => (await server.status()).clients === 0;
		await waitUntil(left, "the guest to be hibernated", { timeoutSeconds: 180, everyMs: 200 });

		const { droppedBytes } = (await server.status()).cleaner;
		await server.rounds(6);
		const { cleaner, volumes } = await server.status();
		assert.equal(cleaner.droppedBytes, droppedBytes, JSON.stringify(volumes));
		assert.equal((await server.stop()).exitCode, 0);
	}
	const off = await run(vmsweep, ["clean", disk, "--vm-off", "--json"]);
	assert.match(off.stdout + off.stderr, /a hibernated system lies in p1/);

	await using server = await SweepServer.serve(disk);
	await server.rounds(3);
	await using guest = await boot("rig.resume=vda1");
	await guest.run("until [ -e /tmp/awake ]; do sleep 0.2; done", { timeoutSeconds: 120 });
	t.diagnostic(await guest.run("until grep . /tmp/result; do sleep 0.2; done", { timeoutSeconds: 120 }));
	assert.match(await guest.run("cat /tmp/result"), /^right/);
	assert.equal(await guest.run("cd /tmp; sha256sum ?/keep/*"), expected);
	const { droppedBytes } = (await server.status()).cleaner;
	// The worker has ended, and so have its files without a name.
	await guest.run(`
		set -e
		rm /tmp/?/growing
		umount /tmp/a /tmp/b
		e2fsck -fn \${DISK0}2; xfs_repair -n \${DISK0}3
		swapoff \${DISK0}1`);
	const isDropped = async (): Promise<boolean> =>
		(await server.status()).cleaner.droppedBytes >= droppedBytes + 16 * MIB;
	await waitUntil(isDropped, "the space of both files to come back", { timeoutSeconds: 60, everyMs: 500 });
	await guest.run(`
		set -e
		echo 3 > /proc/sys/vm/drop_caches
		mount \${DISK0}2 /tmp/a; mount \${DISK0}3 /tmp/b`);
	assert.equal(await guest.run("cd /tmp; sha256sum ?/keep/*"), expected);
	await guest.stop();
	assert.equal((await server.stop()).exitCode, 0);
});
