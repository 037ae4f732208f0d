// Do QEMU and vmsweep keep each other off an image?

import assert from "node:assert/strict";
import { open, truncate, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { openRawImage } from "../../src/adapters/images/raw-image.ts";
import { isDiskLocked, lockDisk } from "../../src/adapters/os/locks.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { temporaryFolder } from "../support/folders.ts";
import { run, runOk, start } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";

async function image(path: string): Promise<string> {
	await writeFile(path, "");
	await truncate(path, 2 ** 20);
	return path;
}

/** A VM that never starts its guest. */
const machine = ["-machine", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S"];
const virtioDisk = (path: string, readOnly: "on" | "off"): string[] => {
	const drive = `if=none,id=d,format=raw,readonly=${readOnly},file=${path}`;
	return ["-drive", drive, "-device", "virtio-blk-pci,drive=d"];
};

const isLockedError = (error: unknown): boolean => isVmsweepError(error, "IMAGE_LOCKED");

test("QEMU's tools are refused an image that vmsweep writes, and may look at it with -U", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-io", "qemu-nbd", "qemu-system-x86_64")) return;
	await using folder = await temporaryFolder();
	const path = await image(folder.file("i.raw"));
	await using held = await openRawImage(path, "write");
	const attempts: readonly (readonly [string, ...string[]])[] = [
		["qemu-io", "-f", "raw", "-c", "write 0 4k", path],
		["qemu-img", "resize", "-f", "raw", path, "2M"],
		["qemu-img", "convert", "-f", "raw", "-O", "raw", path, folder.file("copy")],
		["qemu-nbd", "--socket", folder.file("q"), "-f", "raw", path],
		["qemu-system-x86_64", ...machine, ...virtioDisk(path, "off")],
	];
	for (const [program, ...programArguments] of attempts) {
		const { exitCode, stderr } = await run(program, programArguments, { timeoutSeconds: 30 });
		assert.notEqual(exitCode, 0, `${program} ${programArguments.join(" ")}`);
		assert.match(stderr, /Failed to get (shared )?"(write|resize|consistent read)" lock/, program);
	}
	// These accept that somebody writes meanwhile; so do qemu-img info and qemu-io -r on a raw image, whoever writes it.
	assert.match(await runOk("qemu-img", ["info", "-U", path]), /file format: raw/);
	await held.close();
	await runOk("qemu-io", ["-f", "raw", "-c", "write 0 4k", path]);
});

test("readers go together, and keep writers off", async (t) => {
	if (!requireTool(t, "qemu-img", "qemu-io")) return;
	await using folder = await temporaryFolder();
	const path = await image(folder.file("i.raw"));
	await using _one = await openRawImage(path, "read");
	await using _two = await openRawImage(path, "read");
	await runOk("qemu-img", ["info", path]);
	await runOk("qemu-io", ["-r", "-f", "raw", "-c", "read 0 4k", path]);
	const writer = await run("qemu-io", ["-f", "raw", "-c", "write 0 4k", path]);
	assert.match(writer.stderr, /Failed to get "write" lock/);
	await assert.rejects(openRawImage(path, "write"), isLockedError);
});

test("an image that QEMU writes is refused with its name", async (t) => {
	if (!requireTool(t, "qemu-nbd", "nbdinfo")) return;
	await using folder = await temporaryFolder();
	const path = await image(folder.file("i.raw"));
	const socket = folder.file("s");
	await using server = start("qemu-nbd", ["--persistent", "--socket", socket, "-f", "raw", path]);
	// Its socket is there before it has opened the image, and a look at the image by us could spoil that.
	const answers = async (): Promise<boolean> =>
		(await run("nbdinfo", ["--size", `nbd+unix:///?socket=${socket}`])).exitCode === 0;
	await server.until(answers, "an answer");
	for (const use of ["read", "write"] as const) {
		await assert.rejects(openRawImage(path, use), (error: Error) => {
			assert.ok(isLockedError(error));
			assert.match(error.message, new RegExp(`i\\.raw is in use by qemu-nbd \\(process ${server.pid}\\) and can't`));
			assert.doesNotMatch(error.message, /\n/);
			return true;
		});
	}
	await server.end();
	await (await openRawImage(path, "write")).close();
});

test("a VM that runs on an image keeps vmsweep off; one that only reads it still lets it be read", async (t) => {
	if (!requireTool(t, "qemu-system-x86_64")) return;
	await using folder = await temporaryFolder();
	for (const readOnly of ["off", "on"] as const) {
		const path = await image(folder.file(`${readOnly}.raw`));
		const vmArguments = [...machine, ...virtioDisk(path, readOnly), "-qmp", "stdio"];
		await using vm = start("qemu-system-x86_64", vmArguments, { input: '{"execute":"qmp_capabilities"}' });
		await vm.line(/"return"/); // by then everything is open
		const refused = async (use: "read" | "write"): Promise<boolean> => {
			try {
				await (await openRawImage(path, use)).close();
				return false;
			} catch (error) {
				return isLockedError(error);
			}
		};
		assert.equal(await refused("write"), true);
		assert.equal(await refused("read"), readOnly === "off");
	}
});

test("a first image has one owner, which QEMU respects, and a crash frees it", async (t) => {
	if (!requireTool(t, "qemu-io")) return;
	await using folder = await temporaryFolder();
	const path = await image(folder.file("first.log"));
	const owner = await open(path, "r+");
	await using other = await open(path, "r+");
	await lockDisk(owner.fd, path);
	assert.equal(isDiskLocked(owner.fd), false, "one's own lock doesn't count");
	assert.equal(isDiskLocked(other.fd), true);
	await assert.rejects(lockDisk(other.fd, path), (error) => isVmsweepError(error, "DISK_LOCKED"));
	const { exitCode, stderr } = await run("qemu-io", ["-f", "raw", "-c", "read 0 4k", path]);
	assert.notEqual(exitCode, 0);
	assert.match(stderr, /lock/);
	await owner.close();
	assert.equal(isDiskLocked(other.fd), false);

	const script = `
		const { open } = await import("node:fs/promises");
		const { lockDisk } = await import(process.argv[1]);
		const file = await open(process.argv[2], "r+");
		await lockDisk(file.fd, process.argv[2]);
		console.log("locked");
		setInterval(() => file.fd, 1000);`;
	const locks = new URL("../../src/adapters/os/locks.ts", import.meta.url).href;
	await using crashing = start(process.execPath, ["--input-type=module", "-e", script, locks, path]);
	await crashing.line(/^locked$/);
	await assert.rejects(lockDisk(other.fd, path), new RegExp(`served by .* \\(process ${crashing.pid}\\)`));
	await crashing.kill();
	await lockDisk(other.fd, path);
});
