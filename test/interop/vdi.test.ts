// VDI images that QEMU makes: content, runs and guest map are those of the raw image; what isn't understood is refused.

import assert from "node:assert/strict";
import { open, readFile, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import { Header } from "../../src/core/images/vdi/layout.ts";
import { openVdi } from "../../src/core/images/vdi/open.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { checkGuestMap, checkImage, MIB, makeExt4, makeRaw, qemuData, runsOf } from "./image-formats.ts";
import { openSource } from "./map-images.ts";

/** Name: options of qemu-img. */
const kinds: Readonly<Record<string, readonly string[]>> = { dynamic: [], static: ["-o", "static=on"] };

describe("VDI", () => {
	for (const [kind, options] of Object.entries(kinds))
		test(`${kind}: as the raw image`, async (t) => {
			if (!requireTool(t, "qemu-img")) return;
			await using folder = await temporaryFolder();
			const [raw, image] = [folder.file("raw"), folder.file("image.vdi")];
			await makeRaw(raw, 11 * MIB + 3 * 512, 3);
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vdi", ...options, raw, image]);
			assert.deepEqual(await checkImage(image, raw, "vdi"), []);
			await using source = await openSource(image);
			assert.deepEqual(await runsOf(await openVdi(source, image), "data"), await qemuData(image, "vdi"));
		});

	test("the guest map of an ext4 inside", async (t) => {
		if (!requireTool(t, "qemu-img", "mke2fs", "debugfs")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vdi")];
		await makeExt4(raw, 40 * MIB);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vdi", raw, image]);
		await checkGuestMap(image, raw);
	});

	test("a discarded block reads as zeros", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const [raw, image] = [folder.file("raw"), folder.file("image.vdi")];
		await makeRaw(raw, 6 * MIB, 4);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "vdi", "-o", "static=on", raw, image]);
		const expected = await readFile(raw);
		await using file = await open(image, "r+");
		const { tableOffset } = Header.at(viewOf(await readFile(image)));
		await file.write(Uint8Array.of(0xfe, 0xff, 0xff, 0xff), 0, 4, tableOffset + 2 * 4);
		expected.fill(0, 2 * MIB, 3 * MIB);
		await writeFile(raw, expected);
		await checkImage(image, raw, "vdi");
		await using opened = await openDiskImage(image);
		assert.ok(
			(await runsOf(opened, "zero")).some(({ start, length }) => start <= 2 * MIB && start + length >= 3 * MIB),
		);
	});

	const spoilt: readonly { what: string; values: object; code: string; message: RegExp }[] = [
		{
			what: "a parent",
			values: { parentUuid: new Uint8Array(16).fill(7) },
			code: "IMAGE_UNSUPPORTED",
			message: /parent/,
		},
		{ what: "a differencing image", values: { type: 4 }, code: "IMAGE_UNSUPPORTED", message: /parent/ },
		{ what: "version 0.1", values: { version: 1 }, code: "IMAGE_UNSUPPORTED", message: /version 0\.1/ },
		{ what: "blocks of no size", values: { blockSize: 0 }, code: "IMAGE_DAMAGED", message: /block size/ },
		{ what: "too few blocks", values: { blockCount: 1 }, code: "IMAGE_DAMAGED", message: /blocks/ },
		{
			what: "a table past the end",
			values: { tableOffset: 0x7fff_fe00 },
			code: "IMAGE_DAMAGED",
			message: /table of blocks/,
		},
	];
	test("what can't be read is refused, and says why", async (t) => {
		if (!requireTool(t, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("image.vdi");
		await runOk("qemu-img", ["create", "-q", "-f", "vdi", image, "8M"]);
		const whole = await readFile(image);
		await (await openDiskImage(image)).close();
		for (const { what, values, code, message } of spoilt) {
			const bytes = Uint8Array.from(whole);
			Header.put(viewOf(bytes), 0, values);
			await writeFile(image, bytes);
			await assert.rejects(openDiskImage(image), { code, message }, what);
		}
	});
});
