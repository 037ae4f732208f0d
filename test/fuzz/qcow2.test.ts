// Fuzzing qcow2: real images of all kinds with mutated headers, tables, snapshots and packed clusters, mostly with reference
// counts that fit them again. What is opened is read; what is verified is swept.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/qcow2.test.ts      a soak

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import type { ImageFile } from "../../src/core/images/image-file.ts";
import { VmsweepError } from "../../src/foundations/errors.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { attemptImage, expectReadable } from "./image-fuzz.ts";
import { layoutOf } from "./qcow2-layout.ts";
import { attemptStore } from "./qcow2-store-fuzz.ts";
import { attemptSweep } from "./qcow2-sweep-fuzz.ts";
import { openQcow2, type Qcow2Target, qcow2Targets } from "./qcow2-targets.ts";
import { fuzzSeeds, guardedFile } from "./seeded-fuzz.ts";

/** Seeds that once found something: always run. */
const FOUND = { reading: [80, 1376947882], sweeping: [42, 835], writing: [3754650851] } as const;

describe("mutated qcow2 images", () => {
	let targets: Qcow2Target[] | undefined;

	test("refused, or read within bounds, always the same", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		targets ??= await qcow2Targets();
		await expectReadable(targets, seededRandom(1));
		const outcomes = ["read", "damaged", "refused"];
		await fuzzSeeds(t, { file: "qcow2.test.ts", found: FOUND.reading, outcomes }, targets, attemptImage);
	});

	test("refused, or swept without any other change", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		targets ??= await qcow2Targets();
		await using folder = await temporaryFolder();
		const outcomes = ["refused", "swept", "swept, shown to QEMU", "nothing to sweep"];
		await fuzzSeeds(t, { file: "qcow2.test.ts", found: FOUND.sweeping, outcomes }, targets, (attempt) =>
			attemptSweep(attempt, folder.file("image")),
		);
	});

	test("refused, or written in place as a second image, without any other change", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		targets ??= await qcow2Targets();
		await using folder = await temporaryFolder();
		const outcomes = ["refused", "written", "written, shown to QEMU"];
		await fuzzSeeds(t, { file: "qcow2.test.ts", found: FOUND.writing, outcomes }, targets, (attempt) =>
			attemptStore(attempt, folder.file("image")),
		);
	});

	test("storage that fails while tables are still read: an error, not the end of the process", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		targets ??= await qcow2Targets();
		for (const { name, image, backing } of targets.filter(({ parts }) => parts.size === 0)) {
			const tables = layoutOf(image)!.l2Tables;
			const file = guardedFile(image);
			let isFailing = false;
			const failing: ImageFile = {
				size: file.size,
				async read(at, into) {
					if (tables.has(at)) await setTimeout(1);
					else if (isFailing) throw new VmsweepError("IO", "the storage failed");
					await file.read(at, into);
				},
			};
			const { disk } = await openQcow2(failing, backing, async () => failing);
			isFailing = true;
			await assert.rejects(disk.read(byteOffset(0), new Uint8Array(disk.size)), { code: "IO" }, name);
			isFailing = false;
			await disk.read(byteOffset(0), new Uint8Array(disk.size));
		}
	});
});
