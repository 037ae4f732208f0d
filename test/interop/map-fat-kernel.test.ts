// FAT32 and exFAT as Linux's own drivers leave them, in a guest: copied while mounted, and after they were unmounted.
//
// The driver of exFAT clears the dirty flag at every sync, so its copy looks clean; what was synced must not be free.

import assert from "node:assert/strict";
import { copyFile, mkdir } from "node:fs/promises";
import { test } from "node:test";
import { isThorough } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { FuseMount } from "../support/fuse.ts";
import { Guest } from "../support/guest.ts";
import { hashTree } from "../support/hashes.ts";
import { LoopPart } from "../support/loop.ts";
import { runOk } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { mapVolume, scrambleFree } from "./map-clusters.ts";

const work = `
set -e
RANDOM=$SEED
for file_system in vfat exfat; do modprobe $file_system; mkdir -p /mnt/$file_system; done
mount -t vfat $DISK0 /mnt/vfat; mount -t exfat $DISK1 /mnt/exfat
for i in $(seq 1 $STEPS); do for file_system in vfat exfat; do
	f=/mnt/$file_system/f$((RANDOM % 20))
	case $((RANDOM % 4)) in
		0|1) head -c $((RANDOM * 20)) /dev/urandom > $f;;
		2) rm -f $f;;
		3) truncate -s $RANDOM $f;;
	esac
done; done
sync`;

const hashes = `cd /mnt/$FILE_SYSTEM && find . -type f -printf '%P\\n' | sort | xargs -r sha256sum`;

test("as Linux leaves them", async (t) => {
	if (!requireTool(t, "guest image", "root", "fuse", "loop devices", "mkfs.fat", "fsck.fat", "mkfs.exfat", "mcopy"))
		return;
	if (!requireTool(t, "mount.exfat-fuse", "dump.exfat", "fsck.exfat")) return;
	const seed = testSeed() % 32768;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const [vfat, exfat] = [folder.file("vfat"), folder.file("exfat")];
	await runOk("truncate", ["-s", "64M", vfat, exfat]);
	await runOk("mkfs.fat", ["-F", "32", "-s", "1", vfat]);
	await runOk("mkfs.exfat", [exfat]);

	const files: Record<string, Record<string, string>> = {};
	{
		await using guest = await Guest.boot({ disks: [{ uri: vfat }, { uri: exfat }], discard: "off" });
		await guest.run(work, { variables: { SEED: String(seed), STEPS: isThorough ? "200" : "30" } });
		for (const image of [vfat, exfat]) await copyFile(image, `${image}-mounted`);
		for (const name of ["vfat", "exfat"]) {
			const lines = (await guest.run(hashes, { variables: { FILE_SYSTEM: name } })).trim().split("\n");
			files[name] = Object.fromEntries(lines.map((line) => [line.slice(66), line.slice(0, 64)]));
		}
		await guest.run("umount /mnt/vfat /mnt/exfat");
		await guest.stop();
	}
	const volumeOf = async (image: string) => (await mapVolume(image)).volumes[0]!;
	const mounted = await volumeOf(`${vfat}-mounted`);
	assert.deepEqual([mounted.state, mounted.freeBytes], ["dirty", null]);

	for (const image of [vfat, exfat, `${exfat}-mounted`]) {
		const map = await mapVolume(image);
		const { state, kept, freeBytes } = map.volumes[0]!;
		assert.deepEqual([state, kept], ["clean", null], image);
		assert.equal(await scrambleFree(image, map), freeBytes);
	}
	const checked = /(\d+)\/(\d+) clusters/.exec(await runOk("fsck.fat", ["-n", vfat]))!;
	assert.equal((await volumeOf(vfat)).freeBytes, (Number(checked[2]) - Number(checked[1])) * 512);
	const dumped = /Free Clusters:\s+(\d+)/.exec(await runOk("dump.exfat", [exfat]))!;
	assert.equal((await volumeOf(exfat)).freeBytes, Number(dumped[1]) * 4096);

	await mkdir(folder.file("copied"));
	await runOk("mcopy", ["-s", "-Q", "-n", "-i", vfat, "::/", folder.file("copied")]);
	assert.deepEqual(await hashTree(folder.file("copied")), files.vfat);
	for (const image of [exfat, `${exfat}-mounted`]) {
		await runOk("fsck.exfat", ["-n", image]);
		await using device = new LoopPart((await runOk("losetup", ["-f", "--show", image])).trim());
		await using mount = await FuseMount.mount("mount.exfat-fuse", ["-d", device.path, folder.file("mnt")]);
		assert.deepEqual(await hashTree(mount.path), files.exfat);
		await mount.unmount();
	}
});
