// Swap, and file systems that are full by nature, as their own tools make them.

import assert from "node:assert/strict";
import { copyFile, mkdir, open, stat, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { mapVolume } from "./map-clusters.ts";

async function patch(image: string, at: number, text: string): Promise<void> {
	const file = await open(image, "r+");
	await file.write(Buffer.from(text, "latin1"), 0, text.length, at);
	await file.close();
}

describe("swap", () => {
	const UUID = "01234567-89ab-cdef-0123-456789abcdef";
	for (const pageSize of [4096, 8192, 16384, 65536])
		test(`pages of ${pageSize / 1024} KiB`, async (t) => {
			if (!requireTool(t, "mkswap")) return;
			await using folder = await temporaryFolder();
			const image = folder.file("image");
			// The last page does not fit.
			const size = (16 << 20) + pageSize / 2;
			await runOk("truncate", ["-s", String(size), image]);
			await runOk("mkswap", ["-q", "-p", String(pageSize), "-L", "exchange", "-U", UUID, image]);

			const running = (await mapVolume(image)).volumes[0]!;
			assert.deepEqual(
				[running.type, running.uuid, running.label, running.blockSize, running.state, running.freeBytes],
				["swap", UUID, "exchange", pageSize, "clean", null],
			);
			assert.match(running.kept!, /--vm-off/);

			const map = await mapVolume(image, { vmOff: true });
			assert.equal(map.volumes[0]!.kept, null);
			assert.deepEqual(
				[...map.extents].map(({ start, length, state }) => [start, length, state]),
				[
					[0, pageSize, "used"],
					[pageSize, (16 << 20) - pageSize, "free"],
					[16 << 20, pageSize / 2, "unknown"],
				],
			);
		});

	test("hibernated, old, cut off, of two minds: kept even with the VM off", async (t) => {
		if (!requireTool(t, "mkswap")) return;
		await using folder = await temporaryFolder();
		const [good, image] = [folder.file("good"), folder.file("image")];
		await runOk("truncate", ["-s", "16M", good]);
		await runOk("mkswap", ["-q", good]);
		const cases: readonly (readonly [at: number, text: string, why: RegExp])[] = [
			[4086, "S1SUSPEND\0", /hibernated/],
			[4086, "S2SUSPEND\0", /hibernated/],
			[4086, "ULSUSPEND\0", /hibernated/],
			[4086, "LINHIB0001", /hibernated/],
			[4086, "SWAP-SPACE", /before Linux 2.2/],
			[8182, "SWAPSPACE2", /two page sizes/],
			[8182, "S1SUSPEND\0", /hibernated/],
			[1024, "\0\0\0\x01", /big-endian/],
			[1028, "\0\x10\0\0", /more than its partition/],
			[1028, "\0\0\0\0", /more than its partition/],
		];
		for (const [at, text, why] of cases) {
			await copyFile(good, image);
			await patch(image, at, text);
			const map = await mapVolume(image, { vmOff: true });
			assert.match(`${map.volumes[0]!.kept}`, why);
			for (const { state } of map.extents) assert.notEqual(state, "free");
		}
	});
});

test("a system that sleeps in swap keeps all other volumes of its disk", async (t) => {
	if (!requireTool(t, "mkswap", "sgdisk", "mke2fs", "mkfs.btrfs")) return;
	await using folder = await temporaryFolder();
	const [disk, part] = [folder.file("disk"), folder.file("part")];
	await runOk("truncate", ["-s", "330M", disk]);
	await runOk("sgdisk", ["-n", "1:2048:+100M", "-n", "2:0:+16M", "-n", "3:0:+200M", disk]);
	const put = async (at: number, size: string, ...make: readonly [string, ...string[]]): Promise<void> => {
		await runOk("truncate", ["-s", "0", part]);
		await runOk("truncate", ["-s", size, part]);
		await runOk(make[0], [...make.slice(1), part]);
		await runOk("dd", [`if=${part}`, `of=${disk}`, "bs=1M", `seek=${at}`, "conv=notrunc,sparse", "status=none"]);
	};
	await put(1, "100M", "mke2fs", "-q", "-F", "-t", "ext4");
	await put(101, "16M", "mkswap", "-q");
	await put(117, "200M", "mkfs.btrfs", "-q", "-f");
	const awake = await mapVolume(disk, { vmOff: true });
	assert.deepEqual(
		awake.volumes.map(({ type, kept }) => [type, kept]),
		[
			["ext4", null],
			["swap", null],
			["btrfs", null],
		],
	);
	await patch(disk, 101 * 2 ** 20 + 4086, "S1SUSPEND\0");
	const { volumes, extents } = await mapVolume(disk, { vmOff: true });
	for (const { id, kept } of volumes)
		assert.match(
			kept!,
			id === "p2" ? /a hibernated system lies in it/ : /a hibernated system lies in p2; start the guest/,
		);
	for (const { state, neverUsed } of extents) assert.ok(state !== "free" && neverUsed === undefined);
});

describe("full by nature", () => {
	const makers: Readonly<Record<string, { tool: string; argumentsOf: (image: string, content: string) => string[] }>> =
		{
			squashfs: { tool: "mksquashfs", argumentsOf: (image, content) => [content, image, "-quiet", "-no-progress"] },
			erofs: { tool: "mkfs.erofs", argumentsOf: (image, content) => ["--quiet", image, content] },
			iso9660: {
				tool: "xorriso",
				argumentsOf: (image, content) => ["-as", "mkisofs", "-quiet", "-V", "disk", "-R", "-J", "-o", image, content],
			},
			cramfs: { tool: "mkfs.cramfs", argumentsOf: (image, content) => ["-n", "disk", content, image] },
		};
	for (const [type, { tool, argumentsOf }] of Object.entries(makers))
		test(type, async (t) => {
			if (!requireTool(t, tool)) return;
			await using folder = await temporaryFolder();
			const [image, short] = [folder.file("image"), folder.file("short")];
			await mkdir(folder.file("content"));
			await writeFile(folder.file("content/file"), seededRandom(1).bytes(300_000));
			await runOk(tool, argumentsOf(image, folder.file("content")));
			const made = (await stat(image)).size;
			await runOk("truncate", ["-s", "+1M", image]);
			const map = await mapVolume(image);
			const volume = map.volumes[0]!;
			assert.deepEqual([volume.type, volume.kept, volume.state, volume.freeBytes], [type, null, "clean", 0]);
			assert.ok(volume.usedBytes! > 0 && volume.usedBytes! <= made && volume.usedBytes! > made - 0x60000, `${made}`);
			assert.deepEqual(
				[...map.extents].map(({ length, state }) => [length, state]),
				[
					[volume.usedBytes, "used"],
					[map.size - volume.usedBytes!, "unknown"],
				],
			);
			const known = await runOk("blkid", ["-p", image]);
			assert.equal(/ UUID="([^"]*)"/.exec(known)?.[1] ?? null, volume.uuid);
			assert.equal(/ LABEL="([^"]*)"/.exec(known)?.[1] ?? null, volume.label);

			await copyFile(image, short);
			await runOk("truncate", ["-s", String(Math.floor(volume.usedBytes! / 2)), short]);
			assert.match((await mapVolume(short)).volumes[0]!.kept!, /its partition has/);
		});
});
