// qcow2 images as second images, on real files: images of all kinds that QEMU made are written, punched, flushed and
// opened again at random; the data plane's reader follows by its own tables. QEMU is the judge: its check finds neither
// errors nor leaks, and it reads what was written.

import assert from "node:assert/strict";
import { open, readFile, writeFile } from "node:fs/promises";
import { describe, type TestContext, test } from "node:test";
import { openSecondQcow2 } from "../../src/adapters/images/open-image.ts";
import { createSecondQcow2 } from "../../src/adapters/images/qcow2-create.ts";
import type { SecondImage } from "../../src/adapters/images/second-image.ts";
import * as sys from "../../src/adapters/os/syscalls.ts";
import { BROKEN_RUN, PACKED_RUN, type SecondReader, ZERO_RUN } from "../../src/adapters/plane/second-reader.ts";
import { secondReader } from "../../src/adapters/plane/second-readers.ts";
import { BLOCK_SIZE, byteCount, byteOffset } from "../../src/foundations/units.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { run, runOk } from "../support/processes.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import {
	activity,
	assertSameBytes,
	checkByQemu,
	contentByQemu,
	io,
	MIB,
	makeImage,
	type Variant,
	variants,
	withoutCompressed,
} from "./qcow2-images.ts";

const K = BLOCK_SIZE;

/** What a data plane would answer. */
function readByPlan(reader: SecondReader, size: number): Uint8Array {
	const { bytes, address } = sys.pin(size);
	let at = 0;
	reader.plan(0, size, (fd, fileAt, length, unpack) => {
		assert.notEqual(fd, BROKEN_RUN);
		if (fd === ZERO_RUN) bytes.fill(0, at, at + length);
		else if (fd === PACKED_RUN) assert.equal(unpack!(bytes.subarray(at, at + length)), 0);
		else assert.equal(sys.preadAll(fd, address + at, length, fileAt), length);
		at += length;
	});
	assert.equal(at, size, "the runs cover all");
	return bytes;
}

/** An image under test, and what must be in it. */
class Subject implements AsyncDisposable {
	readonly path: string;
	image: SecondImage;
	reader: SecondReader;
	content: Uint8Array;

	private constructor(path: string, image: SecondImage, content: Uint8Array) {
		this.path = path;
		this.image = image;
		this.content = content;
		this.reader = this.#connect();
	}

	static async open(path: string, content: Uint8Array): Promise<Subject> {
		return new Subject(path, await openSecondQcow2(path), content);
	}

	#connect(): SecondReader {
		const reader = secondReader(structuredClone(this.image.layout));
		this.image.writeTablesBy(async (update) => reader.writeTables(structuredClone(update)));
		return reader;
	}

	async reopen(): Promise<void> {
		await this.image.close();
		this.image = await openSecondQcow2(this.path);
		this.reader = this.#connect();
	}

	async step(random: Random, source: { readonly fd: number; readonly bytes: Uint8Array }): Promise<void> {
		const blocks = this.content.length / K;
		const block = random.below(blocks);
		const count = Math.min(blocks - block, random.between(1, random.chance(0.2) ? 400 : 12));
		const at = byteOffset(block * K);
		const length = byteCount(count * K);
		const kind = random.below(10);
		if (kind < 3) {
			const bytes = random.bytes(length);
			this.content.set(bytes, at);
			await this.image.writeBatch([{ at, bytes }]);
		} else if (kind < 5) {
			const ranges = [];
			for (let each = block; each < Math.min(blocks, block + 40); each += random.between(1, 6)) {
				const from = random.below(source.bytes.length / K) * K;
				this.content.set(source.bytes.subarray(from, from + K), each * K);
				ranges.push({ from, to: byteOffset(each * K), length: byteCount(K) });
			}
			await this.image.copyFrom(source.fd, ranges.toReversed());
		} else if (kind < 8) {
			this.content.fill(0, at, at + length);
			await this.image.punch(at, length);
		} else if (kind === 8) await this.image.flush();
		else {
			const bytes = new Uint8Array(length);
			await this.image.read(at, bytes);
			assertSameBytes(bytes, this.content.subarray(at, at + length), `the image from byte ${at} on`);
		}
	}

	/** The same content for this object, for a data plane, and as to what is held. */
	async check(): Promise<void> {
		await this.image.flush();
		const size = this.content.length;
		assertSameBytes(readByPlan(this.reader, size), this.content, "the data plane's reader");
		const bytes = new Uint8Array(size);
		await this.image.read(byteOffset(0), bytes);
		assertSameBytes(bytes, this.content, "the image");
		const outside = new Uint8Array(this.content);
		for await (const { start, end } of this.image.held.within(0, size)) outside.fill(0, start, end);
		assert.ok(
			outside.every((byte) => byte === 0),
			"what is not held reads as zeros",
		);
		// The first flush lowers counts, the second makes that durable; QEMU sees both at once.
		await this.image.flush();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.image.close();
	}
}

async function exercise(folder: TemporaryFolder, path: string, random: Random): Promise<void> {
	const source = { path: folder.file("source"), bytes: random.bytes(MIB) };
	await writeFile(source.path, source.bytes);
	await using file = await open(source.path);
	const { fd } = file;
	const snapshots = await snapshotsOf(path);
	const before: Uint8Array[] = [];
	for (const name of snapshots) before.push(await snapshotContent(folder, path, name));
	const content = await contentByQemu(folder, path);
	await using subject = await Subject.open(path, content);
	for (let round = 0; round < 3; round++) {
		for (let step = 0; step < 40; step++) await subject.step(random, { fd, bytes: source.bytes });
		await subject.check();
		if (round === 1) await subject.reopen();
	}
	await subject.image.close();
	await checkByQemu(path);
	assertSameBytes(await contentByQemu(folder, path), subject.content, "QEMU");
	for (const [index, name] of snapshots.entries())
		assertSameBytes(await snapshotContent(folder, path, name), before[index]!, `snapshot ${name}`);
}

const snapshotsOf = async (path: string): Promise<string[]> => {
	const info = JSON.parse(await runOk("qemu-img", ["info", "--output=json", path])) as {
		snapshots?: { name: string }[];
	};
	return (info.snapshots ?? []).map(({ name }) => name);
};

const snapshotContent = (folder: TemporaryFolder, path: string, name: string): Promise<Uint8Array> =>
	contentByQemu(folder, path, "-l", `snapshot.name=${name}`);

const usable = variants.filter(({ dataFile }) => dataFile !== true);

describe("a qcow2 image as a second image", () => {
	for (const [index, variant] of usable.entries())
		test(`${variant.name}: QEMU agrees with whatever is done to it`, async (t: TestContext) => {
			if (!requireTool(t, "qemu-img", "qemu-io")) return;
			const seed = testSeed() + index;
			t.diagnostic(`VMSWEEP_SEED=${seed - index}`);
			const random = seededRandom(seed);
			await using folder = await temporaryFolder();
			const size = variant.cluster < 4096 ? 2 * MIB : variant.cluster > MIB ? 20 * MIB : 8 * MIB;
			const path = await makeImage(folder, variant, "image", size);
			await io(path, activity(random, variant, size, 20));
			await exercise(folder, path, random);
		});

	for (const [index, { below, options }] of [
		{ below: "raw", options: "" },
		{ below: "qcow2", options: "cluster_size=4096" },
		{ below: "raw", options: "compat=0.10" },
		{ below: "qcow2", options: "extended_l2=on" },
	].entries())
		test(`on a ${below} image (${options || "the usual"})`, async (t: TestContext) => {
			if (!requireTool(t, "qemu-img", "qemu-io")) return;
			const seed = testSeed() + 100 + index;
			const random = seededRandom(seed);
			await using folder = await temporaryFolder();
			const size = 8 * MIB;
			const base = folder.file("base");
			await runOk("qemu-img", ["create", "-q", "-f", below, base, String(6 * MIB)]);
			const plain: Variant = { name: "", options: "", cluster: 65_536 };
			await io(base, activity(random, withoutCompressed(plain), 6 * MIB, 20), below);
			const unchanged = await readFile(base);
			const cluster = options.includes("4096") ? 4096 : 65_536;
			const variant: Variant = { name: "", options, cluster };
			const path = await makeImage(folder, variant, "image", size, "-b", base, "-F", below);
			await io(path, activity(random, variant, size, 10));
			await exercise(folder, path, random);
			assertSameBytes(await readFile(base), unchanged, "the image below");
		});

	test("with internal snapshots, which stay as they are", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		const random = seededRandom(testSeed() + 200);
		await using folder = await temporaryFolder();
		for (const options of ["", "cluster_size=4096,refcount_bits=8", "extended_l2=on,cluster_size=16384"]) {
			const variant: Variant = { name: "", options, cluster: 65_536, uncompressed: true };
			const path = await makeImage(folder, variant, `image-${options}`, 8 * MIB);
			for (const name of ["one", "two"]) {
				await io(path, activity(random, variant, 8 * MIB, 15));
				await runOk("qemu-img", ["snapshot", "-c", name, path]);
			}
			await io(path, activity(random, variant, 8 * MIB, 5));
			await exercise(folder, path, random);
		}
	});

	test("grows and shrinks, and what is new reads as zeros", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		const random = seededRandom(testSeed() + 300);
		await using folder = await temporaryFolder();
		const base = folder.file("base");
		await writeFile(base, random.bytes(8 * MIB));
		// The disk ends inside a cluster, and the image below is longer than it.
		const small: Variant = { name: "", options: "cluster_size=512", cluster: 512 };
		const path = await makeImage(folder, small, "image", MIB + K, "-b", base, "-F", "raw");
		const content = await contentByQemu(folder, path);
		await using subject = await Subject.open(path, content);
		for (const size of [2 * MIB, MIB, 6 * MIB, 6 * MIB + K, 3 * MIB + 3 * K]) {
			await subject.image.resize(byteCount(size));
			const next = new Uint8Array(size);
			next.set(subject.content.subarray(0, Math.min(size, subject.content.length)));
			subject.content = next;
			const bytes = random.bytes(K);
			subject.content.set(bytes, size - K);
			await subject.image.writeBatch([{ at: byteOffset(size - K), bytes }]);
			await subject.check();
			assert.equal(subject.image.size, size);
		}
		await subject.image.close();
		await checkByQemu(path);
		assertSameBytes(await contentByQemu(folder, path), subject.content, "QEMU");
	});

	test("a new one, on an image and alone, is what QEMU expects", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		const random = seededRandom(testSeed() + 400);
		await using folder = await temporaryFolder();
		const base = folder.file("base");
		await writeFile(base, random.bytes(2 * MIB));
		const options = [
			{ size: byteCount(4 * MIB) },
			{ size: byteCount(4 * MIB), backing: { name: base, format: "raw" as const } },
		];
		for (const [index, each] of options.entries()) {
			const path = folder.file(`new-${index}`);
			await (await createSecondQcow2(path, each)).close();
			await checkByQemu(path);
			await exercise(folder, path, random);
		}
	});

	test("reads that were planned before a place was given up are known to be past, others are not", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const path = folder.file("image");
		await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, String(4 * MIB)]);
		// The first half of a cluster: it can't be written in place.
		await io(path, [`write -P 5 0 ${8 * K}`]);
		await using subject = await Subject.open(path, await contentByQemu(folder, path));
		const placeOf = (block: number): number => {
			let place = Number.NaN;
			subject.reader.plan(block * K, (block + 1) * K, (_, fileAt) => {
				place = fileAt;
			});
			return place;
		};
		const write = async (block: number): Promise<void> => {
			const bytes = new Uint8Array(K).fill(9);
			subject.content.set(bytes, block * K);
			await subject.image.writeBatch([{ at: byteOffset(block * K), bytes }]);
			await subject.image.flush();
		};
		const before = placeOf(0);
		await write(40);
		assert.equal(subject.reader.generation, 0, "a cluster was only added");
		assert.equal(placeOf(0), before);
		await write(1);
		assert.equal(subject.reader.generation, 1, "a cluster was moved");
		assert.notEqual(placeOf(0), before);
		await write(2);
		assert.equal(subject.reader.generation, 1, "a cluster was written in place");
		await subject.check();
	});

	test("tables that turn out damaged while they are served are errors for their reads, and no others", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const path = folder.file("image");
		await runOk("qemu-img", ["create", "-q", "-f", "qcow2", path, String(4 * MIB)]);
		await io(path, ["write -P 5 0 2M"]);
		await using subject = await Subject.open(path, await contentByQemu(folder, path));
		const before = await readFile(path);
		const l1 = Number(before.readBigUInt64BE(40));
		const l2 = before.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n;
		await using file = await open(path, "r+");
		// The second cluster leads into the middle of one, the third behind the end of the file.
		const entry = Buffer.alloc(16);
		entry.writeBigUint64BE(0x8000_0000_0005_0200n, 0);
		entry.writeBigUint64BE(0x8000_0100_0000_0000n, 8);
		await file.write(entry, 0, 16, Number(l2) + 8);
		const planned = (cluster: number): number => {
			let found = Number.NaN;
			subject.reader.plan(cluster * 65_536, cluster * 65_536 + K, (fd) => {
				found = fd;
			});
			return found;
		};
		assert.ok(planned(0) >= 0);
		assert.equal(planned(1), BROKEN_RUN);
		assert.equal(planned(2), BROKEN_RUN);
		assert.ok(planned(3) >= 0);
	});

	test("what the header promised about the content is taken back by the first change", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const path = folder.file("image");
		await runOk("qemu-img", ["create", "-q", "-f", "qcow2", path, String(4 * MIB)]);
		const bytes = await readFile(path);
		bytes[94]! |= 0x40;
		await writeFile(path, bytes);
		await using image = await openSecondQcow2(path);
		await image.flush();
		assert.equal((await readFile(path))[94]! & 0x40, 0x40, "nothing was changed yet");
		await image.punch(byteOffset(0), byteCount(K));
		await image.flush();
		assert.equal((await readFile(path))[94]! & 0x40, 0, "an unknown autoclear bit is cleared");
	});

	test("on a block device: written up to its end, and not past it", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "root", "loop devices", "losetup")) return;
		await using folder = await temporaryFolder();
		const file = folder.file("device");
		await writeFile(file, "");
		await runOk("truncate", ["-s", "8M", file]);
		const device = (await runOk("losetup", ["-f", "--show", file])).trim();
		try {
			await runOk("qemu-img", ["create", "-q", "-f", "qcow2", device, "64M"]);
			{
				await using image = await openSecondQcow2(device);
				assert.equal(image.kind, "block-device");
				const bytes = new Uint8Array(MIB).fill(3);
				for (let at = 0; at < 7 * MIB; at += MIB) await image.writeBatch([{ at: byteOffset(at), bytes }]);
				await image.flush();
				await assert.rejects(image.writeBatch([{ at: byteOffset(8 * MIB), bytes }]), /NO_SPACE|is full/);
				// What is given back can be used again.
				await image.punch(byteOffset(0), byteCount(2 * MIB));
				await image.flush();
				await image.writeBatch([{ at: byteOffset(10 * MIB), bytes }]);
				await image.flush();
				await image.flush();
			}
			await checkByQemu(device);
			await runOk("qemu-io", [
				"-r",
				"-f",
				"qcow2",
				"-c",
				"read -P 0 0 2M",
				"-c",
				"read -P 3 10M 1M",
				"-c",
				"read -P 3 2M 5M",
				device,
			]);
		} finally {
			await runOk("losetup", ["-d", device]);
		}
	});

	test("what can't be changed safely is refused, and not changed", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const refused: [name: string, make: (path: string) => Promise<unknown>, message: RegExp][] = [
			[
				"data",
				(path) => runOk("qemu-img", ["create", "-f", "qcow2", "-o", `data_file=${path}.d`, path, "1M"]),
				/keeps its data in another file .*qemu-img convert/,
			],
			[
				"bitmap",
				async (path) => {
					await runOk("qemu-img", ["create", "-f", "qcow2", path, "1M"]);
					await runOk("qemu-img", ["bitmap", "--add", path, "days"]);
				},
				/1 stored dirty bitmaps.*qemu-img bitmap --remove/,
			],
			[
				"dirty",
				async (path) => {
					await runOk("qemu-img", ["create", "-f", "qcow2", path, "1M"]);
					const bytes = await readFile(path);
					bytes[79]! |= 1;
					await writeFile(path, bytes);
				},
				/not closed cleanly.*qemu-img check -r all/,
			],
			[
				"corrupt",
				async (path) => {
					await runOk("qemu-img", ["create", "-f", "qcow2", path, "1M"]);
					const bytes = await readFile(path);
					bytes[79]! |= 2;
					await writeFile(path, bytes);
				},
				/marked as damaged/,
			],
			[
				"future",
				async (path) => {
					await runOk("qemu-img", ["create", "-f", "qcow2", path, "1M"]);
					const bytes = await readFile(path);
					bytes[78]! |= 1;
					await writeFile(path, bytes);
				},
				/features that vmsweep doesn't know/,
			],
			[
				"vmdk",
				async (path) => {
					await runOk("qemu-img", ["create", "-f", "vmdk", `${path}.below`, "1M"]);
					await runOk("qemu-img", ["create", "-f", "qcow2", "-b", `${path}.below`, "-F", "vmdk", path]);
				},
				/only raw and qcow2 images may be there/,
			],
		];
		for (const [name, make, message] of refused) {
			const path = folder.file(name);
			await make(path);
			const before = await readFile(path);
			await assert.rejects(openSecondQcow2(path), message);
			assertSameBytes(await readFile(path), before, name);
		}
	});

	test("what somebody leaked is given back by the first change, and nothing is changed before", async (t: TestContext) => {
		if (!requireTool(t, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const path = folder.file("image");
		await runOk("qemu-img", ["create", "-q", "-f", "qcow2", path, "8M"]);
		await io(path, ["write -P 3 0 2M"]);
		const bytes = await readFile(path);
		// All entries of the one L2 table are forgotten, so that its clusters are leaked.
		const view = new DataView(bytes.buffer, bytes.byteOffset);
		const l1 = Number(view.getBigUint64(40));
		const l2 = Number(view.getBigUint64(l1) & 0x00ff_ffff_ffff_fe00n);
		bytes.fill(0, l2, l2 + 65_536);
		await writeFile(path, bytes);
		const { exitCode } = await run("qemu-img", ["check", path]);
		assert.equal(exitCode, 3, "QEMU sees the leaks");
		await using image = await openSecondQcow2(path);
		assertSameBytes(await readFile(path), bytes, "opening changes nothing");
		await image.writeBatch([{ at: byteOffset(4 * MIB), bytes: new Uint8Array(K).fill(9) }]);
		await image.flush();
		await image.close();
		await checkByQemu(path);
	});
});
