// clean --vm-off (live-safety 6, F4 and 9.11): with the VM off everything unused goes, also of what was never unmounted;
// not where a client is connected, and not on a disk with a hibernated system.

import assert from "node:assert/strict";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { btrfs, ext4, type FileSystemKind, makeFileSystem, ntfs, xfs } from "../support/file-system-kinds.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { checkCommitted } from "../support/loop-cleaning.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { run, runOk, vmsweep } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MIB = 1024 * 1024;
const JUNK_BYTES = 40 * MIB;

/** Files that stay and files that go, synced. */
const fill = (folder: string): Promise<string> =>
	runOk("bash", [
		"-c",
		`cd "$1" && head -c 3000000 /dev/urandom > keep && head -c ${JUNK_BYTES} /dev/urandom > junk && sync && rm junk && sync`,
		"fill",
		folder,
	]);

/** XFS gives the blocks of deleted files up a moment later. */
const givenUp = (folder: string): Promise<true> =>
	waitUntil(
		async () =>
			Number(await runOk("stat", ["-f", "-c", "%f", folder])) > 80_000 && (await runOk("sync", ["-f", folder])) === "",
		"the deleted file's space, in the guest",
	);

const clean = (disk: string, ...options: readonly string[]): ReturnType<typeof run> =>
	run(vmsweep, ["clean", ...options, "--json", disk], { timeoutSeconds: 120 });

for (const kind of [ext4, xfs, btrfs, ntfs] satisfies readonly FileSystemKind[])
	test(`${kind.name}: what was never unmounted is dropped with the VM off, and only then`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, ...kind.tools)) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("d");
		await createDisk(disk, { size: "512M" });
		let expected: string[];
		{
			await using server = await SweepServer.serve(disk, "--clean", "off");
			await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
			await makeFileSystem(kind, device.path);
			await using mounted = await Mounted.mount(device.path, folder.file("m"), kind.mountOptions, kind.mountType);
			await fill(mounted.path);
			if (kind === xfs) await givenUp(mounted.path);
			expected = await hashesIn(mounted.path);
			const busy = await clean(disk, "--vm-off");
			assert.equal(busy.exitCode, 3);
			assert.match(busy.stderr, /has \d+ clients\. Shut the VM down/);
			// The power goes: nothing is unmounted.
			await server.kill();
			await run("umount", ["-l", mounted.path]);
		}
		const before = JSON.parse((await clean(disk)).stdout) as { droppedBytes: number };
		assert.ok(before.droppedBytes < MIB, `${before.droppedBytes} bytes were dropped of what may be mounted`);
		const off = await clean(disk, "--vm-off");
		assert.equal(off.exitCode, 0, off.stderr);
		const { droppedBytes } = JSON.parse(off.stdout) as { droppedBytes: number };
		t.diagnostic(`${droppedBytes} bytes dropped`);
		assert.ok(droppedBytes >= JUNK_BYTES * 0.95);
		if (kind !== xfs && kind !== ext4) {
			await checkCommitted(t, disk, expected, kind);
			return;
		}
		// Its log must be replayed before a checker looks.
		await runOk(vmsweep, ["commit", disk]);
		const image = join(disk, "second.raw");
		{
			await using replayed = await Mounted.mount(image, folder.file("r"), kind.mountToReplay);
			assert.deepEqual(await hashesIn(replayed.path), expected);
			await replayed.unmount();
		}
		await runOk(kind.check[0]!, [...kind.check.slice(1), image]);
	});

test("a disk with a hibernated system on it is kept whole", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "sfdisk", "mkswap")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await runOk("truncate", ["-s", "600M", image]);
	await runOk("sfdisk", ["-q", image], { input: "label: gpt\n1M,64M\n65M,500M\n" });
	const part = folder.file("part");
	await runOk("truncate", ["-s", "500M", part]);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", part]);
	{
		await using mounted = await Mounted.mount(part, folder.file("m"), "loop");
		await fill(mounted.path);
		await mounted.unmount();
	}
	await runOk("dd", [`if=${part}`, `of=${image}`, "bs=1M", "seek=65", "conv=notrunc", "status=none"]);
	const swap = folder.file("swap");
	await runOk("truncate", ["-s", "64M", swap]);
	await runOk("mkswap", ["-q", swap]);
	{
		// What the kernel leaves in the header of the swap that it has hibernated to (kernel/power/swap.c).
		await using file = await open(swap, "r+");
		await file.write(Buffer.from("S1SUSPEND\0"), 0, 10, 4086);
	}
	await runOk("dd", [`if=${swap}`, `of=${image}`, "bs=1M", "seek=1", "conv=notrunc", "status=none"]);
	await runOk(vmsweep, ["create", folder.file("d"), "--second", image]);
	const { exitCode, stdout, stderr } = await clean(folder.file("d"), "--vm-off");
	assert.equal(exitCode, 0, stderr);
	const report = JSON.parse(stdout) as { droppedBytes: number; volumes: { id: string; reason: string | null }[] };
	assert.equal(report.droppedBytes, 0);
	assert.match(report.volumes.find(({ id }) => id === "p2")?.reason ?? "", /hibernat/);
});
