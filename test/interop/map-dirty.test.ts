// The guest map of volumes that a real kernel works on, through a loop device.
//
//  - cut off in the middle (EXT4_IOC_SHUTDOWN): after `e2fsck -y` of a copy no block in use may be free in our map
//  - unmounted: free blocks equal `dumpe2fs`, block for block

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import type { TestContext } from "node:test";
import { describe, test } from "node:test";
import { someOf } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { run, runOk, start } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";
import { differences, dumpFree, mapOf, mappedFree } from "./map-images.ts";

const mkfsVariants: Readonly<Record<string, readonly string[]>> = {
	ext4: ["-t", "ext4"],
	"ext4, fast_commit": ["-t", "ext4", "-O", "fast_commit"],
	"ext4, no checksums, 1 KiB blocks": ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg"],
	"ext4, not 64bit": ["-t", "ext4", "-O", "^64bit"],
	"ext4, bigalloc": ["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
	ext3: ["-t", "ext3"],
	"ext4, meta_bg, uninit_bg": ["-t", "ext4", "-O", "meta_bg,^resize_inode,uninit_bg,^metadata_csum"],
};
const mountOptions: Readonly<Record<string, string>> = {
	ordered: "commit=1",
	"data=journal": "commit=1,data=journal",
	journal_async_commit: "commit=1,data=writeback,journal_async_commit",
	journal_checksum: "commit=1,journal_checksum",
};

/** Creates, overwrites, truncates, syncs and deletes without end, from a seed; ends when the file system is gone. */
const load = `
cd "$1"; RANDOM=$2
for i in $(seq 1 100000); do
	[ $i = 250 ] && echo well under way
	f=f$((RANDOM % 40))
	case $((RANDOM % 7)) in
		0|1|2) head -c $((RANDOM * 40)) /dev/urandom > $f 2>/dev/null || exit 0;;
		3) rm -f $f || exit 0;;
		4) truncate -s $((RANDOM * 8)) $f 2>/dev/null || exit 0;;
		5) sync $f 2>/dev/null; mkdir -p d$((RANDOM % 9)) 2>/dev/null || exit 0;;
		6) [ $((i % 5)) = 0 ] && sync -f . 2>/dev/null;;
	esac
done`;

/** Makes a file system, lets the kernel work on it, runs `meanwhile`, and unmounts it. False: skipped. */
async function work(
	t: TestContext,
	paths: { image: string; mount: string },
	mkfsArguments: readonly string[],
	options: string,
	meanwhile: () => Promise<void>,
): Promise<boolean> {
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await mkdir(paths.mount);
	await runOk("mke2fs", ["-q", "-F", ...mkfsArguments, paths.image, "300M"]);
	if ((await run("mount", ["-o", `loop,${options}`, paths.image, paths.mount])).exitCode !== 0) {
		t.skip(`this kernel does not mount it with ${options}`);
		return false;
	}
	try {
		await using working = start("bash", ["-c", load, "load", paths.mount, String(seed % 32768)]);
		await working.line(/well under way/, 60);
		await meanwhile();
	} finally {
		// A tool that still lets go of the device keeps it busy for a moment.
		await waitUntil(async () => (await run("umount", [paths.mount])).exitCode === 0, "the file system to be unmounted");
	}
	return true;
}

describe("no block in use after e2fsck is free in the map of a dirty volume", () => {
	const cases = Object.entries(mkfsVariants).flatMap(([name, mkfsArguments]) =>
		Object.entries(mountOptions).map(([mode, options]) => ({ name: `${name}, ${mode}`, mkfsArguments, options })),
	);
	for (const { name, mkfsArguments, options } of someOf(cases, 3))
		test(name, async (t) => {
			if (!requireTool(t, "root", "loop devices", "mke2fs", "e2fsck", "xfs_io", "bash")) return;
			await using folder = await temporaryFolder();
			const [image, copy, mount] = [folder.file("image"), folder.file("copy"), folder.file("mount")];
			const cut = async (): Promise<void> => void (await runOk("xfs_io", ["-x", "-c", "shutdown", mount]));
			if (!(await work(t, { image, mount }, mkfsArguments, options, cut))) return;
			await runOk("cp", ["--sparse=always", image, copy]);
			const checked = await run("e2fsck", ["-fy", copy]);
			assert.ok(
				checked.exitCode === 0 || checked.exitCode === 1,
				`e2fsck ended with ${checked.exitCode}\n${checked.stdout}`,
			);
			const dumped = await dumpFree(copy);
			const map = await mapOf(image);
			const volume = map.volumes[0]!;
			t.diagnostic(`free ${volume.freeBytes}, kept: ${volume.kept}`);
			assert.equal(volume.state, "dirty");
			assert.deepEqual(differences(mappedFree(map, volume.id, dumped), dumped.free).onlyMine, []);
			assert.deepEqual(volume.warnings, []);
			if (volume.kept !== null) assert.match(volume.kept, /fast commits/);
		});
});

describe("free blocks equal dumpe2fs after the kernel has worked and unmounted", () => {
	for (const [name, mkfsArguments] of Object.entries({ ...mkfsVariants, ext2: ["-t", "ext2"] }))
		test(name, async (t) => {
			if (!requireTool(t, "root", "loop devices", "mke2fs", "bash")) return;
			await using folder = await temporaryFolder();
			const [image, mount] = [folder.file("image"), folder.file("mount")];
			if (!(await work(t, { image, mount }, mkfsArguments, "noatime", async () => {}))) return;
			await expectEqual(image);
		});

	test("resized while mounted", async (t) => {
		if (!requireTool(t, "root", "loop devices", "mke2fs", "resize2fs", "bash")) return;
		await using folder = await temporaryFolder();
		const [image, mount] = [folder.file("image"), folder.file("mount")];
		const grow = async (): Promise<void> => {
			await runOk("truncate", ["-s", "5G", image]);
			const device = (await runOk("losetup", ["-j", image])).split(":")[0]!;
			await runOk("losetup", ["-c", device]);
			const { exitCode, stderr } = await run("resize2fs", [device]);
			denied = /Permission denied/.test(stderr);
			assert.ok(denied || exitCode === 0, stderr);
		};
		let denied = false;
		if (!(await work(t, { image, mount }, ["-t", "ext4"], "noatime", grow))) return;
		if (denied) return t.skip("no right to resize mounted file systems here (CAP_SYS_RESOURCE)");
		await expectEqual(image);
	});
});

async function expectEqual(image: string): Promise<void> {
	const dumped = await dumpFree(image);
	const map = await mapOf(image);
	const volume = map.volumes[0]!;
	assert.equal(volume.kept, null, `${volume.kept}`);
	assert.equal(volume.state, "clean");
	assert.deepEqual(volume.warnings, []);
	assert.deepEqual(differences(mappedFree(map, volume.id, dumped), dumped.free), { onlyMine: [], onlyTheirs: [] });
}
