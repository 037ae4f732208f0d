import assert from "node:assert/strict";
import { test } from "node:test";
import { CommanderError } from "commander";
import fc from "fast-check";
import { VmsweepError } from "../../foundations/errors.ts";
import type { Extent } from "../../foundations/guest-map.ts";
import { byteCount, byteOffset } from "../../foundations/units.ts";
import { drawPicture } from "./disk-picture.ts";
import { describeError, describeUsageError, exitCodeOf } from "./failure.ts";
import { libvirtDisk, qemuArguments } from "./hypervisor-snippets.ts";
import { plainLine } from "./logging.ts";
import { formatTable, printable } from "./output.ts";
import { formatProgress } from "./progress-bar.ts";
import { parseSize } from "./values.ts";

test("sizes are binary, with and without iB", () => {
	const cases: Readonly<Record<string, number>> = {
		"512": 512,
		"64K": 65536,
		"512M": 2 ** 29,
		"40G": 40 * 2 ** 30,
		"40g": 40 * 2 ** 30,
		"40GiB": 40 * 2 ** 30,
		"1.5G": 1.5 * 2 ** 30,
		"1T": 2 ** 40,
		"4096B": 4096,
	};
	for (const [text, bytes] of Object.entries(cases)) assert.equal(parseSize(text), bytes, text);
	for (const text of ["", "G", "-1G", "40GB", "4 0G", "0", "0.3", "1e9", "9999999P", "0x10", "1.5"])
		assert.throws(() => parseSize(text), { code: "commander.invalidArgument" }, text);
});

test("errors become one line, whatever is in them", () => {
	const hostile = new VmsweepError("IMAGE_LOCKED", "a\u001b[2Jb\nc\u009bd is in use.");
	assert.equal(describeError(hostile), "a\u{fffd}[2Jb c\u{fffd}d is in use.");
	assert.equal(exitCodeOf(hostile), 3);
	assert.match(describeError(new TypeError("x is\nnot y")), /^unexpected error: TypeError: x is not y\. Run again/);
	assert.equal(exitCodeOf(new TypeError()), 1);
	const unknown = new CommanderError(
		1,
		"commander.unknownOption",
		"error: unknown option '--jsn'\n(Did you mean --json?)",
	);
	assert.equal(
		describeUsageError(unknown, ["map", "--jsn"]),
		"unknown option '--jsn' (Did you mean --json?). See: vmsweep help map",
	);
});

test("tables are aligned and obey no control characters", () => {
	assert.equal(
		formatTable(
			[
				["a", "1"],
				["bbb", "22\u001b"],
			],
			[1],
		),
		"a      1\nbbb  22\u{fffd}\n",
	);
	fc.assert(
		fc.property(fc.string({ unit: "binary" }), (text) => {
			assert.doesNotMatch(printable(text), /\p{Cc}/u);
		}),
	);
});

test("progress is a bar where the end is known", () => {
	assert.equal(
		formatProgress({ step: "dropping", done: 512 * 2 ** 20, total: 2 ** 30 }, 67_000),
		`dropping  ${"█".repeat(12)}${" ".repeat(12)}  50 %  512 MiB of 1.00 GiB  1:07`,
	);
	assert.equal(formatProgress({ step: "cleaning", done: 0, total: null }, 5_000), "cleaning  0:05");
	fc.assert(
		fc.property(fc.nat(), fc.nat(), (done, total) => {
			assert.match(formatProgress({ step: "x", done, total }, 0), /0:00$/);
		}),
	);
});

const extent = (start: number, length: number, state: Extent["state"]): Extent => ({
	start: byteOffset(start),
	length: byteCount(length),
	state,
	volume: null,
});

test("the picture shows each share of the disk by what most of it is", () => {
	const size = 16 * 4096;
	const extents = [
		extent(0, 4 * 4096, "used"),
		extent(4 * 4096, 2048, "used"),
		extent(4 * 4096 + 2048, 7 * 4096 + 2048, "free"),
		extent(12 * 4096, 4 * 4096, "unknown"),
	];
	assert.deepEqual(drawPicture(extents, size, 8), ["████▒···", "····????"]);
	assert.deepEqual(drawPicture([], 0, 80), []);
	assert.deepEqual(drawPicture([extent(0, 512, "used")], 512, 80), ["█"]);
	const large = drawPicture([extent(0, 2 ** 44, "free")], 2 ** 44, 40);
	assert.deepEqual(
		large,
		Array.from({ length: 4 }, () => "·".repeat(40)),
	);
});

test("snippets quote what each hypervisor would take apart", () => {
	const served = {
		name: "my,disk & co",
		path: "/srv/my,disk & co",
		size: byteCount(2 ** 30),
		readOnly: true,
		address: { kind: "unix", path: "/srv/it's, here" },
		tls: null,
		uri: "",
	} as const;
	assert.equal(
		qemuArguments(served),
		"-blockdev 'driver=nbd,node-name=vmsweep-my_disk___co,server.type=unix,server.path=/srv/it'\\''s,, here,export=my,,disk & co,reconnect-delay=60,read-only=on,discard=unmap' -device virtio-blk-pci,drive=vmsweep-my_disk___co",
	);
	assert.match(libvirtDisk(served), /name="my,disk &amp; co"[\s\S]*<readonly\/>/);
	const tcp = {
		...served,
		readOnly: false,
		name: "web01",
		address: { kind: "tcp", host: "::1", port: 10809 },
	} as const;
	assert.match(
		qemuArguments(tcp),
		/^-blockdev driver=nbd,node-name=vmsweep-web01,server\.type=inet,server\.host=::1,server\.port=10809,/,
	);
	assert.match(
		qemuArguments({ ...tcp, tls: "certificate" }),
		/^-object tls-creds-x509,id=tls0,endpoint=client,dir=\S+ -blockdev .*,tls-creds=tls0,/,
	);
	assert.match(qemuArguments({ ...tcp, tls: "keys" }), /^-object tls-creds-psk,/);
	assert.match(libvirtDisk({ ...tcp, tls: "certificate" }), /<source protocol="nbd" name="web01" tls="yes">/);
});

test("log lines on a terminal are plain", () => {
	assert.match(
		plainLine('{"level":40,"time":0,"disk":"web01","msg":"full\\u001b"}'),
		/^\d\d:\d\d:\d\d warning: web01: full\u{fffd}\n$/u,
	);
});
