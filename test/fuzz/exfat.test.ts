// Fuzzing the exFAT reader: mutations of the boot region (with right checksums), the FAT, the root directory and the
// bitmap.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/exfat.test.ts      a soak

import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { readExfat } from "../../src/core/filesystems/exfat/index.ts";
import { BootSector } from "../../src/core/filesystems/exfat/layout.ts";
import { bootChecksum } from "../../src/core/filesystems/exfat/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import type { FuzzTarget } from "./reader-fuzz.ts";
import { fuzzReader, scramble } from "./reader-fuzz.ts";

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

/** Where things lie, in bytes, as the boot sector has it. */
function layoutOf(bytes: Uint8Array) {
	const boot = BootSector.at(viewOf(bytes));
	const sectorSize = 2 ** boot.bytesPerSectorShift;
	const clusterSize = sectorSize * 2 ** boot.sectorsPerClusterShift;
	const dataAt = boot.clusterHeapOffset * sectorSize;
	const rootAt = dataAt + (boot.rootCluster - 2) * clusterSize;
	return { boot, sectorSize, clusterSize, dataAt, rootAt, fatAt: boot.fatOffset * sectorSize };
}

async function makeTarget(name: string, size: string, options: readonly string[]): Promise<FuzzTarget> {
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkfs.exfat", ["-L", "label", ...options, image]);
	const bytes = new Uint8Array(await readFile(image));
	const { rootAt, fatAt, dataAt } = layoutOf(bytes);
	return {
		name,
		bytes,
		mutate(bytes, random) {
			switch (random.below(5)) {
				case 0:
				case 1: {
					const [field, at] = random.pick(Object.entries(BootSector.offset));
					scramble(bytes.subarray(at), random);
					const { sectorSize } = layoutOf(bytes);
					if (random.chance(0.95) && sectorSize >= 512 && sectorSize <= 4096) {
						const sum = bootChecksum(bytes.subarray(0, 11 * sectorSize));
						for (let at = 11 * sectorSize; at < 12 * sectorSize; at += 4) viewOf(bytes).setUint32(at, sum, true);
					}
					return `boot sector ${field}`;
				}
				case 2: {
					const at = random.below(3) * 32 + random.pick([0, 1, 0x14, 0x15, 0x18, 0x19, random.below(32)]);
					scramble(bytes.subarray(rootAt + at), random);
					return `root directory ${at}`;
				}
				case 3: {
					const at = random.below(64);
					scramble(bytes.subarray(fatAt + at), random);
					return `FAT ${at}`;
				}
				default: {
					const at = random.below(64);
					scramble(bytes.subarray(dataAt + at), random);
					return `bitmap ${at}`;
				}
			}
		},
		protectedIn(bytes) {
			const { boot, clusterSize, dataAt, rootAt } = layoutOf(bytes);
			const end = dataAt + boot.clusterCount * clusterSize;
			return [
				[0, dataAt],
				[rootAt, rootAt + clusterSize],
				[end, Number.POSITIVE_INFINITY],
			];
		},
	};
}

test("a map that holds, or one of our errors", async (t) => {
	if (!requireTool(t, "mkfs.exfat")) return;
	const targets = [
		await makeTarget("512-byte clusters", "3M", ["-c", "512", "-b", "4K"]),
		await makeTarget("4 KiB clusters", "8M", ["-c", "4K", "-b", "64K"]),
		await makeTarget("64 KiB clusters, bitmap beside the FAT", "8M", ["-c", "64K", "-b", "64K", "--pack-bitmap"]),
	];
	await fuzzReader(t, readExfat, targets, FOUND);
});
