// Fuzzing the NTFS reader: mutations of the boot sector, of MFT records (with right fixups and the same in $MFTMirr),
// the log, the root directory and the bitmap.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/ntfs.test.ts      a soak

import { readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { readNtfs } from "../../src/core/filesystems/ntfs/index.ts";
import { AttributeType, BootSector, MAGIC_FILE, MAGIC_INDEX } from "../../src/core/filesystems/ntfs/layout.ts";
import { parseBootSector } from "../../src/core/filesystems/ntfs/open.ts";
import { applyFixups } from "../../src/core/filesystems/ntfs/records.ts";
import { NtfsEditor, protect } from "../interop/map-ntfs-writer.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import type { Random } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import type { FuzzTarget } from "./reader-fuzz.ts";
import { fuzzReader, scramble } from "./reader-fuzz.ts";

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

/** $MFT, $MFTMirr, $LogFile, $Volume, the root directory, $Bitmap, $Boot, and where lists continue. */
const RECORDS = [0, 0, 0, 1, 2, 3, 5, 5, 6, 6, 6, 7, 14, 15, 64] as const;

async function makeTarget(name: string, size: string, clusterSize: number, lists: boolean): Promise<FuzzTarget> {
	await using folder = await temporaryFolder();
	const [image, content] = [folder.file("image"), folder.file("content")];
	await runOk("truncate", ["-s", size, image]);
	await runOk("mkntfs", ["-q", "-F", "-f", "-c", String(clusterSize), image]);
	const awake = new Uint8Array(5000);
	new TextEncoder().encodeInto("wake", awake);
	await writeFile(content, awake);
	for (const file of ["hiberfil.sys", ...Array.from({ length: 12 }, (_, i) => `some long name of a file ${i}`)])
		await runOk("ntfscp", ["-q", "-f", image, content, file]);
	const bytes = new Uint8Array(await readFile(image));
	const editor = new NtfsEditor(bytes);
	if (lists) {
		editor.split(6, 1, 14, 10);
		editor.split(0, 40, 15);
	}
	const logAt = editor.firstRun(2, AttributeType.data);
	const bitmapAt = editor.firstRun(6, AttributeType.data);
	const indexAt = editor.firstRun(5, AttributeType.indexAllocation);
	return {
		name,
		bytes,
		mutate(bytes, random) {
			switch (random.below(10)) {
				case 0: {
					const field = random.pick(Object.entries(BootSector.offset));
					scramble(bytes.subarray(field[1]), random);
					return `boot sector ${field[0]}`;
				}
				case 1: {
					const at = random.pick([logAt, logAt + 4096]) + random.below(64);
					scramble(bytes.subarray(at), random);
					return `log ${at - logAt}`;
				}
				case 2: {
					const at = bitmapAt + random.below(400);
					scramble(bytes.subarray(at), random);
					return `bitmap ${at - bitmapAt}`;
				}
				case 3: {
					const block = bytes.slice(indexAt, indexAt + 4096);
					const fixed = applyFixups(block, MAGIC_INDEX);
					const at = random.pick([0x18, 0x1c, 0x28, 0x30, 0x32, random.below(1500)]);
					scramble(block.subarray(at), random);
					if (fixed) protect(block);
					bytes.set(block, indexAt);
					return `index block ${at}`;
				}
				default:
					return mutateRecord(bytes, editor, random);
			}
		},
		protectedIn(bytes) {
			const { clusterSize, mftCluster, mftMirrorCluster, recordSize } = parseBootSector(
				bytes.slice(0, 512),
				bytes.length,
			);
			const records = (cluster: number) => [cluster * clusterSize, cluster * clusterSize + 4 * recordSize] as const;
			return [[0, 8192], records(mftCluster), records(mftMirrorCluster), [bytes.length - 512, bytes.length]];
		},
	};
}

function mutateRecord(bytes: Uint8Array, editor: NtfsEditor, random: Random): string {
	const number = random.pick(RECORDS);
	const { recordSize } = editor.geometry;
	const at = editor.placeOf(number);
	const raw = bytes.slice(at, at + recordSize);
	const fixed = applyFixups(raw, MAGIC_FILE);
	// Most of what matters stands in attribute headers: in the first half, at even offsets.
	const within = random.chance(0.9) ? random.below(recordSize / 4) * 2 : random.below(recordSize);
	scramble(raw.subarray(within), random);
	if (fixed && random.chance(0.95)) protect(raw);
	bytes.set(raw, at);
	if (number < 4 && random.chance(0.95)) bytes.set(raw, editor.placeOf(number, true));
	return `record ${number} at ${within}`;
}

test("a map that holds, or one of our errors", async (t) => {
	if (!requireTool(t, "mkntfs", "ntfscp")) return;
	const targets = [
		await makeTarget("512-byte clusters", "3M", 512, false),
		await makeTarget("512-byte clusters, attribute lists", "3M", 512, true),
		await makeTarget("4 KiB clusters", "6M", 4096, false),
	];
	await fuzzReader(t, readNtfs, targets, FOUND);
});
