// Fuzzing the FAT reader: mutations of the boot sector, of table entries (mostly the same in both FATs), and of the root
// directory.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/fat.test.ts      a soak

import { mkdir, readFile } from "node:fs/promises";
import { test } from "node:test";
import { readFat } from "../../src/core/filesystems/fat/index.ts";
import { BootSector, Tail16, Tail32 } from "../../src/core/filesystems/fat/layout.ts";
import { parseBootSector } from "../../src/core/filesystems/fat/open.ts";
import { workOn } from "../interop/map-clusters.ts";
import { temporaryFolder } from "../support/folders.ts";
import { run, runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import type { FuzzTarget } from "./reader-fuzz.ts";
import { fuzzReader, scramble } from "./reader-fuzz.ts";

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

async function makeTarget(name: string, size: string, options: readonly string[]): Promise<FuzzTarget> {
	await using folder = await temporaryFolder();
	const [image, content] = [folder.file("image"), folder.file("content")];
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkfs.fat", [...options, image]);
	await mkdir(content);
	await workOn(content, seededRandom(1), 40, 60_000);
	await run("mcopy", ["-s", "-Q", "-i", image, content, "::/one"]);
	await run("mcopy", ["-s", "-Q", "-i", image, content, "::/two"]);
	await run("mdeltree", ["-i", image, "::/one"]);
	const bytes = new Uint8Array(await readFile(image));
	const { fatAt, fatSize, fatCount, rootAt, bits } = parseBootSector(bytes.slice(0, 512), bytes.length);
	const fields = Object.entries({ ...BootSector.offset, ...(bits === 32 ? Tail32 : Tail16).offset });
	return {
		name,
		bytes,
		mutate(bytes, random) {
			switch (random.below(5)) {
				case 0: {
					const [field, at] = random.pick(fields);
					scramble(bytes.subarray(at), random);
					return `boot sector ${field}`;
				}
				case 1: {
					const at = random.below(2048);
					scramble(bytes.subarray(rootAt + at), random);
					return `root directory ${at}`;
				}
				default: {
					const at = random.chance(0.3) ? random.below(16) : random.below(Math.min(fatSize - 4, 2000));
					scramble(bytes.subarray(fatAt + at), random);
					if (random.chance(0.9))
						for (let copy = 1; copy < fatCount; copy++)
							bytes.copyWithin(fatAt + copy * fatSize + at, fatAt + at, fatAt + at + 4);
					return `entries at ${at}`;
				}
			}
		},
		protectedIn(bytes) {
			const { dataAt, clusterCount, clusterSize, rootCluster } = parseBootSector(bytes.slice(0, 512), bytes.length);
			const end = dataAt + clusterCount * clusterSize;
			const root = dataAt + (rootCluster - 2) * clusterSize;
			const outside: [number, number][] = [
				[0, dataAt],
				[end, Number.POSITIVE_INFINITY],
			];
			return rootCluster === 0 ? outside : [...outside, [root, root + clusterSize]];
		},
	};
}

test("a map that holds, or one of our errors", async (t) => {
	if (!requireTool(t, "mkfs.fat", "mcopy", "mdeltree")) return;
	const targets = [
		await makeTarget("FAT12", "2M", ["-F", "12", "-s", "1"]),
		await makeTarget("FAT16", "4M", ["-F", "16", "-s", "1"]),
		await makeTarget("FAT32", "4M", ["-F", "32", "-s", "1"]),
		await makeTarget("FAT32 of 16 KiB clusters", "16M", ["-F", "32", "-s", "32", "-f", "1"]),
	];
	await fuzzReader(t, readFat, targets, FOUND);
});
