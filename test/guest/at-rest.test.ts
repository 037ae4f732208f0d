// File systems that are judged at rest, by a guest's kernel: while mounted nothing of a deleted file is dropped, once
// unmounted all of it is, and every other file is as it was. Those that don't show an unmount on the disk are kept.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isThorough } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { createDisk, SweepServer } from "../support/loop-server.ts";
import { requireTool } from "../support/requirements.ts";

const MIB = 1024 * 1024;
const JUNK_BYTES = 24 * MIB;

interface Kind {
	readonly mkfs: string;
	readonly mount: string;
	readonly check: string;
	/** What the status says while it is mounted. */
	readonly reason: RegExp;
	/** It is kept when it is unmounted, too. */
	readonly kept?: true;
}

const allKinds: Readonly<Record<string, Kind>> = {
	FAT: {
		mkfs: "mkfs.vfat -F 32",
		mount: "mount -t vfat",
		check: "fsck.vfat -n",
		reason: /FAT is cleaned when/,
	},
	F2FS: {
		mkfs: "mkfs.f2fs -q",
		mount: "mount -t f2fs",
		check: "fsck.f2fs",
		reason: /F2FS is cleaned when|not unmounted/,
	},
	"XFS, version 4": {
		mkfs: "mkfs.xfs -q -m crc=0",
		mount: "mount -t xfs",
		check: "xfs_repair -n",
		reason: /XFS of this kind is cleaned when|it is mounted/,
	},
	exFAT: {
		mkfs: "mkfs.exfat",
		mount: "mount -t exfat",
		check: "fsck.exfat -n",
		reason: /exFAT doesn't show/,
		kept: true,
	},
	"NTFS by ntfs-3g": {
		mkfs: "mkfs.ntfs -q -Q",
		mount: "ntfs-3g",
		check: "ntfsfix -n",
		reason: /after ntfs-3g/,
		kept: true,
	},
};

/** Those that show their unmount; all of them in a soak. */
const kinds = Object.fromEntries(Object.entries(allKinds).filter(([, { kept }]) => isThorough || kept !== true));

/** After some rounds in which nothing was written: whatever can be looked at was. */
async function afterRest(server: SweepServer): Promise<Awaited<ReturnType<SweepServer["status"]>>> {
	await server.rounds(4);
	return await server.status();
}

const HASHES = "cd /mnt/keep && sha256sum * && cd /";

describe("volumes at rest in a guest", () => {
	test("nothing of them while mounted, all of it once unmounted", async (t) => {
		if (!requireTool(t, "guest image")) return;
		await using folder = await temporaryFolder();
		const servers = new Map<string, SweepServer>();
		await using stack = new AsyncDisposableStack();
		for (const [index, name] of Object.keys(kinds).entries()) {
			await createDisk(folder.file(`d${index}`), { size: "320M" });
			servers.set(name, stack.use(await SweepServer.serve(folder.file(`d${index}`))));
		}
		await using guest = await Guest.boot({ disks: [...servers.values()].map(({ uri }) => ({ uri })), discard: "off" });
		for (const [index, [name, kind]] of Object.entries(kinds).entries())
			await t.test(name, async (t) => {
				const server = servers.get(name)!;
				const disk = `$DISK${index}`;
				const expected = await guest.run(`
					set -e
					${kind.mkfs} ${disk} > /dev/null 2>&1
					${kind.mount} ${disk} /mnt
					mkdir /mnt/keep /mnt/junk
					for i in $(seq 8); do
						head -c 300000 /dev/urandom > /mnt/keep/$i
						head -c ${JUNK_BYTES / 8} /dev/urandom > /mnt/junk/$i
					done
					sync; rm -r /mnt/junk; sync
					${HASHES}`);
				const before = (await server.status()).cleaner.droppedBytes;
				const still = await afterRest(server);
				assert.equal(still.cleaner.droppedBytes, before, "something was dropped while it was mounted");
				assert.match(still.volumes[0]?.reason ?? "", kind.reason);
				await guest.run("umount /mnt; sync");
				if (kind.kept === true) {
					const unmounted = await afterRest(server);
					assert.equal(unmounted.cleaner.droppedBytes, before, "it was dropped without a proof");
				} else {
					const { cleaner } = await server.reaches(
						(status) => status.cleaner.droppedBytes - before >= JUNK_BYTES * 0.98,
						"the deleted files' space",
					);
					t.diagnostic(`${cleaner.droppedBytes - before} bytes dropped after the unmount`);
				}
				await guest.run(`${kind.check} ${disk}`);
				assert.equal(await guest.run(`${kind.mount} ${disk} /mnt && ${HASHES}; umount /mnt`), expected);
			});
		await guest.stop();
	});
});
