// Runs of the whole product under a real file system: work while it cleans, and crashes while it cleans. Shared by
// the short tests and the soaks.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { ext4, type FileSystemKind, makeFileSystem } from "./file-system-kinds.ts";
import { temporaryFolder } from "./folders.ts";
import { allocatedBytes } from "./hashes.ts";
import { hashesIn, LoopDevice, Mounted } from "./loop.ts";
import { createDisk, SweepServer } from "./loop-server.ts";
import { loadProgram } from "./oracle-run.ts";
import { type Running, run, runOk, start, vmsweep } from "./processes.ts";
import { seededRandom, testSeed } from "./randomness.ts";
import { waitUntil } from "./waiting.ts";

const MIB = 1024 * 1024;
const mib = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;

/** Host bytes of a disk's images. */
export const imageBytes = async (disk: string): Promise<number> =>
	(await allocatedBytes(join(disk, "first.log"))) + (await allocatedBytes(join(disk, "second.raw")));

/**
 * Checks a disk that nobody serves: folded into a plain raw image it holds every file as expected (`sha256sum` lines),
 * is clean, and takes no more of the host than its file system uses.
 */
export async function checkCommitted(
	t: TestContext,
	disk: string,
	expected: readonly string[],
	kind: FileSystemKind = ext4,
	hashes: typeof hashesOfImage = hashesOfImage,
): Promise<void> {
	await runOk(vmsweep, ["commit", disk], { timeoutSeconds: 600 });
	const image = join(disk, "second.raw");
	await checkImage(kind, image);
	const found = new Set(await hashes(kind, image));
	assert.deepEqual(
		expected.filter((line) => !found.has(line)),
		[],
		"files of the committed image are not what was written",
	);
	const [used, host] = [await kind.usedBytes(image), await imageBytes(disk)];
	t.diagnostic(`committed: ${expected.length} files right; used ${mib(used)}, on the host ${mib(host)}`);
	assert.ok(host <= used * 1.02 + 64 * MIB, `${mib(host)} on the host for ${mib(used)} in use`);
}

/** `sha256sum` lines of all files of an image, which is mounted read-only. */
async function hashesOfImage(kind: FileSystemKind, image: string): Promise<string[]> {
	await using folder = await temporaryFolder();
	await using mounted = await Mounted.mount(image, folder.file("m"), kind.mountToRead, kind.mountType);
	const found = await hashesIn(mounted.path);
	await mounted.unmount();
	return found;
}

/** Runs the file system's own checker, which must find nothing. */
async function checkImage({ check: [program, ...options] }: FileSystemKind, image: string): Promise<void> {
	await runOk(program!, [...options, image]);
}

/** Waits until both images of a disk, whose file system is unmounted, take no more than 2 % plus 64 MiB above what that uses. */
export async function expectSpaceBack(
	t: TestContext,
	server: SweepServer,
	disk: string,
	kind: FileSystemKind,
): Promise<void> {
	await using folder = await temporaryFolder();
	const image = folder.file("copy");
	await runOk("nbdcopy", [server.uri, image], { timeoutSeconds: 600 });
	const used = await kind.usedBytes(image);
	const most = used * 1.02 + 64 * MIB;
	await waitUntil(
		async () => (await imageBytes(disk)) <= most,
		() => `space to come back: at most ${mib(most)} for both images`,
		{ timeoutSeconds: 60, everyMs: 500 },
	).catch(async (error: unknown) => {
		throw new Error(`${String(error)}; ${JSON.stringify(await server.status())}`);
	});
	const { cleaner, guest } = await server.status();
	t.diagnostic(
		`used ${mib(used)}, on the host ${mib(await imageBytes(disk))}; written ${mib(guest.writtenBytes)}, ` +
			`dropped ${mib(cleaner.droppedBytes)}, moved ${mib(cleaner.movedBytes)}, ${cleaner.rounds} rounds`,
	);
}

export interface WorkOptions {
	readonly kind?: FileSystemKind;
	/** More options of mkfs. */
	readonly mkfs?: readonly string[];
	/** Instead of the kind's. */
	readonly mountOptions?: string;
	readonly size?: string;
	readonly load: readonly string[];
	/** More options of `vmsweep serve`. */
	readonly serve?: readonly string[];
}

/** A load on a disk that is cleaned all the while; afterwards every file is right, and the host has its space back. */
export async function workUnderCleaning(t: TestContext, options: WorkOptions): Promise<void> {
	const { kind = ext4, mkfs = [], mountOptions = kind.mountOptions, size = "1G", load, serve = [] } = options;
	const seed = testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size });
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk, ...serve);
		{
			await using device = await LoopDevice.attach(server.uri, folder.file("fuse"));
			await makeFileSystem(kind, device.path, ...(mkfs ?? []));
			await mkdir(folder.file("mnt"));
			const work = [
				"work",
				device.path,
				folder.file("mnt"),
				"--mount-options",
				mountOptions,
				"--seed",
				String(seed),
				...load,
			];
			const finished = await run(loadProgram, work, { timeoutSeconds: 3600 });
			await run("umount", [folder.file("mnt")]);
			t.diagnostic(finished.stderr.trim());
			assert.equal(finished.exitCode, 0, finished.stderr);
			expected = finished.stdout.split("\n").filter((line) => line !== "");
			await runOk("blockdev", ["--flushbufs", device.path]);
		}
		await expectSpaceBack(t, server, disk, kind);
		const { cleaner } = await server.status();
		assert.ok(cleaner.droppedBytes > 0 && cleaner.movedBytes > 0, "nothing was cleaned: the test is blind");
		assert.equal((await server.stop()).exitCode, 0);
		assert.doesNotMatch(server.process.stderr + server.process.stdout, /"level":[56]0/, "the server complained");
	}
	await checkCommitted(t, disk, expected, kind);
}

/** Crashes of the server in a row on one disk: after each, everything synced is there. */
export async function crashUnderCleaning(
	t: TestContext,
	cycles: number,
	serve: readonly string[] = [],
	kind: FileSystemKind = ext4,
): Promise<void> {
	const random = seededRandom(testSeed());
	t.diagnostic(`VMSWEEP_SEED=${random.seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("d");
	await createDisk(disk, { size: "768M" });
	let synced = "";
	let droppedBytes = 0;
	let movedBytes = 0;
	for (let cycle = 0; cycle < cycles; cycle++) {
		await using server = await SweepServer.serve(disk, ...serve);
		await using device = await LoopDevice.attach(server.uri, folder.file(`fuse${cycle}`));
		if (cycle === 0) await makeFileSystem(kind, device.path);
		await using mounted = await Mounted.mount(device.path, folder.file(`mnt${cycle}`), kind.mountOptions);
		synced = await newestOf(synced, mounted.path);
		await using load = start(loadProgram, ["crash", mounted.path, "--seed", String(random.below(1e6))]);
		// Some commits must have gone by before anything is dropped at all.
		await server.reaches(({ cleaner }) => cleaner.droppedBytes > 0 && cleaner.movedBytes > 0, "cleaning");
		const lines = load.stdout.split("\n").length + random.between(5, 100);
		await load.until(() => load.stdout.split("\n").length > lines, `${lines} synced files`, 120);
		const { cleaner } = await server.status();
		droppedBytes += cleaner.droppedBytes;
		movedBytes += cleaner.movedBytes;
		await server.kill();
		await load.kill();
		synced += wholeLines(load);
		await run("umount", ["-l", mounted.path]);
		t.diagnostic(
			`cycle ${cycle}: killed after ${lines} synced files; ${await verifyCrashed(folder.path, disk, synced, kind)}`,
		);
	}
	t.diagnostic(`dropped ${mib(droppedBytes)}, moved ${mib(movedBytes)} up to a moment before the crashes`);
	assert.ok(droppedBytes > 0 && movedBytes > 0, "nothing was cleaned: the test is blind");
}

/** What a program printed, without a last line that it did not end. */
export const wholeLines = ({ stdout }: Pick<Running, "stdout">): string =>
	stdout.slice(0, stdout.lastIndexOf("\n") + 1);

/** Serves a crashed disk again, replays the journal on a copy, and checks that. Returns what the check said. */
export async function verifyCrashed(
	folder: string,
	disk: string,
	synced: string,
	kind: FileSystemKind = ext4,
): Promise<string> {
	const image = join(folder, "copy");
	{
		await using server = await SweepServer.serve(disk, "--clean", "off");
		await runOk("nbdcopy", [server.uri, image], { timeoutSeconds: 600 });
		assert.equal((await server.stop()).exitCode, 0);
		assert.doesNotMatch(server.process.stderr + server.process.stdout, /"level":[56]0/, "the server complained");
	}
	await using mounted = await Mounted.mount(image, join(folder, "copy.mnt"), kind.mountToReplay);
	const said = await newestOf(synced, mounted.path, true);
	await mounted.unmount();
	await checkImage(kind, image);
	return said;
}

/** Runs the check of load.py on `synced` lines; returns them, or what it said. */
async function newestOf(synced: string, folder: string, report = false): Promise<string> {
	if (synced === "") return "";
	const { exitCode, stdout, stderr } = await run(loadProgram, ["verify", folder], { input: synced });
	assert.equal(exitCode, 0, `${stdout}${stderr}`);
	return report ? stdout.trim() : synced;
}
