// Fuzzing the btrfs reader: real images with seeded mutations, checksums put right. Whatever the bytes: a map comes back
// whose free runs are in order and touch nothing that was read, or one of our errors; with a bounded number of reads.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/btrfs.test.ts      a soak

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { readBtrfs } from "../../src/core/filesystems/btrfs/index.ts";
import { Key, NodeHeader, SUPERBLOCK_PLACES, SuperBlock } from "../../src/core/filesystems/btrfs/layout.ts";
import { crc32c } from "../../src/foundations/crc.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import { viewOf } from "../../src/foundations/struct.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { BTRFS_TOOLS, makeBtrfs, makeHoles } from "../interop/map-btrfs-images.ts";
import { temporaryFolder } from "../support/folders.ts";
import { type Random, seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { SparseImage } from "./sparse-image.ts";

const COUNT = Number(process.env.VMSWEEP_FUZZ_COUNT ?? 1000);

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

interface Target {
	readonly name: string;
	readonly image: SparseImage;
	readonly nodeSize: number;
	/** Places of each tree block, by its logical position. */
	readonly nodes: readonly (readonly number[])[];
	/** Indexes of those blocks that the reader reads; the others are of no interest to it, or of the past. */
	readonly met: readonly number[];
}

const targets: Target[] = [];
const kinds: Readonly<Record<string, readonly string[]>> = {
	"free-space tree": [],
	"extent tree, blocks of 4 KiB": ["-n", "4096", "-R", "^free-space-tree"],
	mixed: ["-M"],
};

async function makeTargets(): Promise<void> {
	if (targets.length > 0) return;
	for (const [name, mkfs] of Object.entries(kinds)) {
		await using folder = await temporaryFolder();
		const made = await makeBtrfs(folder, { mkfs, options: "noatime" }, "128M");
		assert.ok(made !== null);
		await using mounted = made.mounted;
		await makeHoles(mounted.path, 1, 300);
		await mounted.unmount();
		targets.push(await describeTarget(name, await SparseImage.load(made.image)));
	}
}

async function describeTarget(name: string, image: SparseImage): Promise<Target> {
	const superblock = SuperBlock.at(viewOf(image.bytes(SUPERBLOCK_PLACES[0]!, SuperBlock.size)));
	const nodes = new Map<number, number[]>();
	for (const at of image.pages()) {
		const header = NodeHeader.at(viewOf(image.bytes(at, NodeHeader.size)));
		const isNode = Buffer.compare(header.fsid, superblock.fsid) === 0 && header.bytenr % superblock.nodeSize === 0;
		// Superblocks have the same place for the file system's id.
		if (isNode && !SUPERBLOCK_PLACES.includes(at)) nodes.set(header.bytenr, [...(nodes.get(header.bytenr) ?? []), at]);
	}
	const source = image.source(20_000);
	await readBtrfs(source);
	const places = [...nodes.values()];
	const wasRead = (place: number): boolean =>
		source.ranges.some(({ at, length }) => at <= place && place < at + length);
	const met = places.flatMap((copies, index) => (copies.some(wasRead) ? [index] : []));
	assert.ok(met.length >= 5);
	return { name, image, nodeSize: superblock.nodeSize, nodes: places, met };
}

/** One random change of one random structure. Returns what it was. */
function mutate({ image, nodeSize, nodes, met }: Target, random: Random): string {
	if (random.chance(0.25)) {
		const at = random.chance(0.8) ? SUPERBLOCK_PLACES[0]! : SUPERBLOCK_PLACES[1]!;
		const raw = image.bytes(at, SuperBlock.size);
		const offset = random.chance(0.7)
			? random.pick(Object.values(SuperBlock.offset))
			: 0x20 + random.below(random.chance(0.5) ? 0x120 : 0x900);
		scramble(raw.subarray(offset, offset + 8), random);
		seal(raw);
		image.write(at, raw);
		return `superblock at ${at}, byte ${offset}`;
	}
	const places = nodes[random.chance(0.9) ? random.pick(met) : random.below(nodes.length)]!;
	const raw = image.bytes(places[0]!, nodeSize);
	const view = viewOf(raw);
	const header = NodeHeader.at(view);
	const entry = header.level === 0 ? 25 : 33;
	const entryCount = Math.min(Math.max(1, header.itemCount), Math.floor((nodeSize - NodeHeader.size) / entry));
	const entryAt = NodeHeader.size + random.below(entryCount) * entry;
	let offset: number;
	switch (random.below(5)) {
		case 0:
			offset = random.pick(Object.values(NodeHeader.offset));
			break;
		case 1:
			offset = entryAt + random.pick([...Object.values(Key.offset), Key.size, Key.size + 4]);
			break;
		case 2:
			offset = NodeHeader.size + Math.min(view.getUint32(entryAt + Key.size, true), nodeSize) + random.below(100);
			break;
		case 3:
			NodeHeader.write.itemCount(view, 0, Math.max(0, header.itemCount + random.pick([-1, 1, 5])));
			offset = nodeSize;
			break;
		default:
			offset = random.below(nodeSize);
	}
	scramble(raw.subarray(Math.min(offset, nodeSize), offset + 8), random);
	if (random.chance(0.95)) seal(raw);
	for (const at of random.chance(0.9) ? places : places.slice(0, 1)) image.write(at, raw);
	return `block ${header.bytenr} of tree ${header.owner}, byte ${offset}`;
}

/** All images have CRC-32C checksums. */
const seal = (raw: Uint8Array): void => viewOf(raw).setUint32(0, ~crc32c(0xffffffff, raw.subarray(32)) >>> 0, true);

/** Changes some of the bytes: random values, edge values, single bits, neighbours. */
function scramble(bytes: Uint8Array, random: Random): void {
	if (bytes.length === 0) return;
	switch (random.below(5)) {
		case 0:
			bytes.set(random.bytes(bytes.length));
			return;
		case 1:
			bytes.fill(random.pick([0, 0xff, 0x80, 0x7f, 1]));
			return;
		case 2:
			bytes[random.below(bytes.length)]! ^= 1 << random.below(8);
			return;
		case 3:
			bytes[0] = (bytes[0]! + random.pick([1, 255])) & 0xff;
			return;
		default:
			// Sectors and blocks: what a wrong length or position would most plausibly be off by.
			if (bytes.length > 1) bytes[1] = (bytes[1]! + random.pick([16, 64, 240, 192])) & 0xff;
	}
}

async function expectSoundMap(image: SparseImage): Promise<boolean> {
	const source = image.source(20_000);
	const map = await readBtrfs(source);
	if (map === null) return false;
	assert.ok(map.size <= image.size);
	const read = source.ranges.sort((a, b) => a.at - b.at);
	assert.ok(read.reduce((sum, { length }) => sum + length, 0) < 256 * 2 ** 20);
	const end = byteOffset(map.size);
	let cursor = 2 ** 20;
	let free = 0;
	let next = 0;
	for (const { start, length } of map.freeRuns(byteOffset(0), end)) {
		assert.ok(start >= cursor && length > 0 && start % 512 === 0 && length % 512 === 0, `run ${start}+${length}`);
		cursor = start + length;
		free += length;
		while (next < read.length && read[next]!.at + read[next]!.length <= start) next++;
		assert.ok(next === read.length || read[next]!.at >= cursor, `what was read at ${read[next]?.at} is free`);
	}
	assert.ok(cursor <= Math.max(map.size, 2 ** 20));
	assert.equal(free, map.freeBytes ?? 0);
	const middle = byteOffset(Math.floor(image.size / 2));
	const parts = [...map.freeRuns(byteOffset(0), middle), ...map.freeRuns(middle, end)];
	assert.equal(
		parts.reduce((sum, { length }) => sum + length, 0),
		free,
	);
	return map.kept === null;
}

describe("mutated images", () => {
	test("the map comes back in order, or one of our errors is thrown", async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		await makeTargets();
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed} VMSWEEP_FUZZ_COUNT=${COUNT}`);
		const seeds = [...FOUND, ...Array.from({ length: COUNT }, (_, i) => (seed + i) >>> 0)];
		let read = 0;
		for (const each of seeds) {
			const random = seededRandom(each);
			const target = random.pick(targets);
			const steps = Array.from({ length: random.between(1, 3) }, () => mutate(target, random));
			try {
				if (await expectSoundMap(target.image)) read++;
			} catch (error) {
				if (isVmsweepError(error) && error.code !== "BUG") continue;
				throw new Error(`seed ${each}, ${target.name}: ${steps.join(", ")}`, { cause: error });
			} finally {
				target.image.undo();
			}
		}
		t.diagnostic(`${read} of ${seeds.length} were read in spite of it`);
		assert.ok(read > 0 && read < seeds.length);
	});

	test("the images themselves are read, not kept", async (t) => {
		if (!requireTool(t, ...BTRFS_TOOLS)) return;
		await makeTargets();
		for (const { image } of targets) assert.equal(await expectSoundMap(image), true);
	});
});
