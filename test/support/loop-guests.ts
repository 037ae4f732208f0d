// Guests that work on a disk while it is cleaned: shared by the short tests and the soaks.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { TestContext } from "node:test";
import { ext4, type FileSystemKind } from "./file-system-kinds.ts";
import { temporaryFolder } from "./folders.ts";
import { Guest } from "./guest.ts";
import { checkCommitted, expectSpaceBack, verifyCrashed, wholeLines } from "./loop-cleaning.ts";
import { createDisk, SweepServer } from "./loop-server.ts";
import { loadProgram } from "./oracle-run.ts";
import { runOk, vmsweep } from "./processes.ts";
import { seededRandom, testSeed } from "./randomness.ts";
import { waitUntil } from "./waiting.ts";

export const GUEST_TOOLS = ["guest image", "root", "loop devices", "e2fsck", "dumpe2fs", "nbdcopy", "python3"] as const;

/** Puts load.py into a guest. */
const sendLoad = (guest: Guest): Promise<string> =>
	guest.run("cat > load.py && chmod +x load.py", { input: readFileSync(loadProgram) });

const mountCommand = ({ mountType, mountOptions }: FileSystemKind): string =>
	`mount ${mountType === undefined ? "" : `-t ${mountType} `}-o ${mountOptions} $DISK0 /mnt`;

export interface GuestWork {
	readonly kind?: FileSystemKind;
	readonly rounds: number;
	readonly secondsPerRound: number;
	readonly seed?: number;
	/** More options of `vmsweep serve`. */
	readonly serve?: readonly string[];
	/** More options of load.py's `work`. */
	readonly load?: readonly string[];
}

/** `sha256sum` lines of all files of an image, which a guest mounts read-only. */
async function hashesInGuest({ mountType }: FileSystemKind, image: string): Promise<string[]> {
	await using guest = await Guest.boot({ disks: [{ uri: image }] });
	await guest.run(`mount -o ro ${mountType === undefined ? "" : `-t ${mountType}`} $DISK0 /mnt`);
	const lines = await guest.run('cd /mnt && find . -type f -printf "%P\\0" | xargs -0 -r sha256sum');
	await guest.stop();
	return lines.split("\n").filter((line) => line !== "");
}

/** A guest works for a while; its files are right in the guest, and in the committed image. */
export async function guestWorks(t: TestContext, work: GuestWork): Promise<void> {
	const { kind = ext4, rounds, secondsPerRound, serve = [], load: more = [] } = work;
	const seed = work.seed ?? testSeed() % 1_000_000;
	t.diagnostic(`VMSWEEP_SEED=${seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "1G" });
	let expected: string[];
	{
		await using server = await SweepServer.serve(disk, ...serve);
		await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
		await sendLoad(guest);
		await guest.run(`${kind.mkfs.join(" ")} $DISK0 && ${mountCommand(kind)}`);
		const said = await guest.run(`fsops /mnt --seed ${seed} --ops ${rounds * 150} --max-kb 256 --verify; umount /mnt`);
		t.diagnostic(said.trim());
		assert.match(said, /all verified/);
		const how = `--mount-options ${kind.mountOptions} --mount-type "${kind.mountType ?? ""}" ${more.join(" ")}`;
		const load = `./load.py work $DISK0 /mnt --seed ${seed} --rounds ${rounds} --seconds ${secondsPerRound} --workers 2 --files 50 ${how}`;
		const { exitCode, stdout, stderr } = await guest.exec(load, { timeoutSeconds: rounds * (secondsPerRound + 120) });
		t.diagnostic(stderr.trim());
		assert.equal(exitCode, 0, stderr);
		expected = stdout.split("\n").filter((line) => line !== "");
		if (kind.hidesUnmount !== true) await expectSpaceBack(t, server, disk, kind);
		const { cleaner } = await server.status();
		assert.ok(cleaner.droppedBytes > 0 || kind.hidesUnmount === true, "nothing was dropped: the test is blind");
		await guest.stop();
		assert.equal((await server.stop()).exitCode, 0);
	}
	if (kind.hidesUnmount === true)
		t.diagnostic(await runOk(vmsweep, ["clean", "--vm-off", disk], { timeoutSeconds: 600 }));
	await checkCommitted(t, disk, expected, kind, ...(kind.onlyInGuests === true ? [hashesInGuest] : []));
}

/** Power cuts of the guest, every other time together with a crash of the server. */
export async function guestCrashes(
	t: TestContext,
	cycles: number,
	kind: FileSystemKind = ext4,
	seed: number = testSeed(),
): Promise<void> {
	const random = seededRandom(seed);
	t.diagnostic(`VMSWEEP_SEED=${random.seed}`);
	await using folder = await temporaryFolder();
	const disk = folder.file("web");
	await createDisk(disk, { size: "768M" });
	let synced = "";
	for (let cycle = 0; cycle < cycles; cycle++) {
		await using server = await SweepServer.serve(disk, "--log-limit", "128M", "--btrfs-mounted", "drop");
		await using guest = await Guest.boot({ disks: [{ uri: server.uri }], discard: "off" });
		await sendLoad(guest);
		if (cycle === 0) await guest.run(`${kind.mkfs.join(" ")} $DISK0`);
		await guest.run(mountCommand(kind));
		await using load = guest.start(`./load.py crash /mnt --seed ${random.below(1e6)}`);
		const lines = random.between(20, 80);
		await load.until(() => load.stdout.split("\n").length > lines, `${lines} synced files`, 240);
		const isCleaned = async (): Promise<boolean> => {
			const { cleaner } = await server.status();
			return cleaner.droppedBytes + cleaner.movedBytes > 0;
		};
		await waitUntil(isCleaned, "something to be cleaned", { timeoutSeconds: 120, everyMs: 200 });
		const both = cycle % 2 === 1;
		if (both) await server.kill();
		await guest.kill();
		await load.finished;
		synced += wholeLines(load);
		if (!both) assert.equal((await server.stop()).exitCode, 0);
		const said = await verifyCrashed(folder.path, disk, synced, kind);
		t.diagnostic(`power cut${both ? " and kill -9 of the server" : ""} after ${lines} synced files; ${said}`);
	}
}
