// Disks whose second image is a qcow2 image, as users have them: made, adopted, served, cleaned, killed, committed. QEMU
// is the judge of the image at every stop.

import assert from "node:assert/strict";
import { open, readFile, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import * as sys from "../../src/adapters/os/syscalls.ts";
import { BLOCK_SIZE as K } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { allocatedBytes } from "../support/hashes.ts";
import { killUnderFio } from "../support/kill-loop.ts";
import { hashesIn, LOOP_TOOLS, LoopDevice, Mounted } from "../support/loop.ts";
import { SweepServer } from "../support/loop-server.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { assertSameBytes, checkByQemu, contentByQemu, io, MIB } from "./qcow2-images.ts";

const create = (...options: readonly string[]): Promise<string> => runOk(vmsweep, ["create", ...options]);

test("a disk on a golden image: begins with it, never changes it, and is whole after a commit", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-io")) return;
	const random = seededRandom(testSeed());
	await using folder = await temporaryFolder();
	const raw = folder.file("golden.raw");
	await writeFile(raw, Buffer.concat([random.bytes(5 * MIB), Buffer.alloc(3 * MIB), Buffer.alloc(8 * MIB, 7)]));
	const golden = folder.file("golden.qcow2");
	// Compressed, as golden images are.
	await runOk("qemu-img", ["convert", "-c", "-O", "qcow2", raw, golden]);
	const unchanged = await readFile(golden);
	const disk = folder.file("web01");
	assert.match(await create(disk, "--backing", golden, "--size", "32M"), /made, 32\.0 MiB on .*\nnote: .* unchanged\./);
	const image = join(disk, "second.qcow2");
	const before = folder.file("before.raw");
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await io(
			server.uri,
			["write -P 5 1M 3M", "write -z 9M 2M", "write -P 6 20M 5M", "write -P 9 12345344 4k", "flush"],
			"raw",
		);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", server.uri, before]);
		await runOk(vmsweep, ["clean", disk]);
		// Now it comes from the second image, by the data plane's own tables.
		await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", server.uri, before]);
		for (const path of [image, golden]) {
			const { exitCode, stderr } = await run("qemu-io", ["-f", "qcow2", "-c", "write 0 4k", path]);
			assert.equal(exitCode, 1);
			assert.match(stderr, /Failed to get "write" lock/);
		}
		// The image below may be read by others; that is what golden images are for.
		await runOk("qemu-img", ["info", golden]);
		assert.equal((await server.stop()).exitCode, 0);
	}
	await checkByQemu(image);
	await runOk(vmsweep, ["commit", disk]);
	await checkByQemu(image);
	assertSameBytes(await contentByQemu(folder, image), await readFile(before), "the committed image");
	assertSameBytes(await readFile(golden), unchanged, "the golden image");
});

test("an adopted image: not a byte is changed before it is cleaned into; a QEMU that has it open keeps vmsweep off", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-io", "qemu-nbd")) return;
	await using folder = await temporaryFolder();
	const image = folder.file("web01.qcow2");
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", image, "16M"]);
	await io(image, ["write -P 3 0 4M", "write -P 4 8M 64k"]);
	await runOk("qemu-img", ["snapshot", "-c", "kept", image]);
	const before = await readFile(image);
	const socket = folder.file("nbd");
	await using nbd = start("qemu-nbd", ["--persistent", "--socket", socket, "-f", "qcow2", image]);
	await nbd.until(async () => (await stat(socket).catch(() => undefined)) !== undefined, "its socket");
	const locked = await run(vmsweep, ["create", folder.file("d"), "--second", image]);
	assert.equal(locked.exitCode, 3);
	assert.match(locked.stderr, /is in use/);
	await nbd.end();

	const disk = folder.file("d");
	await create(disk, "--second", image);
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await runOk("qemu-io", ["-r", "-f", "raw", "-c", "read -P 3 0 4M", "-c", "read -P 4 8M 64k", server.uri]);
		assert.equal((await server.stop()).exitCode, 0);
	}
	assertSameBytes(await readFile(image), before, "the adopted image");
	{
		await using server = await SweepServer.serve(disk);
		await io(server.uri, ["write -P 5 1M 1M", "flush"], "raw");
		await runOk(vmsweep, ["clean", disk]);
		await runOk("qemu-io", ["-r", "-f", "raw", "-c", "read -P 3 0 1M", "-c", "read -P 5 1M 1M", server.uri]);
		assert.equal((await server.stop()).exitCode, 0);
	}
	await runOk(vmsweep, ["commit", disk]);
	await checkByQemu(image);
	await runOk("qemu-io", ["-r", "-f", "qcow2", "-c", "read -P 5 1M 1M", "-c", "read -P 3 2M 2M", image]);
	await runOk("qemu-img", ["snapshot", "-a", "kept", image]);
	await runOk("qemu-io", ["-r", "-f", "qcow2", "-c", "read -P 3 0 4M", image]);
	await checkByQemu(image);
});

test("an image below that was changed by others is noticed", async (t) => {
	if (!requireTool(t, "qemu-img")) return;
	await using folder = await temporaryFolder();
	const golden = folder.file("golden.raw");
	await writeFile(golden, Buffer.alloc(4 * MIB, 1));
	const disk = folder.file("d");
	await create(disk, "--backing", golden);
	// Far back: the beginning of the second in which it was written would be taken for a copy that keeps whole seconds only.
	await utimes(golden, new Date(), new Date(Date.now() - 3_600_000));
	const refused = await run(vmsweep, ["serve", disk]);
	assert.equal(refused.exitCode, 3);
	assert.match(refused.stderr, /golden\.raw was changed at .* by something else.*second\.qcow2, which lies on it/);
	const accepted = await run(vmsweep, ["commit", disk]);
	assert.equal(accepted.exitCode, 3, "nor does anybody else get it");
	await using server = await SweepServer.serve(disk, "--accept-changed-image");
	assert.equal((await server.stop()).exitCode, 0);
});

test("SIGKILL of the server, again and again, while fio writes and everything is moved into the image", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-io", "fio")) return;
	// What nobody wrote comes from the golden image, or from a copy of it, all the time.
	const assertGolden = (image: string): Promise<string> =>
		runOk("qemu-io", ["-r", "-f", "qcow2", "-c", "read -P 11 16M 16M", "-c", "read -P 12 100M 28M", image]);
	await killUnderFio(t, 3, {
		make: async (folder, disk) => {
			const golden = folder.file("golden.qcow2");
			await runOk("qemu-img", ["create", "-q", "-f", "qcow2", golden, "128M"]);
			await io(golden, ["write -P 11 0 40M", "write -P 12 100M 28M"]);
			await create(disk, "--backing", golden);
			return join(disk, "second.qcow2");
		},
		afterKill: async (image) => {
			await checkByQemu(image, { leaksAllowed: true });
			await assertGolden(image);
		},
		asRaw: async (image, folder) => {
			await checkByQemu(image);
			await assertGolden(image);
			const committed = folder.file("committed.raw");
			await runOk("qemu-img", ["convert", "-O", "raw", image, committed]);
			return committed;
		},
	});
});

test("neighbours of what is moved read the same all the time, also from cold storage while their clusters move", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-io")) return;
	const random = seededRandom(testSeed());
	t.diagnostic(`VMSWEEP_SEED=${random.seed}`);
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	const size = 32 * MIB;
	const cluster = 65_536;
	// Packed clusters, then clusters of which only a half is stored: none of them can be written in place.
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", image, String(size)]);
	const commands: string[] = [];
	for (let at = 0; at < size; at += cluster) {
		const pattern = 1 + ((at / cluster) % 255);
		commands.push(
			at < size / 2 ? `write -c -P ${pattern} ${at} ${cluster}` : `write -P ${pattern} ${at} ${cluster / 2}`,
		);
	}
	await io(image, commands);
	const expected = await contentByQemu(folder, image);
	const disk = folder.file("d");
	await create(disk, "--second", image);
	await using server = await SweepServer.serve(disk, "--log-limit", "80M", "--clean", "off");
	await using writer = await server.connect();
	await using reader = await server.connect();
	let isDone = false;
	let reads = 0;
	/** Blocks with even numbers are never written. */
	const readOn = async (): Promise<void> => {
		while (!isDone) {
			const at = random.below((size - cluster) / K) * K;
			const bytes = await reader.read(at, cluster);
			for (let block = Math.ceil(at / K / 2) * 2; (block + 1) * K <= at + cluster; block += 2) {
				const found = bytes.subarray(block * K - at, (block + 1) * K - at);
				assert.ok(found.equals(expected.subarray(block * K, (block + 1) * K)), `block ${block}, which nobody wrote`);
			}
			reads++;
		}
	};
	const readers = Promise.all(Array.from({ length: 4 }, readOn));
	// Whoever fails is heard at the end; until then it must not be a failure of the process.
	readers.catch(() => {});
	for (let round = 0; round < 4; round++) {
		for (let i = 0; i < 200; i++) {
			const block = 1 + 2 * random.below(size / K / 2);
			const bytes = random.chance(0.2) ? Buffer.alloc(K) : Buffer.from(random.bytes(K));
			expected.set(bytes, block * K);
			await writer.write(block * K, bytes);
		}
		await writer.flush();
		await runOk(vmsweep, ["clean", disk]);
		await forget(image);
	}
	isDone = true;
	await readers;
	assertSameBytes(await reader.read(0, size), expected, "the disk");
	const { guest, cleaner } = await server.status();
	t.diagnostic(`${reads} reads, ${guest.slowReads} of them slow; moved ${(cleaner.movedBytes / MIB).toFixed(1)} MiB`);
	assert.ok(guest.slowReads > 0 && cleaner.movedBytes > 0, "nothing was read slowly, or moved: the test is blind");
	assert.equal((await server.stop()).exitCode, 0);
	await checkByQemu(image);
});

/** Drops a file from the page cache, so that it is read from the host's storage again. */
async function forget(path: string): Promise<void> {
	await using file = await open(path);
	await file.datasync();
	assert.equal(sys.fadvise(file.fd, 0, 0, sys.POSIX_FADV_DONTNEED), 0);
}

test("files deleted from an ext4 file system give the image's space back while it is mounted", async (t) => {
	if (!requireTool(t, ...LOOP_TOOLS, "qemu-img")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await create(disk, "--size", "512M", "--format", "qcow2");
	const image = join(disk, "second.qcow2");
	const content = seededRandom(testSeed()).bytes(120 * MIB);
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk);
		{
			await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
			await runOk("mke2fs", ["-q", "-F", "-t", "ext4", device.path]);
			await using mounted = await Mounted.mount(device.path, folder.file("m"), "commit=1");
			await writeFile(join(mounted.path, "big"), content);
			await writeFile(join(mounted.path, "kept"), content.subarray(0, 20 * MIB));
			await runOk("sync", ["-f", mounted.path]);
			await runOk(vmsweep, ["clean", disk]);
			const full = await allocatedBytes(image);
			assert.ok(full > 120 * MIB, `the image takes ${full} bytes with the files in it`);
			await runOk("rm", [join(mounted.path, "big")]);
			await runOk("sync", ["-f", mounted.path]);
			// Nothing tells vmsweep to look: the cleaner finds it by itself, once the guest has committed some more.
			const meanwhile = async (): Promise<void> => {
				await runOk("touch", [join(mounted.path, "kept")]);
				await runOk("sync", ["-f", mounted.path]);
			};
			await server.reaches(({ second }) => (second.hostBytes ?? full) < full - 100 * MIB, "the space back", {
				timeoutSeconds: 120,
				meanwhile,
			});
			expected = await hashesIn(mounted.path);
			await mounted.unmount();
		}
		assert.equal((await server.stop()).exitCode, 0);
	}
	await runOk(vmsweep, ["commit", disk]);
	await checkByQemu(image);
	const raw = folder.file("committed.raw");
	await runOk("qemu-img", ["convert", "-O", "raw", image, raw]);
	await runOk("e2fsck", ["-fn", raw]);
	await using mounted = await Mounted.mount(raw, folder.file("m"), "loop,ro");
	assert.deepEqual(await hashesIn(mounted.path), expected);
	assert.equal(expected.length, 1);
});
