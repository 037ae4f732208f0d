// Fuzzing the guest map: real images with seeded mutations, checksums put right. Whatever the bytes: the map comes
// back whole and in order, or one of our errors is thrown; within a budget of reads; and the next run is not hurt.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/map.test.ts      a soak

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { Ext4LiveVolume } from "../../src/core/filesystems/ext4/index.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import type { ByteSource } from "../../src/foundations/source.ts";
import { byteCount, byteOffset, logPosition } from "../../src/foundations/units.ts";
import { readGuestMap } from "../../src/services/guest-map.ts";
import { JournalWriter, memorySource } from "../interop/map-journal-writer.ts";
import { temporaryFolder } from "../support/folders.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { describeTarget, Mutation, type Target } from "./map-mutations.ts";

const COUNT = Number(process.env.VMSWEEP_FUZZ_COUNT ?? 3000);
const MIB = 1 << 20;

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

const targets: Target[] = [];

async function makeTargets(): Promise<void> {
	if (targets.length > 0) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	const make = async (name: string, mkfs: readonly string[], dirty: number | null): Promise<Uint8Array> => {
		await runOk("mke2fs", ["-q", "-F", "-b", "1024", ...mkfs, image, "24M"]);
		const bytes = new Uint8Array(await readFile(image));
		if (dirty !== null) await makeDirty(bytes, dirty);
		targets.push(await describeTarget(name, bytes, 0, bytes.length, "none"));
		return bytes;
	};
	await make("ext4", ["-t", "ext4"], null);
	const dirty = await make("ext4, dirty", ["-t", "ext4"], 0x12);
	await make("ext4, dirty, no checksums", ["-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"], 0);
	await make("ext4, meta_bg, bigalloc", ["-t", "ext4", "-O", "meta_bg,^resize_inode,bigalloc", "-C", "4096"], 0x12);
	await make("ext3", ["-t", "ext3"], 0);
	await make("ext2", ["-t", "ext2"], null);
	for (const label of ["gpt", "mbr"] as const) {
		const disk = folder.file("disk");
		await runOk("truncate", ["-s", "0", disk]);
		await runOk("truncate", ["-s", "40M", disk]);
		const type =
			label === "gpt"
				? "label: gpt\nstart=2048,size=49152\nstart=53248,size=20480\n"
				: "label: dos\n2: start=1024,size=80000,type=5\n5: start=2048,size=49152,type=83\n6: start=55296,size=20480,type=83\n";
		await runOk("sfdisk", ["-q", disk], { input: type });
		const bytes = new Uint8Array(await readFile(disk));
		bytes.set(dirty, MIB);
		targets.push(await describeTarget(label, bytes, MIB, dirty.length, label));
	}
}

/** Leaves transactions in the journal, as a crash does. */
async function makeDirty(bytes: Uint8Array, incompat: number): Promise<void> {
	const writer = await JournalWriter.open(bytes);
	writer.mount(1, 5, incompat);
	for (let i = 0; i < 6; i++)
		writer.commit(
			[writer.geometry.firstDataBlock, writer.geometry.firstDataBlock + 1, 5000 + i, 6000].map((block) => ({
				block,
				content: writer.readBlock(block),
			})),
			i % 2 === 0 ? [5001] : [],
		);
}

/** Refuses what no reader may do: read outside, or without end. */
function guarded(bytes: Uint8Array): ByteSource & { reads: number } {
	const source = memorySource(bytes);
	const guard = {
		size: source.size,
		reads: 0,
		async read(at: ReturnType<typeof byteOffset>, into: Uint8Array): Promise<void> {
			guard.reads++;
			assert.ok(guard.reads < 200_000, "too many reads");
			assert.ok(into.length <= 4 * MIB, `one read of ${into.length} bytes`);
			await source.read(at, into);
		},
	};
	return guard;
}

async function expectWholeMap(bytes: Uint8Array): Promise<void> {
	const map = await readGuestMap(guarded(bytes));
	let cursor = 0;
	let extents = 0;
	for (const { start, length, state, volume } of map.extents) {
		assert.equal(start, cursor);
		assert.ok(Number.isInteger(length) && length > 0);
		if (state === "free") {
			const owner = map.volumes.find(({ id }) => id === volume);
			assert.ok(
				owner !== undefined &&
					owner.kept === null &&
					start >= owner.offset &&
					start + length <= owner.offset + owner.size,
			);
			assert.ok(start >= owner.offset + 2048, "the superblock is free");
		}
		cursor += length;
		assert.ok(++extents < 1_000_000);
	}
	assert.equal(cursor, bytes.length);
	assert.ok(map.bytesRead <= bytes.length * 4 + 64 * MIB, `${map.bytesRead} bytes read`);
}

/** Follows a mutated volume live: mutated from the start, and mutated by its writes. */
async function followLive(target: Target, seed: number): Promise<void> {
	const { volumeAt, volumeSize, geometry } = target;
	const volumeBytes = target.bytes.subarray(volumeAt, volumeAt + volumeSize);
	const view = guarded(volumeBytes);
	let volume: Ext4LiveVolume;
	try {
		volume = await Ext4LiveVolume.open(view);
	} catch (error) {
		if (isVmsweepError(error, "VOLUME_UNSUPPORTED")) return;
		throw error;
	}
	const random = seededRandom(seed);
	let position = 0;
	for (let i = 0; i < 30; i++) {
		const range = random.pick(volume.watch());
		const from = range.start + random.below(Math.max(1, range.length / geometry.blockSize)) * geometry.blockSize;
		const length = Math.min(random.between(1, 3) * geometry.blockSize, volumeSize - from);
		if (length <= 0) continue;
		const bytes = volumeBytes.slice(from, from + length);
		if (random.chance(0.5)) bytes[random.below(Math.min(64, length))] = random.below(256);
		const at = byteOffset(from);
		await volume.observe([
			{
				at,
				length: byteCount(length),
				position: logPosition(position),
				end: logPosition(position + 1),
				read: async () => bytes,
			},
		]);
		position++;
		const state = random.chance(0.8)
			? await volume.advance(view, logPosition(position))
			: await volume.advanceClean(view, logPosition(position), random.chance(0.5) ? null : logPosition(position));
		if (state.kind === "keep") assert.deepEqual([...volume.freeRuns(byteOffset(0), byteOffset(volumeSize))], []);
	}
}

describe("mutated images", () => {
	test("the map comes back whole, or one of our errors is thrown", async (t) => {
		if (!requireTool(t, "mke2fs", "sfdisk")) return;
		await makeTargets();
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed} VMSWEEP_FUZZ_COUNT=${COUNT}`);
		const seeds = [...FOUND, ...Array.from({ length: COUNT }, (_, i) => (seed + i) >>> 0)];
		for (const each of seeds) {
			const random = seededRandom(each);
			const target = random.pick(targets);
			const mutation = new Mutation(target);
			try {
				for (let i = random.between(1, 4); i > 0; i--) mutation.apply(random);
				await expectWholeMap(target.bytes);
				if (random.chance(0.2)) await followLive(target, each);
			} catch (error) {
				if (isVmsweepError(error) && error.code !== "BUG") continue;
				throw new Error(`seed ${each}, ${target.name}: ${mutation.steps.join(", ")}`, { cause: error });
			} finally {
				mutation.undo();
			}
		}
	});
	test("the images themselves were read, not refused", async (t) => {
		if (!requireTool(t, "mke2fs", "sfdisk")) return;
		await makeTargets();
		for (const { name, bytes } of targets) {
			const map = await readGuestMap(memorySource(bytes));
			assert.ok(
				map.volumes.some(({ kept }) => kept === null),
				`${name}: ${map.volumes.map(({ kept }) => `${kept}`).join()}`,
			);
		}
	});
});
