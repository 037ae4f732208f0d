import assert from "node:assert/strict";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import type { ByteSource } from "../../foundations/source.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../foundations/units.ts";
import { OverlaidDisk, PATTERN } from "./overlaid-disk.ts";

const BLOCKS = 16;
const SIZE = BLOCKS * BLOCK_SIZE;

/** A disk whose byte at each place is known. */
const expectedBase = (): Uint8Array => Uint8Array.from({ length: SIZE }, (_, at) => (at * 7 + (at >> 12)) & 0xff);

async function withDisk(
	patterned: readonly number[],
	bytesMax: number,
	work: (disk: OverlaidDisk) => Promise<void>,
): Promise<void> {
	const folder = await mkdtemp(join(tmpdir(), "overlaid-"));
	const file = await open(join(folder, "overlay"), "wx+");
	const bytes = expectedBase();
	const base: ByteSource = {
		size: byteCount(SIZE),
		read: async (at, into) => into.set(bytes.subarray(at, at + into.length)),
	};
	try {
		await work(new OverlaidDisk(base, patterned, file, bytesMax));
		assert.deepEqual(bytes, expectedBase(), "the base stays as it is");
	} finally {
		await file.close();
		await rm(folder, { recursive: true });
	}
}

test("any reads and writes, against a plain copy", async () => {
	const patterned = [1, 2, 5, 1, 9, 4];
	await withDisk(patterned, SIZE, async (disk) => {
		const model = expectedBase();
		for (let i = 0; i < patterned.length; i += 2)
			for (let block = patterned[i]!; block < patterned[i]! + patterned[i + 1]!; block++)
				model.set(PATTERN, block * BLOCK_SIZE);
		let seed = 1;
		const random = (below: number): number => {
			seed = (seed * 48271) % 0x7fffffff;
			return seed % below;
		};
		for (let step = 0; step < 400; step++) {
			const at = random(SIZE);
			const bytes = new Uint8Array(Math.min(SIZE - at, random(3 * BLOCK_SIZE)));
			if (step % 3 === 0) {
				bytes.fill(step);
				model.set(bytes, at);
				await disk.write(byteOffset(at), bytes);
			} else {
				await disk.read(byteOffset(at), bytes);
				assert.deepEqual(bytes, model.slice(at, at + bytes.length), `step ${step}, byte ${at}`);
			}
		}
	});
});

test("what is written is bounded", async () => {
	await withDisk([], 2 * BLOCK_SIZE, async (disk) => {
		const block = new Uint8Array(BLOCK_SIZE);
		for (const at of [0, 3, 0, 3]) await disk.write(byteOffset(at * BLOCK_SIZE), block);
		await assert.rejects(disk.write(byteOffset(5 * BLOCK_SIZE), block), { code: "NO_SPACE" });
	});
});
