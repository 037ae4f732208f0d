import assert from "node:assert/strict";
import { mkdir, open, readFile, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { test } from "node:test";
import fc from "fast-check";
import { type TemporaryFolder, temporaryFolder } from "../../../test/support/folders.ts";
import { runOk } from "../../../test/support/processes.ts";
import { requireTool } from "../../../test/support/requirements.ts";
import { type ErrorCode, isVmsweepError } from "../../foundations/errors.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { detectFormat } from "./image-format.ts";
import { createRawImage, openRawImage, type RawImage } from "./raw-image.ts";
import type { CopyRange } from "./second-image.ts";

const MiB = 2 ** 20;
const at = byteOffset;
const length = byteCount;
const hasCode = (code: ErrorCode) => (error: unknown) => isVmsweepError(error, code) && !error.message.includes("\n");

/** What takes space. */
async function ranges(image: RawImage): Promise<{ readonly start: number; readonly length: number }[]> {
	const found: { readonly start: number; readonly length: number }[] = [];
	for await (const { start, end } of image.held.within(0, image.size)) found.push({ start, length: end - start });
	return found;
}

async function read(image: RawImage, from: number, count: number): Promise<Buffer> {
	const into = Buffer.alloc(count, 0xee);
	await image.read(at(from), into);
	return into;
}

/** A file whose every 4 KiB block says where it is. */
async function sourceFile(folder: TemporaryFolder, blocks: number): Promise<Buffer> {
	const content = Buffer.alloc(blocks * 4096);
	for (let block = 0; block < blocks; block++) content.fill(`block ${block}. `, block * 4096, (block + 1) * 4096);
	await writeFile(folder.file("source"), content);
	return content;
}

test("a new image is empty and takes no space", async () => {
	await using folder = await temporaryFolder();
	await using image = await createRawImage(folder.file("i"), length(40 * 2 ** 30));
	assert.equal(image.size, 40 * 2 ** 30);
	assert.equal(image.kind, "file");
	assert.ok((await image.allocatedBytes()) < MiB);
	assert.deepEqual(await ranges(image), []);
	assert.ok((await read(image, 39 * 2 ** 30, 4096)).equals(Buffer.alloc(4096)));
	assert.equal((await stat(image.path)).mode & 0o777, 0o600);
});

test("what can't be an image is refused in one clear line", async () => {
	await using folder = await temporaryFolder();
	await mkdir(folder.file("d"));
	await writeFile(folder.file("f"), "");
	await symlink(folder.file("gone"), folder.file("link"));
	await runOk("mkfifo", [folder.file("fifo")]);
	const refused = async (name: string, code: ErrorCode): Promise<void> => {
		for (const use of ["read", "write"] as const)
			await assert.rejects(openRawImage(folder.file(name), use), hasCode(code), name);
	};
	await refused("none", "FILE_NOT_FOUND");
	await refused("link", "FILE_NOT_FOUND");
	await refused("f/x", "FILE_NOT_FOUND");
	await refused("d", "FILE_WRONG_TYPE");
	await refused("fifo", "FILE_WRONG_TYPE");
	await assert.rejects(openRawImage("/dev/null", "read"), hasCode("FILE_WRONG_TYPE"));
	await assert.rejects(createRawImage(folder.file("f"), length(MiB)), hasCode("FILE_EXISTS"));
	await assert.rejects(createRawImage(folder.file("no/f"), length(MiB)), hasCode("FILE_NOT_FOUND"));
	await assert.rejects(createRawImage(folder.file("huge"), length(2 ** 52)), hasCode("NO_SPACE"));
	await assert.rejects(stat(folder.file("huge")), { code: "ENOENT" });
});

test("ranges outside the image are refused", async () => {
	await using folder = await temporaryFolder();
	await using image = await createRawImage(folder.file("i"), length(MiB));
	const outside = hasCode("OUT_OF_RANGE");
	await assert.rejects(image.read(at(MiB - 1), new Uint8Array(2)), outside);
	await assert.rejects(image.writeBatch([{ at: at(MiB), bytes: new Uint8Array(1) }]), outside);
	await assert.rejects(image.punch(at(0), length(MiB + 1)), outside);
	await assert.rejects(image.copyFrom(0, [{ from: 0, to: at(MiB), length: length(4096) }]), outside);
	const unsorted = [
		{ at: at(8), bytes: new Uint8Array(8) },
		{ at: at(0), bytes: new Uint8Array(8) },
	];
	await assert.rejects(image.writeBatch(unsorted), hasCode("BUG"));
});

test("an image that somebody made smaller is an error, not zeros", async () => {
	await using folder = await temporaryFolder();
	await using image = await createRawImage(folder.file("i"), length(MiB));
	await truncate(image.path, 4096);
	await assert.rejects(read(image, 0, 8192), /ends at byte 4096/);
});

test("a batch of more pieces than one call takes arrives whole", async () => {
	await using folder = await temporaryFolder();
	await using image = await createRawImage(folder.file("i"), length(MiB));
	const content = Buffer.alloc(30_000, "abcdefghijklm");
	const pieces = Array.from({ length: 3000 }, (_, index) => ({
		at: at(100 + index * 10 + (index >= 2000 ? 5000 : 0)),
		bytes: content.subarray(index * 10, index * 10 + 10),
	}));
	await image.writeBatch(pieces);
	await image.flush();
	const found = Buffer.concat([await read(image, 100, 20_000), await read(image, 100 + 25_000, 10_000)]);
	assert.ok(found.equals(content));
	assert.ok((await read(image, 20_100, 5000)).equals(Buffer.alloc(5000)));
});

test("punching gives space back and reads as zeros, aligned or not", async () => {
	await using folder = await temporaryFolder();
	await using image = await createRawImage(folder.file("i"), length(4 * MiB));
	await image.writeBatch([{ at: at(0), bytes: Buffer.alloc(4 * MiB, 1) }]);
	await image.flush();
	const before = await image.allocatedBytes();
	await image.punch(at(MiB), length(2 * MiB));
	assert.ok((await image.allocatedBytes()) <= before - 2 * MiB);
	assert.deepEqual(await ranges(image), [
		{ start: 0, length: MiB },
		{ start: 3 * MiB, length: MiB },
	]);
	await image.punch(at(100), length(50));
	const start = await read(image, 0, 200);
	assert.ok(start.equals(Buffer.concat([Buffer.alloc(100, 1), Buffer.alloc(50), Buffer.alloc(50, 1)])));
	assert.equal((await stat(image.path)).size, 4 * MiB);
});

test("copies long and scattered ranges from another file", async () => {
	await using folder = await temporaryFolder();
	const content = await sourceFile(folder, 4096);
	await using source = await open(folder.file("source"));
	await using image = await createRawImage(folder.file("i"), length(64 * MiB));
	const block = (from: number, to: number, count: number): CopyRange => ({
		from: from * 4096,
		to: at(to * 4096),
		length: length(count * 4096),
	});
	const copied = [
		block(0, 5000, 3000),
		block(3000, 100, 1),
		block(3001, 99, 1),
		block(3010, 101, 7),
		block(4095, 8, 1),
	];
	await image.copyFrom(source.fd, copied);
	for (const { from, to, length: count } of copied)
		assert.ok((await read(image, to, count)).equals(content.subarray(from, from + count)));
	assert.ok((await read(image, 0, 8 * 4096)).equals(Buffer.alloc(8 * 4096)));
	assert.ok(["reflink", "copy_file_range", "read-write"].includes(image.copyMethod));
	await assert.rejects(image.copyFrom(source.fd, [block(4000, 0, 200)]), hasCode("IO"));
});

test("any set of copies gives what a model gives", async () => {
	await using folder = await temporaryFolder();
	const content = await sourceFile(folder, 512);
	await using source = await open(folder.file("source"));
	const anyPiece = fc.tuple(fc.nat(400), fc.integer({ min: 1, max: 100 }), fc.nat(30));
	await fc.assert(
		fc.asyncProperty(fc.array(anyPiece, { maxLength: 30 }), fc.nat(1e6), async (pieces, seed) => {
			const size = 4096 * 4096;
			await using image = await createRawImage(folder.file(`i${seed}-${pieces.length}-${Math.random()}`), length(size));
			const model = Buffer.alloc(size);
			let to = 0;
			const copies = pieces.map(([from, count, gap]): CopyRange => {
				to += gap * 4096;
				const range = { from: from * 4096, to: at(to), length: length(count * 4096) };
				content.copy(model, to, range.from, range.from + range.length);
				to += range.length;
				return range;
			});
			await image.copyFrom(
				source.fd,
				copies.toSorted((a, b) => ((a.from * 31 + seed) % 97) - ((b.from * 31 + seed) % 97)),
			);
			assert.ok((await readFile(image.path)).equals(model));
		}),
		{ numRuns: 20 },
	);
});

test("a block device reads, writes, punches to zeros, and is refused while mounted", async (t) => {
	if (!requireTool(t, "root", "loop devices", "mkfs.ext4")) return;
	await using folder = await temporaryFolder();
	await writeFile(folder.file("backing"), Buffer.alloc(8 * MiB, 7));
	const device = (await runOk("losetup", ["-f", "--show", folder.file("backing")])).trim();
	try {
		{
			await using image = await openRawImage(device, "write");
			assert.equal(image.kind, "block-device");
			assert.equal(image.size, 8 * MiB);
			await image.writeBatch([{ at: at(4096), bytes: Buffer.alloc(4096, 9) }]);
			await image.punch(at(MiB), length(MiB));
			await image.flush();
			assert.ok((await read(image, 4096, 4096)).equals(Buffer.alloc(4096, 9)));
			assert.ok((await read(image, MiB, MiB)).equals(Buffer.alloc(MiB)));
			assert.ok((await read(image, 2 * MiB, 4096)).equals(Buffer.alloc(4096, 7)));
			assert.equal(await image.allocatedBytes(), 8 * MiB);
			assert.deepEqual(await ranges(image), [{ start: 0, length: 8 * MiB }]);
			await sourceFile(folder, 256);
			await using source = await open(folder.file("source"));
			await image.copyFrom(source.fd, [{ from: 0, to: at(4 * MiB), length: length(MiB) }]);
			assert.ok((await read(image, 4 * MiB, MiB)).equals(await readFile(folder.file("source"))));
		}
		await runOk("mkfs.ext4", ["-q", device]);
		await mkdir(folder.file("mnt"));
		await runOk("mount", [device, folder.file("mnt")]);
		try {
			await assert.rejects(openRawImage(device, "write"), hasCode("IMAGE_LOCKED"));
		} finally {
			await runOk("umount", [folder.file("mnt")]);
		}
	} finally {
		await runOk("losetup", ["-d", device]);
	}
});

test("where the host can share extents, long ranges are shared", async (t) => {
	if (!requireTool(t, "root", "loop devices", "mkfs.xfs")) return;
	await using folder = await temporaryFolder();
	await truncate(await writeFile(folder.file("fs"), "").then(() => folder.file("fs")), 400 * MiB);
	await runOk("mkfs.xfs", ["-q", "-m", "reflink=1", folder.file("fs")]);
	await mkdir(folder.file("mnt"));
	await runOk("mount", ["-o", "loop", folder.file("fs"), folder.file("mnt")]);
	try {
		const content = Buffer.alloc(16 * MiB, "shared between both images. ");
		await writeFile(folder.file("mnt/source"), content, { flush: true });
		await using source = await open(folder.file("mnt/source"));
		await using image = await createRawImage(folder.file("mnt/i"), length(64 * MiB));
		await image.copyFrom(source.fd, [
			{ from: 0, to: at(MiB), length: length(16 * MiB) },
			{ from: 4096, to: at(40 * MiB), length: length(4096) },
		]);
		await image.flush();
		assert.equal(image.copyMethod, "reflink");
		assert.ok((await read(image, MiB, 16 * MiB)).equals(content));
		assert.ok((await read(image, 40 * MiB, 4096)).equals(content.subarray(4096, 8192)));
		assert.match(await runOk("filefrag", ["-v", image.path]), /shared/);
	} finally {
		await runOk("umount", [folder.file("mnt")]);
	}
});

test("formats are told apart by their magic", async (t) => {
	if (!requireTool(t, "qemu-img")) return;
	await using folder = await temporaryFolder();
	const expected = {
		raw: "raw",
		qcow2: "qcow2",
		qcow: "qcow",
		qed: "qed",
		vmdk: "vmdk",
		vhdx: "vhdx",
		vpc: "vhd",
		vdi: "vdi",
		parallels: "parallels",
	};
	for (const [format, detected] of Object.entries(expected)) {
		await runOk("qemu-img", ["create", "-q", "-f", format, folder.file(format), "16M"]);
		const start = (await readFile(folder.file(format))).subarray(0, 512);
		assert.equal(detectFormat(start), detected, format);
	}
	assert.equal(detectFormat(new Uint8Array(0)), "raw");
});

test("a full host is NO_SPACE, and the image still works afterwards", async (t) => {
	if (!requireTool(t, "root")) return;
	await using folder = await temporaryFolder();
	await mkdir(folder.file("small"));
	await runOk("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", folder.file("small")]);
	try {
		await sourceFile(folder, 512);
		await using source = await open(folder.file("source"));
		await using image = await createRawImage(folder.file("small/i"), length(16 * MiB));
		const full = hasCode("NO_SPACE");
		await assert.rejects(image.writeBatch([{ at: at(0), bytes: Buffer.alloc(2 * MiB, 1) }]), full);
		await image.punch(at(0), length(2 * MiB));
		await assert.rejects(image.copyFrom(source.fd, [{ from: 0, to: at(0), length: length(2 * MiB) }]), full);
		await image.punch(at(0), length(2 * MiB));
		await image.writeBatch([{ at: at(0), bytes: Buffer.alloc(4096, 1) }]);
		await image.flush();
	} finally {
		await runOk("umount", [folder.file("small")]);
	}
});
