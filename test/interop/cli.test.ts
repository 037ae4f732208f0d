// The command line as users call it: usage, exit codes, one line per error, JSON, pipes.

import assert from "node:assert/strict";
import { mkdir, readdir, truncate, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { Extent, VolumeMap } from "../../src/foundations/guest-map.ts";
import { temporaryFolder } from "../support/folders.ts";
import { hashFile } from "../support/hashes.ts";
import { type Finished, run, runOk, vmsweep } from "../support/processes.ts";
import { requireTool } from "../support/requirements.ts";
import { mapOf } from "./map-images.ts";

const MIB = 2 ** 20;

function assertFails({ exitCode, stderr }: Finished, code: number, message: RegExp): void {
	assert.match(stderr, message);
	assert.match(stderr, /^vmsweep: [^\n]+\n$/, "one line");
	assert.equal(exitCode, code);
}

describe("usage", () => {
	const wrong: readonly (readonly [words: string, message: RegExp])[] = [
		["frobnicate", /unknown command 'frobnicate'.*See: vmsweep help\n/],
		["mapp x", /unknown command 'mapp' \(Did you mean map\?\)/],
		["--jsn map x", /unknown option '--jsn'/],
		["map", /missing required argument 'image'. See: vmsweep help map/],
		["map a b", /too many arguments/],
		["map --jsn x", /unknown option '--jsn' \(Did you mean --json\?\)/],
		["sweep", /missing required argument 'image'/],
		["create d", /give --size for a new disk, or --second/],
		["create d --size 1G --second x", /cannot be used with/],
		["create d --size 12X", /Give a size such as 512M, 40G or 1T/],
		["create d --size 1M --log-limit 5", /limit|log/],
		["serve", /missing required argument 'disk'/],
		["serve d --listen 80", /Give HOST:PORT/],
		["serve d --listen h:99999", /Give HOST:PORT/],
		["serve d --listen h:1 --socket s", /cannot be used with/],
		["serve d --clean sometimes", /Allowed choices are continuous, off/],
		["serve d ./d", /d is named twice/],
		["serve a b --qga s --qga t", /--qga SOCKET is for one VM/],
		["serve a b --qga c=s", /0 of the disks are called c/],
		["serve a b --qga a=s --qga a=t", /names a twice/],
		["serve a --freeze-every 0", /Give seconds/],
		["serve a/d b/d --socket s", /two disks are called d/],
		[`serve d --socket ${"s".repeat(120)}`, /Unix sockets take 107/],
		["status a b", /too many arguments/],
		["clean", /missing required argument 'disk'/],
		["commit --dry-run d", /unknown option '--dry-run'/],
	];
	for (const [words, message] of wrong)
		test(words.slice(0, 60), async () => {
			await using folder = await temporaryFolder();
			assertFails(await run(vmsweep, words.split(" "), { folder: folder.path }), 2, message);
			assert.deepEqual(await readdir(folder.path), [], "nothing is left behind");
		});

	test("missing disks and images are named", async () => {
		await using folder = await temporaryFolder();
		for (const words of [
			["status", "no"],
			["clean", "no"],
			["commit", "no"],
			["serve", "no"],
		])
			assertFails(await run(vmsweep, words, { folder: folder.path }), 2, /no is no vmsweep disk .*vmsweep create/);
		assertFails(await run(vmsweep, ["map", "no"], { folder: folder.path }), 2, /no doesn't exist/);
	});

	test("help and version", async () => {
		assert.match(await runOk(vmsweep, ["--help"]), /Exit codes: 0 done/);
		assert.match(await runOk(vmsweep, ["help", "sweep"]), /--dry-run/);
		assert.match(await runOk(vmsweep, ["sweep", "-h"]), /--dry-run/);
		const version = await runOk(vmsweep, ["--version"]);
		assert.match(version, /^vmsweep \d+\.\d+\.\d+\n$/);
		assert.equal(await runOk(vmsweep, ["version"]), version);
		assert.equal(`vmsweep ${JSON.parse(await runOk(vmsweep, ["version", "--json"])).version}\n`, version);
		const bare = await run(vmsweep);
		assert.equal(bare.exitCode, 2);
		assert.match(bare.stderr, /^Usage: vmsweep/);
	});
});

describe("map", () => {
	test("prints the guest map as JSON, extents without gap or overlap", async (t) => {
		if (!requireTool(t, "mke2fs", "sfdisk")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("disk.raw");
		await writeFile(image, "");
		await truncate(image, 200 * MIB);
		await runOk("sfdisk", ["-q", image], { input: "label: gpt\nsize=80M\nsize=50M\n" });
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-L", "root", "-E", `offset=${MIB}`, image, "80M"]);
		const contents = await hashFile(image);
		const report = JSON.parse(await runOk(vmsweep, ["map", "--json", "--extents", image])) as {
			size: number;
			format: string;
			volumes: VolumeMap[];
			extents: Extent[];
		};
		assert.deepEqual(Object.keys(report), ["size", "format", "volumes", "extents"]);
		assert.equal(report.size, 200 * MIB);
		assert.equal(report.format, "raw");
		const map = await mapOf(image);
		assert.deepEqual(report.volumes, JSON.parse(JSON.stringify(map.volumes)));
		assert.deepEqual(report.extents, [...map.extents]);
		assert.deepEqual(
			report.volumes.map(({ id, type, label, state }) => [id, type, label, state]),
			[
				["p1", "ext4", "root", "clean"],
				["p2", "unknown", null, "unknown"],
			],
		);
		let end = 0;
		for (const { start, length } of report.extents) {
			assert.equal(start, end);
			end += length;
		}
		assert.equal(end, report.size);
		const { extents: _, ...short } = report;
		assert.deepEqual(JSON.parse(await runOk(vmsweep, ["map", "--json", image])), short);

		const text = await runOk(vmsweep, ["map", image]);
		assert.match(text, /disk\.raw: raw, 200 MiB, GPT/);
		assert.match(text, /^p1 +ext4 +root +clean +80\.0 MiB/m);
		assert.match(text, /^p2 is kept whole: nothing known is in it$/m);
		const lines = (await runOk(vmsweep, ["map", "--extents", image])).match(/^ +\d+ +\d+ {2}(used|free|unknown) .*$/gm);
		assert.equal(lines?.length, report.extents.length);
		assert.equal(await hashFile(image), contents, "map changes nothing");
	});

	test("a guest's label can't drive the terminal, and a reader may leave early", async (t) => {
		if (!requireTool(t, "mke2fs")) return;
		await using folder = await temporaryFolder();
		const image = folder.file("disk.raw");
		await runOk("mke2fs", ["-q", "-F", "-t", "ext4", "-b", "1024", "-L", "\u001b[2Jx", image, "50M"]);
		const text = await runOk(vmsweep, ["map", image]);
		assert(!text.includes("\u001b"));
		assert.match(text, /\u{fffd}\[2Jx/u);
		const piped = await run("sh", ["-c", '"$0" map --extents "$1" | head -1; exit 0', vmsweep, image]);
		assert.equal(piped.stderr, "");
		const full = await run("sh", ["-c", '"$0" map "$1" >/dev/full', vmsweep, image]);
		assert.match(full.stderr, /^vmsweep: standard output: .*\n$/);
	});

	test("a disk with nothing on it has no known volume", async () => {
		await using folder = await temporaryFolder();
		const image = folder.file("blank");
		await writeFile(image, new Uint8Array(1 << 20));
		const report = JSON.parse(await runOk(vmsweep, ["map", "--json", "--extents", image]));
		assert.equal(report.volumes[0].type, "unknown");
		assert.deepEqual(report.extents, [{ start: 0, length: 1 << 20, state: "unknown", volume: "disk" }]);
		assert.match(await runOk(vmsweep, ["map", image]), /nothing known is in it/);
	});
});

describe("create", () => {
	test("makes a disk, and never twice", async () => {
		await using folder = await temporaryFolder();
		const { path } = folder;
		assert.match(
			await runOk(vmsweep, ["create", "web01", "--size", "1G"], { folder: path }),
			/web01: made, 1\.00 GiB[\s\S]*next: vmsweep serve web01/,
		);
		assertFails(await run(vmsweep, ["create", "web01", "--size", "1G"], { folder: path }), 3, /is a disk already/);
		assertFails(await run(vmsweep, ["create", "no/web02", "--size", "1G"], { folder: path }), 2, /no directory/);
		assertFails(await run(vmsweep, ["create", "web02", "--size", "1000"], { folder: path }), 2, /smallest disk/);
		const made = JSON.parse(await runOk(vmsweep, ["create", "web02", "--size", "512M", "--json"], { folder: path }));
		assert.equal(made.size, 512 * MIB);
		const all = JSON.parse(await runOk(vmsweep, ["status", "--json"], { folder: path })) as {
			name: string;
			left: string;
		}[];
		assert.deepEqual(
			all.map(({ name, left }) => [name, left]),
			[
				["web01", "clean"],
				["web02", "clean"],
			],
		);
		assert.match(await runOk(vmsweep, ["status"], { folder: path }), /^web01 +1\.00 GiB +not served, closed cleanly/m);
	});

	test("on a full host it says so and takes back what it made", async (t) => {
		if (!requireTool(t, "root")) return;
		await using folder = await temporaryFolder();
		const mount = folder.file("tmpfs");
		await mkdir(mount);
		await runOk("mount", ["-t", "tmpfs", "-o", "size=1M", "tmpfs", mount]);
		try {
			await run("dd", ["if=/dev/zero", `of=${mount}/filler`, "bs=4K", "status=none"]);
			assertFails(await run(vmsweep, ["create", `${mount}/web01`, "--size", "1G"]), 1, /ENOSPC|full|[Ff]ree space/);
			assert.deepEqual(await readdir(mount), ["filler"]);
		} finally {
			await runOk("umount", [mount]);
		}
	});
});
