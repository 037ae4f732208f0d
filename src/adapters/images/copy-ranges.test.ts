import assert from "node:assert/strict";
import { mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { closeRings, openRings } from "../../../test/support/rings.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { RangeCopier } from "./copy-ranges.ts";

test("a ring that the kernel refuses is given up: the ranges are copied without it, now and later", async () => {
	const folder = await mkdtemp(join(tmpdir(), "vms-"));
	const content = Uint8Array.from({ length: 600 * 4096 }, (_, i) => (i >> 12) % 251);
	await writeFile(join(folder, "source"), content);
	await writeFile(join(folder, "target"), "");
	const source = await open(join(folder, "source"));
	const target = await open(join(folder, "target"), "r+");
	try {
		const others = openRings();
		const copier = new RangeCopier(target, "target");
		// More single blocks than a ring has places, none of which follow each other.
		const ranges = Array.from({ length: 600 }, (_, i) => ({
			from: byteOffset(i * 4096),
			to: byteOffset((599 - i) * 4096),
			length: byteCount(4096),
		}));
		const expected = Buffer.concat(ranges.map((_, i) => content.subarray((599 - i) * 4096, (600 - i) * 4096)));
		for (const breakRings of [() => {}, () => closeRings(others), () => {}]) {
			breakRings();
			await target.truncate(0);
			await copier.copy(source.fd, ranges);
			assert.ok(expected.equals(await readFile(join(folder, "target"))));
		}
	} finally {
		await source.close();
		await target.close();
		await rm(folder, { recursive: true });
	}
});
