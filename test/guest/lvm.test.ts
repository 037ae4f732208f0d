// LVM in a guest on a disk that is cleaned while it runs: file systems in logical volumes, in pieces and in stripes; what
// a snapshot needs; and what LVM frees.
//
//   p1: vg0   | root ── | wall | root ── | free … |     p2, p3: vg1   | wide, stripe 0 | free |   | wide, stripe 1 | free |

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { DiskStatus } from "../../src/services/disk-status.ts";
import { isThorough } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { loadProgram } from "../support/oracle-run.ts";
import { runOk, vmsweep } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

const MIB = 1024 * 1024;

const SETUP = `
sgdisk -n1:2048:+640M -n2:0:+250M -n3:0:+250M $DISK0 > /dev/null
pvcreate -qy \${DISK0}1 \${DISK0}2 \${DISK0}3
vgcreate -q -s 4M vg0 \${DISK0}1
vgcreate -q -s 4M vg1 \${DISK0}2 \${DISK0}3
lvcreate -qy -l 25 -n root vg0
lvcreate -qy -l 10 -n wall vg0
lvextend -q -l +35 vg0/root
lvcreate -qy -i 2 -I 64k -l 100 -n wide vg1
mkfs.ext4 -q /dev/vg0/root
mkfs.xfs -q -f /dev/vg1/wide
mkdir -p /mnt/root /mnt/wide /mnt/snap`;

const MOUNT = "mount -o commit=1 /dev/vg0/root /mnt/root && mount /dev/vg1/wide /mnt/wide";
const UNMOUNT = "umount /mnt/root /mnt/wide && e2fsck -fn /dev/vg0/root && xfs_repair -n /dev/vg1/wide";
const HASHES = "cd /mnt && sha256sum root/keep* wide/keep*";
const DROP_CACHES = "sync; echo 3 > /proc/sys/vm/drop_caches";

/** A guest on a served disk. */
class Bench {
	readonly server: SweepServer;
	readonly guest: Guest;
	constructor(server: SweepServer, guest: Guest) {
		this.server = server;
		this.guest = guest;
	}

	/** Random bytes, durable. */
	async write(path: string, mib: number): Promise<void> {
		await this.guest.run(`dd if=/dev/urandom of=${path} bs=1M count=${mib} conv=fsync status=none`);
	}

	/** Waits for a status while the file systems in `folders` commit something now and then. */
	async reaches(condition: (status: DiskStatus) => boolean, what: string, ...folders: string[]): Promise<void> {
		// XFS's rule wants many commits.
		const tick = (folder: string): string => `for i in 1 2 3 4 5 6; do date > ${folder}/tick; sync -f ${folder}; done`;
		const ticks = folders.map(tick).join("; ");
		const meanwhile = async (): Promise<void> => {
			if (ticks !== "") await this.guest.run(ticks);
		};
		await this.server.reaches(condition, what, { timeoutSeconds: 120, everyMs: 300, meanwhile });
	}

	async dropped(): Promise<number> {
		return (await this.server.status()).cleaner.droppedBytes;
	}

	/** Waits until the cleaner has looked at the disk this many times more. */
	async rounds(count: number, ...folders: string[]): Promise<void> {
		if (folders.length === 0) return await this.server.rounds(count);
		const { cleaner } = await this.server.status();
		await this.reaches((now) => now.cleaner.rounds >= cleaner.rounds + count, `${count} rounds`, ...folders);
	}
}

const volumeOf = ({ volumes }: DiskStatus, id: string): DiskStatus["volumes"][number] => {
	const volume = volumes.find((each) => each.id === id);
	assert.ok(volume, `${id} in ${JSON.stringify(volumes)}`);
	return volume;
};

test("a guest with LVM, cleaned while it runs", async (t) => {
	if (!requireTool(t, "guest image")) return;
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "1200M" });
	let hashes: string;
	{
		await using server = await SweepServer.serve(disk, "--lvm-free", "drop");
		await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
		const bench = new Bench(server, guest);
		await guest.run(`set -e${SETUP}`);
		t.diagnostic(await guest.run("lvs --segments -o lv_name,stripes,seg_start_pe,devices"));
		await guest.run(MOUNT);

		await t.test("file systems in pieces and in stripes: deleted files go, the others stay", async () => {
			for (const name of ["root", "wide"]) {
				await bench.write(`/mnt/${name}/keep`, 15);
				await bench.write(`/mnt/${name}/gone`, 40);
			}
			await bench.write("/mnt/root/keep2", 50);
			hashes = await guest.run(HASHES);
			const before = await bench.dropped();
			await guest.run("rm /mnt/root/gone /mnt/wide/gone && sync");
			await bench.reaches(
				({ cleaner }) => cleaner.droppedBytes >= before + 80 * MIB,
				"both files' blocks to be dropped",
				"/mnt/root",
				"/mnt/wide",
			);
			const followed = ["p1/vg0/root", "p2/vg1/wide"];
			await bench.reaches(
				(status) => followed.every((id) => volumeOf(status, id).phase === "continuous"),
				"both to be judged",
				"/mnt/root",
				"/mnt/wide",
			);
			assert.match(volumeOf(await server.status(), "p2").reason!, /several physical volumes/);
			await guest.run(DROP_CACHES);
			assert.equal(await guest.run(HASHES), hashes);
			await guest.run(UNMOUNT);
			await bench.rounds(3);
			await guest.run(`${DROP_CACHES}; ${MOUNT}`);
			assert.equal(await guest.run(HASHES), hashes);
		});

		await t.test("a snapshot's origin is kept, and the snapshot reads what was deleted in it", async () => {
			await bench.write("/mnt/root/past", 40);
			await bench.rounds(2, "/mnt/root");
			const [hash] = (await guest.run("sha256sum < /mnt/root/past")).split(" ");
			const before = await bench.dropped();
			// At once, so that the deletion is committed before anybody here knows of the snapshot.
			await guest.run(
				"lvcreate -qy -s -l 20 -n snap vg0/root && rm /mnt/root/past && for i in 1 2 3 4; do date > /mnt/root/tick; sync -f /mnt/root; done",
			);
			// While volumes are identified, none is listed.
			const isOrigin = ({ volumes }: DiskStatus): boolean => volumes.some(({ type }) => type === "lvm-origin");
			await bench.reaches(isOrigin, "the origin to be kept");
			await bench.rounds(4, "/mnt/root");
			assert.match(volumeOf(await server.status(), "p1/vg0/root").reason!, /snapshot's origin/);
			// But for blocks of the ticks before.
			assert.ok((await bench.dropped()) < before + MIB);
			await guest.run(DROP_CACHES);
			const inSnapshot = "mount -o ro /dev/vg0/snap /mnt/snap && sha256sum < /mnt/snap/past; umount /mnt/snap";
			assert.equal((await guest.run(inSnapshot)).split(" ")[0], hash);
			await guest.run("lvremove -qy vg0/snap");
			await bench.reaches(
				({ cleaner }) => cleaner.droppedBytes >= before + 40 * MIB,
				"the blocks to be dropped that only the snapshot needed",
				"/mnt/root",
			);
		});

		await t.test("a removed logical volume gives its extents back", async () => {
			await bench.write("/dev/vg0/wall", 40);
			await bench.rounds(2);
			const before = await bench.dropped();
			await guest.run("lvremove -qy vg0/wall");
			await bench.reaches(({ cleaner }) => cleaner.droppedBytes >= before + 40 * MIB, "its extents to be dropped");
			assert.equal(volumeOf(await server.status(), "p1").phase, "continuous");
		});

		await t.test("a logical volume and its file system grow", async () => {
			await guest.run("lvextend -q -l +20 vg0/root && resize2fs /dev/vg0/root");
			await bench.write("/mnt/root/gone", 60);
			await bench.write("/mnt/root/keep3", 60);
			hashes = await guest.run(HASHES);
			const before = await bench.dropped();
			await guest.run("rm /mnt/root/gone && sync");
			await bench.reaches(
				({ cleaner }) => cleaner.droppedBytes >= before + 60 * MIB,
				"the file's blocks to be dropped",
				"/mnt/root",
			);
		});

		await guest.run(DROP_CACHES);
		assert.equal(await guest.run(HASHES), hashes!);
		await guest.run(UNMOUNT);
		await guest.stop();
		assert.equal((await server.stop()).exitCode, 0);
		assert.doesNotMatch(server.process.stderr + server.process.stdout, /"level":[56]0/, "the server complained");
	}
	await runOk(vmsweep, ["commit", disk], { timeoutSeconds: 300 });
	await using guest = await Guest.boot({ disks: [{ uri: join(disk, "second.raw") }] });
	await guest.run(`vgchange -qay; mkdir -p /mnt/root /mnt/wide; ${MOUNT}`);
	assert.equal(await guest.run(HASHES), hashes!);
	await guest.run(UNMOUNT);
	await guest.stop();
});

test("random work in a logical volume in pieces, and in a striped one, while LVM's metadata changes", async (t) => {
	if (!requireTool(t, "guest image")) return;
	if (!isThorough) return t.skip("only in make soak");
	const seed = testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "1200M" });
	await using server = await SweepServer.serve(disk, "--lvm-free", "drop");
	await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
	await guest.run(`set -e${SETUP}`);
	await guest.run("cat > load.py && chmod +x load.py", { input: readFileSync(loadProgram) });
	const work = (device: string, folder: string, options: string): string =>
		`./load.py work ${device} ${folder} --mount-options ${options} --seed ${seed} --rounds 2 --seconds 10 --workers 2 --files 40 --skip`;
	// Another volume comes and goes, so that evidence starts over now and then.
	await using changes = guest.start(
		"while :; do lvcreate -qy -l 4 -n brief vg0; dd if=/dev/urandom of=/dev/vg0/brief bs=1M count=16 conv=fsync status=none; lvremove -qy vg0/brief; sleep 6; done",
	);
	for (const [device, at, options, check] of [
		["/dev/vg0/root", "/mnt/root", "commit=1", "e2fsck -fn"],
		["/dev/vg1/wide", "/mnt/wide", "defaults", "xfs_repair -n"],
	] as const) {
		const { exitCode, stdout, stderr } = await guest.exec(work(device, at, options), { timeoutSeconds: 600 });
		t.diagnostic(stderr.trim());
		assert.equal(exitCode, 0, stderr);
		await guest.run(`${DROP_CACHES}; ${check} ${device} && mount -o ro ${device} ${at}`);
		await guest.run(`cd ${at} && sha256sum -c --quiet`, { input: Buffer.from(stdout) });
		await guest.run(`umount ${at}`);
	}
	await changes[Symbol.asyncDispose]();
	const { cleaner, guest: counted } = await server.status();
	const mib = (bytes: number): string => `${Math.round(bytes / MIB)} MiB`;
	t.diagnostic(
		`written ${mib(counted.writtenBytes)}, dropped ${mib(cleaner.droppedBytes)}, moved ${mib(cleaner.movedBytes)}`,
	);
	assert.ok(cleaner.droppedBytes > 64 * MIB, "little was dropped: the test is blind");
	await guest.stop();
	assert.equal((await server.stop()).exitCode, 0);
});
