// VMDK images that QEMU makes: content, runs and guest map are those of the raw image; what isn't understood is refused.

import assert from "node:assert/strict";
import { mkdir, open, readFile, rename, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import { Header } from "../../src/core/images/vmdk/layout.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { checkGuestMap, checkImage, MIB, makeExt4, makeRaw, merged, qemuData, runsOf } from "./image-formats.ts";

const SPARSE = ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse"];
const FLAT = ["monolithicFlat", "twoGbMaxExtentFlat"];

const convert = async (raw: string, image: string, options: string): Promise<string> =>
	await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vmdk", "-o", options, raw, image]);

/** A descriptor of QEMU's form with other lines for its extents and fields. */
const descriptor = (extents: readonly string[], fields: readonly string[] = []): string =>
	[
		"# Disk DescriptorFile",
		"version=1",
		"CID=12345678",
		"parentCID=ffffffff",
		'createType="custom"',
		...fields,
		...extents,
		"",
	].join("\n");

describe("VMDK", () => {
	for (const subformat of [...SPARSE, ...FLAT])
		test(`${subformat}: as the raw image`, async (t) => {
			if (!requireTool(t, "qemu-img")) return;
			await using folder = await temporaryFolder();
			const [raw, image] = [folder.file("raw"), folder.file("image.vmdk")];
			await makeRaw(raw, 11 * MIB + 3 * 512, 3);
			await convert(raw, image, `subformat=${subformat}`);
			const compressed = subformat === "streamOptimized";
			assert.deepEqual(await checkImage(image, raw, "vmdk", { compressed }), []);
			if (!SPARSE.includes(subformat)) return;
			await using opened = await openDiskImage(image);
			assert.deepEqual(await runsOf(opened, "data"), await qemuData(image, "vmdk"));
		});

	test("several extents of 2 GiB", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		for (const subformat of ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]) {
			const image = folder.file(`${subformat}.vmdk`);
			await runOk("qemu-img", ["create", "-q", "-f", "vmdk", "-o", `subformat=${subformat}`, image, "5G"]);
			const borders = [0, 2 ** 31, 2 ** 32, 5 * 2 ** 30];
			const writes = borders
				.slice(1)
				.map((border) => `write -P 7 ${border - 65_536} ${border === 5 * 2 ** 30 ? 65_536 : 131_072}`);
			await runOk("qemu-io", ["-f", "vmdk", ...writes.flatMap((each) => ["-c", each]), image]);
			await using opened = await openDiskImage(image);
			assert.equal(opened.size, 5 * 2 ** 30);
			assert.equal((await opened.parts()).length, 4);
			assert.deepEqual(
				// QEMU writes the first block of a flat file.
				(await runsOf(opened, "data")).filter(({ start }) => start > 0),
				borders
					.slice(1)
					.map((border) => ({ start: border - 65_536, length: border === 5 * 2 ** 30 ? 65_536 : 131_072 })),
			);
			const bytes = new Uint8Array(200_000);
			await opened.read(byteOffset(2 ** 31 - 100_000), bytes);
			assert.deepEqual(
				merged([...bytes.entries()].filter(([, byte]) => byte === 7).map(([start]) => ({ start, length: 1 }))),
				[{ start: 34_464, length: 131_072 }],
			);
		}
	});

	for (const subformat of ["monolithicSparse", "streamOptimized", "monolithicFlat"])
		test(`the guest map of an ext4 inside (${subformat})`, async (t) => {
			if (!requireTool(t, "qemu-img", "mke2fs", "debugfs")) return;
			await using folder = await temporaryFolder();
			const [raw, image] = [folder.file("raw"), folder.file("image.vmdk")];
			await makeExt4(raw, 40 * MIB);
			await convert(raw, image, `subformat=${subformat}`);
			await checkGuestMap(image, raw);
		});

	test("zeroed grains", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vmdk")];
		await makeRaw(raw, 4 * MIB, 3);
		await convert(raw, image, "zeroed_grain=on");
		await runOk("qemu-io", ["-f", "vmdk", "-c", "write -P 9 1M 1M", "-c", "write -z 1M 512k", image]);
		await runOk("qemu-img", ["convert", "-f", "vmdk", "-O", "raw", image, raw]);
		await checkImage(image, raw, "vmdk");
		await using opened = await openDiskImage(image);
		assert.ok((await runsOf(opened, "zero")).some(({ start, length }) => start <= MIB && start + length >= 1.5 * MIB));
	});

	test("a delta shows its parent's bytes, and refuses a parent that changed", async (t) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const [raw, base, middle, top] = ["raw", "base.vmdk", "middle.vmdk", "top.vmdk"].map((name) =>
			folder.file(name),
		) as [string, string, string, string];
		await makeRaw(raw, 4 * MIB, 3);
		await convert(raw, base, "subformat=monolithicSparse");
		const overlay = async (below: string, path: string): Promise<string> =>
			await runOk("qemu-img", ["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", below, path], { folder: folder.path });
		await overlay("base.vmdk", middle);
		await runOk("qemu-io", ["-f", "vmdk", "-c", "write -P 1 1M 100k", middle]);
		await overlay("middle.vmdk", top);
		await runOk("qemu-io", ["-f", "vmdk", "-c", "write -P 2 1100k 300k", top]);
		await runOk("qemu-img", ["convert", "-f", "vmdk", "-O", "raw", top, raw]);
		const image = await openDiskImage(top);
		const [expected, bytes] = [await readFile(raw), new Uint8Array(4 * MIB)];
		await image.read(byteOffset(0), bytes);
		assert.ok(Buffer.compare(bytes, expected) === 0);
		assert.deepEqual(
			(await image.parts()).map(({ role }) => role),
			["image", "backing", "backing"],
		);
		assert.deepEqual(await runsOf(image, "data"), await qemuData(top, "vmdk"));
		assert.deepEqual(await Array.fromAsync(image.held(byteOffset(0), byteOffset(image.size))), [
			{ start: 1088 * 1024, length: 320 * 1024 },
		]);
		await image.close();
		// QEMU gives the parent a new content id when it is written as an image of its own.
		await runOk("qemu-io", ["-f", "vmdk", "-c", "write -P 3 0 64k", middle]);
		await assert.rejects(openDiskImage(top), { code: "IMAGE_DAMAGED", message: /was changed/ });
	});

	test("extents of all kinds behind each other", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vmdk")];
		const random = seededRandom(6);
		await writeFile(folder.file("flat"), random.bytes(3 * MIB));
		await mkdir(folder.file("below"));
		const piece = folder.file("piece");
		await writeFile(piece, random.bytes(2 * MIB));
		await convert(piece, folder.file("below/sparse.vmdk"), "subformat=monolithicSparse");
		const sectors = (bytes: number): number => bytes / 512;
		const extents = [
			`RW ${sectors(MIB)} FLAT "flat" ${sectors(2 * MIB)}`,
			`RDONLY ${sectors(MIB / 2)} ZERO`,
			`RDONLY ${sectors(2 * MIB)} SPARSE "below/sparse.vmdk"`,
			`RW ${sectors(MIB)} VMFS "flat"`,
		];
		await writeFile(image, descriptor(extents));
		const flat = await readFile(folder.file("flat"));
		const expected = [flat.subarray(2 * MIB), new Uint8Array(MIB / 2), await readFile(piece), flat.subarray(0, MIB)];
		await writeFile(raw, Buffer.concat(expected));
		await checkImage(image, raw, "vmdk");
	});

	const refused: readonly (readonly [line: string, code: string, message: RegExp])[] = [
		['RW 16 FLAT "/etc/passwd" 0', "IMAGE_UNSUPPORTED", /outside of its folder/],
		['RW 16 FLAT "../secret" 0', "IMAGE_UNSUPPORTED", /outside of its folder/],
		['RW 16 SPARSE "a/../../secret"', "IMAGE_UNSUPPORTED", /outside of its folder/],
		['RW 16 FLAT "nbd:localhost:1" 0', "IMAGE_UNSUPPORTED", /outside of its folder/],
		['RW 16 VMFSSPARSE "flat"', "IMAGE_UNSUPPORTED", /VMFSSPARSE/],
		['RW 16 SESPARSE "flat"', "IMAGE_UNSUPPORTED", /SESPARSE/],
		['NOACCESS 16 FLAT "flat" 0', "IMAGE_UNSUPPORTED", /NOACCESS/],
		['RW 99 FLAT "flat" 0', "IMAGE_DAMAGED", /ends at byte 8192/],
		['RW 8 FLAT "flat" 9', "IMAGE_DAMAGED", /ends at byte 8192/],
		['RW 0 FLAT "flat" 0', "IMAGE_DAMAGED", /0 sectors/],
		['RW 8 SPARSE "flat"', "IMAGE_DAMAGED", /mark/],
		["RW lots FLAT", "IMAGE_DAMAGED", /can't be read/],
		["", "IMAGE_DAMAGED", /no extents/],
		['RW 8 FLAT "missing" 0', "FILE_NOT_FOUND", /missing/],
		['parentCID=11111111\nRW 8 FLAT "flat" 0', "IMAGE_DAMAGED", /names no parent/],
		['parentCID=11111111\nparentFileNameHint="/vm/base.vmdk"\nRW 8 FLAT "flat" 0', "IMAGE_UNSUPPORTED", /outside/],
		['encryption.keySafe = "vmware:key"\nRW 8 FLAT "flat" 0', "IMAGE_UNSUPPORTED", /encrypted/],
	];
	test("descriptors that lead elsewhere, and kinds that aren't known, are refused", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		await writeFile(folder.file("secret"), new Uint8Array(8192));
		await mkdir(folder.file("images"));
		await writeFile(folder.file("images/flat"), new Uint8Array(8192));
		const image = join(folder.path, "images/image.vmdk");
		await writeFile(image, descriptor(['RW 8 FLAT "flat" 8']));
		await (await openDiskImage(image)).close();
		for (const [line, code, message] of refused) {
			await writeFile(image, descriptor([line]));
			await assert.rejects(openDiskImage(image), { code, message }, line);
		}
		await writeFile(image, `COWD${"\0".repeat(8188)}`);
		await assert.rejects(openDiskImage(image), { code: "IMAGE_UNSUPPORTED", message: /COWD/ });
		// A raw image whose guest wrote a descriptor into its first sectors names nobody else's file.
		await writeFile(image, descriptor(['RW 8 FLAT "flat" 0']));
		await truncate(image, 2 * MIB);
		await assert.rejects(openDiskImage(image), { code: "IMAGE_DAMAGED", message: /descriptor has 2097152 bytes/ });
	});

	test("a sparse extent's directory: the redundant one helps, a cut file is damaged", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vmdk")];
		await makeRaw(raw, 4 * MIB, 3);
		await convert(raw, image, "subformat=monolithicSparse");
		const whole = await readFile(image);
		const header = Header.at(viewOf(whole));
		assert.notEqual(header.redundantDirectory, 0);
		{
			await using file = await open(image, "r+");
			await file.write(Uint8Array.of(0xff, 0xff, 0xff, 0xff), 0, 4, header.directory * 512);
		}
		await checkImage(image, raw, "vmdk");
		await writeFile(image, whole.subarray(0, whole.length - 65_536));
		await using opened = await openDiskImage(image);
		await assert.rejects(opened.read(byteOffset(0), new Uint8Array(4 * MIB)), { code: "IMAGE_DAMAGED" });
	});

	test("a streamOptimized image that was cut has no footer", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image, moved] = [folder.file("raw"), folder.file("image.vmdk"), folder.file("moved.vmdk")];
		await makeRaw(raw, 4 * MIB, 3);
		await convert(raw, image, "subformat=streamOptimized");
		const whole = await readFile(image);
		// QEMU writes the directory in front; programs that can't go back write it behind, and say so in the header.
		const bytes = Buffer.alloc(whole.length + 3 * 512);
		bytes.set(whole);
		const footer = Buffer.alloc(3 * 512);
		footer.writeUInt32LE(1, 0);
		footer.writeUInt32LE(3, 12);
		footer.set(whole.subarray(0, 512), 512);
		bytes.set(footer, whole.length);
		Header.write.directory(viewOf(bytes), 0, 2 ** 64);
		bytes.fill(0xff, Header.offset.directory, Header.offset.directory + 8);
		await writeFile(image, bytes);
		await rename(image, moved);
		await checkImage(moved, raw, "vmdk", { compressed: true });
		await runOk("qemu-img", ["compare", "-f", "raw", "-F", "vmdk", raw, moved]);
		await truncate(moved, bytes.length - 512);
		await assert.rejects(openDiskImage(moved), { code: "IMAGE_DAMAGED", message: /footer/ });
	});
});
