// `vmsweep explain` against the truth: what du, dumpe2fs, the dry run, a real sweep and QEMU's own tools say.

import assert from "node:assert/strict";
import { open, rm, stat, truncate, writeFile } from "node:fs/promises";
import { describe, test } from "node:test";
import type { Explanation, ShareKind } from "../../src/services/explain.ts";
import type { SweepReport } from "../../src/services/sweep.ts";
import { type TemporaryFolder, temporaryFolder } from "../support/folders.ts";
import { allocatedBytes, hashFile } from "../support/hashes.ts";
import { run, runOk, start, vmsweep } from "../support/processes.ts";
import { testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { type AgedKindName, agedKinds, assertFails, MIB, makeAged, writeNoise } from "./aged-images.ts";
import { dumpFree } from "./map-images.ts";

const KIB = 1024;

const explain = async (image: string, ...options: readonly string[]): Promise<Explanation> =>
	JSON.parse(await runOk(vmsweep, ["explain", "--json", ...options, image])) as Explanation;
const sweep = async (image: string, ...options: readonly string[]): Promise<SweepReport> =>
	JSON.parse(await runOk(vmsweep, ["sweep", "--json", ...options, image])) as SweepReport;

const share = ({ shares }: Explanation, kind: ShareKind): number =>
	shares.find((each) => each.kind === kind)?.hostBytes ?? 0;

function assertNear(value: number, expected: number, what: string, slack = 64 * KIB): void {
	assert(Math.abs(value - expected) <= 0.01 * expected + slack, `${what}: ${value}, expected ${expected}`);
}

/** What must hold of every explanation of a file. */
async function assertAddsUp(explanation: Explanation, path: string): Promise<void> {
	const sum = explanation.shares.reduce((total, { hostBytes }) => total + hostBytes, 0);
	assert.equal(explanation.hostBytes, await allocatedBytes(path));
	assert.equal(sum, explanation.hostBytes);
	for (const { id, size, ...volume } of explanation.volumes) {
		const parts = volume.usedHeldBytes + volume.usedNotHeldBytes + volume.freeHeldBytes + volume.freeNotHeldBytes;
		assert.equal(parts + volume.unknownHeldBytes + volume.unknownNotHeldBytes, size, id);
	}
	for (const [index, { hostBytes }] of explanation.largest.entries())
		assert(hostBytes > 0 && hostBytes <= (explanation.largest[index - 1]?.hostBytes ?? hostBytes));
}

/** What is foretold is what the dry run says, and what a sweep then gives back. Returns that. */
async function assertForetold(explanation: Explanation, image: string, ...options: readonly string[]): Promise<number> {
	const dry = await sweep(image, "--dry-run", ...options);
	assert.equal(explanation.reclaimableBytes, dry.droppedBytes);
	assert.deepEqual(
		explanation.volumes.map(({ id, reclaimableBytes, kept }) => [id, reclaimableBytes, kept]),
		dry.volumes.map(({ id, droppedBytes, kept }) => [id, droppedBytes, kept]),
	);
	const before = await allocatedBytes(image);
	await sweep(image, ...options);
	const back = before - (await allocatedBytes(image));
	assertNear(explanation.reclaimableBytes, back, "given back", 16 * KIB);
	return back;
}

describe("a raw image", () => {
	for (const kind of Object.keys(agedKinds) as AgedKindName[])
		test(kind, async (t) => {
			if (!requireTool(t, ...agedKinds[kind].tools, "filefrag")) return;
			const seed = testSeed();
			t.diagnostic(`VMSWEEP_SEED=${seed}`);
			await using folder = await temporaryFolder();
			const { image } = await makeAged(folder, kind, seed);
			const contents = await hashFile(image);
			const explanation = await explain(image);
			await assertAddsUp(explanation, image);
			assert.equal(await hashFile(image), contents, "nothing is changed");
			assert.equal(explanation.command, `vmsweep sweep ${image}`);
			if (kind === "ext4") await assertAsDumped(explanation, image);
			assert((await assertForetold(explanation, image)) > 10 * MIB);

			const after = await explain(image);
			await assertAddsUp(after, image);
			assert.equal(after.command, null);
			assertNear(share(after, "used"), share(explanation, "used"), "used after the sweep");
			assert(share(after, "free") < MIB);
		});
});

/** The shares are what dumpe2fs calls free, where the file holds something. */
async function assertAsDumped(explanation: Explanation, image: string): Promise<void> {
	const { free, blockSize } = await dumpFree(image);
	let [used, unused] = [0, 0];
	// Space that is reserved without data is held, too.
	for (const { start: from, end } of await heldByFilefrag(image))
		for (let at = from; at < Math.min(end, free.length * blockSize); at += blockSize)
			if (free[at / blockSize] === 1) unused += blockSize;
			else used += blockSize;
	const map = JSON.parse(await runOk(vmsweep, ["map", "--json", image])) as { volumes: { neverUsedBytes?: number }[] };
	const neverUsed = map.volumes[0]!.neverUsedBytes ?? 0;
	const shown = share(explanation, "free");
	assert(shown >= unused - 64 * KIB && shown <= unused + neverUsed + 64 * KIB, `${shown} free, expected ${unused}`);
	assertNear(share(explanation, "used") + shown, used + unused, "used and free");
}

async function heldByFilefrag(path: string): Promise<{ start: number; end: number }[]> {
	const text = await runOk("filefrag", ["-v", "-b1", "-s", path]);
	return [...text.matchAll(/^ *\d+: +(\d+)\.\. *(\d+):/gm)].map(([, first, last]) => ({
		start: Number(first),
		end: Number(last) + 1,
	}));
}

describe("other formats", () => {
	test("are explained, and a conversion is proposed instead of a sweep", async (t) => {
		if (!requireTool(t, ...agedKinds.ext4.tools, "qemu-img", "qemu-nbd")) return;
		await using folder = await temporaryFolder();
		const { image } = await makeAged(folder, "ext4", 4);
		const raw = await explain(image);
		for (const [format, name] of [
			["vmdk", "vmdk"],
			["vhdx", "vhdx"],
			["vdi", "vdi"],
			["vpc", "vhd"],
		] as const) {
			const path = folder.file(`image.${name}`);
			await runOk("qemu-img", ["convert", "-f", "raw", "-O", format, image, path]);
			const explanation = await explain(path);
			assert.equal(explanation.format, name);
			await assertAddsUp(explanation, path);
			assert.equal(explanation.reclaimableBytes, null);
			assert.equal(explanation.command, `vmsweep convert ${path} NEW.qcow2`);
			// What the guest wrote zeros to is no data any more; VDI keeps whole mebibytes.
			const [used, free] = [share(explanation, "used"), share(explanation, "free")];
			assert(used <= share(raw, "used") + 8 * MIB && used > 0.5 * share(raw, "used"), `${name}: ${used}`);
			assert(free > 0.5 * share(raw, "free"), `${name}: ${free}`);
			assert(share(explanation, "format") >= 0 && share(explanation, "format") < 4 * MIB);
			await rm(path);
		}
		// A server that ends with its first client, and an address that a shell would take apart.
		const socket = folder.file("s");
		await using server = start("qemu-nbd", ["-r", "-f", "raw", "-k", socket, image]);
		await server.until(
			() =>
				stat(socket).then(
					() => true,
					() => false,
				),
			"its socket",
		);
		const uri = `nbd+unix:///?socket=${socket}`;
		const explanation = await explain(uri);
		assert.deepEqual([explanation.hostBytes, explanation.reclaimableBytes], [null, null]);
		assert.equal(explanation.command, `vmsweep convert '${uri}' NEW.qcow2`);
		assert.equal(share(explanation, "format"), 0);
	});

	test("qcow2: plain, packed, and on another image", async (t) => {
		if (!requireTool(t, ...agedKinds.ext4.tools, "qemu-img", "qemu-io")) return;
		await using folder = await temporaryFolder();
		const { image } = await makeAged(folder, "ext4", 5);
		const [plain, packed, top] = [folder.file("plain.qcow2"), folder.file("packed.qcow2"), folder.file("top.qcow2")];
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", image, plain]);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-c", image, packed]);

		const explanation = await explain(plain);
		await assertAddsUp(explanation, plain);
		assertNear(share(explanation, "format"), 6 * 64 * KIB, "header, counts and tables", 192 * KIB);
		assert((await assertForetold(explanation, plain)) > 10 * MIB);

		// Text packs well, unlike the noise in there: so little on the host stands for much of the guest's.
		await using file = await open(image, "r+");
		const { free, blockSize } = await dumpFree(image);
		const text = Buffer.alloc(blockSize, "deleted text ");
		for (let block = 0; block < free.length; block++)
			if (free[block] === 1 && block % 2 === 0) await file.write(text, 0, blockSize, block * blockSize);
		await rm(packed);
		await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-c", image, packed]);
		const saved = await explain(packed);
		await assertAddsUp(saved, packed);
		assert(share(saved, "format") < -10 * MIB, "what packing saved");
		assert.match(await runOk(vmsweep, ["explain", packed]), /^ *-\d\S* MiB {2}saved by compression$/m);
		await assertForetold(saved, packed);

		await runOk("qemu-img", ["create", "-q", "-f", "qcow2", "-b", plain, "-F", "qcow2", top]);
		await runOk("qemu-io", ["-f", "qcow2", "-c", "write -P 1 0 512", top]);
		const above = await explain(top);
		await assertAddsUp(above, top);
		assert.deepEqual(
			above.backing.map(({ path, hostBytes }) => [path, hostBytes]),
			[[plain, await allocatedBytes(plain)]],
		);
		// Its overlay would show what a sweep does: no sweep is proposed, and none is done.
		const below = await explain(plain);
		assert.deepEqual([below.reclaimableBytes, below.command], [null, null]);
		assert.match(below.notes[0]!, /^no sweep now: .*is the backing file of/);
		assertFails(await run(vmsweep, ["sweep", "--dry-run", plain]), 3, /is the backing file of/);
		// Also where the overlay itself can't be opened: here it has a feature of a newer QEMU.
		await using overlay = await open(top, "r+");
		await overlay.write(Uint8Array.of(0x80), 0, 1, 72);
		assert.equal((await explain(plain)).command, null);
		assertFails(await run(vmsweep, ["sweep", plain]), 3, /is the backing file of/);
	});

	test("qcow2 with snapshots, and what keeps it from being swept", async (t) => {
		if (!requireTool(t, ...agedKinds.ext4.tools, "qemu-img")) return;
		await using folder = await temporaryFolder();
		const path = folder.file("image.qcow2");
		const { image } = await makeAged(folder, "ext4", 6, {
			async onYoung(young) {
				await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", young, path]);
				for (const name of ["one", "two"]) await runOk("qemu-img", ["snapshot", "-c", name, path]);
			},
		});
		await runOk("qemu-img", ["convert", "-n", "-f", "raw", "-O", "qcow2", image, path]);
		const explanation = await explain(path);
		await assertAddsUp(explanation, path);
		assert.deepEqual(explanation.snapshots, [
			{ id: "1", name: "one" },
			{ id: "2", name: "two" },
		]);
		const kept = share(explanation, "snapshots");
		assert(kept > MIB);
		// What a snapshot shares stays, and the explanation knows it.
		await assertForetold(explanation, path);
		const before = await allocatedBytes(path);
		for (const name of ["one", "two"]) await runOk("qemu-img", ["snapshot", "-d", name, path]);
		assertNear(kept, before - (await allocatedBytes(path)), "what the snapshots kept", 6 * 64 * KIB);

		await runOk("qemu-img", ["bitmap", "--add", path, "backup"]);
		const marked = await explain(path);
		await assertAddsUp(marked, path);
		assert.deepEqual([marked.reclaimableBytes, marked.command], [null, null]);
		assert.match(marked.notes[0]!, /^no sweep now: .* dirty bitmaps.*qemu-img bitmap --remove/);
	});
});

/** GPT: ext4 | swap | LUKS | 100 MiB of nothing but noise behind them. All parts are full of noise. */
async function makeMixed(folder: TemporaryFolder): Promise<string> {
	const image = folder.file("mixed.raw");
	await writeFile(image, "");
	await truncate(image, 96 * MIB);
	await runOk("sfdisk", ["-q", image], { input: "label: gpt\nsize=20M\nsize=20M, type=S\nsize=20M\n" });
	await writeNoise(image, MIB, 94 * MIB);
	const part = folder.file("part");
	for (const [index, make] of [
		["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard"],
		["mkswap", "-q"],
	].entries()) {
		await writeFile(part, "");
		await truncate(part, 20 * MIB);
		await runOk(make[0]!, [...make.slice(1), part]);
		const seek = `seek=${1 + index * 20}`;
		await runOk("dd", [`if=${part}`, `of=${image}`, "bs=1M", seek, "conv=notrunc,sparse", "status=none"]);
		await rm(part);
	}
	await using file = await open(image, "r+");
	await file.write("LUKS\xba\xbe\0\x02", 41 * MIB, "latin1");
	return image;
}

test("swap, volumes that nobody can look into, and gaps have shares of their own", async (t) => {
	if (!requireTool(t, "mke2fs", "mkswap", "sfdisk", "dd")) return;
	await using folder = await temporaryFolder();
	const image = await makeMixed(folder);
	const explanation = await explain(image);
	await assertAddsUp(explanation, image);
	assert.deepEqual(
		explanation.volumes.map(({ id, type }) => [id, type]),
		[
			["p1", "ext4"],
			["p2", "swap"],
			["p3", "luks"],
		],
	);
	assertNear(share(explanation, "swap"), 20 * MIB, "swap");
	assertNear(share(explanation, "unknown"), 20 * MIB, "unknown");
	assertNear(share(explanation, "outside"), 34 * MIB, "the tables, and noise behind the partitions");
	assertNear(share(explanation, "used") + share(explanation, "free"), 20 * MIB, "ext4");
	assert.equal(explanation.volumes[1]!.reclaimableBytes, 0);
	assert.match(explanation.volumes[1]!.kept!, /--vm-off/);

	const off = await explain(image, "--vm-off");
	assert.equal(off.command, `vmsweep sweep ${image} --vm-off`);
	assertNear(share(off, "swap"), 4096, "swap's header");
	assertNear(off.reclaimableBytes!, explanation.reclaimableBytes! + 20 * MIB, "swap comes back");
	await assertForetold(off, image, "--vm-off");
});

test("a vmsweep disk: both images, by its folder or by its second image", async (t) => {
	if (!requireTool(t, ...agedKinds.ext4.tools)) return;
	await using folder = await temporaryFolder();
	const { image } = await makeAged(folder, "ext4", 7);
	const alone = await explain(image);
	const disk = folder.file("disk");
	await runOk(vmsweep, ["create", disk, "--second", image]);
	const first = `${disk}/first.log`;
	const explanation = await explain(disk);
	const { image: name, ...rest } = await explain(image);
	assert.deepEqual({ ...rest, image: name }, explanation);
	assert.equal(explanation.format, "vmsweep-disk");
	assert.equal(explanation.hostBytes, (await allocatedBytes(image)) + (await allocatedBytes(first)));
	assert.equal(share(explanation, "first-image"), await allocatedBytes(first));
	assert.equal(share(explanation, "free"), share(alone, "free"));
	// A sweep drops metadata that was never used, too.
	assert(explanation.reclaimableBytes! <= alone.reclaimableBytes!);
	assert(explanation.reclaimableBytes! > 5 * MIB);
	assert.equal(explanation.command, `vmsweep clean ${disk}`);
	const before = await allocatedBytes(image);
	await runOk(vmsweep, ["clean", disk]);
	assertNear(explanation.reclaimableBytes!, before - (await allocatedBytes(image)), "what cleaning gives back");

	// Now both belong together, served or not, and only their sizes can be told.
	const socket = folder.file("s");
	await using server = start(vmsweep, ["serve", disk, "--socket", socket]);
	await server.line(/nbd\+unix/);
	const served = await explain(disk);
	assert.equal(served.command, `vmsweep clean ${disk}`);
	assert.match(served.notes[0]!, /served now/);
	await server.kill();
	const left = await explain(disk);
	assert.equal(left.command, `vmsweep commit ${disk}`);
	for (const each of [served, left]) {
		assert.equal(share(each, "second-image"), await allocatedBytes(image));
		assert.equal(share(each, "first-image") + share(each, "second-image"), each.hostBytes);
	}
});

test("the text begins with a plain sentence, and has a command to copy", async (t) => {
	if (!requireTool(t, ...agedKinds.ext4.tools)) return;
	await using folder = await temporaryFolder();
	const { image } = await makeAged(folder, "ext4", 8, { name: "it's mine.raw" });
	const text = await runOk(vmsweep, ["explain", "it's mine.raw"], { folder: folder.path });
	const [first, second, third] = text.split("\n");
	assert.match(first!, /^it's mine\.raw takes \d\S* MiB on the host: a raw image of a 128 MiB disk\.$/);
	assert.match(second!, /^Its guest uses \d\S* MiB of that; \d\S* MiB is held although the guest doesn't need it\.$/);
	const command = /^A sweep would give \d\S* MiB back: (.*)$/.exec(third!)?.[1];
	assert.equal(command, "vmsweep sweep 'it'\\''s mine.raw'");
	assert.match(text, /^ON THE HOST {2}WHAT$/m);
	assert.match(text, /^VOLUME {2}TYPE/m);
	assert.match(text, /^disk +ext4/m);
	assert.match(text, /^LARGEST AREAS/m);
	const before = await allocatedBytes(image);
	await runOk("sh", ["-c", command.replace("vmsweep", vmsweep)], { folder: folder.path });
	assert((await allocatedBytes(image)) < before);
	const after = await runOk(vmsweep, ["explain", image]);
	assert.match(after, /^A sweep would give (nothing|\d\S* KiB) back\.$/m);
	assert.doesNotMatch(after, /vmsweep sweep/);
});
