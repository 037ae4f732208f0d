// New qcow2 images that vmsweep writes: QEMU reads the same bytes and finds nothing to complain about.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { deflateRawSync, zstdCompressSync } from "node:zlib";
import { openDiskImage } from "../../src/adapters/images/open-image.ts";
import { createQcow2 } from "../../src/adapters/images/qcow2-create.ts";
import { byteCount, byteOffset } from "../../src/foundations/units.ts";
import { temporaryFolder } from "../support/folders.ts";
import { run } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { assertSameBytes, checkByQemu, contentByQemu, contentOf, MIB } from "./qcow2-images.ts";

const cases = [
	{ clusterSize: 65_536, compression: "deflate", size: 20 * MIB + 1536 },
	{ clusterSize: 65_536, compression: "zstd", size: 20 * MIB },
	{ clusterSize: 512, compression: "deflate", size: 3 * MIB + 512 },
	{ clusterSize: 4096, compression: "zstd", size: 20 * MIB },
	{ clusterSize: 2 * MIB, compression: "deflate", size: 30 * MIB },
	{ clusterSize: 65_536, compression: "deflate", size: 512 },
] as const;

describe("qcow2, written anew", () => {
	const seed = testSeed() % 1_000_000;
	for (const { clusterSize, compression, size } of cases)
		test(`${compression}, clusters of ${clusterSize}, ${size} bytes`, async (t) => {
			if (!requireTool(t, "qemu-img")) return;
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			const random = seededRandom(seed);
			await using folder = await temporaryFolder();
			const path = folder.file("new.qcow2");
			const expected = new Uint8Array(size);
			const { writer, file } = await createQcow2(path, {
				size: byteCount(size),
				clusterSize: byteCount(clusterSize),
				compression,
			});
			for (let start = 0; start < size; ) {
				const clusters = random.between(1, 5);
				const end = Math.min(size, start + clusters * clusterSize);
				const part = expected.subarray(start, end);
				const kind = random.below(4);
				// Three bytes of a random text again and again: packs well, but not to nothing.
				const text = random.bytes(random.between(3, 300));
				if (kind !== 0) for (let at = 0; at < part.length; at++) part[at] = text[at % text.length]!;
				if (kind === 1) await writer.write(byteOffset(start), part);
				else if (kind === 2) {
					const host = await writer.reserve(byteOffset(start), byteCount(part.length));
					await file.write(host, part);
				} else if (kind === 3)
					for (let at = start; at < end; at += clusterSize) {
						const cluster = new Uint8Array(clusterSize);
						cluster.set(expected.subarray(at, Math.min(end, at + clusterSize)));
						const packed = compression === "zstd" ? zstdCompressSync(cluster) : deflateRawSync(cluster);
						if (packed.length < clusterSize) await writer.appendPacked(byteOffset(at), packed);
						else await writer.write(byteOffset(at), cluster.subarray(0, Math.min(clusterSize, end - at)));
					}
				start = end;
			}
			assert.equal(
				(await readFile(path)).subarray(0, 512).every((byte) => byte === 0),
				true,
				"no image before the end",
			);
			await writer.finish();
			await file.close();
			await checkByQemu(path);
			// qemu-img rounds sizes up to sectors.
			assertSameBytes((await contentByQemu(folder, path)).subarray(0, size), expected, "by QEMU");
			await using image = await openDiskImage(path);
			assertSameBytes(await contentOf(image, random), expected, "by vmsweep");
			await writeFile(folder.file("expected"), expected);
			const compared = await run("qemu-img", ["compare", "-F", "raw", "-f", "qcow2", path, folder.file("expected")]);
			assert.equal(compared.exitCode, 0, compared.stdout);
		});

	test("an existing file is left alone", async () => {
		await using folder = await temporaryFolder();
		await writeFile(folder.file("there"), "text");
		await assert.rejects(createQcow2(folder.file("there"), { size: byteCount(MIB) }), { code: "FILE_EXISTS" });
		assert.equal(await readFile(folder.file("there"), "utf8"), "text");
	});
});
