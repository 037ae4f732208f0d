// LVM as lvm2's own tools write it: logical volumes in several pieces, striped, in any order on the disk; and what
// must be kept. The tools need no device mapper here: they change metadata only, and file systems are copied to the
// places that the tools themselves report.

import assert from "node:assert/strict";
import { copyFile, open, readFile, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { lvmChecksum } from "../../src/core/volumes/lvm/layout.ts";
import type { GuestMap, VolumeMap } from "../../src/foundations/guest-map.ts";
import { allVolumes } from "../../src/foundations/guest-map.ts";
import { type GuestMapOptions, readGuestMap } from "../../src/services/guest-map.ts";
import { isThorough } from "../support/breadth.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { Lvm } from "../support/lvm.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { dumpFree, mapOf, openSource } from "./map-images.ts";

const MIB = 1 << 20;
const TOOLS = ["root", "loop devices", "pvcreate", "sgdisk", "mke2fs", "dumpe2fs"] as const;

/** Copies a volume's content to where `place` puts it, in pieces that no stripe divides. */
async function copyIn(disk: string, content: string, place: (at: number) => number): Promise<void> {
	const step = 64 << 10;
	const bytes = await readFile(content);
	await using file = await open(disk, "r+");
	for (let at = 0; at < bytes.length; at += step) {
		const part = bytes.subarray(at, at + step);
		if (part.some((byte) => byte !== 0)) await file.write(part, 0, part.length, place(at));
	}
}

/** State and owner of every 512 bytes of the disk: `free vg0/root`. */
function sectorsOf(map: GuestMap): string[] {
	const sectors: string[] = [];
	let cursor = 0;
	for (const { start, length, state, volume } of map.extents) {
		assert.equal(start, cursor, "gap or overlap");
		cursor += length;
		for (let at: number = start; at < cursor; at += 512) sectors.push(`${state} ${volume}`);
	}
	assert.equal(cursor, map.size);
	return sectors;
}

async function mapWith(path: string, options: GuestMapOptions): Promise<GuestMap> {
	await using source = await openSource(path);
	return await readGuestMap(source, options);
}

const volumeOf = (map: GuestMap, id: string): VolumeMap => {
	const volume = [...allVolumes(map.volumes)].find((each) => each.id === id);
	assert.ok(volume, `${id} in ${[...allVolumes(map.volumes)].map((each) => each.id).join()}`);
	return volume;
};

/** Every block of an ext4 volume lies where lvm2 says, and is free exactly where dumpe2fs says. */
async function expectSameFree(
	map: GuestMap,
	id: string,
	content: string,
	place: (at: number) => number,
): Promise<void> {
	const { blockSize, blockCount, free } = await dumpFree(content);
	const sectors = sectorsOf(map);
	for (let block = 0; block < blockCount; block++)
		for (let at = 0; at < blockSize; at += 512)
			assert.equal(
				sectors[place(block * blockSize + at) / 512],
				`${free[block] === 1 ? "free" : "used"} ${id}`,
				`block ${block}`,
			);
	assert.equal(volumeOf(map, id).freeBytes, free.reduce((sum, each) => sum + each, 0) * blockSize);
}

/** One physical volume of 100 MiB at 1 MiB of a disk without a table, with a group of extents of 1 MiB. */
async function simpleDisk(
	folder: TemporaryFolder,
	...creation: readonly string[]
): Promise<{ disk: string; lvm: Lvm }> {
	const disk = folder.file("disk");
	await runOk("truncate", ["-s", "100M", disk]);
	const lvm = await Lvm.on(folder, disk, [0, 100]);
	await lvm.run("pvcreate", "-q", ...creation, lvm.devices[0]!);
	await lvm.run("vgcreate", "-q", "-s", "1M", "vg0", lvm.devices[0]!);
	return { disk, lvm };
}

async function ext4At(lvm: Lvm, folder: TemporaryFolder, disk: string, name: string, mib: number): Promise<string> {
	const content = folder.file(name);
	await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", content, `${mib}M`]);
	const [files] = [folder.file(`${name}.files`)];
	await writeFile(files, Buffer.alloc(2 * MIB, name));
	for (const file of ["a", "b", "c"]) await runOk("debugfs", ["-w", "-R", `write ${files} ${file}`, content]);
	await runOk("debugfs", ["-w", "-R", "rm b", content]);
	await copyIn(disk, content, await lvm.places(name));
	return content;
}

describe("LVM", () => {
	test("volumes in several pieces and striped ones, over two physical volumes of the disk", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "170M", disk]);
		await runOk("sgdisk", ["-n1:2048:+80M", "-n2:0:+80M", disk]);
		await using lvm = await Lvm.on(folder, disk, [1, 80], [81, 80]);
		await lvm.run("pvcreate", "-q", ...lvm.devices);
		await lvm.run("vgcreate", "-q", "-s", "1M", "vg0", ...lvm.devices);
		await lvm.create("gap", 5, "--alloc", "anywhere");
		await lvm.create("root", 10);
		await lvm.create("striped", 40, "-i2", "-I64k");
		await lvm.run("lvremove", "-y", "vg0/gap");
		await lvm.run("lvextend", "-l", "+20", "vg0/root");
		await lvm.run("lvextend", "-i1", "-l", "+8", "vg0/striped", lvm.devices[0]!);
		const root = await ext4At(lvm, folder, disk, "root", 30);
		const striped = await ext4At(lvm, folder, disk, "striped", 48);

		const map = await mapOf(disk);
		assert.deepEqual(map.warnings, []);
		for (const { id, kept } of allVolumes(map.volumes)) assert.equal(kept, null, id);
		await expectSameFree(map, "p1/vg0/root", root, await lvm.places("root"));
		await expectSameFree(map, "p1/vg0/striped", striped, await lvm.places("striped"));

		// Each extent that lvm2 calls free is free, nothing else of a physical volume is, and the sums agree.
		const sectors = sectorsOf(map);
		const listed = await lvm.segments();
		assert.ok(listed.filter(({ name }) => name === "").length > 1, "several runs of free extents");
		assert.ok(listed.filter(({ name }) => name === "root").length > 1, "root is in pieces");
		let free = 0;
		for (const { name, start, length } of listed)
			for (let at = start; at < start + length; at += 512)
				if (name === "") {
					assert.match(sectors[at / 512]!, /^free p[12]$/);
					free += 512;
				} else assert.match(sectors[at / 512]!, new RegExp(` p1/vg0/${name}$`));
		assert.equal(sectors.filter((sector) => /^free p[12]$/.test(sector)).length * 512, free);
		assert.equal(volumeOf(map, "p1").freeBytes! + volumeOf(map, "p2").freeBytes!, free);
		const uuids = (await lvm.run("pvs", "--noheadings", "-opv_uuid")).split("\n").map((line) => line.trim());
		assert.equal(volumeOf(map, "p1").uuid, uuids[0]);
		assert.equal(volumeOf(map, "p1").label, "vg0");

		const keeping = await mapWith(disk, { keepFreeExtents: true });
		assert.ok(!sectorsOf(keeping).some((sector) => /^free p[12]$/.test(sector)));
		assert.match(volumeOf(keeping, "p2").kept!, /as asked/);
		assert.equal(volumeOf(keeping, "p1/vg0/root").kept, null);
	});

	test("metadata that has gone round its ring, and its copy at the end", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const { disk, lvm } = await simpleDisk(folder, "--metadatasize=16k", "--metadatacopies=2", "--dataalignment=64k");
		await using _ = lvm;
		await lvm.create("root", 20);
		const content = await ext4At(lvm, folder, disk, "root", 20);
		// Long tags make a long text, which is soon once round.
		const tags = Array.from({ length: 20 }, (_, index) => `--addtag=${"x".repeat(1000)}${index}`);
		let wrapped = false;
		for (let round = 0; round < 12 && !wrapped; round++) {
			await lvm.run("vgchange", "-q", ...(round === 0 ? tags : [`--addtag=t${round}`]), "vg0");
			const head = (await readFile(disk)).subarray(4096, 4096 + 512);
			const [areaBytes, offset, length] = [0x20, 0x28, 0x30].map((at) => Number(head.readBigUInt64LE(at)));
			wrapped = offset! + length! > areaBytes!;
		}
		assert.ok(wrapped, "the text goes round the end");
		const map = await mapOf(disk);
		await expectSameFree(map, "disk/vg0/root", content, await lvm.places("root"));
		assert.equal(volumeOf(map, "disk").kept, null);

		// The copy at the end says something else: an interrupted change, or a stale half.
		await using file = await open(disk, "r+");
		const bytes = await readFile(disk);
		const copyAt = bytes.lastIndexOf(" LVM2 x[5A%r0N*>") - 4;
		assert.ok(copyAt > 50 * MIB);
		await file.write(Buffer.alloc(4, 7), 0, 4, copyAt);
		const damaged = await mapOf(disk);
		assert.match(volumeOf(damaged, "disk").kept!, /header of its LVM metadata is damaged/);
		assert.deepEqual(
			[...damaged.extents].map(({ state }) => state),
			["unknown"],
		);
	});

	test("a group with a physical volume elsewhere, an exported one, a lone physical volume: named and kept", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "120M", disk]);
		await using lvm = await Lvm.on(folder, disk, [0, 60], [60, 60]);
		const [first, second] = lvm.devices as [string, string];
		await lvm.run("pvcreate", "-q", first, second);
		const half = folder.file("half");
		const halfMap = async (): Promise<GuestMap> => {
			await copyFile(disk, half);
			await runOk("truncate", ["-s", "60M", half]);
			return await mapOf(half);
		};
		assert.match(volumeOf(await halfMap(), "disk").kept!, /without a volume group/);
		await lvm.run("vgcreate", "-q", "-s", "1M", "vg0", first, second);
		await lvm.run("lvcreate", "-an", "-Zn", "-Wn", "-y", "-l10", "-nroot", "vg0", first);
		const spread = await halfMap();
		assert.match(volumeOf(spread, "disk").kept!, /not on this disk/);
		assert.match(volumeOf(spread, "disk/vg0/root").kept!, /not on this disk/);
		await lvm.run("vgreduce", "-q", "vg0", second);
		assert.equal(volumeOf(await halfMap(), "disk").kept, null, "negative control: whole again");
		await lvm.run("vgexport", "-q", "vg0");
		const exported = await halfMap();
		assert.match(volumeOf(exported, "disk").kept!, /EXPORTED/);
		assert.match(volumeOf(exported, "disk/vg0/root").kept!, /EXPORTED/);
		for (const map of [spread, exported]) assert.ok([...map.extents].every(({ state }) => state !== "free"));
	});

	test("what is inside a logical volume", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const { disk, lvm } = await simpleDisk(folder);
		await using _ = lvm;
		for (const name of ["table", "nested", "empty"]) await lvm.create(name, 10);
		const inside = folder.file("inside");
		await runOk("truncate", ["-s", "10M", inside]);
		await runOk("sgdisk", ["-n1:2048:+5M", inside]);
		await copyIn(disk, inside, await lvm.places("table"));
		const nested = folder.file("nested");
		await copyFile(disk, nested);
		await runOk("truncate", ["-s", "10M", nested]);
		await copyIn(disk, nested, await lvm.places("nested"));
		const map = await mapOf(disk);
		assert.match(volumeOf(map, "disk/vg0/table").kept!, /partition table is inside/);
		assert.match(volumeOf(map, "disk/vg0/nested").kept!, /LVM inside a logical volume/);
		assert.match(volumeOf(map, "disk/vg0/empty").kept!, /nothing known/);
		assert.equal(volumeOf(map, "disk").freeBytes, (99 - 30) * MIB);
	});

	test("other kinds of volumes, written as lvm2 writes them: kept, with all that belongs to them", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const { disk, lvm } = await simpleDisk(folder);
		await using _ = lvm;
		await lvm.create("plain", 5);
		await ext4At(lvm, folder, disk, "plain", 5);
		await lvm.create("origin", 5);
		await ext4At(lvm, folder, disk, "origin", 5);
		const backup = folder.file("backup");
		await lvm.run("vgcfgbackup", "-q", "-f", backup, "vg0");
		const text = await readFile(backup, "utf8");

		assert.match(text, /\t\}\n\n\}\n$/, "the end of the logical volumes");
		const restored = async (...volumes: readonly string[]): Promise<GuestMap> => {
			const end = text.lastIndexOf("\t}\n\n}");
			await writeFile(backup, text.slice(0, end) + volumes.join("\n") + text.slice(end));
			await lvm.run("vgcfgrestore", "-q", "--force", "-f", backup, "vg0");
			return await mapOf(disk);
		};
		assert.equal(volumeOf(await restored(), "disk/vg0/origin").kept, null, "negative control");

		const snapshot = await restored(
			volume("snap", "RW", striped(5, 20)),
			volume("snapshot0", "RWV", segment(5, "snapshot", 'chunk_size = 8 origin = "origin" cow_store = "snap"')),
		);
		assert.match(volumeOf(snapshot, "disk/vg0/origin").kept!, /snapshot's origin/);
		assert.equal(volumeOf(snapshot, "disk/vg0/origin").type, "lvm-origin");
		assert.equal(volumeOf(snapshot, "disk/vg0/snap").type, "lvm-snapshot");
		assert.equal(volumeOf(snapshot, "disk/vg0/plain").kept, null);
		assert.equal(volumeOf(snapshot, "disk").freeBytes, (99 - 15) * MIB);
		const states = sectorsOf(snapshot);
		assert.equal(states[(21 * MIB) / 512], "unknown disk/vg0/snap");
		assert.equal(states[(6 * MIB) / 512], "unknown disk/vg0/origin");

		const thin = await restored(
			volume(
				"pool",
				"RWV",
				segment(
					8,
					"thin-pool",
					'metadata = "pool_tmeta" pool = "pool_tdata" transaction_id = 1 chunk_size = 128 discards = "passdown" zero_new_blocks = 1',
				),
			),
			volume("thin1", "RWV", segment(50, "thin", 'thin_pool = "pool" transaction_id = 0 device_id = 1')),
			volume("pool_tdata", "RW", striped(8, 30)),
			volume("pool_tmeta", "RW", striped(2, 40)),
		);
		assert.equal(volumeOf(thin, "disk/vg0/pool").type, "lvm-thin-pool");
		assert.equal(volumeOf(thin, "disk/vg0/thin1").type, "lvm-thin");
		assert.equal(sectorsOf(thin)[(42 * MIB) / 512], "unknown disk/vg0/pool", "its hidden parts are its own");
		assert.equal(volumeOf(thin, "disk").freeBytes, (99 - 20) * MIB);

		const raid = await restored(
			volume(
				"safe",
				"RWV",
				segment(
					4,
					"raid1",
					'device_count = 2 region_size = 4096 raids = ["safe_rmeta_0", "safe_rimage_0", "safe_rmeta_1", "safe_rimage_1"]',
				),
			),
			...[0, 1].flatMap((leg) => [
				volume(`safe_rmeta_${leg}`, "RW", striped(1, 50 + leg)),
				volume(`safe_rimage_${leg}`, "RW", striped(4, 60 + 4 * leg)),
			]),
		);
		assert.equal(volumeOf(raid, "disk/vg0/safe").type, "lvm-raid1");
		assert.equal(volumeOf(raid, "disk").freeBytes, (99 - 20) * MIB);
		assert.equal(volumeOf(raid, "disk").kept, null);
	});

	test("metadata that lvm2 would refuse: extents used twice, past the end, of an unknown kind", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await using folder = await temporaryFolder();
		const { disk, lvm } = await simpleDisk(folder);
		await using _ = lvm;
		await lvm.create("root", 5);
		await lvm.create("home", 5);
		await lvm.run("lvextend", "-l", "+3", "vg0/root");
		const changed = async (from: RegExp, to: string): Promise<GuestMap> => {
			const copy = folder.file("changed");
			await copyFile(disk, copy);
			await editText(copy, (text) => {
				assert.match(text, from);
				return text.replace(from, to);
			});
			return await mapOf(copy);
		};
		assert.equal(volumeOf(await changed(/vg0/, "vg1"), "disk").kept, null, "negative control");
		const notAutomatic = await changed(
			/\["READ", "WRITE", "VISIBLE"\]/,
			'["READ", "WRITE", "VISIBLE", "NOAUTOACTIVATE"]',
		);
		assert.equal(volumeOf(notAutomatic, "disk").kept, null, "harmless to who has which extents");
		assert.match(volumeOf(await changed(/"pv0", 5\b/, '"pv0", 4'), "disk").kept!, /uses extent 4 of pv0 twice/);
		assert.match(volumeOf(await changed(/"pv0", 10\b/, '"pv0", 98'), "disk").kept!, /behind the end of pv0/);
		const unknown = await changed(/type = "striped"/, 'type = "quantum"');
		assert.match(volumeOf(unknown, "disk").kept!, /free extents are kept: root is of the kind quantum/);
		assert.match(volumeOf(unknown, "disk/vg0/root").kept!, /quantum/);
		// Of these kinds the one lies nowhere and the other on a pool; but these take something that is named elsewhere.
		const nowhere = await changed(/type = "striped"(.*?)stripes = \[\s*"pv0"/s, 'type = "zero"$1places = [ "pv7"');
		assert.match(volumeOf(nowhere, "disk").kept!, /free extents are kept: root is of the kind zero/);
		const poolless = await changed(/type = "striped"(.*?)stripes = \[\s*"pv0"/s, 'type = "thin"$1places = [ "root"');
		assert.match(volumeOf(poolless, "disk").kept!, /free extents are kept: root is of the kind thin/);
		const elsewhere = await changed(/type = "striped"(.*?)stripe_count.*?\]/s, 'type = "error"$1');
		assert.equal(volumeOf(elsewhere, "disk").kept, null, "LVM's own way to say that a part is lost");
		assert.match(volumeOf(await changed(/"WRITE"\]/, '"WRITE", "SHARED"]'), "disk").kept!, /vg0 is SHARED/);
		assert.match(
			volumeOf(await changed(/pe_start = 2048/, "pe_start = 4096"), "disk").kept!,
			/disagree on its extents/,
		);
		assert.match(volumeOf(await changed(/pe_count = 99/, "pe_count = 100"), "disk").kept!, /reach past its end/);
		const group = volumeOf(
			await changed(/\["READ", "WRITE", "VISIBLE"\]/, '["READ", "WRITE", "VISIBLE", "LOCKED"]'),
			"disk",
		);
		assert.match(group.kept!, /root is LOCKED/);
	});

	test("the same volumes under a real device mapper: free space goes, every file stays", async (t) => {
		if (!isThorough) return t.skip("only with VMSWEEP_THOROUGH=1: boots two guests");
		if (!requireTool(t, "guest image", "qemu-system-x86_64")) return;
		await using folder = await temporaryFolder();
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "400M", disk]);
		const inGuest = async (script: string): Promise<string> => {
			await using guest = await Guest.boot({ disks: [{ uri: disk }], discard: "off", memoryMib: 1024 });
			const output = await guest.run(`set -e
				for m in dm-raid raid1 dm-snapshot dm-thin-pool dm-cache dm-cache-smq; do modprobe $m; done
				printf 'activation { udev_sync=0 udev_rules=0 monitoring=0 }\\ndevices { obtain_device_list_from_udev=0 }\\nglobal { use_lvmpolld=0 event_activation=0 }\\n' > /etc/lvm/lvm.conf
				D=$(readlink -f $DISK0)
				exec 2>/dev/null\n${script}`);
			await guest.stop();
			return output;
		};
		const hashes = `for v in root striped origin snap r1 thin1 slow; do
			mount -o ro /dev/mapper/vg0-$v /mnt; (cd /mnt; sha256sum f*) | sed "s/^/$v /"; umount /mnt; done; vgchange -an vg0 > /dev/null`;
		const before = await inGuest(`
			printf 'label: gpt\\nstart=2048,size=307200\\nstart=309248,size=307200\\n' | sfdisk -q $D
			pvcreate -q \${D}1 \${D}2 > /dev/null; vgcreate -q -s 1M vg0 \${D}1 \${D}2 > /dev/null
			new() { lvcreate -q -y -Zn -Wn "$@" vg0; }
			{ new -l 20 -n root; new -l 10 -n gap; new -i2 -I 64k -l 40 -n striped; lvextend -l +13 vg0/root; lvremove -y vg0/gap
			new -l 20 -n origin; lvcreate -y --type raid1 -m1 -l 20 -n r1 vg0
			lvcreate -y --type thin-pool -l 20 -n pool vg0; lvcreate -y --type thin -V 100M -n thin1 --thinpool pool vg0
			lvcreate -y -l 10 -n slow vg0; lvcreate -y --type cache-pool -l 10 -n cpool vg0
			lvconvert -y --type cache --cachepool vg0/cpool vg0/slow; } > /dev/null
			for v in root striped origin r1 thin1 slow; do
				mkfs.ext4 -q /dev/mapper/vg0-$v; mount /dev/mapper/vg0-$v /mnt
				for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/f$i bs=64k count=$((i*4)) status=none; done
				umount /mnt; done
			lvcreate -y -s -l 10 -n snap vg0/origin > /dev/null
			for v in root striped origin r1 thin1 slow; do mount /dev/mapper/vg0-$v /mnt; rm /mnt/f3 /mnt/f6; umount /mnt; done
			${hashes}`);
		assert.equal(before.split("\n").filter((line) => / f\d$/.test(line)).length, 7 * 4 + 2, before);
		const map = await mapOf(disk);
		assert.equal(volumeOf(map, "p1/vg0/root").type, "ext4");
		assert.equal(volumeOf(map, "p1/vg0/striped").type, "ext4");
		assert.equal(volumeOf(map, "p1/vg0/origin").type, "lvm-origin");
		let dropped = 0;
		{
			await using file = await open(disk, "r+");
			for (const { start, length, state, neverUsed } of map.extents) {
				if (state !== "free" && neverUsed !== true) continue;
				for (let at = start as number; at < start + length; at += MIB)
					await file.write(Buffer.alloc(Math.min(MIB, start + length - at), 0xa5), 0, undefined, at);
				dropped += length;
			}
		}
		assert.ok(dropped > 60 * MIB, `${dropped}`);
		assert.equal(await inGuest(`vgchange -ay vg0 > /dev/null; ${hashes}`), before);
	});
});

/** A logical volume for a text of lvm2's. `status`: R, W, V for READ, WRITE, VISIBLE. */
const volume = (name: string, status: string, body: string): string => {
	const words = Array.from(status, (each) => `"${{ R: "READ", W: "WRITE", V: "VISIBLE" }[each]}"`).join(", ");
	return `${name} { id = "${uuid()}" status = [${words}] flags = [] segment_count = 1 ${body} }`;
};
const segment = (extents: number, type: string, more: string): string =>
	`segment1 { start_extent = 0 extent_count = ${extents} type = "${type}" ${more} }`;
const striped = (extents: number, at: number): string =>
	segment(extents, "striped", `stripe_count = 1 stripes = ["pv0", ${at}]`);

let uuids = 0;
const uuid = (): string => `AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-${String(++uuids).padStart(6, "0")}`;

/** Changes the committed text of the first metadata area of a physical volume at the disk's start. */
async function editText(disk: string, edit: (text: string) => string): Promise<void> {
	await using file = await open(disk, "r+");
	const header = Buffer.alloc(512);
	await file.read(header, 0, 512, 4096);
	const [offset, length] = [0x28, 0x30].map((at) => Number(header.readBigUInt64LE(at))) as [number, number];
	const text = Buffer.alloc(length);
	await file.read(text, 0, length, 4096 + offset);
	const edited = Buffer.from(edit(text.toString("latin1")), "latin1");
	await file.write(edited, 0, edited.length, 4096 + offset);
	header.writeBigUInt64LE(BigInt(edited.length), 0x30);
	header.writeUInt32LE(lvmChecksum(edited), 0x38);
	header.writeUInt32LE(lvmChecksum(header.subarray(4)), 0);
	await file.write(header, 0, 512, 4096);
}
