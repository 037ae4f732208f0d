// `vmsweep convert` on real images: the copy holds what the guest uses, byte for byte, and nothing else; whatever goes
// wrong leaves nothing under the target's name.

import assert from "node:assert/strict";
import { mkdir, open, readdir, readFile, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { Extent } from "../../src/foundations/guest-map.ts";
import type { ConvertReport } from "../../src/services/convert.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { allocatedBytes, hashFile } from "../support/hashes.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import {
	type AgedKindName,
	agedKinds,
	assertFails,
	assertIntact,
	MIB,
	makeAged,
	whileMounted,
	writeNoise,
} from "./aged-images.ts";
import { checkByQemu } from "./qcow2-images.ts";

const convert = async (source: string, target: string, ...options: readonly string[]): Promise<ConvertReport> =>
	JSON.parse(await runOk(vmsweep, ["convert", "--json", ...options, source, target])) as ConvertReport;

/** The extents of an image, with what a sweep or conversion lets go as `free`. */
async function extentsOf(image: string): Promise<readonly Extent[]> {
	const { extents } = JSON.parse(await runOk(vmsweep, ["map", "--json", "--extents", image])) as { extents: Extent[] };
	return extents.map((extent): Extent => (extent.neverUsed === true ? { ...extent, state: "free" } : extent));
}

/** What the guest doesn't need reads as zeros; all else is as in the source. Both are raw. */
async function assertCopied(source: string, target: string, extents: readonly Extent[]): Promise<void> {
	await using from = await open(source, "r");
	await using to = await open(target, "r");
	const [expected, found] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
	for (const { start: first, length, state } of extents)
		for (let at: number = first; at < first + length; at += MIB) {
			const bytes = Math.min(MIB, first + length - at);
			if (state === "free") expected.fill(0);
			else await from.read(expected, 0, bytes, at);
			await to.read(found, 0, bytes, at);
			assert(Buffer.compare(expected.subarray(0, bytes), found.subarray(0, bytes)) === 0, `${state} at ${at} differs`);
		}
}

const usedBytes = (extents: readonly Extent[]): number =>
	extents.reduce((sum, { length, state }) => sum + (state === "free" ? 0 : length), 0);

interface Form {
	readonly name: string;
	readonly options: readonly string[];
	/** Of its tables, in bytes. */
	readonly clusterSize: number;
}

const forms: readonly Form[] = [
	{ name: "usual.qcow2", options: [], clusterSize: 65536 },
	{ name: "packed.qcow2", options: ["--compress", "zstd"], clusterSize: 65536 },
	{ name: "small.qcow2", options: ["--cluster-size", "4K"], clusterSize: 4096 },
	{ name: "small-packed.qcow2", options: ["--cluster-size", "4K", "--compress", "zstd"], clusterSize: 4096 },
	{ name: "large", options: ["--format", "qcow2", "--cluster-size", "2M"], clusterSize: 2 * MIB },
	{ name: "large-packed.qcow2", options: ["--cluster-size", "2M", "--compress", "zstd"], clusterSize: 2 * MIB },
];

describe("a real file system becomes raw and qcow2", () => {
	for (const kind of Object.keys(agedKinds) as AgedKindName[])
		test(kind, async (t) => {
			if (!requireTool(t, ...agedKinds[kind].tools, "qemu-img")) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const { image, hashes } = await makeAged(folder, kind, seed);
			const contents = await hashFile(image);
			const extents = await extentsOf(image);
			const used = usedBytes(extents);
			const raw = folder.file("copy.raw");
			const report = await convert(image, raw);
			assert.equal(report.format, "raw");
			assert.equal(report.leftOutBytes, report.size - used);
			assert.equal(report.targetHostBytes, await allocatedBytes(raw));
			assert(report.leftOutBytes > 20 * MIB && report.copiedBytes <= used);
			assert(report.targetHostBytes <= 1.01 * used + MIB, `${report.targetHostBytes} bytes for ${used} used ones`);
			await assertCopied(image, raw, extents);
			await assertIntact(folder, kind, raw, hashes);

			// The mount above wrote to the raw copy.
			await rm(raw);
			await convert(image, raw);
			for (const { name, options, clusterSize } of kind === "ext4" ? forms : forms.slice(1, 2)) {
				const path = folder.file(name);
				const { format, targetHostBytes } = await convert(image, path, ...options);
				assert.equal(format, "qcow2");
				assert.equal(targetHostBytes, await allocatedBytes(path));
				// Header, refcount table and block, L1 and L2 tables: whole clusters.
				const tables = (5 + report.size / (clusterSize * (clusterSize / 8))) * clusterSize;
				assert(targetHostBytes <= 1.01 * used + tables + MIB, `${name}: ${targetHostBytes} for ${used} used bytes`);
				await checkByQemu(path);
				await runOk("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", raw, path]);
				const info = JSON.parse(await runOk("qemu-img", ["info", "--output=json", path])) as Record<string, unknown>;
				assert.equal(info["cluster-size"], clusterSize);
				await rm(path);
			}
			assert.equal(await hashFile(image), contents, "the source is as before");
		});
});

test("from every format, and over NBD, it is the same copy", async (t) => {
	if (!requireTool(t, ...agedKinds.ext4.tools, "qemu-img", "qemu-nbd", "nbdkit")) return;
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const young = folder.file("young.raw");
	const { image } = await makeAged(folder, "ext4", seed, {
		onYoung: (path) => runOk("cp", ["--sparse=always", path, young]),
	});
	const copy = folder.file("copy.raw");
	await convert(image, copy);
	const expected = await hashFile(copy);
	const { size } = await stat(image);

	const into =
		(format: string, ...options: readonly string[]) =>
		async (path: string) => {
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", format, ...options, image, path]);
		};
	const makers: Readonly<Record<string, (path: string) => Promise<unknown>>> = {
		qcow2: into("qcow2"),
		"qcow2, packed": into("qcow2", "-c"),
		"qcow2, packed with zstd": into("qcow2", "-c", "-o", "compression_type=zstd"),
		"qcow2 on another one": async (path) => {
			const base = folder.file("base.qcow2");
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", young, base]);
			await into("qcow2", "-B", base, "-F", "qcow2")(path);
		},
		"qcow2 on a raw image": (path) => into("qcow2", "-B", young, "-F", "raw")(path),
		"qcow2 with a snapshot": async (path) => {
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", young, path]);
			await runOk("qemu-img", ["snapshot", "-c", "young", path]);
			await into("qcow2", "-n")(path);
		},
		vmdk: into("vmdk"),
		"vmdk, packed": into("vmdk", "-o", "subformat=streamOptimized"),
		vhdx: into("vhdx"),
		vhd: into("vpc", "-o", "force_size=on"),
		vdi: into("vdi"),
	};
	for (const [name, make] of Object.entries(makers)) {
		const [source, target] = [folder.file("source"), folder.file("target.raw")];
		await make(source);
		const before = await hashFile(source);
		const report = await convert(source, target);
		assert.equal(report.size, size, name);
		assert.equal(await hashFile(target), expected, name);
		assert.equal(await hashFile(source), before, `${name} is as before`);
		await rm(source);
		await rm(target);
	}

	const socket = folder.file("socket");
	const uri = `nbd+unix:///?socket=${socket}`;
	// This one ends with its first client, so the address is connected to only once.
	const servers: readonly (readonly [string, ...string[]])[] = [
		["qemu-nbd", "-r", "-f", "raw", "-k", socket, image],
		["nbdkit", "-f", "-r", "-U", socket, "file", image],
	];
	for (const [program, ...options] of servers) {
		await using server = start(program, options);
		await server.until(async () => (await readdir(folder.path)).includes("socket"), "its socket");
		const target = folder.file("target.qcow2");
		const report = await convert(uri, target);
		assert.deepEqual([report.sourceFormat, report.sourceHostBytes], ["nbd", null]);
		await checkByQemu(target);
		await runOk("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", copy, target]);
		await rm(target);
		await server.end();
		await rm(socket, { force: true });
	}
});

test("onto a block device: only when asked, all of it, and never onto what is read", async (t) => {
	if (!requireTool(t, ...agedKinds.ext4.tools, "losetup")) return;
	await using folder = await temporaryFolder();
	const { image, hashes } = await makeAged(folder, "ext4", 3);
	const { size } = await stat(image);
	const extents = await extentsOf(image);
	const behind = folder.file("device.img");
	await writeFile(behind, "");
	await truncate(behind, size + MIB);
	await writeNoise(behind, 0, size + MIB);
	const rest = { start: size, end: size + MIB };
	const restBefore = await hashFile(behind, rest);
	const device = (await runOk("losetup", ["-f", "--show", behind])).trim();
	try {
		const before = await hashFile(behind);
		assertFails(await run(vmsweep, ["convert", image, device]), 3, /is a block device, .* --overwrite-device/);
		assertFails(await run(vmsweep, ["convert", "--format", "qcow2", image, device]), 2, /--format raw/);
		assert.equal(await hashFile(behind), before);
		assert.equal((await convert(image, device, "--overwrite-device")).target, device);
		await assertCopied(image, device, extents);
		assert.equal(await hashFile(behind, rest), restBefore, "what lies behind the disk's end is none of it");
	} finally {
		await runOk("losetup", ["-d", device]);
	}
	// Free space of the device went back to its host.
	assert((await allocatedBytes(behind)) <= 1.01 * usedBytes(extents) + 2 * MIB);
	await truncate(behind, size);
	await assertIntact(folder, "ext4", behind, hashes);

	const contents = await hashFile(image);
	const source = (await runOk("losetup", ["-f", "--show", image])).trim();
	try {
		for (const from of [image, source])
			assertFails(await run(vmsweep, ["convert", "--overwrite-device", from, source]), 2, /is where .* is read from/);
		// A device is a source like any other.
		await convert(source, folder.file("from-device.raw"));
		await assertCopied(image, folder.file("from-device.raw"), extents);
	} finally {
		await runOk("losetup", ["-d", source]);
	}
	assert.equal(await hashFile(image), contents);

	await writeFile(folder.file("tiny.img"), "");
	await truncate(folder.file("tiny.img"), 20 * MIB);
	const tiny = (await runOk("losetup", ["-f", "--show", folder.file("tiny.img")])).trim();
	try {
		assertFails(await run(vmsweep, ["convert", "--overwrite-device", image, tiny]), 1, /Choose a larger device/);
		assert.equal(await allocatedBytes(folder.file("tiny.img")), 0);
	} finally {
		await runOk("losetup", ["-d", tiny]);
	}
});

test("a target that can't be is refused before the work, and nothing is made", async () => {
	await using folder = await temporaryFolder();
	const { path } = folder;
	const source = folder.file("source.raw");
	await writeFile(source, seededRandom(1).bytes(MIB));
	await writeFile(folder.file("there.raw"), "precious");
	await mkdir(folder.file("folder"));
	await symlink("nowhere", folder.file("link.raw"));
	const cases: readonly (readonly [words: readonly string[], code: number, message: RegExp])[] = [
		[["there.raw"], 3, /there\.raw exists already. Choose another name or remove it/],
		[["source.raw"], 3, /exists already/],
		[["link.raw"], 3, /is a link that leads to nothing/],
		[["folder"], 2, /folder is a directory/],
		[["folder/"], 2, /no file's name/],
		[[""], 2, /no file's name/],
		[["no/new.raw"], 2, /the folder of no\/new\.raw doesn't exist. Make it first: mkdir -p no/],
		[["there.raw/new.raw"], 1, /there\.raw\/new\.raw: looking at it failed: ENOTDIR/],
		[["/dev/null"], 2, /neither a file nor a block device/],
		[["nbd://localhost/x"], 2, /is an NBD address; a copy is a file or a block device/],
		[["new.vmdk"], 2, /raw and qcow2 images are written, not vmdk/],
		[["--overwrite-device", "new.raw"], 2, /new\.raw is no block device/],
		[["--compress", "zstd", "new.raw"], 2, /neither compression nor clusters. Add --format qcow2/],
		[["--cluster-size", "4K", "new.img"], 2, /Add --format qcow2/],
		[["--cluster-size", "1000", "new.qcow2"], 2, /power of two from 4K to 2M/],
		[["--compress", "gzip", "new.qcow2"], 2, /Allowed choices are zstd, none/],
	];
	const before = (await readdir(path)).sort();
	for (const [words, code, message] of cases) {
		const options = words.slice(0, -1);
		assertFails(await run(vmsweep, ["convert", ...options, source, words.at(-1)!], { folder: path }), code, message);
		assert.deepEqual((await readdir(path)).sort(), before, words.join(" "));
	}
	assert.equal(await readFile(folder.file("there.raw"), "utf8"), "precious");
});

test("a source of odd size, one without any content, and one that is all in use", async (t) => {
	if (!requireTool(t, "qemu-img")) return;
	await using folder = await temporaryFolder();
	const [odd, empty] = [folder.file("odd.raw"), folder.file("empty.raw")];
	await writeFile(odd, seededRandom(2).bytes(3 * MIB + 512));
	await writeFile(empty, "");
	await truncate(empty, 2 ** 40 + 1536);
	for (const [source, ends] of [
		[odd, ["raw", "usual.qcow2", "packed.qcow2", "large.qcow2"]],
		[empty, ["raw", "usual.qcow2"]],
	] as const)
		for (const end of ends) {
			const target = `${source}.${end}`;
			const options = end.startsWith("packed") ? ["--compress", "zstd"] : [];
			if (end.startsWith("large")) options.push("--cluster-size", "2M");
			await convert(source, target, ...options);
			const format = end === "raw" ? "raw" : "qcow2";
			if (format === "qcow2") await checkByQemu(target);
			await runOk("qemu-img", ["compare", "-f", "raw", "-F", format, source, target]);
		}
	assert((await allocatedBytes(`${empty}.raw`)) <= 4096);
});

/** A disk with an ext4 as a crash of the VM leaves it, and with swap, both full of what nobody needs. */
async function makeCrashed(folder: TemporaryFolder): Promise<{ disk: string; swapAt: number; mib: number }> {
	const mib = 64;
	const file = folder.file("root.raw");
	await writeFile(file, "");
	await truncate(file, mib * MIB);
	await writeNoise(file, 0, mib * MIB);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-E", "nodiscard", file]);
	const crashed = folder.file("crashed.raw");
	await whileMounted(folder, file, async (mount) => {
		for (let index = 0; index < 20; index++) await writeFile(`${mount}/f${index}`, seededRandom(index).bytes(300_000));
		await runOk("sync", ["-f", mount]);
		for (let index = 0; index < 20; index += 2) await rm(`${mount}/f${index}`);
		await runOk("sync", ["-f", mount]);
		await runOk("cp", ["--sparse=always", file, crashed]);
	});
	const disk = folder.file("disk.raw");
	await writeFile(disk, "");
	await truncate(disk, (2 * mib + 2) * MIB);
	await runOk("sfdisk", ["-q", disk], { input: `label: gpt\nsize=${mib}M\nsize=${mib}M, type=S\n` });
	await runOk("dd", [`if=${crashed}`, `of=${disk}`, "bs=1M", "seek=1", "conv=notrunc", "status=none"]);
	const swapAt = (1 + mib) * MIB;
	await writeNoise(disk, swapAt, (mib - 1) * MIB);
	const swap = folder.file("swap");
	await writeFile(swap, "");
	await truncate(swap, mib * MIB);
	await runOk("mkswap", ["-q", swap]);
	await runOk("dd", [`if=${swap}`, `of=${disk}`, "bs=4096", `seek=${swapAt / 4096}`, "count=1", "conv=notrunc"]);
	return { disk, swapAt, mib };
}

test("what a crash left, and swap, are copied whole; with --vm-off what they need", async (t) => {
	if (!requireTool(t, "root", "loop devices", "mke2fs", "e2fsck", "sfdisk", "mkswap", "dd")) return;
	await using folder = await temporaryFolder();
	const { disk, swapAt, mib } = await makeCrashed(folder);
	const contents = await hashFile(disk);
	const [whole, less] = [folder.file("whole.raw"), folder.file("less.raw")];
	const report = await convert(disk, whole);
	assert.deepEqual(
		report.volumes.map(({ id, type, leftOutBytes, kept }) => [id, type, leftOutBytes, kept !== null]),
		[
			["p1", "ext4", 0, true],
			["p2", "swap", 0, true],
		],
	);
	assert.match(report.volumes[0]!.kept!, /cleanly.*--vm-off/);
	assert.match(report.volumes[1]!.kept!, /swap.*--vm-off/);
	assert.equal(await hashFile(whole), contents, "every byte");
	const text = await runOk(vmsweep, ["convert", disk, folder.file("again.raw")]);
	assert.match(text, /^ {2}p1 +ext4 +copied whole: it was not/m);

	const off = await convert(disk, less, "--vm-off");
	assert.deepEqual(
		off.volumes.map(({ kept }) => kept),
		[null, null],
	);
	assert((await allocatedBytes(less)) < 16 * MIB, "neither swap nor deleted files");
	const all = { start: swapAt, end: swapAt + 4096 };
	assert.equal(await hashFile(less, all), await hashFile(disk, all), "swap keeps its header");
	const zeros = folder.file("zeros");
	await writeFile(zeros, "");
	await truncate(zeros, mib * MIB - 4096);
	assert.equal(await hashFile(less, { start: all.end, end: swapAt + mib * MIB }), await hashFile(zeros));
	// Both recover to the same files.
	const trees = [];
	for (const path of [whole, less]) {
		const part = `${path}.part`;
		await runOk("dd", [`if=${path}`, `of=${part}`, "bs=1M", "skip=1", `count=${mib}`, "conv=sparse", "status=none"]);
		const { exitCode, stdout } = await run("e2fsck", ["-fp", part]);
		assert(exitCode === 0 || exitCode === 1, stdout);
		await runOk("e2fsck", ["-fn", part]);
		trees.push(await whileMounted(folder, part, async (mount) => await runOk("sh", ["-c", `cd ${mount}; md5sum f*`])));
	}
	assert.equal(trees[1], trees[0]);
	assert.equal(await hashFile(disk), contents, "the source is as before");
});

test("Ctrl-C and SIGKILL at any moment leave nothing under the target's name, and the same command works then", async (t) => {
	const seed = testSeed();
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	const random = seededRandom(seed);
	await using folder = await temporaryFolder();
	const source = folder.file("source.raw");
	// One volume that is kept whole: a single run.
	await writeFile(source, "");
	await writeNoise(source, 0, 128 * MIB);
	const seen = { interrupted: 0, killed: 0 };
	for (let round = 0; round < 6; round++) {
		await using place = await temporaryFolder();
		const name = ["copy.raw", "copy.qcow2"][round % 2]!;
		const options = round % 4 === 3 ? ["--compress", "zstd"] : [];
		await using copying = start(vmsweep, ["convert", ...options, source, place.file(name)]);
		const enough = random.below(100 * MIB);
		const written = async (): Promise<boolean> => {
			const [part] = await readdir(place.path);
			return part !== undefined && (await allocatedBytes(place.file(part)).catch(() => 0)) >= enough;
		};
		await copying.until(async () => !copying.alive || (await written()), "some progress").catch(() => {});
		const { exitCode, signal, stderr } = await copying.end(round % 3 === 2 ? "SIGKILL" : "SIGINT");
		if (exitCode === 0) continue;
		const left = await readdir(place.path);
		if (signal === "SIGKILL") {
			seen.killed++;
			assert(left.length <= 1 && left.every((each) => /^copy\.\w+\.vmsweep-\w+\.part$/.test(each)), left.join(" "));
		} else {
			seen.interrupted++;
			assert.deepEqual(left, []);
			assert.equal(
				stderr,
				`vmsweep: stopped before the end; nothing of ${place.file(name)} is left. Run the same command again.\n`,
			);
		}
		if (round % 3 > 0) await convert(source, place.file(name), ...options);
	}
	t.diagnostic(`${seen.interrupted} interrupted in order, ${seen.killed} killed`);
});

test("a full host: one line, and nothing is left", async (t) => {
	if (!requireTool(t, "root")) return;
	await using folder = await temporaryFolder();
	const source = folder.file("source.raw");
	await writeFile(source, seededRandom(1).bytes(24 * MIB));
	const mount = folder.file("tmpfs");
	await mkdir(mount);
	await runOk("mount", ["-t", "tmpfs", "-o", "size=8M", "tmpfs", mount]);
	try {
		for (const [name, ...options] of [["a.raw"], ["a.qcow2"], ["a.qcow2", "--compress", "zstd"]] as const) {
			const target = `${mount}/${name}`;
			const line = new RegExp(`^vmsweep: ${target}: writing .* ENOSPC. Free space on the host, then try again`);
			assertFails(await run(vmsweep, ["convert", ...options, source, target]), 1, line);
			assert.deepEqual(await readdir(mount), []);
		}
	} finally {
		await runOk("umount", [mount]);
	}
});
