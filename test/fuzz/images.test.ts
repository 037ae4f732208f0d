// Fuzzing the readers of VMDK, VHD, VHDX and VDI: real images with mutations of all their structures, checksums put right.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/images.test.ts      a soak

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { imageType, SIGNATURE, Header as VdiHeader, VERSION_1_1 } from "../../src/core/images/vdi/layout.ts";
import { openVdi } from "../../src/core/images/vdi/open.ts";
import {
	checksumOf,
	DynamicHeader,
	diskType,
	FOOTER_COOKIE,
	Footer,
	HEADER_COOKIE,
} from "../../src/core/images/vhd/layout.ts";
import { openVhd } from "../../src/core/images/vhd/open.ts";
import { parseDescriptor } from "../../src/core/images/vmdk/descriptor.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { attemptImage, expectReadable, type ImageTarget } from "./image-fuzz.ts";
import { vdiTargets, vhdTargets, vhdxTargets } from "./image-targets.ts";
import { fuzzSeeds, guardedFile, isVerdict } from "./seeded-fuzz.ts";
import { SparseImage } from "./sparse-image.ts";
import { vmdkTargets } from "./vmdk-targets.ts";

interface Format {
	readonly name: string;
	readonly makeTargets: () => Promise<ImageTarget[]>;
	/** Seeds that once found something: always run. */
	readonly found: readonly number[];
}

const formats: readonly Format[] = [
	{ name: "VMDK", makeTargets: vmdkTargets, found: [] },
	{ name: "VHD", makeTargets: vhdTargets, found: [] },
	{ name: "VHDX", makeTargets: vhdxTargets, found: [] },
	{ name: "VDI", makeTargets: vdiTargets, found: [] },
];

describe("mutated images", () => {
	for (const { name, makeTargets, found } of formats)
		test(`${name}: refused, or read within bounds, always the same`, async (t) => {
			if (!requireTool(t, "qemu-img", "qemu-io")) return;
			const targets = await makeTargets();
			await expectReadable(targets, seededRandom(1));
			const outcomes = ["read", "damaged", "refused"];
			await fuzzSeeds(t, { file: "images.test.ts", found, outcomes }, targets, attemptImage);
		});

	test("VHD and VDI: a disk whose bytes can't be counted exactly is refused", async () => {
		// A sparse file may be that long, and hold nothing but a table of blocks.
		const sparse = (records: DataView): SparseImage => {
			const image = SparseImage.of(new Uint8Array(records.buffer));
			image.resize(2 ** 40);
			return image;
		};
		const refused = { code: "IMAGE_DAMAGED", message: /18014398509481984/ };
		await assert.rejects(openVhd(guardedFile(sparse(hugeVhd())), "image"), refused);
		await assert.rejects(openVdi(guardedFile(sparse(hugeVdi())), "image"), refused);
	});

	test("a VMDK's descriptor can't be made to take long", () => {
		const long = " ".repeat(100_000);
		const lines = [
			`a=${long}"x"y`,
			`a=${long}"x${long}"y`,
			`${long}a${long}`,
			`RW${long}1${long}x${long}"y`,
			`RW ${"1".repeat(100_000)}x`,
		];
		for (const line of lines) {
			const before = process.cpuUsage();
			try {
				parseDescriptor(new TextEncoder().encode(line), "image");
			} catch (error) {
				assert.ok(isVerdict(error));
			}
			assert.ok(process.cpuUsage(before).user < 5e6, `${line.slice(0, 3)}… takes long`);
		}
	});
});

/** The first records of a disk of 2^54 bytes. */
function hugeVhd(): DataView {
	const view = viewOf(new Uint8Array(4096));
	const cookie = (text: string): Uint8Array => new TextEncoder().encode(text);
	const record = (at: number, length: number): Uint8Array => new Uint8Array(view.buffer, at, length);
	const footer = { cookie: cookie(FOOTER_COOKIE), version: 0x1_0000, dataOffset: 512, diskType: diskType.DYNAMIC };
	Footer.put(view, 0, { ...footer, currentSize: 2 ** 54 });
	Footer.write.checksum(view, 0, checksumOf(record(0, Footer.size), Footer.offset.checksum));
	const header = { cookie: cookie(HEADER_COOKIE), version: 0x1_0000, tableOffset: 4096 };
	DynamicHeader.put(view, 512, { ...header, tableEntries: 2 ** 31, blockSize: 2 ** 28 });
	const checksum = checksumOf(record(512, DynamicHeader.size), DynamicHeader.offset.checksum);
	DynamicHeader.write.checksum(view, 512, checksum);
	return view;
}

function hugeVdi(): DataView {
	const view = viewOf(new Uint8Array(4096));
	const format = { signature: SIGNATURE, version: VERSION_1_1, type: imageType.DYNAMIC, sectorSize: 512 };
	const places = { tableOffset: 4096, dataOffset: 2 ** 31 };
	VdiHeader.put(view, 0, { ...format, ...places, diskSize: 2 ** 54, blockSize: 2 ** 28, blockCount: 2 ** 31 });
	return view;
}
