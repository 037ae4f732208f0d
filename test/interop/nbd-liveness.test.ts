// `vmsweep:liveness` and `vmsweep:since` on a served disk with real file systems: whoever copies only what is not dead
// has all of the guest's files, and what the guest takes up again is dead no more.

import assert from "node:assert/strict";
import { mkdir, open, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { liveness } from "../../src/core/nbd/meta-contexts.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import type { Extents, NbdClient } from "../support/nbd-client.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { dumpFree } from "./map-images.ts";

const MiB = 2 ** 20;
const LIVENESS = "vmsweep:liveness";

/** A client of a served disk that selected contexts. */
const client = (server: SweepServer, ...contexts: readonly string[]): Promise<NbdClient> =>
	server.connect({ extended: true, contexts });

/** Status of the whole disk. */
async function wholeStatus(of: NbdClient): Promise<Extents> {
	const all: (readonly [number, number])[] = [];
	for (let at = 0; at < of.size; )
		for (const [length, flags] of await of.status(at, of.size - at)) {
			at += length;
			if (all.at(-1)?.[1] === flags) all[all.length - 1] = [all.at(-1)![0] + length, flags];
			else all.push([length, flags]);
		}
	return all;
}

const bytesOf = (extents: Extents, flags: number): number =>
	extents.reduce((sum, [length, each]) => sum + (each === flags ? length : 0), 0);

/** Copies what is not dead; dead blocks are filled with rubbish, so that whoever needs one notices. */
async function copyNotDead(server: SweepServer, target: string): Promise<Extents> {
	await using source = await client(server, LIVENESS);
	const extents = await wholeStatus(source);
	await using file = await open(target, "w");
	let at = 0;
	for (const [length, flags] of extents)
		for (let end = at + length; at < end; ) {
			const piece = Math.min(MiB, end - at);
			const bytes = flags === liveness.DEAD ? Buffer.alloc(piece, 0xa5) : await source.read(at, piece);
			await file.write(bytes, 0, piece, at);
			at += piece;
		}
	return extents;
}

test("a file system at rest: dead is what dumpe2fs calls free, and nbdinfo sees it", async (t) => {
	if (!requireTool(t, "mke2fs", "dumpe2fs", "e2fsck", "nbdinfo", "debugfs")) return;
	await using folder = await temporaryFolder();
	const [image, content, disk] = [folder.file("image"), folder.file("content"), folder.file("web01")];
	await mkdir(content);
	for (let i = 0; i < 20; i++) await writeFile(join(content, `f${i}`), seededRandom(i).bytes(300_000));
	await writeFile(image, "");
	await truncate(image, 128 * MiB);
	await runOk("mke2fs", ["-q", "-t", "ext4", "-b", "4096", "-d", content, image]);
	const free: [from: number, to: number][] = [];
	for (const [block, isFree] of (await dumpFree(image)).free.entries()) {
		if (isFree === 0) continue;
		if (free.at(-1)?.[1] === block * 4096) free.at(-1)![1] += 4096;
		else free.push([block * 4096, (block + 1) * 4096]);
	}
	await createDisk(disk, { second: image });
	await using server = await SweepServer.serve(disk, "--clean", "off");
	const extents = await copyNotDead(server, folder.file("copy"));
	let at = 0;
	const dead = extents.flatMap(([length, flags]) => {
		at += length;
		return flags === liveness.DEAD ? [[at - length, at] as const] : [];
	});
	assert.deepEqual(dead, free);
	assert.equal(bytesOf(extents, liveness.UNKNOWN), 0);
	await runOk("e2fsck", ["-fn", folder.file("copy")]);
	await runOk("debugfs", ["-R", `rdump / ${await madeFolder(folder.file("out"))}`, folder.file("copy")]);
	assert.deepEqual(
		(await hashesIn(folder.file("out"))).filter((line) => / \S*f\d+$/.test(line)),
		await hashesIn(content),
	);
	const shown = JSON.parse(await runOk("nbdinfo", ["--json", `--map=${LIVENESS}`, server.uri])) as {
		length: number;
		type: number;
	}[];
	assert.deepEqual(
		shown.map(({ length, type }) => [length, type]),
		extents,
	);
	const listed = await runOk("nbdinfo", ["--json", server.uri]);
	assert.deepEqual(JSON.parse(listed).exports[0].contexts, ["base:allocation", LIVENESS, "vmsweep:since:"]);

	// What is written is dead no more, at once and for the clients that came before, too.
	await using watcher = await client(server, LIVENESS);
	await using writer = await client(server);
	const [start, end] = dead.find(([from, to]) => to - from > MiB)!;
	assert.deepEqual(await watcher.status(start, end - start), [[end - start, liveness.DEAD]]);
	await writer.write(start + 8192, Buffer.alloc(4096, 1));
	await writer.zero(start + 65536, 4096);
	assert.deepEqual(await watcher.status(start, 128 * 1024), [
		[8192, liveness.DEAD],
		[4096, liveness.UNKNOWN],
		[53248, liveness.DEAD],
		[4096, liveness.UNKNOWN],
		[61440, liveness.DEAD],
	]);
});

const madeFolder = async (path: string): Promise<string> => {
	await mkdir(path);
	return path;
};

for (const cleaning of ["off", "continuous"] as const)
	test(`a mounted file system, with cleaning ${cleaning}: what isn't dead is all that its files need`, async (t) => {
		if (!requireTool(t, ...LOOP_TOOLS, "nbdcopy")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("web01");
		await createDisk(disk, { size: "256M" });
		await using server = await SweepServer.serve(disk, "--clean", cleaning);
		await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
		await runOk("mke2fs", ["-q", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", device.path]);
		await using mounted = await Mounted.mount(device.path, folder.file("mnt"));
		const commit = async (name: string): Promise<void> => {
			await writeFile(join(mounted.path, name), name);
			await runOk("sync", ["-f", mounted.path]);
		};
		let everDead = 0;
		for (let round = 0; round < 4; round++) {
			for (let i = 0; i < 12; i++)
				await writeFile(join(mounted.path, `f${round}-${i}`), seededRandom(round * 100 + i).bytes(1_500_000));
			await commit(`a${round}`);
			// Watching begins with the first question; two commits later there is something to say.
			await using asking = await client(server, LIVENESS);
			await wholeStatus(asking);
			if (round > 0) await runOk("sh", ["-c", `rm ${mounted.path}/f${round - 1}-*`]);
			for (const name of ["b", "c", "d"]) await commit(`${name}${round}`);
			const before = await hashesIn(mounted.path);
			const copy = folder.file(`copy${round}`);
			const extents = await copyNotDead(server, copy);
			everDead += bytesOf(extents, liveness.DEAD);
			await assertSound(copy);
			await using again = await Mounted.mount(copy, folder.file(`again${round}`), "loop,ro");
			assert.deepEqual(await hashesIn(again.path), before, `round ${round}`);
			await again.unmount();
		}
		assert(everDead > 0, "something was proven dead");
	});

/** Recovers an image as after a power cut. Its totals are as old as its superblock then; all else must be right. */
async function assertSound(image: string): Promise<void> {
	const { stdout, exitCode } = await run("e2fsck", ["-fy", image]);
	assert(exitCode === 0 || exitCode === 1, stdout);
	for (const [line] of stdout.matchAll(/^.*\n(?=Fix\? )/gm))
		assert.match(line, /^Free (blocks|inodes) count wrong \(/, stdout);
}
