import assert from "node:assert/strict";
import { copyFile, mkdir, open, readFile, rename, rm, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { temporaryFolder } from "../../test/support/folders.ts";
import { run, runOk } from "../../test/support/processes.ts";
import { requireTool } from "../../test/support/requirements.ts";
import { exists } from "../adapters/os/exists.ts";
import { type ErrorCode, isVmsweepError } from "../foundations/errors.ts";
import { byteCount, byteOffset, logPosition } from "../foundations/units.ts";
import { type CreatedDisk, createDisk } from "./create.ts";
import { isDiskServed, openDiskDirectory } from "./disk-directory.ts";
import { readSecondImageRecord } from "./disk-records.ts";

const MiB = 2 ** 20;

/** The right code, and a message that is one line and names what to do. */
const refusal =
	(code: ErrorCode, pattern = /./) =>
	(error: unknown): boolean => {
		assert.ok(isVmsweepError(error), String(error));
		assert.equal(error.code, code, error.message);
		assert.match(error.message, /^[^\n]+\.$/);
		assert.match(error.message, pattern);
		return true;
	};

const createNew = (directory: string, size = 64 * MiB): Promise<CreatedDisk> =>
	createDisk({ directory, second: { kind: "new", size: byteCount(size) } });
const adopt = (directory: string, path: string): Promise<CreatedDisk> =>
	createDisk({ directory, second: { kind: "adopt", path } });

/** A clean session. */
async function openAndClose(directory: string): Promise<void> {
	const disk = await openDiskDirectory(directory);
	await disk.close();
}

test("a new disk takes no space, opens, and knows a clean close from a crash", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("web01");
	const { description, notes } = await createNew(directory, 40 * 1024 * MiB);
	assert.deepEqual(notes, []);
	assert.deepEqual(description.second, { path: "second.raw", kind: "file", format: "raw", adopted: false });
	{
		await using disk = await openDiskDirectory(directory);
		assert.deepEqual(disk.description, description);
		assert.equal(disk.second.size, 40 * 1024 * MiB);
		assert.ok((await disk.second.allocatedBytes()) < MiB);
		const { stoodAt, ...stand } = disk.stand;
		assert.deepEqual(stand, { state: "whole", position: 0 });
		assert.ok(Math.abs(Date.now() - Date.parse(stoodAt!)) < 60_000);
		assert.equal(Buffer.from(disk.uuid).toString("hex"), description.uuid.replaceAll("-", ""));
		await disk.second.writeBatch([{ at: byteOffset(0), bytes: Buffer.alloc(4096, 1) }]);
		await disk.close();
	}
	{
		await using disk = await openDiskDirectory(directory);
		assert.equal(disk.wasClean, true);
	}
	await using disk = await openDiskDirectory(directory);
	assert.equal(disk.wasClean, false);
});

test("one process serves a disk at a time", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	await createNew(directory);
	assert.equal(await isDiskServed(directory), false);
	await using disk = await openDiskDirectory(directory);
	assert.equal(await isDiskServed(directory), true);
	await assert.rejects(openDiskDirectory(directory), refusal("DISK_LOCKED", /Stop that first/));
	await disk.close();
	await openAndClose(directory);
});

test("QEMU is kept off the second image of a disk that is open, and keeps us off", async (t) => {
	if (!requireTool(t, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	await createNew(directory);
	await using disk = await openDiskDirectory(directory);
	const { stderr } = await run("qemu-io", ["-f", "raw", "-c", "write 0 4k", disk.second.path]);
	assert.match(stderr, /Failed to get "write" lock/);
	await disk.close();
});

test("the stand of the second image is kept", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	await createNew(directory);
	{
		await using disk = await openDiskDirectory(directory);
		await disk.recordStand({ state: "needs-first-image", position: logPosition(0), stoodAt: null });
	}
	await using disk = await openDiskDirectory(directory);
	assert.deepEqual(disk.stand, { state: "needs-first-image", position: 0, stoodAt: null });
	await disk.recordStand({ state: "whole", position: logPosition(12345), stoodAt: null });
	const record = await readSecondImageRecord(`${disk.second.path}.vmsweep`);
	assert.deepEqual([record?.state, record?.position, record?.disk], ["whole", 12345, directory]);
});

test("a second image that something else changed is refused until the user accepts it", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	await createNew(directory);
	await openAndClose(directory);
	const second = folder.file("d/second.raw");
	const file = await open(second, "r+");
	await file.write(Buffer.from("foreign"), 0, 7, 0);
	await file.close();
	await assert.rejects(openDiskDirectory(directory), refusal("DISK_IMAGE_CHANGED", /changed at 20..-/));
	// A refusal changes nothing: it is refused again.
	await assert.rejects(openDiskDirectory(directory), refusal("DISK_IMAGE_CHANGED"));
	await (await openDiskDirectory(directory, { acceptChangedImage: true })).close();
	await openAndClose(directory);
	await truncate(second, 32 * MiB);
	await assert.rejects(openDiskDirectory(directory), refusal("DISK_IMAGE_CHANGED", /33554432 bytes/));
	await assert.rejects(openDiskDirectory(directory, { acceptChangedImage: true }), refusal("DISK_IMAGE_CHANGED"));
});

test("a copy that keeps whole seconds only is no change", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	await createNew(directory);
	await openAndClose(directory);
	const second = folder.file("d/second.raw");
	const { mtimeMs } = await stat(second);
	await utimes(second, Math.floor(mtimeMs / 1000), Math.floor(mtimeMs / 1000));
	await openAndClose(directory);
});

test("images of two disks can't be mixed up", async () => {
	await using folder = await temporaryFolder();
	await createNew(folder.file("a"));
	await createNew(folder.file("b"));
	await copyFile(folder.file("a/second.raw"), folder.file("b/second.raw"));
	await copyFile(folder.file("a/second.raw.vmsweep"), folder.file("b/second.raw.vmsweep"));
	await assert.rejects(openDiskDirectory(folder.file("b")), refusal("DISK_IMAGES_MIXED", /belongs to disk/));
	await rm(folder.file("a/second.raw.vmsweep"));
	await assert.rejects(openDiskDirectory(folder.file("a")), refusal("DISK_IMAGES_MIXED", /has no record/));
});

test("a disk may move with its directory", async () => {
	await using folder = await temporaryFolder();
	await createNew(folder.file("a"));
	await openAndClose(folder.file("a"));
	await rename(folder.file("a"), folder.file("b"));
	await using disk = await openDiskDirectory(folder.file("b"));
	assert.equal(disk.wasClean, true);
	await disk.recordStand(disk.stand);
	assert.equal((await readSecondImageRecord(folder.file("b/second.raw.vmsweep")))?.disk, folder.file("b"));
});

test("what is no disk, or a damaged one, is refused in one clear line", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	await assert.rejects(openDiskDirectory(directory), refusal("FILE_NOT_FOUND", /vmsweep create/));
	await writeFile(folder.file("f"), "");
	await assert.rejects(openDiskDirectory(folder.file("f")), refusal("FILE_NOT_FOUND"));
	await createNew(directory);
	const path = folder.file("d/disk.json");
	const good = await readFile(path, "utf8");
	const refused = async (text: string, code: ErrorCode, pattern: RegExp): Promise<void> => {
		await writeFile(path, text);
		await assert.rejects(openDiskDirectory(directory), refusal(code, pattern));
	};
	await refused("{", "DISK_DAMAGED", /no JSON/);
	await refused("[]", "DISK_DAMAGED", /damaged/);
	await refused("null", "DISK_DAMAGED", /damaged/);
	await refused(good.replace('"format": 1', '"format": 2'), "DISK_WRONG_VERSION", /version 2/);
	await refused(good.replace(/"size": \d+/, '"size": 1000'), "DISK_DAMAGED", /"size"/);
	await refused(good.replace(/"uuid": "./, '"uuid": "x'), "DISK_DAMAGED", /"uuid"/);
	await refused(good.replace('"kind": "file"', '"kind": "tape"'), "DISK_DAMAGED", /"second.kind"/);
	await writeFile(path, good);
	await rename(folder.file("d/second.raw"), folder.file("d/away"));
	await assert.rejects(openDiskDirectory(directory), refusal("DISK_DAMAGED", /second\.raw/));
	await rename(folder.file("d/away"), folder.file("d/second.raw"));
	await rename(folder.file("d/first.log"), folder.file("d/away"));
	await assert.rejects(openDiskDirectory(directory), refusal("DISK_DAMAGED", /first\.log is missing/));
	await rename(folder.file("d/away"), folder.file("d/first.log"));
	await openAndClose(directory);
});

test("an existing raw image is adopted in place, unchanged", async () => {
	await using folder = await temporaryFolder();
	const image = folder.file("web.raw");
	const content = Buffer.alloc(4 * MiB, "precious data");
	await writeFile(image, content);
	const { description } = await adopt(folder.file("d"), image);
	assert.deepEqual(description.second, { path: image, kind: "file", format: "raw", adopted: true });
	assert.equal(description.size, 4 * MiB);
	assert.ok((await readFile(image)).equals(content));
	assert.equal(await exists(folder.file("d/second.raw")), false);
	await assert.rejects(adopt(folder.file("e"), image), refusal("DISK_IMAGES_MIXED", /second image of the disk/));
	assert.equal(await exists(folder.file("e")), false);
	await openAndClose(folder.file("d"));
	// A disk that is gone, and whose image is whole, lets go of it.
	await rm(folder.file("d"), { recursive: true });
	await adopt(folder.file("e"), image);
	await openAndClose(folder.file("e"));
	await using disk = await openDiskDirectory(folder.file("e"));
	await disk.recordStand({ state: "needs-first-image", position: logPosition(7), stoodAt: null });
	await disk.close();
	await rm(folder.file("e"), { recursive: true });
	await assert.rejects(adopt(folder.file("f"), image), refusal("DISK_IMAGES_MIXED"));
});

test("what can't become a disk is refused and leaves nothing behind", async () => {
	await using folder = await temporaryFolder();
	const directory = folder.file("d");
	const image = async (name: string, bytes: number, start = ""): Promise<string> => {
		await writeFile(folder.file(name), start);
		await truncate(folder.file(name), bytes);
		return folder.file(name);
	};
	for (const size of [0, -1, 4096, 64 * MiB + 512, Number.NaN, 2 ** 50])
		await assert.rejects(createNew(directory, size), refusal("USAGE", /a disk can't have/));
	await assert.rejects(adopt(directory, folder.file("none")), refusal("FILE_NOT_FOUND"));
	await assert.rejects(adopt(directory, folder.path), refusal("FILE_WRONG_TYPE"));
	const odd = await image("odd", 4 * MiB + 512);
	await assert.rejects(adopt(directory, odd), refusal("IMAGE_UNSUPPORTED", /truncate -s %4096/));
	assert.equal((await stat(odd)).size, 4 * MiB + 512);
	await assert.rejects(adopt(directory, await image("tiny", 4096)), refusal("IMAGE_UNSUPPORTED", /smallest/));
	const vhdx = await image("vhdx", 4 * MiB, "vhdxfile");
	await assert.rejects(adopt(directory, vhdx), refusal("IMAGE_UNSUPPORTED", /qemu-img convert -O qcow2/));
	assert.equal(await exists(directory), false);

	await assert.rejects(createNew(folder.file("no/d")), refusal("FILE_NOT_FOUND", /Make it first/));
	await assert.rejects(createNew(odd), refusal("FILE_EXISTS", /no directory/));
	await mkdir(directory);
	await writeFile(folder.file("d/mine"), "");
	await assert.rejects(createNew(directory), refusal("FILE_EXISTS", /isn't empty/));
	assert.ok(await exists(folder.file("d/mine")));
	await rm(folder.file("d/mine"));
	await createNew(directory);
	await assert.rejects(createNew(directory), refusal("FILE_EXISTS", /a disk already/));
	await openAndClose(directory);
});

test("images by qemu-img are adopted, raw and qcow2", async (t) => {
	if (!requireTool(t, "qemu-img")) return;
	await using folder = await temporaryFolder();
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", folder.file("i.qcow2"), "64M"]);
	const { description } = await adopt(folder.file("q"), folder.file("i.qcow2"));
	assert.equal(description.second.format, "qcow2");
	assert.equal(description.size, 64 * MiB);
	await openAndClose(folder.file("q"));
	// Odd sizes are the image's own to change.
	await runOk("qemu-img", ["create", "-q", "-f", "qcow2", folder.file("odd.qcow2"), String(64 * MiB + 512)]);
	await assert.rejects(
		adopt(folder.file("o"), folder.file("odd.qcow2")),
		refusal("IMAGE_UNSUPPORTED", /qemu-img resize .* 67112960/),
	);
	await runOk("qemu-img", ["create", "-q", "-f", "raw", folder.file("i.raw"), "64M"]);
	await adopt(folder.file("d"), folder.file("i.raw"));
	await openAndClose(folder.file("d"));
});

test("a host without space leaves nothing behind", async (t) => {
	if (!requireTool(t, "root")) return;
	await using folder = await temporaryFolder();
	await mkdir(folder.file("small"));
	await runOk("mount", ["-t", "tmpfs", "-o", "size=4k", "tmpfs", folder.file("small")]);
	try {
		await assert.rejects(createNew(folder.file("small/d")), refusal("NO_SPACE"));
		assert.equal(await exists(folder.file("small/d")), false);
	} finally {
		await runOk("umount", [folder.file("small")]);
	}
});

test("a block device is adopted, with a note that nothing on it says so", async (t) => {
	if (!requireTool(t, "root", "loop devices")) return;
	await using folder = await temporaryFolder();
	await writeFile(folder.file("backing"), "");
	await truncate(folder.file("backing"), 16 * MiB);
	const device = (await runOk("losetup", ["-f", "--show", folder.file("backing")])).trim();
	try {
		const { description, notes } = await adopt(folder.file("d"), device);
		assert.equal(description.second.kind, "block-device");
		assert.match(notes.join(), /nothing on it says/);
		await openAndClose(folder.file("d"));
		await using disk = await openDiskDirectory(folder.file("d"));
		assert.equal(disk.wasClean, true);
	} finally {
		await runOk("losetup", ["-d", device]);
	}
});
