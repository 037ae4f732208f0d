// Fuzzing the reader of XFS: real images, clean and dirty, with seeded mutations, checksums put right. Whatever the
// bytes: the map comes back whole and in order, or one of our errors is thrown; within a budget of reads.
//
//   VMSWEEP_FUZZ_COUNT=100000 VMSWEEP_SEED=1 node --test test/fuzz/xfs.test.ts      a soak
//
// What must hold beyond that: headers, the log and the tree that says what is free are never free themselves; and where
// no checksum was forged and the log is as it was, nothing is free that was not free before.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { readXfs } from "../../src/core/filesystems/xfs/index.ts";
import { BASIC_BLOCK } from "../../src/core/filesystems/xfs/layout.ts";
import { headerBlocks } from "../../src/core/filesystems/xfs/open.ts";
import { isVmsweepError } from "../../src/foundations/errors.ts";
import type { FileSystemMap } from "../../src/foundations/guest-map.ts";
import type { ByteSource } from "../../src/foundations/source.ts";
import { byteOffset } from "../../src/foundations/units.ts";
import { memorySource } from "../interop/map-journal-writer.ts";
import { fragment, workOn } from "../interop/xfs-images.ts";
import { temporaryFolder } from "../support/folders.ts";
import { Mounted } from "../support/loop.ts";
import { runOk } from "../support/processes.ts";
import { seededRandom, testSeed } from "../support/randomness.ts";
import { requireTool } from "../support/requirements.ts";
import { describeTarget, Mutation, type Target } from "./xfs-mutations.ts";

const COUNT = Number(process.env.VMSWEEP_FUZZ_COUNT ?? 1500);
const MIB = 1 << 20;
const TOOLS = ["root", "loop devices", "mkfs.xfs", "xfs_io"] as const;

/** Seeds that once found something: always run. */
const FOUND: readonly number[] = [];

interface Known extends Target {
	/** One byte per 512 bytes of the image, 1 = free when nothing was changed. */
	readonly free: Uint8Array;
}
const targets: Known[] = [];

async function makeTargets(): Promise<void> {
	if (targets.length > 0) return;
	await using folder = await temporaryFolder();
	const image = folder.file("image");
	const make = async (name: string, mkfs: string, ending: "none" | "unmount" | "shutdown"): Promise<void> => {
		await runOk("truncate", ["-s", "0", image]);
		await runOk("truncate", ["-s", "40M", image]);
		await runOk("mkfs.xfs", ["-q", "-f", "--unsupported", "-d", "agcount=2", ...mkfs.split(" "), image]);
		if (ending !== "none") {
			await using mounted = await Mounted.mount(image, folder.file("mount"), "loop");
			const random = seededRandom(1);
			await workOn(mounted.path, random, 100);
			await fragment(mounted.path, random, 900);
			if (ending === "shutdown") await runOk("xfs_io", ["-x", "-c", "shutdown -f", mounted.path]);
			await mounted.unmount();
		}
		const bytes = new Uint8Array(await readFile(image));
		const map = await readXfs(memorySource(bytes), { vmOff: false });
		assert.equal(map?.kept, null, `${name}: ${map?.kept}`);
		targets.push({ ...(await describeTarget(name, bytes)), free: freeSectors(map!, bytes.length) });
	};
	await make("clean, rmapbt", "-b size=1024 -m rmapbt=1", "unmount");
	await make("dirty", "-b size=1024", "shutdown");
	await make("dirty, sectors of 4 KiB", "-b size=4096 -s size=4096", "shutdown");
	await make("version 4", "-b size=512 -m crc=0", "none");
}

/** Walks a map; fails where it is not in order. */
function freeSectors(map: FileSystemMap, length: number): Uint8Array {
	const free = new Uint8Array(length / BASIC_BLOCK);
	let end = -1;
	for (const run of map.freeRuns(byteOffset(0), byteOffset(length))) {
		assert.ok(run.start > end && run.length > 0 && run.start + run.length <= map.size, "runs out of order or bounds");
		end = run.start + run.length;
		free.fill(1, run.start / BASIC_BLOCK, end / BASIC_BLOCK);
	}
	return free;
}

/** Refuses what no reader may do: read outside, or without end. */
function guarded(bytes: Uint8Array): ByteSource & { reads: number; bytesRead: number } {
	const source = memorySource(bytes);
	const guard = {
		size: source.size,
		reads: 0,
		bytesRead: 0,
		async read(at: ReturnType<typeof byteOffset>, into: Uint8Array): Promise<void> {
			guard.reads++;
			guard.bytesRead += into.length;
			assert.ok(guard.reads < 50_000, "too many reads");
			assert.ok(into.length <= 4 * MIB, `one read of ${into.length} bytes`);
			await source.read(at, into);
		},
	};
	return guard;
}

function expectSafe(target: Known, mutation: Mutation, map: FileSystemMap): void {
	const free = freeSectors(map, target.bytes.length);
	if (map.freeBytes !== null)
		assert.equal(
			map.freeBytes,
			free.reduce((sum, bit) => sum + bit * BASIC_BLOCK, 0),
		);
	if (mutation.touchesSuperblock) return;
	const { geometry } = target;
	const isFree = (from: number, length: number): boolean =>
		free.subarray(from / BASIC_BLOCK, (from + length) / BASIC_BLOCK).includes(1);
	for (let group = 0; group < geometry.agCount; group++)
		assert.ok(
			!isFree(group * geometry.agBlocks * geometry.blockSize, headerBlocks(geometry) * geometry.blockSize),
			"a header is free",
		);
	const { start, basicBlocks } = geometry.log!;
	assert.ok(!isFree(start, basicBlocks * BASIC_BLOCK), "the log is free");
	if (mutation.forges || mutation.touchesLog) return;
	const more = free.findIndex((bit, sector) => bit === 1 && target.free[sector] === 0);
	assert.equal(more, -1, `sector ${more} became free`);
}

describe("mutated XFS images", () => {
	test("the map comes back whole, or one of our errors is thrown", async (t) => {
		if (!requireTool(t, ...TOOLS)) return;
		await makeTargets();
		const seed = testSeed();
		t.diagnostic(`VMSWEEP_SEED=${seed} VMSWEEP_FUZZ_COUNT=${COUNT}`);
		const reached = { whole: 0, warned: 0, kept: 0, thrown: 0 };
		for (const each of [...FOUND, ...Array.from({ length: COUNT }, (_, i) => (seed + i) >>> 0)]) {
			const random = seededRandom(each);
			const target = random.pick(targets);
			const mutation = new Mutation(target);
			try {
				for (let i = random.between(1, 3); i > 0; i--) mutation.apply(random);
				const source = guarded(target.bytes);
				const map = await readXfs(source, { vmOff: false });
				assert.ok(source.bytesRead <= 3 * target.bytes.length, `${source.bytesRead} bytes read`);
				if (map === null) continue;
				expectSafe(target, mutation, map);
				reached[map.kept !== null ? "kept" : map.warnings.length > 0 ? "warned" : "whole"]++;
			} catch (error) {
				reached.thrown++;
				if (isVmsweepError(error) && error.code !== "BUG") continue;
				throw new Error(`seed ${each}, ${target.name}: ${mutation.steps.join(", ")}`, { cause: error });
			} finally {
				mutation.undo();
			}
		}
		t.diagnostic(JSON.stringify(reached));
		if (COUNT >= 500) for (const kind of ["whole", "warned", "kept"] as const) assert.ok(reached[kind] > 0, kind);
	});
});
