// Volumes by their owners: every file system that is read, at each place where it may lie (straight on the disk, in a
// partition, in a logical volume in pieces); formatted over one another; and what is only known by name.

import assert from "node:assert/strict";
import { open, readFile, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { GuestMap, VolumeMap } from "../../src/foundations/guest-map.ts";
import { fileSystemReaders } from "../../src/services/file-systems.ts";
import { isThorough } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { mapOf } from "./map-images.ts";

const MIB = 1 << 20;

interface Maker {
	/** As `findSignatures` names it. */
	readonly type: string;
	readonly program: string;
	readonly options: readonly string[];
	/** Size of an image that the program accepts, in MiB. */
	readonly mib: number;
	/** Is a cleanly made one free to be swept? False for what is full by nature, or needs a statement about the VM. */
	readonly hasFree: boolean;
}

const maker = (type: string, program: string, options: readonly string[], mib: number, hasFree = true): Maker => ({
	type,
	program,
	options,
	mib,
	hasFree,
});

const makers: readonly Maker[] = [
	maker("ext", "mke2fs", ["-q", "-F", "-t", "ext4"], 32),
	maker("xfs", "mkfs.xfs", ["-q", "-f"], 300),
	maker("btrfs", "mkfs.btrfs", ["-q", "-f"], 128),
	maker("ntfs", "mkntfs", ["-F", "-Q", "-q"], 32),
	maker("vfat", "mkfs.fat", ["-F32"], 64),
	maker("vfat", "mkfs.fat", ["-F16"], 32),
	maker("exfat", "mkfs.exfat", [], 32),
	maker("f2fs", "mkfs.f2fs", ["-f", "-q"], 64),
	maker("swap", "mkswap", ["-f"], 16, false),
];

async function make(folder: TemporaryFolder, each: Maker, mib = each.mib): Promise<string> {
	const image = folder.file("image");
	await runOk("truncate", ["-s", "0", image]);
	await runOk("truncate", ["-s", `${mib}M`, image]);
	await runOk(each.program, [...each.options, image]);
	return image;
}

const copyTo = (image: string, disk: string, from: number, to: number, mib: number): Promise<string> => {
	const places = ["bs=1M", `skip=${from}`, `seek=${to}`, `count=${mib}`];
	return runOk("dd", [`if=${image}`, `of=${disk}`, ...places, "conv=notrunc,sparse"]);
};

/** State and whether it is never used, of every 512 bytes of one volume's place on the disk. */
function statesOf(map: GuestMap, start: number, length: number): string[] {
	const states: string[] = [];
	for (const extent of map.extents)
		for (let at: number = extent.start; at < extent.start + extent.length; at += 512)
			if (at >= start && at < start + length) states.push(`${extent.state} ${extent.neverUsed ?? ""}`);
	return states;
}

/** What must be the same wherever a volume lies. */
const facts = ({ type, uuid, label, state, usedBytes, freeBytes, neverUsedBytes, kept }: VolumeMap): unknown => ({
	type,
	uuid,
	label,
	state,
	usedBytes,
	freeBytes,
	neverUsedBytes,
	kept,
});

describe("the same file system at every place", () => {
	test("the table of makers has all readers with a maker here", () => {
		const full = ["iso9660", "udf", "squashfs", "erofs", "cramfs"];
		const made = makers.map(({ type }) => type);
		for (const type of fileSystemReaders.keys()) assert.ok(made.includes(type) || full.includes(type), type);
	});

	for (const each of makers)
		test(`${each.program} ${each.options.join(" ")}: straight, in a partition, in two pieces of a logical volume`, async (t) => {
			const { type, mib, hasFree } = each;
			if (!requireTool(t, "root", "loop devices", "pvcreate", "sgdisk", each.program)) return;
			if (!fileSystemReaders.has(type)) return t.skip(`${type} has no reader`);
			await using folder = await temporaryFolder();
			const image = await make(folder, each);
			const straight = await mapOf(image);
			const [volume] = straight.volumes;
			assert.equal(straight.table, "none");
			assert.equal(straight.volumes.length, 1);
			if (hasFree) {
				assert.equal(volume!.kept, null);
				assert.ok(volume!.freeBytes! > 0);
			}
			const expected = statesOf(straight, 0, mib * MIB);

			const disk = folder.file("disk");
			const group = mib + 16;
			await runOk("truncate", ["-s", `${1 + mib + group + 2}M`, disk]);
			await runOk("sgdisk", [`-n1:2048:+${mib}M`, `-n2:0:+${group}M`, disk]);
			await copyTo(image, disk, 0, 1, mib);
			const lvmAt = 1 + mib;
			const device = (
				await runOk("losetup", ["-f", "--show", "-o", `${lvmAt * MIB}`, "--sizelimit", `${group * MIB}`, disk])
			).trim();
			try {
				await writeFile(
					folder.file("lvm.conf"),
					`devices { dir="/dev" scan=["/dev"] filter=["a|^${device}$|","r|.*|"] use_devicesfile=0 }
global { event_activation=0 locking_dir="${folder.file("locks")}" activation=0 use_lvmpolld=0 }
backup { backup=0 archive=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
`,
				);
				const lvm = (tool: string, ...words: string[]): Promise<string> =>
					runOk(tool, words, { environment: { LVM_SYSTEM_DIR: folder.path } });
				const untouched = ["-an", "-Zn", "-Wn", "-y"];
				await lvm("pvcreate", "-q", device);
				await lvm("vgcreate", "-q", "-s1M", "vg", device);
				await lvm("lvcreate", ...untouched, "-l7", "-ndata", "vg");
				await lvm("lvcreate", ...untouched, "-l3", "-ngap", "vg");
				await lvm("lvextend", `-l${mib}`, "vg/data");
			} finally {
				await runOk("losetup", ["-d", device]);
			}
			const first = lvmAt + 1;
			await copyTo(image, disk, 0, first, 7);
			await copyTo(image, disk, 7, first + 10, mib - 7);

			const map = await mapOf(disk);
			const [inPartition, group2] = map.volumes;
			const inGroup = group2!.children.find(({ id }) => id === "p2/vg/data");
			assert.deepEqual(facts(inPartition!), facts(volume!));
			assert.deepEqual(facts(inGroup!), facts(volume!));
			assert.deepEqual(statesOf(map, MIB, mib * MIB), expected);
			const pieces = [...statesOf(map, first * MIB, 7 * MIB), ...statesOf(map, (first + 10) * MIB, (mib - 7) * MIB)];
			assert.deepEqual(pieces, expected);
		});
});

describe("formatted over one another", () => {
	/** What a quick format leaves of what was there before. Kept then: which of the two is stale nobody can tell. */
	const leavesMark: readonly string[] = ["btrfs under ntfs", "f2fs under swap"];
	const pairs = makers.flatMap((under, index) =>
		makers.filter((_, other) => isThorough || other === (index + 3) % makers.length).map((over) => ({ under, over })),
	);
	for (const pair of [...pairs, { under: makers[2]!, over: makers[3]! }])
		test(`${pair.under.program} ${pair.under.options.at(-1) ?? ""}, then ${pair.over.program} ${pair.over.options.at(-1) ?? ""}`, async (t) => {
			const { under, over } = pair;
			if (!requireTool(t, under.program, over.program)) return;
			await using folder = await temporaryFolder();
			const image = await make(folder, under, Math.max(under.mib, over.mib));
			await runOk(over.program, [...over.options, image]);
			const [volume] = (await mapOf(image)).volumes;
			if (leavesMark.includes(`${under.type} under ${over.type}`))
				assert.match(volume!.kept!, /marks of .*wipe the stale one/);
			else assert.match(volume!.type, over.type === "ext" ? /^ext4$/ : new RegExp(`^${over.type}$`));
		});
});

describe("known by name, kept whole", () => {
	const only = async (image: string): Promise<VolumeMap> => {
		const map = await mapOf(image);
		assert.deepEqual(
			[...map.extents].map(({ state }) => state),
			["unknown"],
		);
		return map.volumes[0]!;
	};
	async function blank(folder: TemporaryFolder, mib: number): Promise<string> {
		const image = folder.file("image");
		await runOk("truncate", ["-s", `${mib}M`, image]);
		return image;
	}
	const put = async (image: string, at: number, bytes: Uint8Array): Promise<void> => {
		await using file = await open(image, "r+");
		await file.write(bytes, 0, bytes.length, at);
	};

	for (const version of ["luks1", "luks2"])
		test(`${version}, with its UUID`, async (t) => {
			if (!requireTool(t, "cryptsetup")) return;
			await using folder = await temporaryFolder();
			const image = await blank(folder, 32);
			const quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
			const label = version === "luks2" ? ["--label", "secrets"] : [];
			await runOk("cryptsetup", ["luksFormat", "-q", "--type", version, ...quick, ...label, image, "-"], {
				input: "x",
			});
			const volume = await only(image);
			assert.equal(volume.type, "luks");
			assert.equal(volume.uuid, (await runOk("cryptsetup", ["luksUUID", image])).trim());
			assert.equal(volume.label, version === "luks2" ? "secrets" : null);
			assert.match(volume.kept!, /luks is not read/);
		});

	for (const [version, place] of [
		["1.0", (64 << 20) - 0x2000],
		["1.1", 0],
		["1.2", 4096],
	] as const)
		test(`a RAID member of MD version ${version}, as mdadm sees it`, async (t) => {
			if (!requireTool(t, "mdadm")) return;
			await using folder = await temporaryFolder();
			const image = await blank(folder, 64);
			await put(image, place, mdSuperblock(place / 512));
			const words = await runOk("mdadm", ["-E", image]);
			assert.match(words, new RegExp(`Version : ${version}`), "the image is one for mdadm");
			const volume = await only(image);
			assert.equal(volume.type, "md-raid");
			assert.equal(volume.uuid, /Array UUID : (\S+)/.exec(words)![1]);
			assert.equal(volume.label, "web:0");
			// mdadm --examine --scan does not see it when its mark is gone: so it is there that it is looked for.
			await put(image, place, new Uint8Array(4));
			assert.equal((await only(image)).type, "unknown");
		});

	test("ZFS, by any one of its four labels", async () => {
		await using folder = await temporaryFolder();
		const names = new TextEncoder().encode("\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\0\0\x24\0\0\0\x20\0\0\0\x07version\0");
		const size = 10 * MIB;
		for (const label of [0, 256 << 10, size - (512 << 10), size - (256 << 10)]) {
			const image = await blank(folder, 10);
			await put(image, label + (16 << 10), names);
			assert.equal((await only(image)).type, "zfs", `${label}`);
			await runOk("truncate", ["-s", "0", image]);
		}
	});

	test("a RAID member or an encrypted volume in a partition: its neighbours are read", async (t) => {
		if (!requireTool(t, "sgdisk", "mke2fs")) return;
		await using folder = await temporaryFolder();
		const ext = await make(folder, makers[0]!);
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "100M", disk]);
		await runOk("sgdisk", ["-n1:2048:+16M", "-n2:0:+32M", "-n3:0:+16M", disk]);
		await copyTo(ext, disk, 0, 17, 32);
		await put(disk, MIB + 4096, mdSuperblock(8));
		await put(disk, 49 * MIB, new TextEncoder().encode("\x53KUL"));
		await put(disk, 49 * MIB, Uint8Array.from(Buffer.from("LUKS\xba\xbe", "latin1")));
		const map = await mapOf(disk);
		assert.deepEqual(
			map.volumes.map(({ type }) => type),
			["md-raid", "ext4", "luks"],
		);
		assert.ok([...map.extents].every(({ state, volume }) => state !== "free" || volume === "p2"));
	});

	test("ext's own content may look like other owners' marks only where those have their places", async (t) => {
		if (!requireTool(t, "mke2fs", "debugfs")) return;
		await using folder = await temporaryFolder();
		const image = await make(folder, makers[0]!);
		// A file that is itself an image of everything: its blocks lie anywhere but at the places of marks.
		const file = folder.file("file");
		const text = Buffer.alloc(4 * MIB);
		for (let at = 0; at < text.length; at += 4096) text.write("XFSB LABELONE NTFS    FAT32   ", at, "latin1");
		await writeFile(file, text);
		await runOk("debugfs", ["-w", "-R", `write ${file} file`, image]);
		assert.ok((await readFile(image)).includes("LABELONE"));
		assert.equal((await mapOf(image)).volumes[0]!.kept, null);
	});
});

/** An MD superblock of version 1 (Linux, include/uapi/linux/raid/md_p.h) for a place in sectors. */
function mdSuperblock(atSector: number): Uint8Array {
	const block = Buffer.alloc(4096);
	block.writeUInt32LE(0xa92b4efc, 0);
	block.writeUInt32LE(1, 4);
	for (let i = 0; i < 16; i++) block[16 + i] = 0x10 + i;
	block.write("web:0", 32);
	block.writeUInt32LE(1, 72); // level
	block.writeBigUInt64LE(65536n, 80); // size in sectors
	block.writeUInt32LE(2, 92); // disks
	block.writeBigUInt64LE(atSector === 0 || atSector === 8 ? 2048n : 0n, 128); // data starts
	block.writeBigUInt64LE(65536n, 136);
	block.writeBigUInt64LE(BigInt(atSector), 144);
	block.writeUInt32LE(128, 220); // roles
	block.writeUInt16LE(0, 256);
	block.writeUInt16LE(1, 258);
	for (let role = 2; role < 128; role++) block.writeUInt16LE(0xffff, 256 + role * 2);
	let sum = 0n;
	for (let at = 0; at < 256 + 128 * 2; at += 4) sum += BigInt(block.readUInt32LE(at));
	block.writeUInt32LE(Number((sum & 0xffffffffn) + (sum >> 32n)) >>> 0, 216);
	return block;
}
