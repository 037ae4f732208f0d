// F2FS as Linux's own driver leaves it. Unmounted: free blocks equal the segment table, and neither a sweep nor garbage
// in all that is free changes a file. Mounted, or cut off: kept; also where its last checkpoint says that it was
// unmounted, since what was synced after that lies in blocks that the segment table calls free.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
	BLOCKS_PER_SEGMENT,
	Checkpoint,
	CheckpointFlag,
	F2FS_BLOCK,
	SUPERBLOCK_PLACES,
	SuperBlock,
} from "../../src/core/filesystems/f2fs/layout.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { expectSameFree, mapVolume, scrambleFree } from "../interop/map-clusters.ts";
import { decodedF2fs, expectFscked, F2FS_TOOLS, makeF2fs, readImage } from "../interop/map-f2fs-images.ts";
import { isThorough } from "../support/breadth.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Guest } from "../support/guest.ts";
import { allocatedBytes, hashBytes } from "../support/hashes.ts";
import { runOk, vmsweep } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";

interface Variant {
	readonly size: string;
	readonly mkfs: readonly string[];
	/** Mount options. */
	readonly options: string;
	readonly thorough?: true;
}

const variants: Readonly<Record<string, Variant>> = {
	"as it comes": { size: "100M", mkfs: [], options: "noatime" },
	"extended node bitmap, all features": {
		size: "128M",
		mkfs: [
			"-i",
			"-O",
			"extra_attr,inode_checksum,sb_checksum,compression,quota,project_quota,inode_crtime,verity,lost_found",
		],
		options: "compress_algorithm=lz4,compress_extension=c,usrquota,grpquota,prjquota",
	},
	"strictly a log, sections of 4 segments": {
		size: "300M",
		mkfs: ["-s", "4", "-O", "extra_attr,flexible_inline_xattr"],
		options: "mode=lfs",
		thorough: true,
	},
	"four logs, allocated from both ends": {
		size: "64M",
		mkfs: ["-o", "20", "-a", "1"],
		options: "active_logs=4",
		thorough: true,
	},
	"the segment table's bitmap goes on behind the checkpoint": {
		size: "268G",
		mkfs: ["-i"],
		options: "noatime",
		thorough: true,
	},
};

/** Writes, overwrites, cuts, syncs and removes, so that segments become half empty; `.c` files are compressed. */
const work = `
RANDOM=$SEED
cd /mnt
mkdir -p d
for i in $(seq 1 $STEPS); do
	f=f$((RANDOM % 50)); [ $((RANDOM % 3)) = 0 ] && f=d/$f.c
	case $((RANDOM % 8)) in
		0|1|2) head -c $((RANDOM * 12)) /dev/urandom > $f;;
		3) yes $i | head -c $((RANDOM * 20)) > $f;;
		4) rm -f $f;;
		5) [ ! -e $f ] || truncate -s $((RANDOM * 4)) $f;;
		6) head -c 5000 /dev/urandom | dd of=$f bs=5000 seek=$((RANDOM % 40)) conv=notrunc status=none;;
		7) [ ! -e $f ] || sync $f;;
	esac
	[ $((i % 25)) != 0 ] || sync -f .
done 2> /dev/null
rm -f f[1-3]*
sync -f .
exit 0`;

const hashes = "cd /mnt && find . -type f | sort | xargs -r sha256sum";

/** Synced after the checkpoint, into a folder that the checkpoint knows: then no new one is written. */
const sync = "cd /mnt && seq 100000 142999 > late && sync late";
const syncedContent = Buffer.from(Array.from({ length: 43_000 }, (_, i) => `${100_000 + i}\n`).join(""));

describe("as Linux leaves it", () => {
	for (const [name, { size, mkfs, options, thorough }] of Object.entries(variants))
		if (isThorough || !thorough)
			test(name, async (t) => {
				if (!requireTool(t, "guest image", ...F2FS_TOOLS)) return;
				const seed = testSeed() % 32768;
				t.diagnostic(`VMSWEEP_SEED=${seed}`);
				await using folder = await temporaryFolder();
				const [image, swept, scrambled] = [folder.file("image"), folder.file("swept"), folder.file("scrambled")];
				const copy = async (to: string): Promise<string> => {
					await runOk("cp", ["--sparse=always", image, folder.file(to)]);
					return folder.file(to);
				};
				const volumeOf = async (which: string) => (await mapVolume(which)).volumes[0]!;
				const mount = `mount -t f2fs -o ${options} $DISK /mnt`;
				await makeF2fs(image, size, ...mkfs);

				let files = "";
				{
					await using guest = await Guest.boot({ disks: [{ uri: image }], discard: "off" });
					const variables = { SEED: String(seed), STEPS: isThorough ? "600" : "150", DISK: "/dev/disk0" };
					const inGuest = (script: string): Promise<string> => guest.run(script, { variables });
					await inGuest(`modprobe f2fs && ${mount}`);
					await inGuest(work);
					const mounted = await volumeOf(await copy("mounted"));
					assert.deepEqual([mounted.state, mounted.freeBytes], ["dirty", null]);
					assert.match(`${mounted.kept}`, /it was not unmounted/);
					files = await inGuest(hashes);
					await inGuest("umount /mnt");
					await copy("unmounted");

					await inGuest(`${mount} && ${sync}`);
					await expectKeptThoughUnmounted(await copy("synced"));
					await guest.kill();
				}
				await expectKeptThoughUnmounted(image);

				for (const which of [swept, scrambled]) await runOk("cp", ["--sparse=always", folder.file("unmounted"), which]);
				const map = await mapVolume(swept);
				expectSameFree(map, await decodedF2fs(swept));
				await expectFscked(swept);
				const before = await allocatedBytes(swept);
				await runOk(vmsweep, ["sweep", swept]);
				assert.ok((await allocatedBytes(swept)) < before - 100_000);
				if (size !== "268G") assert.equal(await scrambleFree(scrambled, map), map.volumes[0]!.freeBytes);
				for (const which of [swept, scrambled]) await expectFscked(which);

				await using guest = await Guest.boot({
					disks: [image, swept, scrambled].map((uri) => ({ uri })),
					discard: "off",
				});
				await guest.run("modprobe f2fs");
				const filesOf = async (disk: string): Promise<string> => {
					const script = `${mount} && (${hashes}) && umount /mnt`;
					return await guest.run(script, { variables: { DISK: `/dev/${disk}` } });
				};
				const recovered = (await filesOf("disk0")).split("\n");
				const late = recovered.findIndex((line) => line.endsWith("  ./late"));
				assert.deepEqual(recovered.splice(late, 1), [`${hashBytes(syncedContent)}  ./late`]);
				assert.equal(recovered.join("\n"), files);
				assert.equal(await filesOf("disk1"), files);
				assert.equal(await filesOf("disk2"), files);
				await guest.stop();
				for (const which of [image, swept, scrambled]) expectSameFree(await mapVolume(which), await decodedF2fs(which));
			});
});

/**
 * The volume is kept, though its checkpoint says that it was unmounted; and rightly so: the synced file is there, in
 * blocks that are free in the segment table.
 */
async function expectKeptThoughUnmounted(image: string): Promise<void> {
	const volume = (await mapVolume(image)).volumes[0]!;
	assert.match(`${volume.kept}`, /it was mounted again since it was unmounted/);
	assert.deepEqual([volume.state, volume.freeBytes], ["dirty", null]);
	const { checkpointAt } = SuperBlock.at(viewOf(await readImage(image, SUPERBLOCK_PLACES[0]!, SuperBlock.size)));
	const packs = [checkpointAt, checkpointAt + BLOCKS_PER_SEGMENT].map(async (at) =>
		viewOf(await readImage(image, at * F2FS_BLOCK, F2FS_BLOCK)),
	);
	const checkpoint = (await Promise.all(packs)).sort(
		(a, b) => Checkpoint.read.version(b, 0) - Checkpoint.read.version(a, 0),
	)[0]!;
	assert.equal(Checkpoint.read.flags(checkpoint, 0) & CheckpointFlag.unmounted, CheckpointFlag.unmounted);
	// The file begins where one of the three logs of data went on: cur_data_segno[log], cur_data_blkoff[log].
	const { base, free } = await decodedF2fs(image);
	const found: number[] = [];
	for (const log of [0, 1, 2]) {
		const segment = checkpoint.getUint32(0x54 + 4 * log, true);
		const block = segment * BLOCKS_PER_SEGMENT + checkpoint.getUint16(0x74 + 2 * log, true);
		const content = await readImage(image, base + block * F2FS_BLOCK, F2FS_BLOCK);
		if (Buffer.compare(content, syncedContent.subarray(0, F2FS_BLOCK)) === 0) found.push(block);
	}
	assert.equal(found.length, 1);
	assert.equal(free[found[0]!], 1);
}
