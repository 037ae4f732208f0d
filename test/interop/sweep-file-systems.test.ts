// The whole promise of sweep, for every file system and both formats: what its own tools call free comes back in whole
// units and as foretold, every other byte stays, all files read as before, and the checkers find nothing.

import assert from "node:assert/strict";
import { copyFile, open, rm, stat } from "node:fs/promises";
import { after, before, describe, type TestContext, test } from "node:test";
import type { SweepReport } from "../../src/services/sweep.ts";
import { isThorough } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { allocatedBytes, hashBytes, hashTree } from "../support/hashes.ts";
import { Mounted } from "../support/loop.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";
import { mapOf } from "./map-images.ts";
import { checkByQemu, freeClusters, mapByQemu } from "./qcow2-images.ts";
import { type DiskKind, diskKinds, MIB, makeJunk, moreDiskKinds, SECTOR, type TestDisk } from "./sweep-disks.ts";
import { fragment, workOn } from "./xfs-images.ts";

/** How a disk is stored. */
interface Target {
	readonly name: string;
	/** In bytes; undefined: a raw image. */
	readonly cluster?: number;
	readonly compact?: boolean;
	/** The disk as it was after half of the work lies in a snapshot, or in an image below. */
	readonly earlier?: "snapshot" | "backing";
	/** Several clusters share one of the file, which comes back only when all of them are free. */
	readonly compressed?: boolean;
}

const raw: Target = { name: "raw" };
const qcow2Targets: readonly Target[] = [
	{ name: "qcow2", cluster: 65536 },
	{ name: "qcow2, clusters of 4 KiB, compacted", cluster: 4096, compact: true },
	{ name: "qcow2 with a snapshot, compacted", cluster: 65536, earlier: "snapshot", compact: true },
	{ name: "qcow2 on a backing file", cluster: 65536, earlier: "backing" },
	{ name: "qcow2, clusters of 2 MiB, compacted", cluster: 2 * MIB, compact: true },
	{ name: "qcow2, clusters of 4 KiB", cluster: 4096 },
	{ name: "qcow2, compacted", cluster: 65536, compact: true },
	{ name: "qcow2, clusters of 2 MiB", cluster: 2 * MIB },
	{ name: "qcow2, clusters of 4 KiB, with a snapshot", cluster: 4096, earlier: "snapshot" },
	{ name: "qcow2, clusters of 4 KiB, on a backing file, compacted", cluster: 4096, earlier: "backing", compact: true },
	{ name: "qcow2, compressed", cluster: 65536, compressed: true },
];
const HOST_BLOCK = 4096;
/** The host's own records of where a file lies, which change with it. In bytes. */
const HOST_RECORDS = 2 * HOST_BLOCK;

/** A disk that is ready to be swept. Its images are raw, and not changed any more. */
interface Prepared {
	readonly kind: DiskKind;
	readonly disk: TestDisk;
	readonly folder: TemporaryFolder;
	readonly image: string;
	/** As it was after half of the work. */
	readonly earlier: string;
	readonly contents: unknown;
	/** By sector: 1 where the reference says free. */
	readonly free: Uint8Array;
	/** The same, and metadata that was never used. */
	readonly needless: Uint8Array;
}

async function prepare(kind: DiskKind, folder: TemporaryFolder, seed: number): Promise<Prepared> {
	const random = seededRandom(seed);
	const [image, earlier] = [folder.file("image.raw"), folder.file("earlier.raw")];
	await makeJunk(image, kind.mib, random);
	const disk = await kind.make(image, folder);
	await disk.use(image, random, 1);
	await copyFile(image, earlier);
	await disk.use(image, random, 2);
	await disk.check(image);
	const free = await disk.freeSectors(image);
	const needless = free.slice();
	for (const { start, length, neverUsed } of (await mapOf(image)).extents)
		if (neverUsed === true) needless.fill(1, start / SECTOR, (start + length) / SECTOR);
	return { kind, disk, folder, image, earlier, contents: await disk.contents(image), free, needless };
}

for (const [index, kind] of (isThorough ? [...diskKinds, ...moreDiskKinds] : diskKinds).entries())
	describe(kind.name, () => {
		const seed = testSeed();
		let folder: TemporaryFolder;
		let prepared: Prepared | undefined;
		before(async () => {
			folder = await temporaryFolder();
		});
		after(async () => await folder[Symbol.asyncDispose]());
		for (const target of [raw, ...(isThorough ? qcow2Targets : [qcow2Targets[index % 5]!])])
			test(target.name, async (t) => {
				if (!requireTool(t, "qemu-img", "qemu-nbd", "fallocate", ...kind.tools)) return;
				t.diagnostic(`VMSWEEP_SEED=${seed}`);
				prepared ??= await prepare(kind, folder, seed);
				await sweepOne(t, prepared, target);
			});
	});

async function sweepOne(t: TestContext, prepared: Prepared, target: Target): Promise<void> {
	const { kind, disk, folder, free, needless } = prepared;
	const path = folder.file(target.cluster === undefined ? "swept.raw" : "swept.qcow2");
	const mayGo = await store(prepared, target, path);
	const unit = target.cluster ?? HOST_BLOCK;
	const expected = wholeUnits(free, unit).filter(mayGo).length * unit;
	const options = [...(kind.options ?? []), ...(target.compact === true ? ["--compact"] : [])];

	// The host decides where things lie when it writes them, and then knows what space they take.
	await runOk("sync", [path]);
	const space = await allocatedBytes(path);
	const { mtimeNs } = await stat(path, { bigint: true });
	const foretold = await sweep(path, "--dry-run", ...options);
	assert.equal((await stat(path, { bigint: true })).mtimeNs, mtimeNs, "a dry run changes nothing");
	assert.equal(await allocatedBytes(path), space);

	const report = await sweep(path, ...options);
	const got = space - (await allocatedBytes(path));
	const percent = (part: number, whole: number): string => ((100 * part) / whole).toFixed(2);
	t.diagnostic(
		`${kind.name}, ${target.name}: ${(expected / MIB).toFixed(1)} MiB free in whole units, ${percent(got, expected)} % came back (${percent(foretold.droppedBytes, got)} % of it foretold)`,
	);
	assert.ok(expected > 0, "there is something to get back");
	if (target.compressed !== true) {
		assert.ok(got >= 0.99 * expected - HOST_RECORDS, `${got} bytes came back, ${expected} are free`);
		assert.ok(report.droppedBytes >= 0.99 * expected, `${report.droppedBytes} reported, ${expected} are free`);
	}
	for (const told of [foretold.droppedBytes, report.droppedBytes, foretold.hostBytesBefore - foretold.hostBytesAfter])
		assert.ok(Math.abs(told - got) <= 0.01 * got + HOST_RECORDS, `${told} bytes were told, ${got} came back`);

	await expectContent(prepared, path, new Set(wholeUnits(needless, unit).filter(mayGo)), unit);
	if (target.cluster !== undefined) {
		await checkByQemu(path);
		if (target.compact === true) assert.equal(await freeClusters(path), 0, "as short as it gets");
	}
	if (target.earlier === "snapshot") {
		const snapshot = folder.file("snapshot.raw");
		await runOk("qemu-img", ["convert", "-O", "raw", "-l", "before", path, snapshot]);
		await compare(snapshot, prepared.earlier);
	}
	const again = await sweep(path, ...options);
	assert.ok(again.droppedBytes <= 65536, `a second sweep finds ${again.droppedBytes} bytes`);
	if (target.cluster !== undefined) await checkByQemu(path);

	let asRaw = path;
	if (target.cluster !== undefined) {
		asRaw = folder.file("swept.raw");
		await runOk("qemu-img", ["convert", "-O", "raw", path, asRaw]);
	}
	await disk.check(asRaw);
	assert.deepEqual(await disk.contents(asRaw), prepared.contents);
}

const sweep = async (image: string, ...options: readonly string[]): Promise<SweepReport> =>
	JSON.parse(await runOk(vmsweep, ["sweep", "--json", ...options, image])) as SweepReport;

const compare = (one: string, other: string): Promise<string> => runOk("qemu-img", ["compare", one, other]);

/** Numbers of the units in which every sector is set. The disk's last one may be short. */
function wholeUnits(sectors: Uint8Array, unit: number): number[] {
	const length = unit / SECTOR;
	const found: number[] = [];
	for (let start = 0; start < sectors.length; start += length) {
		const end = Math.min(sectors.length, start + length);
		let at = start;
		while (at < end && sectors[at] === 1) at++;
		if (at === end) found.push(start / length);
	}
	return found;
}

/**
 * Makes the image that is to be swept, in which every byte takes host space. Returns which units of the disk are the
 * image's own: what a snapshot needs, or an image below holds, can't be given back.
 */
async function store(prepared: Prepared, target: Target, path: string): Promise<(unit: number) => boolean> {
	const { image, earlier } = prepared;
	const { cluster, compressed } = target;
	if (cluster === undefined) {
		await runOk("cp", ["--sparse=never", "--reflink=never", image, path]);
		const { size } = await stat(path);
		assert.ok((await allocatedBytes(path)) >= size);
		return () => true;
	}
	const convert = (from: string, to: string): Promise<string> =>
		runOk("qemu-img", [
			"convert",
			...(compressed === true ? ["-c"] : ["-S", "0"]),
			"-O",
			"qcow2",
			"-o",
			`cluster_size=${cluster}`,
			from,
			to,
		]);
	if (target.earlier === undefined) {
		await convert(image, path);
		return () => true;
	}
	let places: ReadonlyMap<number, number> = new Map();
	if (target.earlier === "snapshot") {
		await convert(earlier, path);
		places = await placesOf(path, cluster);
		await runOk("qemu-img", ["snapshot", "-c", "before", path]);
	} else {
		const base = prepared.folder.file("base.qcow2");
		await convert(earlier, base);
		await runOk("qemu-img", [
			"create",
			"-q",
			"-f",
			"qcow2",
			"-o",
			`cluster_size=${cluster}`,
			"-b",
			base,
			"-F",
			"qcow2",
			path,
		]);
	}
	await writeDifferences(prepared, path);
	await compare(path, image);
	const now = await placesOf(path, cluster);
	return (unit) => now.has(unit) && now.get(unit) !== places.get(unit);
}

/** Where the clusters that an image itself holds lie in it, by their number. */
async function placesOf(path: string, cluster: number): Promise<Map<number, number>> {
	const places = new Map<number, number>();
	for (const { start, length, depth, offset } of await mapByQemu(path))
		if (depth === 0 && offset !== undefined)
			for (let at = 0; at < length; at += cluster) places.set((start + at) / cluster, offset + at);
	return places;
}

/** Brings an image from the earlier state of the disk to the present one, as a guest would: through QEMU. */
async function writeDifferences({ image, earlier, folder }: Prepared, path: string): Promise<void> {
	const socket = folder.file("s");
	await using server = start("qemu-nbd", ["-f", "qcow2", "-x", "disk", "-k", socket, path]);
	const exists = (): Promise<boolean> =>
		stat(socket).then(
			() => true,
			() => false,
		);
	await server.until(exists, "its socket");
	await using oldFile = await open(earlier, "r");
	await using newFile = await open(image, "r");
	const [older, newer] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
	{
		await using client = await NbdClient.connect({ path: socket }, { structured: false });
		for (let start = 0; ; start += MIB) {
			const { bytesRead } = await newFile.read(newer, 0, MIB, start);
			await oldFile.read(older, 0, MIB, start);
			if (bytesRead === 0) break;
			let from = -1;
			for (let at = 0; at <= bytesRead; at += 4096) {
				const end = at + 4096;
				const differs = at < bytesRead && newer.compare(older, at, end, at, end) !== 0;
				if (differs && from < 0) from = at;
				if (differs || from < 0) continue;
				await client.write(start + from, newer.subarray(from, at));
				from = -1;
			}
		}
		await client.flush();
	}
	await waitUntil(() => !server.alive, "qemu-nbd to end with its client");
}

/** The image must hold what the disk holds, with zeros in the units that went. */
async function expectContent(
	{ image, folder }: Prepared,
	path: string,
	gone: ReadonlySet<number>,
	unit: number,
): Promise<void> {
	const wanted = folder.file("wanted.raw");
	{
		await using from = await open(image, "r");
		await using to = await open(wanted, "w");
		const piece = new Uint8Array(Math.max(unit, MIB));
		for (let start = 0; ; start += piece.length) {
			const { bytesRead } = await from.read(piece, 0, piece.length, start);
			if (bytesRead === 0) break;
			for (let at = 0; at < bytesRead; at += unit) if (gone.has((start + at) / unit)) piece.fill(0, at, at + unit);
			await to.write(piece, 0, bytesRead, start);
		}
	}
	await compare(path, wanted);
}

/** A file system that is in use when its VM's power is cut. */
interface Cut {
	readonly mib: number;
	readonly mkfs: readonly [string, ...string[]];
	readonly options: string;
	readonly check: readonly [string, ...string[]];
	/** Does it keep a journal of what was synced? Otherwise it is kept whole from the first fsync to the next commit. */
	readonly hasJournal: boolean;
}

const cuts: Readonly<Record<string, Cut>> = {
	ext4: {
		mib: 200,
		mkfs: ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard"],
		options: "commit=300",
		check: ["e2fsck", "-fn"],
		hasJournal: true,
	},
	XFS: {
		mib: 320,
		mkfs: ["mkfs.xfs", "-q", "-f", "-K"],
		options: "noatime",
		check: ["xfs_repair", "-n"],
		hasJournal: true,
	},
	btrfs: {
		mib: 300,
		mkfs: ["mkfs.btrfs", "-q", "-f", "-K"],
		options: "commit=300",
		check: ["btrfs", "check"],
		hasJournal: false,
	},
};

describe("a volume whose power was cut", () => {
	for (const [name, cut] of Object.entries(cuts))
		test(name, async (t) => {
			if (!requireTool(t, "root", "loop devices", "qemu-img", "xfs_io", cut.mkfs[0], cut.check[0])) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const { committed, synced, files } = await cutPower(folder, cut, seed);
			// btrfs has a consistent state without its log, and with it one that isn't read.
			await expectSwept(t, folder, cut, cut.hasJournal ? synced : committed, cut.hasJournal, files);
			if (cut.hasJournal) return;
			for (const options of [[], ["--vm-off"]]) await expectKept(synced, options, /log of the last fsyncs/);
			assert.deepEqual(await recovered(folder, synced, Object.keys(files.synced)), files.synced);
		});
});

type Hashes = Readonly<Record<string, string>>;

/** Works on a file system and cuts its power twice: after a commit and work that nobody waited for, and after fsyncs. */
async function cutPower(
	folder: TemporaryFolder,
	{ mib, mkfs, options, hasJournal }: Cut,
	seed: number,
): Promise<{ committed: string; synced: string; files: { committed: Hashes; synced: Hashes } }> {
	const random = seededRandom(seed);
	const [image, committed, synced] = ["image", "committed", "synced"].map((name) => folder.file(`${name}.raw`)) as [
		string,
		string,
		string,
	];
	await makeJunk(image, mib, random);
	await runOk(mkfs[0], [...mkfs.slice(1), image]);
	const files: { committed: Record<string, string>; synced: Record<string, string> } = { committed: {}, synced: {} };
	const write = async (name: string, bytes: number, isSynced = false): Promise<string> => {
		const content = random.bytes(bytes);
		await using file = await open(`${mounted.path}/${name}`, "w");
		await file.write(content);
		if (isSynced) await file.sync();
		return hashBytes(content);
	};
	await using mounted = await Mounted.mount(image, folder.file("mount"), `loop,nodiscard,${options}`);
	await workOn(mounted.path, random, 300);
	await fragment(mounted.path, random, 300);
	for (let index = 0; index < 20; index++) {
		const name = `committed-${index}`;
		files.committed[name] = await write(name, random.between(1, 2 * MIB));
	}
	await runOk("sync", ["-f", mounted.path]);
	for (let index = 0; index < 20; index += 2) {
		await rm(`${mounted.path}/committed-${index}`);
		delete files.committed[`committed-${index}`];
	}
	await runOk("sync", ["-f", mounted.path]);
	for (let index = 0; index < 10; index++) await write(`lost-${index}`, MIB);
	await copyFile(image, committed);
	for (let index = 0; index < 20; index++) {
		const name = `synced-${index}`;
		files.synced[name] = await write(name, random.between(1, MIB), true);
		await write(`late-${index}`, random.between(1, 100_000));
	}
	if (hasJournal) await runOk("xfs_io", ["-x", "-c", "shutdown", mounted.path]);
	// btrfs answers some fsyncs with a commit, as after a new chunk: another one, then, in the next transaction.
	for (let more = 0; !hasJournal && more < 5 && (await btrfsLogRoot(image)) === 0n; more++)
		files.synced[`more-${more}`] = await write(`more-${more}`, 1000, true);
	await copyFile(image, synced);
	await mounted.unmount();
	return { committed, synced, files };
}

/** Where the log of fsyncs lies, 0 for none: a superblock's `log_root` (btrfs on-disk format, "Superblock"). */
async function btrfsLogRoot(image: string): Promise<bigint> {
	await using file = await open(image, "r");
	const { buffer } = await file.read(Buffer.alloc(8), 0, 8, 0x10000 + 0x60);
	return buffer.readBigUInt64LE(0);
}

/** In both formats: kept as long as nobody says that the VM is off, then swept, and recovered to what it was. */
async function expectSwept(
	t: TestContext,
	folder: TemporaryFolder,
	{ check }: Cut,
	image: string,
	isDirty: boolean,
	files: { readonly committed: Hashes; readonly synced: Hashes },
): Promise<void> {
	const known = { ...files.committed, ...(isDirty ? files.synced : {}) };
	const plain = folder.file("plain.raw");
	await copyFile(image, plain);
	const expected = await recovered(folder, plain);
	for (const [name, hash] of Object.entries(known)) assert.equal(expected[name], hash, name);
	for (const format of ["raw", "qcow2"]) {
		const path = folder.file(`swept.${format}`);
		await runOk("qemu-img", ["convert", "-S", "0", "-O", format, image, path]);
		await runOk("sync", [path]);
		if (isDirty) await expectKept(path, [], /not (shut down|unmounted) cleanly/);
		const before = await allocatedBytes(path);
		const options = isDirty ? ["--vm-off"] : [];
		const foretold = await sweep(path, "--dry-run", ...options);
		await sweep(path, ...options);
		const got = before - (await allocatedBytes(path));
		t.diagnostic(`${format}: ${(got / MIB).toFixed(1)} MiB came back`);
		assert.ok(got > 50 * MIB, `${got} bytes came back`);
		assert.ok(Math.abs(foretold.droppedBytes - got) <= 0.01 * got, `${foretold.droppedBytes} foretold, ${got} came`);
		const raw = folder.file("recovered.raw");
		if (format === "qcow2") await checkByQemu(path);
		await runOk("qemu-img", ["convert", "-O", "raw", path, raw]);
		assert.deepEqual(await recovered(folder, raw), expected);
		await runOk(check[0], [...check.slice(1), raw]);
	}
}

/** Refused with a reason, and not changed. */
async function expectKept(path: string, options: readonly string[], why: RegExp): Promise<void> {
	const { mtimeNs } = await stat(path, { bigint: true });
	const { exitCode, stderr } = await run(vmsweep, ["sweep", ...options, path]);
	assert.match(stderr, why);
	assert.equal(exitCode, 3, stderr);
	assert.equal((await stat(path, { bigint: true })).mtimeNs, mtimeNs);
}

/** Mounts an image, which makes the kernel recover it; hashes of its files, or of those named. */
async function recovered(folder: TemporaryFolder, image: string, names?: readonly string[]): Promise<Hashes> {
	await using mounted = await Mounted.mount(image, folder.file("recovered"), "loop,nodiscard");
	const hashes = await hashTree(mounted.path);
	await mounted.unmount();
	return names === undefined ? hashes : Object.fromEntries(names.map((name) => [name, hashes[name]!]));
}
