// Fuzzing how a disk is divided: LVM, partition tables, swap and packed file systems. Whatever the bytes: the guest map
// comes back whole and in order, what is free belongs to a volume that was read, and the sums agree.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/volumes.test.ts      a soak

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { readPartitionTable } from "../../src/core/volumes/index.ts";
import { parseGroup } from "../../src/core/volumes/lvm/volume-group.ts";
import { allVolumes, type ByteRange, type Extent } from "../../src/foundations/guest-map.ts";
import { readGuestMap } from "../../src/services/guest-map.ts";
import { requireTool } from "../support/requirements.ts";
import { type LvmTarget, lvmTargets, pickMutation } from "./lvm-targets.ts";
import { type Attempt, fuzzSeeds, guardedFile } from "./seeded-fuzz.ts";
import type { SparseImage } from "./sparse-image.ts";
import { PACKERS, packedTargets, tableTargets, type VolumeTarget } from "./volume-targets.ts";

/** Seeds that once found something: always run. */
const FOUND: Readonly<Record<"lvm" | "tables" | "packed", readonly number[]>> = {
	lvm: [134, 2454087],
	tables: [],
	packed: [],
};

interface WholeMap {
	readonly free: readonly Extent[];
	readonly extents: readonly Extent[];
	readonly isRead: boolean;
}

/** Reads a map, and checks all that holds for every map. */
async function expectWholeMap(image: SparseImage, vmOff = false): Promise<WholeMap> {
	const map = await readGuestMap(guardedFile(image), { vmOff });
	const volumes = new Map([...allVolumes(map.volumes)].map((volume) => [volume.id, volume]));
	const free = new Map<string, number>();
	const extents: Extent[] = [];
	let cursor = 0;
	for (const extent of map.extents) {
		const { start, length, state, volume } = extent;
		assert.equal(start, cursor);
		assert.ok(Number.isInteger(length) && length > 0);
		cursor += length;
		extents.push(extent);
		assert.ok(extents.length < 100_000, "too many extents");
		if (state !== "free") continue;
		assert.equal(volumes.get(volume ?? "")?.kept, null, `free in ${volume}`);
		assert.ok(start >= 512, "the disk's first sector is free");
		free.set(volume!, (free.get(volume!) ?? 0) + length);
	}
	assert.equal(cursor, image.size);
	for (const { id, kept, freeBytes } of volumes.values())
		assert.equal(free.get(id) ?? 0, kept === null ? freeBytes : 0, `free bytes of ${id}`);
	return {
		free: extents.filter(({ state }) => state === "free"),
		extents,
		isRead: [...volumes.values()].some(({ kept }) => kept === null),
	};
}

const meets = (a: ByteRange, b: ByteRange): boolean => a.start < b.start + b.length && b.start < a.start + a.length;

async function attemptVolume({ target, random, steps }: Attempt<VolumeTarget>): Promise<string> {
	const { image, isFull } = target;
	try {
		for (let i = random.between(1, 3); i > 0; i--) steps.push(target.mutate(random));
		const { free, isRead } = await expectWholeMap(image, random.chance(0.5));
		const { occupied } = await readPartitionTable(guardedFile(image));
		for (const extent of free) {
			assert.ok(!isFull, `free: ${extent.start}+${extent.length}`);
			for (const table of occupied) assert.ok(!meets(extent, table), `free: a part of the table at ${table.start}`);
		}
		return free.length > 0 ? "free" : isRead ? "full" : "kept";
	} finally {
		image.undo();
	}
}

const HIDDEN = 30_000;

/** Many hidden volumes of one segment each. */
const hidden = (stripes: (index: number) => string): string[] =>
	Array.from(
		{ length: HIDDEN },
		(_, index) =>
			`a${index} { id="x" status=[] segment_count=1 segment1 { start_extent=0 extent_count=1 type="striped" stripe_count=1 ${stripes(index)} } }`,
	);

describe("mutated volumes", () => {
	test("LVM: a whole map, and what a logical volume has is never free", async (t) => {
		if (!requireTool(t, "root", "loop devices", "pvcreate", "sgdisk")) return;
		const targets = await lvmTargets();
		const owned = new Map<LvmTarget, readonly Extent[]>();
		for (const target of targets) {
			const { extents, free } = await expectWholeMap(target.image);
			assert.ok(free.length > 0, `${target.name} has no free extents`);
			owned.set(
				target,
				extents.filter(({ volume }) => volume?.includes("/")),
			);
		}
		const attempt = async ({ target, random, steps }: Attempt<LvmTarget>): Promise<string> => {
			try {
				const mutation = pickMutation(target, random);
				for (let i = random.between(1, 3); i > 0; i--) steps.push(mutation.apply(random));
				const { free } = await expectWholeMap(target.image);
				if (mutation.truthful)
					for (const extent of free)
						for (const taken of owned.get(target)!)
							assert.ok(!meets(extent, taken), `free: ${extent.start}+${extent.length} of ${taken.volume}`);
				return free.length > 0 ? "free extents" : "kept";
			} finally {
				target.image.undo();
			}
		};
		const outcomes = ["free extents", "kept"];
		await fuzzSeeds(t, { file: "volumes.test.ts", found: FOUND.lvm, outcomes }, targets, attempt);
	});

	test("partition tables: a whole map, and no table is free", async (t) => {
		if (!requireTool(t, "root", "loop devices", "sfdisk", "sgdisk", "mke2fs", "mkswap")) return;
		const targets = await tableTargets();
		for (const { name, image } of targets) assert.ok((await expectWholeMap(image)).free.length > 0, name);
		const outcomes = ["free", "kept"];
		await fuzzSeeds(t, { file: "volumes.test.ts", found: FOUND.tables, outcomes }, targets, attemptVolume);
	});

	test("swap and packed file systems: a whole map, and what is full stays so", async (t) => {
		if (!requireTool(t, "mkswap", ...PACKERS)) return;
		const targets = await packedTargets();
		for (const { name, image, isFull } of targets) {
			const { free, isRead } = await expectWholeMap(image, true);
			assert.ok(isRead && free.length > 0 !== isFull, name);
		}
		const outcomes = ["free", "full", "kept"];
		await fuzzSeeds(t, { file: "volumes.test.ts", found: FOUND.packed, outcomes }, targets, attemptVolume);
	});

	/** Names: the logical volumes of a text of some MiB. */
	const hostileGroups: Readonly<Record<string, () => string[]>> = {
		"a ring of hidden volumes": () => hidden((index) => `stripes=["a${(index + 1) % HIDDEN}",0]`),
		"a chain of hidden volumes": () =>
			hidden((index) => (index === 0 ? 'stripes=["pv0",0]' : `stripes=["a${index - 1}",0]`)),
		"hidden volumes that all use one": () =>
			hidden((index) => `stripes=["${index === 0 ? "pv0" : "a0"}",0] x="a${(index + 1) % HIDDEN}"`),
		"a visible one with all others": () => {
			const names = Array.from({ length: HIDDEN }, (_, index) => `"a${index}"`);
			const segment = `start_extent=0 extent_count=1 type="raid1" raids=[${names.join()}]`;
			const visible = `v { id="x" status=["VISIBLE"] segment_count=1 segment1 { ${segment} } }`;
			return [visible, ...hidden((index) => `stripes=["pv0",${index}]`)];
		},
		"a kind of segment with a long name": () => {
			const segment = `start_extent=0 extent_count=1 type="raid${"1".repeat(1 << 20)}!"`;
			return [`v { id="x" status=[] segment_count=1 segment1 { ${segment} } }`];
		},
	};
	for (const [name, volumes] of Object.entries(hostileGroups))
		test(`LVM: ${name} can't be made to take long`, () => {
			const text = `contents="Text Format Volume Group" version=1 vg0 { id="x" extent_size=8
				physical_volumes { pv0 { id="p" pe_start=2048 pe_count=100000 } } logical_volumes { ${volumes().join("\n")} } }`;
			const before = process.cpuUsage();
			parseGroup(text);
			assert.ok(process.cpuUsage(before).user < 10e6);
		});
});
