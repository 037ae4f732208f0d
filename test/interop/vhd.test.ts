// VHD images that QEMU makes: content, runs and guest map are those of the raw image; what isn't understood is refused.

import assert from "node:assert/strict";
import { copyFile, open, readFile, rename, truncate, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import { checksumOf, DynamicHeader, Footer } from "../../src/core/images/vhd/layout.ts";
import { openVhd } from "../../src/core/images/vhd/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { checkGuestMap, checkImage, MIB, makeExt4, makeRaw, qemuData, runsOf } from "./image-formats.ts";
import { openSource } from "./map-images.ts";

type FooterValues = Parameters<typeof Footer.put>[2];

/** The footers' bytes with other values, and with the checksum that belongs to them. */
function withFooter(image: Uint8Array, values: FooterValues, places: readonly number[]): Uint8Array {
	const bytes = Uint8Array.from(image);
	for (const place of places) {
		Footer.put(viewOf(bytes), place, values);
		const record = bytes.subarray(place, place + Footer.size);
		Footer.write.checksum(viewOf(bytes), place, checksumOf(record, Footer.offset.checksum));
	}
	return bytes;
}

describe("VHD", () => {
	for (const subformat of ["dynamic", "fixed"])
		for (const forced of [false, true])
			test(`${subformat}, ${forced ? "size in bytes" : "size by geometry"}: as QEMU reads it`, async (t) => {
				if (!requireTool(t, "qemu-img")) return;
				await using folder = await temporaryFolder();
				const [raw, image] = [folder.file("raw"), folder.file("image.vhd")];
				await makeRaw(raw, 11 * MIB + 3 * 512, 3);
				const options = `subformat=${subformat},force_size=${forced ? "on" : "off"}`;
				await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", "-o", options, raw, image]);
				if (!forced) {
					// QEMU made the disk larger, to fit a geometry: it decides how large.
					await runOk("qemu-img", ["convert", "-f", "vpc", "-O", "raw", image, raw]);
					assert.ok((await readFile(raw)).length > 11 * MIB + 3 * 512);
				}
				assert.deepEqual(await checkImage(image, raw, "vhd"), []);
				await using source = await openSource(image);
				assert.deepEqual(await runsOf(await openVhd(source, image), "data"), await qemuData(image, "vpc"));
			});

	test("the guest map of an ext4 inside", async (t) => {
		if (!requireTool(t, "qemu-img", "mke2fs", "debugfs")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vhd")];
		await makeExt4(raw, 40 * MIB);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, image]);
		await checkGuestMap(image, raw);
	});

	test("the size follows the program that made it, as far as QEMU knows that program", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image.vhd");
		await runOk("qemu-img", ["create", "-q", "-f", "vpc", "-o", "force_size=on", image, "33554944"]);
		const whole = await readFile(image);
		const [front, back] = [0, whole.length - Footer.size];
		// With a size in bytes QEMU writes the largest geometry, which means none.
		const geometry = { cylinders: 963, heads: 4, sectorsPerTrack: 17 };
		const bySectors = 963 * 4 * 17 * 512;
		for (const creator of ["vpc ", "qemu", "qem2", "win ", "d2v ", "tap\0", "CTXS"]) {
			const bytes = withFooter(whole, { creator: new TextEncoder().encode(creator), ...geometry }, [front, back]);
			await writeFile(image, bytes);
			const info = JSON.parse(await runOk("qemu-img", ["info", "-f", "vpc", "--output=json", image]));
			await using opened = await openDiskImage(image);
			assert.equal(opened.size, info["virtual-size"], creator);
			assert.equal(opened.size, creator === "vpc " || creator === "qemu" ? bySectors : 33_554_944);
		}
		// QEMU doesn't know VirtualBox, which shows the size in bytes.
		await writeFile(
			image,
			withFooter(whole, { creator: new TextEncoder().encode("vbox"), ...geometry }, [front, back]),
		);
		await using opened = await openDiskImage(image);
		assert.equal(opened.size, 33_554_944);
	});

	test("sectors that were never written read as zeros", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vhd")];
		const expected = new Uint8Array(2 * MIB).fill(0x11);
		await writeFile(raw, expected);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, image]);
		const bytes = await readFile(image);
		const header = DynamicHeader.at(viewOf(bytes), Footer.at(viewOf(bytes)).dataOffset);
		const bitmapAt = viewOf(bytes).getUint32(header.tableOffset) * 512;
		assert.equal(bytes[bitmapAt], 0xff);
		bytes[bitmapAt] = 0b1011_1111; // the second sector
		bytes[bitmapAt + 511] = 0b1111_1110; // the last one
		await writeFile(image, bytes);
		expected.fill(0, 512, 1024);
		expected.fill(0, 2 * MIB - 512);
		await writeFile(raw, expected);
		await checkImage(image, raw, "vhd");
		await using opened = await openDiskImage(image);
		assert.deepEqual(await runsOf(opened, "data"), [
			{ start: 0, length: 512 },
			{ start: 1024, length: 2 * MIB - 1536 },
		]);
	});

	test("a hole of the file is not held, and reads as zeros", async (t) => {
		if (!requireTool(t, "qemu-img", "fallocate")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vhd")];
		await writeFile(raw, new Uint8Array(4 * MIB).fill(0x11));
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on,subformat=fixed", raw, image]);
		const held = async (): Promise<unknown> => {
			await using opened = await openDiskImage(image);
			return await Array.fromAsync(opened.held(byteOffset(0), byteOffset(opened.size)));
		};
		assert.deepEqual(await held(), [{ start: 0, length: 4 * MIB }]);
		for (const each of [image, raw]) await runOk("fallocate", ["-p", "-o", `${MIB}`, "-l", "65536", each]);
		assert.deepEqual(await held(), [
			{ start: 0, length: MIB },
			{ start: MIB + 65_536, length: 3 * MIB - 65_536 },
		]);
		await checkImage(image, raw, "vhd");
	});

	test("a fixed disk needs its name to be taken for one", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [vhd, raw] = [folder.file("image.VHD"), folder.file("image.img")];
		await runOk("qemu-img", ["create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", vhd, "2M"]);
		const formatOf = async (path: string): Promise<string> => {
			await using opened = await openDiskImage(path);
			return `${opened.format} ${opened.size}`;
		};
		assert.equal(await formatOf(vhd), `vhd ${2 * MIB}`);
		await rename(vhd, raw);
		assert.equal(await formatOf(raw), `raw ${2 * MIB + 512}`);
		const bytes = await readFile(raw);
		bytes[bytes.length - 512 + 20] = 0x55; // a footer with a wrong checksum
		await writeFile(vhd, bytes);
		assert.equal(await formatOf(vhd), `raw ${2 * MIB + 512}`);
	});

	test("either footer is enough; without both the image is damaged", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image, spoilt] = [folder.file("raw"), folder.file("image.vhd"), folder.file("spoilt.vhd")];
		await makeRaw(raw, 5 * MIB, 3);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, image]);
		const size = (await readFile(image)).length;
		await copyFile(image, spoilt);
		await truncate(spoilt, size - 512);
		assert.deepEqual(await checkImage(spoilt, raw, "vhd"), []);
		await copyFile(image, spoilt);
		{
			await using file = await open(spoilt, "r+");
			await file.write(Uint8Array.of(0xff), 0, 1, 300);
		}
		assert.match((await checkImage(spoilt, raw, "vhd")).join(), /footer in front is damaged/);
		await truncate(spoilt, size - 512);
		await assert.rejects(openDiskImage(spoilt), { code: "IMAGE_DAMAGED", message: /footer/ });
	});

	test("what can't be read is refused, and says why", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image.vhd");
		await runOk("qemu-img", ["create", "-q", "-f", "vpc", image, "8M"]);
		const whole = await readFile(image);
		const headerAt = Footer.at(viewOf(whole)).dataOffset;
		const cases: readonly { values?: FooterValues; header?: object; code: string; message: RegExp }[] = [
			{ values: { diskType: 4 }, code: "IMAGE_UNSUPPORTED", message: /parent/ },
			{ values: { diskType: 9 }, code: "IMAGE_UNSUPPORTED", message: /type 9/ },
			{ values: { version: 0x20000 }, code: "IMAGE_UNSUPPORTED", message: /version 2\.0/ },
			{ values: { dataOffset: 2 ** 40 }, code: "IMAGE_DAMAGED", message: /header/ },
			{ header: { blockSize: 3 }, code: "IMAGE_DAMAGED", message: /block size/ },
			{ header: { tableEntries: 1 }, code: "IMAGE_DAMAGED", message: /1 blocks/ },
			{ header: { tableOffset: 2 ** 40 }, code: "IMAGE_DAMAGED", message: /table of blocks/ },
			{ header: { checksum: 7 }, code: "IMAGE_DAMAGED", message: /checksum/ },
		];
		for (const { values = {}, header, code, message } of cases) {
			const bytes = withFooter(whole, values, [0]);
			if (header !== undefined) {
				DynamicHeader.put(viewOf(bytes), headerAt, header);
				const checksum = checksumOf(bytes.subarray(headerAt, headerAt + DynamicHeader.size), 36);
				if (!("checksum" in header)) DynamicHeader.write.checksum(viewOf(bytes), headerAt, checksum);
			}
			await writeFile(image, bytes);
			await assert.rejects(openDiskImage(image), { code, message });
		}
		await writeFile(image, withFooter(whole, { savedState: 1 }, [0]));
		await using opened = await openDiskImage(image);
		assert.match(opened.warnings.join(), /suspended/);
	});
});
