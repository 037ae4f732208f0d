// Do the clients that people really use agree with the server? QEMU's tools, libnbd's tools and fio, over both
// kinds of sockets.

import assert from "node:assert/strict";
import { open, stat, truncate, writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { hashFile } from "../support/hashes.ts";
import { type PlaneOptions, type PlaneServer, startPlane } from "../support/plane-server.ts";
import { run, runOk, start } from "../support/processes.ts";
import { seededRandom } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { waitUntil } from "../support/waiting.ts";

const MiB = 2 ** 20;

interface Fixture extends AsyncDisposable {
	readonly folder: TemporaryFolder;
	readonly server: PlaneServer;
}

async function fixture(options: Omit<PlaneOptions, "directory"> = {}): Promise<Fixture> {
	const stack = new AsyncDisposableStack();
	const folder = stack.use(await temporaryFolder());
	const server = stack.use(await startPlane({ directory: folder.file("d"), size: 64 * MiB, tcp: true, ...options }));
	return { folder, server, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

/** A sparse raw image of `size` bytes: some random runs at odd places, and a lot of nothing. */
async function makeImage(path: string, size: number, seed: number): Promise<void> {
	const random = seededRandom(seed);
	await writeFile(path, "");
	await truncate(path, size);
	await using file = await open(path, "r+");
	for (let i = 0; i < 24; i++) {
		const length = random.between(1, 700_000);
		await file.write(random.bytes(length), 0, length, random.below(size - length));
	}
}

interface MapExtent {
	readonly start: number;
	readonly length: number;
	readonly data: boolean;
	readonly zero: boolean;
}

describe("qemu-img", () => {
	test("converts to and from, compares, maps and measures", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img")) return;
		await using f = await fixture();
		const { folder, server } = f;
		const [image, back, qcow2] = [folder.file("image"), folder.file("back"), folder.file("back.qcow2")];
		await makeImage(image, server.size, 1);
		for (const uri of [server.uri, server.tcpUri]) {
			await runOk("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", image, uri]);
			await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", "raw", "-m", "8", "-W", uri, back]);
			assert.equal(await hashFile(back), await hashFile(image));
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", uri, qcow2]);
			await runOk("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", qcow2, uri]);
		}
		const map = JSON.parse(await runOk("qemu-img", ["map", "--output=json", "-f", "raw", server.uri])) as MapExtent[];
		let at = 0;
		for (const extent of map) {
			assert.equal(extent.start, at);
			assert.equal(extent.data, !extent.zero);
			at += extent.length;
		}
		assert.equal(at, server.size);
		assert(map.some(({ zero }) => zero) && map.some(({ data }) => data));
		const measured = JSON.parse(
			await runOk("qemu-img", ["measure", "--output=json", "-f", "raw", "-O", "qcow2", server.uri]),
		) as { required: number };
		assert(measured.required < server.size / 2, "holes are not counted");
	});

	test("bench with flushes, and with deep queues", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img")) return;
		await using f = await fixture();
		const bench = ["bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4096"];
		await runOk("qemu-img", [...bench, "-w", "--flush-interval=64", f.server.uri]);
		await runOk("qemu-img", [...bench, f.server.uri]);
		const { counters } = await f.server.plane.ask("status");
		assert(counters.writes >= 2000 && counters.reads >= 2000 && counters.flushes >= 31 && counters.errors === 0);
	});
});

describe("qemu-io", () => {
	for (const mode of ["writeback", "none", "directsync"])
		test(`writes, zeroes, discards, flushes, at any alignment (-t ${mode})`, async (t: TestContext) => {
			if (!requireTool(t, "qemu-io")) return;
			await using f = await fixture();
			const commands = [
				"write -P 1 0 64k",
				"write -P 2 4095 3",
				"read -P 1 0 4095",
				"read -P 2 4095 3",
				"read -P 1 4098 61438",
				"write -z 8k 8k",
				"read -P 0 8k 8k",
				"write -z -u 20k 4k",
				"read -P 0 20k 4k",
				"write -z -u -n 24k 4k",
				"read -P 0 24k 4k",
				"discard 32k 8k",
				"read -P 0 32k 8k",
				"discard 41000 100",
				"read -P 1 40k 4k",
				"write -f -P 3 48k 4k",
				"read -P 3 48k 4k",
				"writev -P 4 60k 512 1024 7 4096",
				"readv -P 4 60k 100 5539",
				"aio_write -P 5 1M 1M",
				"aio_write -P 6 2M 1M",
				"aio_flush",
				"aio_read -P 5 1M 1M",
				"aio_read -P 6 2M 1M",
				"aio_flush",
				"write -P 7 30M 33M",
				"read -P 7 30M 33M",
				"write -P 8 67108800 64",
				"read -P 8 67108800 64",
				"flush",
				"length",
			];
			const output = await runOk("qemu-io", [
				"-f",
				"raw",
				"-t",
				mode,
				"-d",
				"unmap",
				...commands.flatMap((c) => ["-c", c]),
				f.server.uri,
			]);
			assert.doesNotMatch(output, /fail|error|cannot/i);
			assert.match(output, /64 MiB/);
			const past = await run("qemu-io", ["-f", "raw", "-c", "write 67108800 65", f.server.uri]);
			assert.match(past.stdout + past.stderr, /fail|error|past end/i);
			const { counters } = await f.server.plane.ask("status");
			assert.equal(counters.errors, 0);
			if (mode === "directsync") assert(counters.datasyncs > 10, "every write is synced");
		});

	test("a read-only export", async (t: TestContext) => {
		if (!requireTool(t, "qemu-io")) return;
		await using f = await fixture({ readOnly: true });
		assert.match(await runOk("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0 0 1M", f.server.uri]), /1 MiB/);
		const { stdout, stderr } = await run("qemu-io", ["-f", "raw", "-c", "write 0 4k", f.server.uri]);
		assert.match(stdout + stderr, /read.only|permission|not permitted/i);
	});
});

describe("libnbd", () => {
	test("nbdinfo lists, describes and maps", async (t: TestContext) => {
		if (!requireTool(t, "nbdinfo", "qemu-io")) return;
		await using f = await fixture();
		const { server } = f;
		await runOk("qemu-io", ["-f", "raw", "-c", "write -P 1 4k 8k", "-c", "write -z -u 32k 4k", server.uri]);
		for (const uri of [server.uri, server.tcpUri]) {
			assert.match(await runOk("nbdinfo", ["--list", uri]), /export="disk"/);
			const info = JSON.parse(await runOk("nbdinfo", ["--json", uri])) as { exports: Record<string, unknown>[] };
			const [disk] = info.exports;
			assert.equal(disk?.["export-size"], server.size);
			for (const can of [
				"can_multi_conn",
				"can_fua",
				"can_flush",
				"can_trim",
				"can_zero",
				"can_fast_zero",
				"can_cache",
			])
				assert.equal(disk[can], true, can);
			const map = JSON.parse(await runOk("nbdinfo", ["--map", "--json", uri])) as {
				offset: number;
				length: number;
				type: number;
			}[];
			assert.deepEqual(
				map.map(({ offset, length, type }) => [offset, length, type]),
				[
					[0, 4096, 3],
					[4096, 8192, 0],
					[12288, server.size - 12288, 3],
				],
			);
			assert.equal((await runOk("nbdinfo", ["--size", uri])).trim(), `${server.size}`);
			assert.equal((await run("nbdinfo", ["--can", "multi-conn", uri])).exitCode, 0);
		}
	});

	test("nbdcopy goes both ways, over several connections, sparse, with and without extents", async (t: TestContext) => {
		if (!requireTool(t, "nbdcopy")) return;
		await using f = await fixture({ size: 32 * MiB });
		const { folder, server } = f;
		const [image, back] = [folder.file("image"), folder.file("back")];
		const ways: [string, string[]][] = [
			[server.uri, ["--connections=4", "--requests=32"]],
			[server.tcpUri, ["--connections=2", "--synchronous"]],
			[server.uri, ["--no-extents", "--sparse=0"]],
			[server.uri, ["--allocated", "--flush"]],
		];
		for (const [index, [uri, how]] of ways.entries()) {
			await makeImage(image, server.size, 10 + index);
			await runOk("nbdcopy", [...how, image, uri]);
			await runOk("nbdcopy", [...how, uri, back]);
			assert.equal(await hashFile(back), await hashFile(image), how.join(" "));
			await truncate(back, 0);
		}
		await runOk("nbdcopy", ["--connections=4", server.uri, back]);
		const { blocks, size } = await stat(back);
		assert(blocks * 512 < size, "holes stay holes");
	});

	test("nbdfuse shows the disk as a file", async (t: TestContext) => {
		if (!requireTool(t, "nbdfuse", "fusermount3")) return;
		await using f = await fixture();
		const file = f.folder.file("image");
		await writeFile(file, "");
		await using fuse = start("nbdfuse", [file, f.server.uri]);
		await fuse.until(async () => (await stat(file)).size === f.server.size, "the mount");
		await runOk("dd", [
			`of=${file}`,
			"if=/dev/urandom",
			"bs=123457",
			"count=40",
			"seek=3",
			"conv=notrunc,fsync",
			"status=none",
		]);
		const seen = await hashFile(file);
		await runOk("fusermount3", ["-u", file]);
		await fuse.finished;
		const back = f.folder.file("back");
		await runOk("nbdcopy", [f.server.uri, back]);
		assert.equal(await hashFile(back), seen);
	});
});

describe("fio", () => {
	const verifying = [
		"--name=verify",
		"--ioengine=nbd",
		"--rw=randwrite",
		"--iodepth=32",
		"--bsrange=512-64k",
		"--blockalign=512",
		"--bs_unaligned=0",
		"--verify=crc32c",
		"--verify_fatal=1",
		"--do_verify=1",
		"--randseed=7",
		"--fsync=37",
	];

	for (const socket of ["unix", "tcp"] as const)
		test(`verifies random writes of any sectors over ${socket}`, async (t: TestContext) => {
			if (!requireTool(t, "fio")) return;
			await using f = await fixture();
			const uri = socket === "unix" ? f.server.uri : f.server.tcpUri;
			await runOk("fio", [...verifying, `--uri=${uri}`, "--size=32m"], { folder: f.folder.path });
			const { counters } = await f.server.plane.ask("status");
			assert.equal(counters.errors, 0);
			assert(counters.writes > 500 && counters.datasyncs > 5);
		});

	test("several jobs, each its own connection and range, mixed with trims", async (t: TestContext) => {
		if (!requireTool(t, "fio")) return;
		await using f = await fixture();
		const jobs = [0, 1, 2, 3].flatMap((job) => [
			`--name=j${job}`,
			`--offset=${job * 16}m`,
			"--size=16m",
			"--io_size=12m",
		]);
		const common = [
			"--ioengine=nbd",
			`--uri=${f.server.uri}`,
			"--rw=randtrimwrite",
			"--bs=4k",
			"--iodepth=16",
			"--thread",
		];
		await runOk("fio", [...common, ...jobs], { folder: f.folder.path });
		const verify = ["--ioengine=nbd", `--uri=${f.server.uri}`, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--thread"];
		await runOk("fio", [...verify, "--verify=crc32c", "--verify_fatal=1", ...jobs], { folder: f.folder.path });
	});
});

describe("QEMU", () => {
	test("qemu-nbd stands in the middle", async (t: TestContext) => {
		if (!requireTool(t, "qemu-nbd", "qemu-img")) return;
		await using f = await fixture();
		const { folder, server } = f;
		const [image, socket] = [folder.file("image"), folder.file("q.sock")];
		await makeImage(image, server.size, 3);
		await using middle = start("qemu-nbd", ["-f", "raw", "-k", socket, "-t", "-e", "4", "--discard=unmap", server.uri]);
		await waitUntil(
			() =>
				stat(socket).then(
					() => middle.alive,
					() => false,
				),
			"qemu-nbd's socket",
		);
		const uri = `nbd+unix:///?socket=${socket}`;
		await runOk("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", image, uri]);
		await middle.end();
		await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, server.uri]);
	});
});
