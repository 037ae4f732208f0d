import assert from "node:assert/strict";
import { test } from "node:test";
import type { ByteSource } from "../../foundations/source.ts";
import { byteCount } from "../../foundations/units.ts";
import { findMarks, findSignatures, signatureRanges, signatureWatcher } from "./signatures.ts";

const SIZE = 4 << 20;
const source = (bytes: Uint8Array): ByteSource => ({
	size: byteCount(bytes.length),
	async read(at, into) {
		into.set(bytes.subarray(at, at + into.length));
	},
});
const put = (bytes: Uint8Array, at: number, text: string): void => {
	for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
};

/** Inodes, blocks, blocks and inodes per group: what makes the mark believable. */
function putExtSuperblock(bytes: Uint8Array): void {
	for (const field of [0x0, 0x4, 0x20, 0x28]) put(bytes, 1024 + field, "\x10\0\0\0");
}

test("marks are found at their places, also at the end, and each owner once", async () => {
	const bytes = new Uint8Array(SIZE);
	assert.deepEqual(await findSignatures(source(bytes)), []);
	put(bytes, 1024 + 0x38, "\x53\xef");
	assert.deepEqual(await findSignatures(source(bytes)), ["ext"], "alone, whatever is around it");
	putExtSuperblock(bytes);
	put(bytes, 0x10040, "_BHRfS_M");
	put(bytes, 512, "LABELONE");
	put(bytes, 1536, "LABELONE");
	put(bytes, SIZE - 0x10000, "\xfc\x4e\x2b\xa9");
	assert.deepEqual([...(await findSignatures(source(bytes)))].sort(), ["btrfs", "ext", "lvm-pv", "md-raid"]);
});

test("what newfs leaves of an older file system is not believed", async () => {
	for (const [kib, magic] of [
		[64, "\x19\x01\x54\x19"],
		[8, "\x54\x19\x01\x00"],
		[256, "\x19\x54\x01\x19"],
	] as const) {
		const bytes = new Uint8Array(SIZE);
		put(bytes, 0, "XFSB");
		put(bytes, kib * 1024 + 1372, magic);
		assert.deepEqual([...(await findSignatures(source(bytes)))].sort(), ["ufs", "xfs"]);
	}
});

test("two bytes that look like ext's are no owner beside another one", async () => {
	const bytes = new Uint8Array(SIZE);
	put(bytes, 0, "XFSB");
	put(bytes, 1024 + 0x38, "\x53\xef");
	assert.deepEqual(await findSignatures(source(bytes)), ["xfs"]);
	putExtSuperblock(bytes);
	assert.deepEqual([...(await findSignatures(source(bytes)))].sort(), ["ext", "xfs"]);
	assert.deepEqual(
		(await findMarks(source(bytes))).map(({ type, start, length }) => [type, start, length]),
		[
			["ext", 1080, 2],
			["xfs", 0, 4],
		],
	);
});

test("a volume too small for any mark has none", async () => {
	for (const size of [0, 1, 2, 511, 1081, 1082, 4096])
		assert.deepEqual(await findSignatures(source(new Uint8Array(size))), []);
});

test("ranges are sorted, disjoint and inside the volume", () => {
	for (const size of [0, 1000, 5000, 100_000, SIZE]) {
		let last = -1;
		for (const { start, length } of signatureRanges(size)) {
			assert.ok(start > last && length > 0 && start + length <= size);
			last = start + length;
		}
	}
});

test("the watcher tells writes that may bring a mark from ext's own", () => {
	const mayBring = signatureWatcher(SIZE);
	const superblock = new Uint8Array(1024);
	put(superblock, 0x38, "\x53\xef");
	assert.equal(mayBring(1024, superblock), false);
	const block = new Uint8Array(4096);
	assert.equal(mayBring(0, block), false);
	put(block, 0, "XFSB");
	assert.equal(mayBring(0, block), true);
	assert.equal(mayBring(0x10040, new TextEncoder().encode("_BHR")), true, "a part of a mark");
});
